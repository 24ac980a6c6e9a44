"""Ray as text and data. PURE: `ray start` lines, what `ray.nodes()` said, and Formation: the
cluster that was asked for held against the one that was seen."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from clusterctl.runtime import SeenContainer
from clusterctl.spec import RaySpec

CPU_SLOT = "cpu_slot"  # the Ray resource of one CPU slot; GPUs are Ray's own "GPU"

MIN_TOKEN_VERSION = (2, 52)  # the first Ray with token authentication
DEFAULT_CLIENT_SERVER_PORT = 10001

# The supervisor puts a new word in its place at every start.
BOOT = "{boot}"

NodeState = Literal["ready", "starting", "missing", "unreachable", "failed", "unexpected"]


@dataclass(frozen=True)
class ExpectedNode:
    name: str
    address: str
    role: Literal["head", "worker"]
    device_kind: Literal["gpu", "cpu"]
    devices: int


@dataclass(frozen=True)
class RayNode:
    """One entry of `ray.nodes()`, with the versions its own probe reported. `name` tells the lives
    of a node apart: see `ray_name`."""

    node_id: str
    address: str
    alive: bool
    gpus: int
    cpu_slots: int
    hostname: str = ""
    name: str = ""
    ray_version: str | None = None
    python_version: str | None = None


@dataclass(frozen=True)
class SeenNode:
    """One row of the Formation: what was expected of a node and what was seen."""

    name: str
    address: str
    role: Literal["head", "worker", "unexpected"]
    state: NodeState
    devices_expected: int
    devices_seen: int
    detail: str = ""


@dataclass(frozen=True)
class Formation:
    """`complete` is the only thing that may be called verified: the alive address set equals the
    expected one, every node shows its planned devices, versions are equal."""

    nodes: tuple[SeenNode, ...]

    @property
    def complete(self) -> bool:
        return bool(self.nodes) and all(node.state == "ready" for node in self.nodes)

    @property
    def ready(self) -> int:
        return sum(node.state == "ready" for node in self.nodes)

    @property
    def failed(self) -> tuple[SeenNode, ...]:
        """Nodes for which waiting longer is of no use."""
        return tuple(node for node in self.nodes if node.state in ("failed", "unreachable"))


@dataclass(frozen=True)
class RayReport:
    """One line of the probe: what Ray on the head knows, or why it does not answer yet."""

    nodes: tuple[RayNode, ...] | None
    error: str = ""


def ray_start_argv(node: ExpectedNode, head_address: str, ray: RaySpec) -> tuple[str, ...]:
    """`ray start` for this node, in the foreground, with every port pinned."""
    joining = _head_flags(ray) if node.role == "head" else [f"--address={head_address}:{ray.port}"]
    return (
        *("ray", "start", *joining, f"--node-ip-address={node.address}"),
        f"--node-name={ray_name(node.name, BOOT)}",
        *_port_flags(ray),
        *_device_flags(node),
        *([f"--object-store-memory={ray.object_store_memory}"] if ray.object_store_memory else []),
        *("--disable-usage-stats", "--block"),
    )


def ray_name(node: str, boot: str) -> str:
    """What Ray calls a node in one life of its container. For a while after a node is gone Ray
    still calls it alive: its successor must not be taken for it."""
    return f"{node}-{boot}"


def _head_flags(ray: RaySpec) -> list[str]:
    flags = [
        "--head",
        f"--port={ray.port}",
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={ray.dashboard_port}",
    ]
    # Ray refuses this flag where ray[client] is absent; where it is there, this is the default.
    if ray.client_server_port != DEFAULT_CLIENT_SERVER_PORT:
        flags.append(f"--ray-client-server-port={ray.client_server_port}")
    return flags


def _port_flags(ray: RaySpec) -> list[str]:
    return [
        f"--node-manager-port={ray.node_manager_port}",
        f"--object-manager-port={ray.object_manager_port}",
        f"--runtime-env-agent-port={ray.runtime_env_agent_port}",
        f"--dashboard-agent-grpc-port={ray.dashboard_agent_grpc_port}",
        f"--dashboard-agent-listen-port={ray.dashboard_agent_listen_port}",
        f"--metrics-export-port={ray.metrics_export_port}",
        f"--min-worker-port={ray.min_worker_port}",
        f"--max-worker-port={ray.max_worker_port}",
    ]


def _device_flags(node: ExpectedNode) -> list[str]:
    if node.device_kind == "gpu":
        return [f"--num-gpus={node.devices}"]
    return ["--num-gpus=0", "--resources=" + json.dumps({CPU_SLOT: node.devices})]


def pinned_ports(ray: RaySpec, role: str) -> dict[str, int]:
    """What each fixed port of a node is for. Workers' own ports are a range and not listed."""
    ports = {
        "node manager": ray.node_manager_port,
        "object manager": ray.object_manager_port,
        "runtime env agent": ray.runtime_env_agent_port,
        "dashboard agent grpc": ray.dashboard_agent_grpc_port,
        "dashboard agent": ray.dashboard_agent_listen_port,
        "metrics export": ray.metrics_export_port,
    }
    head = {
        "GCS": ray.port,
        "dashboard": ray.dashboard_port,
        "client server": ray.client_server_port,
        "supervisor": ray.supervisor_port,
    }
    return head | ports if role == "head" else ports


