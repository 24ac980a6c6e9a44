"""Look at every host of a cluster at once: its container, its last words, what Ray runs with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from clusterctl.containers import LABEL_CLUSTER, LABEL_NODE
from clusterctl.fanout import Done, Failed
from clusterctl.launch import BOOT_FILE, NODE_PROBE
from clusterctl.links import HostLink
from clusterctl.runtime import SeenContainer
from clusterctl.session import Session

WAITING = "waiting for the head"  # what a worker's supervisor says while it holds Ray back


@dataclass(frozen=True)
class Seen:
    """The cluster's containers on the hosts that answered, and why others did not. `boots`: the
    word of each running container's present life, where it has one already."""

    containers: Mapping[str, SeenContainer]
    boots: Mapping[str, str]
    unreachable: Mapping[str, str]
    last_lines: Mapping[str, str]


@dataclass(frozen=True)
class Versions:
    """What a node's container really runs with. `environment` None: no raylet was seen."""

    python: str | None
    ray: str | None
    environment: Mapping[str, str | None] | None


@dataclass(frozen=True)
class _OnHost:
    container: SeenContainer
    boot: str | None
    last_line: str


def look(session: Session) -> Seen:
    """Every host at once, with the last word of each container that does not run."""
    cluster = session.spec.name
    outcomes = session.each(lambda link: _of_host(link, cluster))
    failed = {name: out.error for name, out in outcomes.items() if isinstance(out, Failed)}
    lost = {**session.failures, **failed}
    found = {
        name: out.value
        for name, out in outcomes.items()
        if isinstance(out, Done) and out.value is not None
    }
    return Seen(
        containers={name: one.container for name, one in found.items()},
        boots={name: one.boot for name, one in found.items() if one.boot},
        unreachable={name: error.message for name, error in lost.items()},
        last_lines={name: one.last_line for name, one in found.items()},
    )


def _of_host(link: HostLink, cluster: str) -> _OnHost | None:
    found = link.runtime.containers({LABEL_CLUSTER: cluster, LABEL_NODE: link.name})
    if not found:
        return None
    container = found[0]
    boot = _boot(link, container) if container.state == "running" else None
    return _OnHost(container, boot, _last_word(link, container))


def _boot(link: HostLink, container: SeenContainer) -> str | None:
    data = link.runtime.read_file(container.id, f"{link.runtime.home}/{BOOT_FILE}")
    return data.decode().strip() if data else None


def _last_word(link: HostLink, container: SeenContainer) -> str:
    lines = tail(link, container.id, 5)
    if container.state == "running":
        lines = [line for line in lines if line.startswith(WAITING)]
    return lines[-1] if lines else ""


def tail(link: HostLink, container_id: str, count: int) -> list[str]:
    """The last lines of a container's log that say something."""
    return [line for line in link.runtime.logs(container_id, tail=count) if line.strip()]


def read_back(session: Session, seen: Seen, names: Sequence[str]) -> dict[str, Versions]:
    """What each node's Ray really runs with, by node name: versions and these environment
    variables. Nodes that do not answer are left out."""

    def ask(link: HostLink) -> Versions:
        argv = ["python3", f"{link.runtime.home}/{NODE_PROBE}", *names]
        result = link.runtime.exec(seen.containers[link.name].id, argv)
        said = json.loads(result.stdout)
        return Versions(said["python"], said["ray"], said["env"])

    running = [name for name, one in seen.containers.items() if one.state == "running"]
    outcomes = session.each(ask, running)
    return {name: out.value for name, out in outcomes.items() if isinstance(out, Done)}
