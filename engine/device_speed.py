"""How fast one device multiplies and moves memory, to be held against its datasheet."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

ROUNDS = 10
WARM_UP = 3


@dataclass(frozen=True)
class DeviceSpeed:
    """`tflops`: 1e12 operations a second of a dense matrix product (a multiply and an add are two).
    `memory_gb_s`: 1e9 bytes a second, read and written ones counted alike, as datasheets do."""

    tflops: float
    memory_gb_s: float


@dataclass(frozen=True)
class Sizes:
    """`side` of the square matrices; `copied` bytes of one copy, far beyond any cache."""

    side: int
    dtype: torch.dtype
    copied: int


GPU = Sizes(8192, torch.bfloat16, 1 << 30)
CPU = Sizes(1024, torch.float32, 1 << 27)


def measure(device: torch.device) -> DeviceSpeed:
    """The median of ROUNDS, on random numbers: zeros draw less power and flatter the clock."""
    sizes = GPU if device.type == "cuda" else CPU
    seconds = _seconds(_matmul(device, sizes), device)
    copying = _seconds(_copy(device, sizes), device)
    return DeviceSpeed(
        tflops=round(2 * sizes.side**3 / seconds / 1e12, 3),
        memory_gb_s=round(2 * sizes.copied / copying / 1e9, 1),
    )


def _matmul(device: torch.device, sizes: Sizes) -> Callable[[], object]:
    a, b = (torch.randn(sizes.side, sizes.side, device=device, dtype=sizes.dtype) for _ in "ab")
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out)


def _copy(device: torch.device, sizes: Sizes) -> Callable[[], object]:
    source = torch.ones(sizes.copied, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    for _ in range(WARM_UP):
        work()
    return median(_timed(work, device) for _ in range(ROUNDS))


def _timed(work: Callable[[], object], device: torch.device) -> float:
    """A GPU's own clock is read: the host only hands the work over."""
    if device.type != "cuda":
        began = time.perf_counter()
        work()
        return time.perf_counter() - began
    before, after = (torch.cuda.Event(enable_timing=True) for _ in "ab")  # type: ignore[no-untyped-call]
    before.record()
    work()
    after.record()
    after.synchronize()
    return float(before.elapsed_time(after)) / 1000
