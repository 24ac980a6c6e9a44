"""The GPUs that hosts have now, as hardware to plan on. PURE."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from clusterctl.facts.types import Gpu as SeenGpu
from clusterctl.facts.types import HostFacts
from clusterctl.planner.gpus import GIB, Gpu, Hardware, known

_MIB_PER_GIB = 1024


_SLOT_BANDWIDTH = 20.0  # GB/s: a channel or two of a server's memory
_SLOT_TFLOPS = 1.0


def cpu_hardware(free_bytes: Iterable[int], slots: Iterable[int]) -> Hardware:
    """Hosts that lend CPU slots, by the memory that each has free and its slots: as many slots as
    the host with fewest has, each with its share of the smallest memory."""
    counts = list(slots)
    share = min(free // count for free, count in zip(free_bytes, counts, strict=True))
    gpu = Gpu("CPU slot", share / GIB, _SLOT_BANDWIDTH, _SLOT_TFLOPS, _SLOT_TFLOPS, cpu=True)
    return Hardware(len(counts), min(counts), gpu)


def hardware_of(facts: Mapping[str, HostFacts]) -> Hardware | None:
    """Nodes alike: as many GPUs as the node with fewest of them has, and the smallest of all, so
    that what is planned runs anywhere. None where no host has a GPU of known kind and memory."""
    nodes = [[_planned(one) for one in host.gpu.gpus] for host in facts.values() if host.gpu.gpus]
    gpus = [gpu for node in nodes for gpu in node if gpu is not None]
    if not gpus or any(gpu is None for node in nodes for gpu in node):
        return None
    smallest = min(gpus, key=lambda gpu: (gpu.memory_gib, gpu.bandwidth))
    return Hardware(len(nodes), min(len(node) for node in nodes), smallest)


def _planned(seen: SeenGpu) -> Gpu | None:
    """The table's entry, which knows what torch will report of the memory that the host names."""
    found = known(seen.name)
    if found is None or seen.memory_mib is None:
        return found
    memory = seen.memory_mib / _MIB_PER_GIB
    same = abs(memory - found.memory_gib) < 0.12 * memory
    return found if same else replace(found, memory_gib=memory * 0.985)
