"""Which engine serves, what carries its ranks, and on which nodes. PURE.

What the containers hold is asked of them (serving.requirements, serving.vllm), never assumed: stock
images of vLLM have no Ray, and vLLM for some platforms cannot use it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from clusterctl.errors import ConfigError, PreflightFailed
from clusterctl.raycluster import CPU_SLOT
from clusterctl.serving.requirements import FoundPython
from clusterctl.serving.vllm import Abilities
from clusterctl.spec import ServeSpec

Engine = Literal["native", "vllm"]
Executor = Literal["ray", "mp", "inproc"]
DeviceKind = Literal["gpu", "cpu"]

RAY_RESOURCE: Mapping[DeviceKind, str] = {"gpu": "GPU", "cpu": CPU_SLOT}

_USED = re.compile(rf"^\s*([\d.]+)/[\d.]+ (?:GPU|{CPU_SLOT})\b", re.MULTILINE)


@dataclass(frozen=True)
class Devices:
    """Of a cluster: how many each node has by name, the head's name, and how many are taken."""

    by_node: Mapping[str, int]
    head: str
    taken: int = 0
    kind: DeviceKind = "gpu"

    @property
    def total(self) -> int:
        return sum(self.by_node.values())

    def __str__(self) -> str:
        where = ", ".join(f"{name}: {count}" for name, count in self.by_node.items())
        used = f", of which {self.taken} serve other deployments" if self.taken else ""
        return f"{self.total} ({where}){used}"


@dataclass(frozen=True)
class Placement:
    """What was chosen and why. `nodes`: those on which processes are started by us, the head
    first; with Ray it starts all others itself."""

    engine: Engine
    executor: Executor
    nodes: tuple[str, ...]
    why_engine: str
    why_executor: str

    def __str__(self) -> str:
        return (
            f"engine {self.engine} ({self.why_engine}), "
            f"executor {self.executor} ({self.why_executor})"
        )


@dataclass(frozen=True)
class _Carrier:
    executor: Executor
    nodes: tuple[str, ...]
    why: str


@dataclass(frozen=True)
class Contents:
    """What the containers hold, by node; `vllm` None: it was not asked."""

    pythons: Mapping[str, FoundPython]
    vllm: Abilities | None = field(default=None)

    def version(self, package: str) -> str | None:
        """On every node. None where a node lacks it: then the cluster has not got it."""
        versions = [found.packages.get(package) for found in self.pythons.values()]
        return versions[0] if all(versions) else None


def choose_engine(serve: ServeSpec, contents: Contents, kind: DeviceKind) -> tuple[Engine, str]:
    """Raises PreflightFailed where vLLM is asked for and absent from a container."""
    version = contents.version("vllm")
    if serve.engine == "vllm" and version is None:
        lacking = [n for n, found in contents.pythons.items() if not found.packages.get("vllm")]
        raise PreflightFailed(
            "the image has no vLLM",
            host=", ".join(lacking),
            hint="use an image that has it (`image:` in cluster.yaml), or --engine native",
        )
    if serve.engine != "auto":
        return serve.engine, "as asked"
    if version is None:
        return "native", "the image has no vLLM"
    if kind == "cpu":
        return "native", "the nodes give CPU slots; vLLM for CPUs has to be asked for"
    return "vllm", f"the image has vLLM {version}"


def place(serve: ServeSpec, devices: Devices, contents: Contents) -> Placement:
    """Raises PreflightFailed when the cluster is too small or its image cannot do it, ConfigError
    for an executor that cannot carry the deployment."""
    _check_enough(serve, devices)
    engine, why = choose_engine(serve, contents, devices.kind)
    carrier = (
        _native_carrier(serve, devices)
        if engine == "native"
        else _vllm_carrier(serve, devices, contents)
    )
    return Placement(engine, carrier.executor, carrier.nodes, why, carrier.why)


def _check_enough(serve: ServeSpec, devices: Devices) -> None:
    free = devices.total - devices.taken
    if serve.ranks > free:
        raise PreflightFailed(
            f"{serve.sizes} needs {serve.ranks} devices; the cluster has {devices}",
            hint=f"choose tp x pp of at most {free}" if free else "clusterctl stop NAME",
        )


