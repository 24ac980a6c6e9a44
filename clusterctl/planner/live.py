"""The GPUs that hosts have now, as hardware to plan on. PURE."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from clusterctl.facts.types import Gpu as SeenGpu
from clusterctl.facts.types import HostFacts
from clusterctl.planner.gpus import Gpu, Hardware, known

_MIB_PER_GIB = 1024


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
