"""How many bytes a rank may give to its KV cache."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
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
    device: torch.device, utilization: float, rehearsals: Sequence[Callable[[], None]], ranks: int
) -> int:
    """What is left of `utilization` of the device for one of `ranks` ranks that share it, when each
    of `rehearsals` has shown how much it needs: they keep their memory side by side.

    0 when nothing is left.
    """
    needed = sum(_peak(device, rehearsal) for rehearsal in rehearsals)
    free, total = torch.cuda.mem_get_info(device)
    # With what torch does not count: the CUDA context, NCCL's buffers, other processes.
    in_use = total - free
    return max(0, int(total * utilization) - in_use - ranks * needed) // ranks


def _peak(device: torch.device, rehearsal: Callable[[], None]) -> int:
    """Bytes beside what is held already, as torch takes them from the device."""
    torch.cuda.empty_cache()
    held = torch.cuda.memory_reserved(device)
    torch.cuda.reset_peak_memory_stats(device)
    rehearsal()
    torch.cuda.synchronize(device)
    taken = torch.cuda.max_memory_reserved(device) - held
    torch.cuda.empty_cache()
    return taken