def parse_report(line: str) -> RayReport:
    """One JSON line of remote/ray_probe.py. Anything else that a process may print is an error
    text: Ray's own warnings must not look like an answer."""
    try:
        said = json.loads(line)
    except ValueError:
        return RayReport(None, line.strip())
    if not isinstance(said, dict) or "nodes" not in said:
        return RayReport(None, str(said["error"]) if isinstance(said, dict) else line.strip())
    return RayReport(tuple(_ray_node(entry) for entry in said["nodes"]))


def _ray_node(entry: Mapping[str, Any]) -> RayNode:
    """An entry of `ray.nodes()`; `Resources` is empty for a dead node."""
    resources = entry["Resources"]
    return RayNode(
        node_id=entry["NodeID"],
        address=entry["NodeManagerAddress"],
        alive=entry["Alive"],
        gpus=int(resources.get("GPU", 0)),
        cpu_slots=int(resources.get(CPU_SLOT, 0)),
        hostname=entry.get("NodeManagerHostname", ""),
        name=entry.get("NodeName", ""),
    )


def version_tuple(version: str) -> tuple[int, int]:
    """(major, minor) of a version such as 2.60.0 or 2.52.0rc1."""
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def form(
    expected: Sequence[ExpectedNode],
    report: RayReport,
    containers: Mapping[str, SeenContainer],
    boots: Mapping[str, str],
    unreachable: Mapping[str, str],
    last_lines: Mapping[str, str],
) -> Formation:
    """Hold what was asked for against what was seen.

    By node name: `containers`, their present `boots`, `unreachable` (why) and `last_lines` (of a
    container's log).
    """
    rows = tuple(
        _row(
            node,
            report,
            boots.get(node.name),
            containers.get(node.name),
            unreachable.get(node.name),
            last_lines.get(node.name, ""),
        )
        for node in expected
    )
    return Formation(rows + _unexpected(expected, report))


