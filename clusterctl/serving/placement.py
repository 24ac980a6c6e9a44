"""Which devices a deployment gets and which executor carries it. PURE."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from clusterctl.errors import ConfigError, PreflightFailed
from clusterctl.raycluster import CPU_SLOT
from clusterctl.spec import ServeSpec

Executor = Literal["ray", "mp", "inproc"]

_USED = re.compile(rf"^\s*([\d.]+)/[\d.]+ (?:GPU|{CPU_SLOT})\b", re.MULTILINE)


@dataclass(frozen=True)
class Placement:
    executor: Executor
    reason: str


@dataclass(frozen=True)
class Devices:
    """Of a cluster: how many each node has by name, the head's name, and how many are taken."""

    by_node: Mapping[str, int]
    head: str
    taken: int = 0

    @property
    def total(self) -> int:
        return sum(self.by_node.values())

    def __str__(self) -> str:
        where = ", ".join(f"{name}: {count}" for name, count in self.by_node.items())
        used = f", of which {self.taken} serve other deployments" if self.taken else ""
        return f"{self.total} ({where}){used}"


def place(serve: ServeSpec, devices: Devices) -> Placement:
    """Raises PreflightFailed when the cluster is too small, ConfigError for an executor that cannot
    carry the deployment."""
    world = serve.tp * serve.pp
    free = devices.total - devices.taken
    if world > free:
        raise PreflightFailed(
            f"tp={serve.tp} x pp={serve.pp} needs {world} devices; the cluster has {devices}",
            hint=f"choose tp x pp of at most {free}" if free else "clusterctl stop NAME",
        )
    if serve.executor == "auto":
        return _choose(serve, devices)
    _check_fits_executor(serve.executor, world, devices)
    return Placement(serve.executor, "as asked")


def _choose(serve: ServeSpec, devices: Devices) -> Placement:
    if len(devices.by_node) > 1:
        return Placement("ray", f"the cluster has {len(devices.by_node)} nodes")
    return Placement("mp", f"{devices.head} is the only node")


def _check_fits_executor(executor: Executor, world: int, devices: Devices) -> None:
    on_head = devices.by_node[devices.head]
    if executor != "ray" and world > on_head:
        raise ConfigError(
            f"executor {executor} runs on the head alone: {devices.head} has {on_head} devices, "
            f"and {world} are needed",
            hint="--executor ray",
        )


def devices_in_use(ray_status: str) -> float:
    """GPUs and CPU slots that `ray status` counts as used: " 1.0/2.0 cpu_slot (...)"."""
    return sum(float(used) for used in _USED.findall(ray_status))
