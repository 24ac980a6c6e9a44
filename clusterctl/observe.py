"""Look at every host of a cluster at once: its container, its last words, what Ray runs with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from clusterctl.containers import LABEL_CLUSTER, LABEL_NODE
from clusterctl.fanout import Done, Failed
from clusterctl.launch import NODE_PROBE
from clusterctl.links import HostLink
from clusterctl.runtime import SeenContainer
from clusterctl.session import Session

WAITING = "waiting for the head"  # what a worker's supervisor says while it holds Ray back


@dataclass(frozen=True)
class Seen:
    """The cluster's containers on the hosts that answered, and why others did not."""

    containers: Mapping[str, SeenContainer]
    unreachable: Mapping[str, str]
    last_lines: Mapping[str, str]


@dataclass(frozen=True)
class Versions:
    """What a node's container really runs with. `environment` None: no raylet was seen."""

    python: str | None
    ray: str | None
    environment: Mapping[str, str | None] | None


def look(session: Session) -> Seen:
    """Every host at once, with the last word of each container that does not run."""
    cluster = session.spec.name
    outcomes = session.each(lambda link: _of_host(link, cluster))
    unreachable = {name: error.message for name, error in session.failures.items()}
    containers: dict[str, SeenContainer] = {}
    last_lines: dict[str, str] = {}
    for name, outcome in outcomes.items():
        if isinstance(outcome, Failed):
            unreachable[name] = outcome.error.message
        elif outcome.value is not None:
            containers[name], last_lines[name] = outcome.value
    return Seen(containers, unreachable, last_lines)


def _of_host(link: HostLink, cluster: str) -> tuple[SeenContainer, str] | None:
    labels = {LABEL_CLUSTER: cluster, LABEL_NODE: link.name}
    found = link.runtime.containers(labels)
    return (found[0], _last_word(link, found[0])) if found else None


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
