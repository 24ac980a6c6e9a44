"""How many bytes a rank may give to its KV cache."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import torch

MEMINFO = Path("/proc/meminfo")
CPU_DEFAULT = 1 << 30
"""On a CPU one GiB a rank, as long as all ranks together leave half of the free memory."""


def cpu_kv_bytes(ranks: int) -> int:
    """The default for one of `ranks` ranks that share this host's memory."""
    return min(CPU_DEFAULT, _available_bytes() // 2 // ranks)


def _available_bytes() -> int:
    """Free, or freed by dropping caches. Where the kernel does not say so, the whole memory."""
    if MEMINFO.exists():
        (kib,) = re.findall(r"^MemAvailable:\s+(\d+) kB", MEMINFO.read_text(), re.MULTILINE)
        return int(kib) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def cuda_kv_bytes(
    device: torch.device, utilization: float, largest_step: Callable[[], None]
) -> int:
    """What is left of `utilization` of the device when `largest_step` has shown its peak.

    0 when nothing is left.
    """
    torch.cuda.reset_peak_memory_stats(device)
    largest_step()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    # What torch does not count: the CUDA context, NCCL's buffers, other processes.
    outside = total - free - torch.cuda.memory_reserved(device)
    return max(0, int(total * utilization) - peak - outside)
