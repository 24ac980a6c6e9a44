"""The nodes of a running cluster as their own containers describe them: labels and `ray start`
line. What was asked for may have changed since; this is what is there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clusterctl.containers import LABEL_CLUSTER
from clusterctl.errors import NotReady
from clusterctl.links import HostLink
from clusterctl.raycluster import CPU_SLOT, ExpectedNode
from clusterctl.runtime import SeenContainer
from clusterctl.session import Session, results


@dataclass(frozen=True)
class Member:
    """A node with its running container. `ray_address` is how it finds Ray: HOST:PORT."""

    node: ExpectedNode
    container: SeenContainer
    link: HostLink
    ray_address: str

    @property
    def name(self) -> str:
        return self.node.name


def members(session: Session) -> tuple[Member, ...]:
    """Every node of the cluster, the head first.

    Raises NotReady naming the nodes whose container is not running.
    """
    found = results(session.each(lambda link: member_on(link, session.spec.name)))
    return tuple(sorted(found.values(), key=lambda member: member.node.role != "head"))


def head_of(session: Session) -> Member:
    """The head alone; raises what its connection failed with."""
    return member_on(session.head, session.spec.name)


def member_on(link: HostLink, cluster: str) -> Member:
    """One node. Raises NotReady when its container is not running."""
    seen = [
        one for one in link.runtime.containers({LABEL_CLUSTER: cluster}) if one.state == "running"
    ]
    if not seen:
        raise NotReady(
            f"no container of cluster {cluster} is running", host=link.name, hint="clusterctl up"
        )
    container = seen[0]
    argv = command_of(link.runtime.inspect(container.id))
    return Member(node_of(link.name, argv), container, link, ray_address(argv))


def command_of(inspected: Mapping[str, Any]) -> list[str]:
    """The whole command line of a container, out of `docker inspect`."""
    config = inspected["Config"]
    return [*(config.get("Entrypoint") or []), *(config.get("Cmd") or [])]


def node_of(name: str, argv: Sequence[str]) -> ExpectedNode:
    """What raycluster.ray_start_argv was given to make this line."""
    options = _options(argv)
    gpus = int(options["--num-gpus"])
    slots = int(json.loads(options.get("--resources", "{}")).get(CPU_SLOT, 0))
    return ExpectedNode(
        name=name,
        address=options["--node-ip-address"],
        role="head" if "--head" in argv else "worker",
        device_kind="gpu" if gpus else "cpu",
        devices=gpus or slots,
    )


def ray_address(argv: Sequence[str]) -> str:
    options = _options(argv)
    return options.get("--address") or f"{options['--node-ip-address']}:{options['--port']}"


def _options(argv: Sequence[str]) -> dict[str, str]:
    pairs = (word.partition("=") for word in argv if word.startswith("--") and "=" in word)
    return {name: value for name, _, value in pairs}