# --- the native engine ---------------------------------------------------------------------------


def _native_carrier(serve: ServeSpec, devices: Devices) -> _Carrier:
    head = (devices.head,)
    if serve.executor == "auto":
        if len(devices.by_node) > 1:
            return _Carrier("ray", head, f"the cluster has {len(devices.by_node)} nodes")
        return _Carrier("mp", head, f"{devices.head} is the only node")
    on_head = devices.by_node[devices.head]
    if serve.executor != "ray" and serve.ranks > on_head:
        raise ConfigError(
            f"executor {serve.executor} runs on the head alone: {devices.head} has {on_head} "
            f"devices, and {serve.ranks} are needed",
            hint="--executor ray, or --engine vllm, whose mp runs over several nodes",
        )
    return _Carrier(serve.executor, head, "as asked")


# --- vLLM ----------------------------------------------------------------------------------------


def _vllm_carrier(serve: ServeSpec, devices: Devices, contents: Contents) -> _Carrier:
    head = (devices.head,)
    no_ray = _why_no_ray(devices, contents)
    if serve.executor == "inproc":
        if serve.ranks > 1:
            raise ConfigError("executor inproc is one rank alone", hint="--executor ray or mp")
        return _Carrier("inproc", head, "as asked")
    if serve.executor == "ray":
        if no_ray:
            raise PreflightFailed(no_ray, host=devices.head, hint=_RAY_HINT)
        return _Carrier("ray", head, "as asked")
    if serve.executor == "mp":
        return _Carrier("mp", _group(serve, devices, contents), "as asked")
    if len(devices.by_node) == 1:
        return _Carrier("mp", head, f"{devices.head} is the only node")
    if no_ray is None:
        version = contents.version("ray")
        why = f"the cluster has {len(devices.by_node)} nodes, and the image Ray {version}"
        return _Carrier("ray", head, why)
    return _Carrier("mp", _group(serve, devices, contents), no_ray)


_RAY_HINT = "`clusterctl image build` adds Ray to the image; --executor mp needs none"


def _why_no_ray(devices: Devices, contents: Contents) -> str | None:
    """Why vLLM cannot use Ray here; None where it can."""
    if contents.version("ray") is None:
        return "the image has no Ray"
    resource = contents.vllm.ray_resource if contents.vllm else ""
    if not resource:
        return "vLLM in this image runs on a platform that does not support Ray"
    if resource != RAY_RESOURCE[devices.kind]:
        return (
            f"vLLM in this image asks Ray for {resource}; the nodes give "
            f"{RAY_RESOURCE[devices.kind]}"
        )
    return None


def _group(serve: ServeSpec, devices: Devices, contents: Contents) -> tuple[str, ...]:
    """The fewest nodes that hold all ranks, as many on each: the head, then others as they come.
    (vLLM's --nnodes divides its ranks evenly; of several replicas every node holds whole ones.)"""
    for count in range(1, len(devices.by_node) + 1):
        share, rest = divmod(serve.ranks, count)
        fit = [name for name, has in devices.by_node.items() if has >= share]
        whole = serve.dp == 1 or count == 1 or share % (serve.tp * serve.pp) == 0
        if rest == 0 and whole and devices.head in fit and len(fit) >= count:
            _check_several("--nnodes" if serve.dp == 1 else "--headless", count, contents)
            return (devices.head, *[name for name in fit if name != devices.head])[:count]
    raise PreflightFailed(
        f"{serve.sizes} cannot be divided evenly over nodes with {devices} devices, as vLLM needs "
        "it without Ray",
        hint="choose other sizes, or --executor ray",
    )


def _check_several(flag: str, count: int, contents: Contents) -> None:
    if count > 1 and contents.vllm and not contents.vllm.knows(flag):
        raise PreflightFailed(
            f"vLLM {contents.version('vllm')} in this image does not know {flag}: without Ray "
            "it runs on one node alone",
            hint="a newer vLLM, or --executor ray with `clusterctl image build`",
        )


def devices_in_use(ray_status: str) -> float:
    """GPUs and CPU slots that `ray status` counts as used: " 1.0/2.0 cpu_slot (...)"."""
    return sum(float(used) for used in _USED.findall(ray_status))
