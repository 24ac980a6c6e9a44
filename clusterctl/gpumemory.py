"""Whether the GPUs that a cluster's nodes had are free again, and who else holds GPUs. PURE: facts
of a host from before and after its nodes went away."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from clusterctl.containers import LABEL_CLUSTER, LABEL_GPUS
from clusterctl.facts.types import Gpu, GpuHealth, GpuProcess, HostFacts

HELD_SHARE = 0.05  # of a GPU's memory: below it is what the driver itself keeps


@dataclass(frozen=True)
class GpuMemory:
    """One GPU that a node had: what was in use in MiB before and after it went, None where the
    driver did not say. `back`: whether it is all given back, None where that cannot be known;
    `why` it is not, or cannot."""

    host: str
    gpu: int
    before_mib: int | None
    after_mib: int | None
    back: bool | None
    why: str = ""

    def __str__(self) -> str:
        return f"GPU {self.gpu}: {self.why or 'memory back'}"


@dataclass(frozen=True)
class Holder:
    """A process that is not the cluster's and holds a GPU."""

    host: str
    gpu: int
    pid: int
    user: str | None
    command: str
    memory_mib: int | None
    container: str | None


@dataclass(frozen=True)
class Nodes:
    """Of one cluster on one host: the GPUs that its containers had and the processes that held
    them."""

    gpus: frozenset[int]
    pids: frozenset[int] = frozenset()


def gpus_of(labels: Mapping[str, str], facts: HostFacts) -> frozenset[int]:
    """By the labels of a node's container, of any cluster; empty for other containers, whose
    devices are not listed."""
    said = labels.get(LABEL_GPUS, "") if LABEL_CLUSTER in labels else ""
    if said == "all":
        return frozenset(gpu.index for gpu in facts.gpu.gpus)
    return frozenset(int(word) for word in said.split(",") if word.isdecimal())


def nodes_of(cluster: str, facts: HostFacts) -> Nodes:
    """As seen while its containers are still there."""
    every = facts.docker.containers or ()
    own = [one for one in every if one.labels.get(LABEL_CLUSTER) == cluster]
    names = {word for one in own for word in (one.name, one.id)}
    gpus = frozenset().union(*(gpus_of(one.labels, facts) for one in own))
    health = facts.nvidia.health or ()
    pids = frozenset(p.pid for gpu in health for p in gpu.processes if p.container in names)
    return Nodes(gpus, pids)


def compare(nodes: Nodes, before: HostFacts, after: HostFacts) -> tuple[GpuMemory, ...]:
    """Every GPU that the nodes had. What was held by nobody that shows before them, is not theirs:
    `before` may be from before the nodes were there, or from when they ran."""
    return tuple(_compare(nodes, index, before, after) for index in sorted(nodes.gpus))


def _compare(nodes: Nodes, index: int, before: HostFacts, after: HostFacts) -> GpuMemory:
    was, now = _used(before, index), _used(after, index)
    back, why = _judge(nodes, index, before, after)
    return GpuMemory(after.name, index, was, now, back, why)


def _judge(
    nodes: Nodes, index: int, before: HostFacts, after: HostFacts
) -> tuple[bool | None, str]:
    used, total = _used(after, index), _total(after, index)
    if used is None or not total:
        return None, after.gpu.error or "the driver does not say how much is in use"
    processes = _processes(after, index)
    if left := [p for p in processes or () if p.pid in nodes.pids]:
        names = ", ".join(f"{p.name} (PID {p.pid})" for p in left)
        return False, f"{used:,} of {total:,} MiB are in use, still by {names} of the cluster"
    if used < HELD_SHARE * total:
        return True, ""
    unseen, earlier = _unseen(after, index), _unseen(before, index)
    if unseen is None:
        return None, f"{used:,} of {total:,} MiB are in use; by whom does not show"
    if unseen - (earlier or 0) < HELD_SHARE * total:
        return True, ""
    return False, f"{unseen:,} of {total:,} MiB are in use by no process that shows"


def _gpu(facts: HostFacts, index: int) -> Gpu | None:
    return next((gpu for gpu in facts.gpu.gpus if gpu.index == index), None)


def _used(facts: HostFacts, index: int) -> int | None:
    gpu = _gpu(facts, index)
    return gpu.memory_used_mib if gpu else None


def _total(facts: HostFacts, index: int) -> int | None:
    gpu = _gpu(facts, index)
    return gpu.memory_mib if gpu else None


def _health(facts: HostFacts, index: int) -> GpuHealth | None:
    gpu = _gpu(facts, index)
    return next((h for h in facts.nvidia.health or () if gpu and h.uuid == gpu.uuid), None)


def _processes(facts: HostFacts, index: int) -> tuple[GpuProcess, ...] | None:
    health = _health(facts, index)
    return health.processes if health else None


def _unseen(facts: HostFacts, index: int) -> int | None:
    """MiB in use less what the processes that show hold. None where one of these is not known."""
    used, processes = _used(facts, index), _processes(facts, index)
    shares = [p.memory_mib for p in processes or ()]
    known = [share for share in shares if share is not None]
    if used is None or processes is None or len(known) < len(shares):
        return None
    return max(0, used - sum(known))


def others(nodes: Nodes, facts: HostFacts) -> Iterator[Holder]:
    """Who holds any GPU of the host and is not of these nodes."""
    for gpu in facts.gpu.gpus:
        for p in _processes(facts, gpu.index) or ():
            if p.pid not in nodes.pids:
                yield Holder(
                    facts.name, gpu.index, p.pid, p.user, p.name, p.memory_mib, p.container
                )
