"""Ray as text and data. PURE: `ray start` lines, what `ray.nodes()` said, and Formation: the
cluster that was asked for held against the one that was seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

CPU_SLOT = "cpu_slot"  # the Ray resource of one CPU slot; GPUs are Ray's own "GPU"

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
    """One entry of `ray.nodes()`, with the versions its own probe reported."""

    node_id: str
    address: str
    alive: bool
    gpus: int
    cpu_slots: int
    hostname: str = ""
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
