"""The GPUs that hosts have now, as hardware to plan on. PURE."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import groupby

from clusterctl.facts.types import Gpu as SeenGpu
from clusterctl.facts.types import HostFacts, NvidiaFacts
from clusterctl.planner.gpus import GIB, Gpu, Hardware, NodeGroup, known

_MIB_PER_GIB = 1024


_SLOT_BANDWIDTH = 20.0  # GB/s: a channel or two of a server's memory
_SLOT_TFLOPS = 1.0


def cpu_hardware(free_bytes: Iterable[int], slots: Iterable[int]) -> Hardware:
    """Hosts that lend CPU slots, by the memory that each has free and its slots: as many slots as
    the host with fewest has, each with its share of the smallest memory."""
    counts = list(slots)
    share = min(free // count for free, count in zip(free_bytes, counts, strict=True))
    gpu = Gpu("CPU slot", share / GIB, _SLOT_BANDWIDTH, _SLOT_TFLOPS, _SLOT_TFLOPS, cpu=True)
    return Hardware.alike(len(counts), min(counts), gpu)


def hardware_of(
    facts: Mapping[str, HostFacts], counts: Mapping[str, int] | None = None
) -> Hardware | None:
    """The hosts that have GPUs, equal neighbours as one group; `counts`: how many of them each may
    lend. None where no host has a GPU, or one of a kind or memory that is not known."""
    nodes = [
        _node(host, None if counts is None else counts.get(name))
        for name, host in facts.items()
        if host.gpu.gpus
    ]
    known_nodes = [node for node in nodes if node is not None]
    if not known_nodes or len(known_nodes) < len(nodes):
        return None
    return Hardware(
        tuple(replace(node, nodes=len(list(alike))) for node, alike in groupby(known_nodes))
    )


def _node(host: HostFacts, count: int | None) -> NodeGroup | None:
    """One host; of unlike GPUs within it the smallest stands for all."""
    gpus = [_planned(one, host.nvidia) for one in host.gpu.gpus]
    seen = [gpu for gpu in gpus if gpu is not None]
    if len(seen) < len(gpus):
        return None
    smallest = min(seen, key=lambda gpu: (gpu.memory_gib, gpu.bandwidth))
    return NodeGroup(1, min(len(seen), count or len(seen)), smallest)


def rdma_between(facts: Mapping[str, HostFacts]) -> bool | None:
    """Whether every host has an active RDMA port; None where a host could not be asked."""
    ports = [host.rdma_ports for host in facts.values()]
    if any(found is None for found in ports):
        return None
    return all(any(port.active for port in found or ()) for found in ports)


def _planned(seen: SeenGpu, nvidia: NvidiaFacts) -> Gpu | None:
    """The table's entry, which knows what torch will report of the memory that the host names;
    whether its GPUs are linked is what the host says."""
    found = known(seen.name)
    if found is None:
        return None
    if nvidia.links is not None:
        linked = any(one.active for one in nvidia.links if one.index == seen.index)
        found = replace(found, linked=linked)
    if seen.memory_mib is None:
        return found
    memory = seen.memory_mib / _MIB_PER_GIB
    same = abs(memory - found.memory_gib) < 0.12 * memory
    return found if same else replace(found, memory_gib=memory * 0.985)