def _row(
    node: ExpectedNode,
    report: RayReport,
    boot: str | None,
    container: SeenContainer | None,
    lost: str | None,
    last: str,
) -> SeenNode:
    here = [ray for ray in report.nodes or () if ray.address == node.address]
    own = [ray for ray in here if boot and ray.name == ray_name(node.name, boot)]
    alive = [ray for ray in own if ray.alive]
    seen = sum(_devices(node, ray) for ray in alive)

    def row(state: NodeState, detail: str = "") -> SeenNode:
        return SeenNode(node.name, node.address, node.role, state, node.devices, seen, detail)

    if lost is not None:
        return row("unreachable", lost)
    if container is None:
        return row("missing", "no container")
    if container.state != "running":
        return row("failed", _ended(container, last))
    if report.nodes is None:
        return row("starting", _because("Ray on the head does not answer yet", report.error))
    if not own:
        return row("starting", _because("has not joined Ray", last))
    if not alive:
        return row("missing", _because("Ray calls it dead", last))
    if any(ray.alive for ray in here if ray not in own):
        return row("starting", "Ray still counts an earlier life of it")
    problem = _problem(node, seen) or _odd_version(alive[0], report.nodes)
    return row("failed", problem) if problem else row("ready")


def _devices(node: ExpectedNode, ray: RayNode) -> int:
    return ray.gpus if node.device_kind == "gpu" else ray.cpu_slots


def _ended(container: SeenContainer, last_line: str) -> str:
    if container.exit_code is None or container.state == "created":
        return f"container {container.state}"
    word = "keeps restarting, exit" if container.state == "restarting" else container.state
    return _because(f"container {word} {container.exit_code}", last_line)


def _problem(node: ExpectedNode, seen: int) -> str:
    if seen != node.devices:
        unit = "GPUs" if node.device_kind == "gpu" else "CPU slots"
        return f"Ray shows {seen} {unit}, {node.devices} planned"
    return ""


def _odd_version(ray: RayNode, nodes: Sequence[RayNode]) -> str:
    """Ray itself compares only its own version and Python's when a node joins."""
    versions = [_versions(other) for other in nodes if other.alive and other.ray_version]
    mine = _versions(ray)
    if not ray.ray_version or versions.count(mine) * 2 >= len(versions):
        return ""
    return f"{mine} where others run {max(versions, key=versions.count)}"


def _versions(ray: RayNode) -> str:
    return f"Ray {ray.ray_version} on Python {ray.python_version}"


def with_versions(
    report: RayReport, versions: Mapping[str, tuple[str | None, str | None]]
) -> RayReport:
    """The report with each node's own (Ray, Python) versions, by address."""
    if report.nodes is None:
        return report
    return replace(
        report,
        nodes=tuple(
            replace(
                ray, ray_version=versions[ray.address][0], python_version=versions[ray.address][1]
            )
            if ray.address in versions
            else ray
            for ray in report.nodes
        ),
    )


def _because(what: str, why: str) -> str:
    return f"{what}: {why}" if why else what


def _unexpected(expected: Sequence[ExpectedNode], report: RayReport) -> tuple[SeenNode, ...]:
    known = {node.address for node in expected}
    return tuple(
        SeenNode(
            ray.hostname or ray.address,
            ray.address,
            "unexpected",
            "unexpected",
            0,
            ray.gpus or ray.cpu_slots,
            "a Ray node that is not in the cluster's file",
        )
        for ray in report.nodes or ()
        if ray.alive and ray.address not in known
    )


def waiting_for(formation: Formation) -> str:
    """`2/3 nodes; missing gpu03 10.0.0.3: container exited 127: ray: not found`

    Nodes that are absent for one reason stand together.
    """
    expected = [node for node in formation.nodes if node.role != "unexpected"]
    absent: dict[tuple[str, str], list[str]] = {}
    for node in formation.nodes:
        if node.state != "ready":
            named = absent.setdefault((_WORD[node.state], node.detail), [])
            named.append(f"{node.name} {node.address}".strip())
    said = [
        _because(f"{word} {', '.join(names)}", detail) for (word, detail), names in absent.items()
    ]
    return "; ".join([f"{formation.ready}/{len(expected)} nodes", *said])


_WORD: Mapping[NodeState, str] = {
    "starting": "missing",
    "missing": "missing",
    "failed": "missing",
    "unreachable": "unreachable",
    "unexpected": "unexpected",
}
