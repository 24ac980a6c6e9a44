"""Checks of how fast each GPU multiplies and moves memory (`doctor --deep`). PURE."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from clusterctl.doctor.check import Answer, Check, check, ok, skip, unknown, warn
from clusterctl.doctor.collectives import Collectives
from clusterctl.planner.gpus import known

# Of the datasheet: cards of little power reach half of their peak in a long product, and copies
# eight or nine tenths of their memory's. Measured: H100 80GB HBM3 76 % and 86-89 %.
LOW_TFLOPS, LOW_MEMORY = 0.4, 0.6
SLOW_BESIDE_BEST = 0.85  # of its kind: healthy cards differ by a few per cent


@dataclass(frozen=True)
class _Speed:
    """One figure of one device; `rated` by its datasheet, None where that is not known."""

    host: str
    index: int  # among the devices of its host
    device: str
    value: float
    rated: float | None


def _judged(seen: Collectives, memory: bool) -> Iterator[Answer]:
    if seen.whole is None or seen.busy:
        reason = f"{seen.busy} is being served: the GPUs are at work" if seen.busy else seen.reason
        yield skip(reason)
        return
    speeds = list(_speeds(seen, memory))
    if not speeds:
        on_gpu = any(v.step == "matmul" for v in seen.whole.verdicts)
        why = "the check did not come as far" if on_gpu else "CPU slots have no datasheet"
        yield unknown(why) if on_gpu else skip(why)
        return
    best = _best(speeds)
    slow = [one for one in speeds if _is_slow(one, best[one.device], memory)]
    yield from (_slow(one, best[one.device], memory) for one in slow)
    if not slow:
        yield ok(", ".join(f"{_measured(one, memory)} on {one.host}" for one in speeds))


def _speeds(seen: Collectives, memory: bool) -> Iterator[_Speed]:
    found = seen.whole
    assert found is not None
    for verdict in sorted(found.verdicts, key=lambda one: one.rank):
        value = verdict.memory_gb_s if memory else verdict.tflops
        if value is None or verdict.device == "CPU":
            continue
        gpu = known(verdict.device)
        rated = (gpu.bandwidth if memory else gpu.tflops) if gpu else None
        host = found.hosts[verdict.rank]
        index = verdict.rank - found.hosts.index(host)
        yield _Speed(host, index, verdict.device, value, rated)


def _best(speeds: Sequence[_Speed]) -> Mapping[str, float]:
    """By kind of device."""
    kinds = {one.device for one in speeds}
    return {kind: max(one.value for one in speeds if one.device == kind) for kind in kinds}


def _is_slow(one: _Speed, best: float, memory: bool) -> bool:
    low = (LOW_MEMORY if memory else LOW_TFLOPS) * (one.rated or 0.0)
    return one.value < max(low, SLOW_BESIDE_BEST * best)


def _measured(one: _Speed, memory: bool) -> str:
    return f"GPU {one.index} {one.value:.0f} {'GB/s' if memory else 'TFLOP/s'}"


def _slow(one: _Speed, best: float, memory: bool) -> Answer:
    unit = "GB/s" if memory else "TFLOP/s"
    rated = f"{one.rated:g} by its datasheet" if one.rated else "its datasheet is not known"
    what = "copies memory at" if memory else "multiplies matrices at"
    return warn(
        f"GPU {one.index} ({one.device}) {what} {one.value:.0f} {unit}; "
        f"the best of its kind here does {best:.0f}, {rated}",
        f"nvidia-smi -q -d CLOCK,POWER,TEMPERATURE,PERFORMANCE -i {one.index} on {one.host}: "
        f"a power cap, heat, or another process on it",
        host=one.host,
        values={
            "gpu": str(one.index),
            "measured": f"{one.value:.0f}",
            "best": f"{best:.0f}",
            "datasheet": f"{one.rated:g}" if one.rated else "",
        },
    )


@check(
    "gpu.matmul-speed",
    "Every GPU multiplies as fast as its kind",
    cause="gpu-slowed",
    scope="cluster",
    tags=("deep", "nvidia"),
)
def matmul(seen: Collectives) -> Iterator[Answer]:
    """All ranks of a tensor-parallel group wait for the slowest GPU: a power cap or heat on one
    card is a slow deployment. A product of two 8192 x 8192 bfloat16 matrices tells."""
    return _judged(seen, memory=False)


@check(
    "gpu.memory-speed",
    "Every GPU moves memory as fast as its kind",
    cause="gpu-slowed",
    scope="cluster",
    tags=("deep", "nvidia"),
)
def memory_speed(seen: Collectives) -> Iterator[Answer]:
    """Each new token reads all weights once: decoding is as fast as memory is. A copy of 1 GiB
    tells."""
    return _judged(seen, memory=True)


SPEED_CHECKS: tuple[Check[Collectives], ...] = (matmul, memory_speed)
