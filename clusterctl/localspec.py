"""The spec of `up --local`: nodes that are processes on this machine, each with a loopback address
and, beside whatever Ray may run here already, with ports of its own."""

from __future__ import annotations

import platform
import socket
import sys
from collections.abc import Callable
from importlib.util import find_spec

from clusterctl.errors import ConfigError
from clusterctl.launch import LOCAL_PORTS
from clusterctl.raycluster import DEFAULT_CLIENT_SERVER_PORT
from clusterctl.spec import ClusterSpec, DevicesSpec, NodeSpec, RaySpec

NAME = "local"
FIRST_PORT, LAST_PORT = 26400, 32000  # below the range from which Linux gives out ports


def local_spec(
    name: str, known: ClusterSpec | None, count: int | None, devices: DevicesSpec | None
) -> ClusterSpec:
    """`count` nodes of this machine, or as many as the `known` cluster of that name has.

    The known one keeps its ports, so that a second `up --local` changes nothing. Raises ConfigError
    where only one node is possible, or when the name is that of a cluster on hosts.
    """
    if known is not None and known.runtime != "process":
        raise ConfigError(f"the saved cluster {name} is not a local one", hint="--name ANOTHER")
    count = count or (len(known.nodes) if known else 1)
    if count > 1 and sys.platform != "linux":
        raise ConfigError(
            "--nodes: several nodes on one machine need Linux, where all of 127.0.0.0/8 is there",
            hint="clusterctl up --local",
        )
    return ClusterSpec(
        name=name,
        nodes=tuple(_node(index, count) for index in range(count)),
        head="node1",
        image=f"python:{platform.python_version()}",  # what runs it in place of an image
        devices=devices or (known.devices if known else DevicesSpec("cpu", 1)),
        ray=known.ray if known and len(known.nodes) >= count else free_ports(count),
        runtime="process",
    )


def _node(index: int, count: int) -> NodeSpec:
    return NodeSpec(f"node{index + 1}", "localhost", cluster_address=_address(index, count))


def _address(index: int, count: int) -> str:
    return "127.0.0.1" if count == 1 else f"127.0.0.{index + 2}"


def free_ports(count: int) -> RaySpec:
    """Ports that nothing listens on now, for this many nodes."""
    return choose_ports(count, _is_free, client=find_spec("grpc") is not None)


def choose_ports(count: int, is_free: Callable[[int], bool], *, client: bool) -> RaySpec:
    """`client`: whether Ray has its client server here, which would take its default port."""
    for base in range(FIRST_PORT, LAST_PORT, LOCAL_PORTS):
        block = range(base, base + count * LOCAL_PORTS)
        if all(map(is_free, block)):
            return _ports_from(base, client)
    raise ConfigError(f"no {count * LOCAL_PORTS} free ports in a row for Ray")


def _ports_from(base: int, client: bool) -> RaySpec:
    return RaySpec(
        port=base,
        node_manager_port=base + 1,
        object_manager_port=base + 2,
        runtime_env_agent_port=base + 3,
        dashboard_agent_grpc_port=base + 4,
        dashboard_agent_listen_port=base + 5,
        metrics_export_port=base + 6,
        dashboard_port=base + 7,
        client_server_port=base + 8 if client else DEFAULT_CLIENT_SERVER_PORT,
        supervisor_port=base + 9,
        min_worker_port=base + 10,
        max_worker_port=base + LOCAL_PORTS - 1,
    )


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
