"""Checks of each NVIDIA GPU: healthy, whole, at full speed, and free?"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from clusterctl.doctor.check import (
    Answer,
    Check,
    Evidence,
    Said,
    check,
    fail,
    ok,
    skip,
    unknown,
    warn,
)
from clusterctl.doctor.subject import Host
from clusterctl.facts.types import GpuHealth
from clusterctl.gpumemory import HELD_SHARE

# What the numbers mean: NVIDIA's "Xid Errors" catalogue.
XIDS = {
    31: ("gpu-mmu-fault-xid31", "a program touched memory that is not its own", "warn"),
    48: ("gpu-ecc-uncorrectable", "a double-bit memory error", "fail"),
    63: ("gpu-row-remap-pending", "a memory row is to be remapped at the next reset", "warn"),
    64: ("gpu-row-remap-pending", "a memory row could not be remapped", "fail"),
    74: ("nvlink-error", "an NVLink failed", "fail"),
    79: ("gpu-fell-off-bus", "the GPU fell off the bus", "fail"),
    94: ("gpu-ecc-uncorrectable", "a contained memory error", "warn"),
    95: ("gpu-ecc-uncorrectable", "an uncontained memory error", "fail"),
    119: ("gpu-gsp-timeout", "the GPU's own firmware does not answer", "fail"),
    120: ("gpu-gsp-timeout", "the GPU's own firmware failed", "fail"),
}
_XID = re.compile(r"NVRM: Xid \(PCI:([0-9a-fA-F:.]+)\): (\d+)")


@check(
    "gpu.ecc",
    "No uncorrectable memory error",
    cause="gpu-ecc-uncorrectable",
    tags=["nvidia"],
    needs=["nvidia.health"],
)
def ecc(one: Host) -> Said:
    """One bad bit of weights or cache is a wrong answer or a dead engine."""
    return _by_gpu(one, _ecc)


def _ecc(gpu: GpuHealth) -> Answer | None:
    if not gpu.uncorrected_errors:
        return None
    return fail(
        f"GPU {gpu.index} has had {gpu.uncorrected_errors} uncorrectable memory errors",
        f"sudo nvidia-smi --gpu-reset -i {gpu.index}; replace the GPU if they come back",
        values={"gpu": str(gpu.index), "errors": str(gpu.uncorrected_errors)},
    )


@check(
    "gpu.remap",
    "No memory row waits for a reset",
    cause="gpu-row-remap-pending",
    tags=["nvidia"],
    needs=["nvidia.health"],
)
def remap(one: Host) -> Said:
    """Until the GPU is reset, the bad row is still in use."""
    return _by_gpu(one, _remap)


def _remap(gpu: GpuHealth) -> Answer | None:
    if gpu.remap_failed:
        return fail(f"GPU {gpu.index}: a memory row could not be remapped", "replace the GPU")
    if gpu.remap_pending:
        return fail(
            f"GPU {gpu.index}: a row remapping is pending",
            f"sudo nvidia-smi --gpu-reset -i {gpu.index}",
        )
    return None


@check(
    "gpu.recovery",
    "The driver asks for no recovery",
    cause="gpu-bad-or-still-held",
    tags=["nvidia"],
    needs=["nvidia.health"],
)
def recovery(one: Host) -> Said:
    """The driver knows when a GPU needs a reset or a reboot before it can be used again."""
    return _by_gpu(one, _recovery)


def _recovery(gpu: GpuHealth) -> Answer | None:
    if gpu.recovery is None:
        return None
    return fail(f"GPU {gpu.index}: the driver asks for {gpu.recovery}", "sudo reboot")


@check(
    "gpu.fabric",
    "The NVSwitch fabric is ready",
    cause="fabric-manager-not-ready",
    tags=["nvidia"],
    needs=["nvidia.health"],
)
def fabric(one: Host) -> Said:
    """On machines with NVSwitch CUDA does not start (error 802) until the Fabric Manager of the
    driver's very version has set up the fabric."""
    if not one.nvidia:
        return skip("no NVIDIA GPU")
    service = one.facts.nvidia.service("nvidia-fabricmanager")
    if one.facts.nvidia.switches and service not in (None, "active"):
        return fail(
            f"nvidia-fabricmanager is {service}, and this host has NVSwitches",
            "sudo systemctl enable --now nvidia-fabricmanager (of the driver's version)",
            values={"service": str(service)},
        )
    return _by_gpu(one, _fabric)


def _fabric(gpu: GpuHealth) -> Answer | None:
    if gpu.fabric in (None, "Completed"):
        return None
    return fail(
        f"GPU {gpu.index}: its NVSwitch fabric is {gpu.fabric!r}, not completed",
        "sudo systemctl restart nvidia-fabricmanager on the host",
    )


@check(
    "gpu.slowed",
    "Nothing holds the clocks down",
    cause="gpu-slowed",
    tags=["nvidia"],
    needs=["nvidia.health"],
)
def slowed(one: Host) -> Said:
    """A GPU that is too hot or short of power makes every rank of a tensor-parallel group wait."""
    return _by_gpu(one, _slowed)


def _slowed(gpu: GpuHealth) -> Answer | None:
    if not gpu.slowed:
        return None
    return warn(f"GPU {gpu.index}: {', '.join(gpu.slowed)}", "check cooling and power supplies")


@check(
    "gpu.pcie",
    "Every GPU has its full PCIe width",
    cause="pcie-degraded",
    tags=["nvidia"],
    needs=["nvidia.health"],
)
def pcie(one: Host) -> Said:
    """A badly seated GPU trains fewer lanes: loading and cross-node traffic are slow on it."""
    return _by_gpu(one, _pcie)


def _pcie(gpu: GpuHealth) -> Answer | None:
    width, full = gpu.pcie_width, gpu.pcie_width_max
    if width is None or full is None or width >= full:
        return None
    return warn(f"GPU {gpu.index} runs on {width} of {full} PCIe lanes", "reseat the GPU")


@check("gpu.mig", "GPUs are whole", cause="gpu-mig", tags=["nvidia"], needs=["nvidia.health"])
def mig(one: Host) -> Said:
    """Slices of a GPU (MIG) have no peer access: NCCL between them does not work."""
    return _by_gpu(one, _mig)


def _mig(gpu: GpuHealth) -> Answer | None:
    if not gpu.mig:
        return None
    return warn(f"GPU {gpu.index} is cut into MIG slices", f"sudo nvidia-smi -i {gpu.index} -mig 0")


@check(
    "gpu.persistence",
    "The driver stays loaded",
    cause="gpu-persistence-off",
    tags=["nvidia"],
    needs=["nvidia.health"],
)
def persistence(one: Host) -> Said:
    """Without persistence the driver unloads between programs: each start waits for it, and its
    error counters are lost."""
    return _by_gpu(one, _persistence)


def _persistence(gpu: GpuHealth) -> Answer | None:
    if gpu.persistence is not False:
        return None
    return warn(
        f"GPU {gpu.index}: persistence mode is off",
        "sudo systemctl enable --now nvidia-persistenced, or sudo nvidia-smi -pm 1",
    )


@check(
    "gpu.memory-held",
    "GPU memory is free",
    cause="gpu-held-by-other-process",
    tags=["nvidia"],
    needs=["nvidia.health"],
)
def memory_held(one: Host) -> Said:
    """What another process, or an engine that did not end, holds is missing when the weights are
    loaded."""
    if reason := one.occupied:
        return skip(reason)
    return _by_gpu(one, lambda gpu: _held(one, gpu))


def _held(one: Host, gpu: GpuHealth) -> Answer | None:
    listed = next((g for g in one.nvidia if g.uuid == gpu.uuid), None)
    used, total = (listed.memory_used_mib, listed.memory_mib) if listed else (None, None)
    if used is None or not total or used < HELD_SHARE * total:
        return None
    by = [
        f"{p.name} (PID {p.pid}"
        + (f", {p.user}" if p.user else "")
        + (f", container {p.container}" if p.container else "")
        + ")"
        for p in gpu.processes
    ]
    said = f"GPU {gpu.index}: {used} of {total} MiB are held"
    if not by:
        return warn(
            f"{said} by no process that shows",
            f"sudo fuser -v /dev/nvidia{gpu.index} on the host; at worst reset the GPU",
            cause="gpu-held-by-orphan",
        )
    return warn(
        f"{said} by {', '.join(by)}",
        "end it if it is yours: kill " + " ".join(str(p.pid) for p in gpu.processes),
        values={"gpu": str(gpu.index), "pids": " ".join(str(p.pid) for p in gpu.processes)},
    )


@check("gpu.xid", "The kernel logged no GPU error", tags=["nvidia"], needs=["kernel_log"])
def xid(one: Host) -> Said:
    """The driver writes what befell a GPU into the kernel's log under a number, an Xid. Only those
    that end a deployment count."""
    if not one.nvidia:
        return skip("no NVIDIA GPU")
    log = one.facts.kernel_log
    if log is None:
        return unknown("the kernel's log may not be read by this user", fix="sudo dmesg | grep Xid")
    return list(_xids(log)) or [ok("none")]


def _xids(log: tuple[str, ...]) -> Iterator[Answer]:
    last = {(m[1], int(m[2])): line for line in log if (m := _XID.search(line))}
    for (bus, number), line in last.items():
        if number not in XIDS:
            continue
        cause, meaning, verdict = XIDS[number]
        say = fail if verdict == "fail" else warn
        yield say(
            f"Xid {number} of the GPU at {bus}: {meaning}",
            "drain the host and reboot it" if verdict == "fail" else "watch for it to come back",
            cause=cause,
            evidence=Evidence(line, "kernel log"),
            values={"xid": str(number), "bus": bus},
            confidence=0.9 if verdict == "fail" else 0.5,
        )


def _by_gpu(one: Host, judge: Callable[[GpuHealth], Answer | None]) -> Said:
    if not one.nvidia:
        return skip("no NVIDIA GPU")
    health = one.facts.nvidia.health
    if health is None:
        return unknown("nvidia-smi -q -x gave no whole answer")
    return [a for gpu in health if (a := judge(gpu))] or [ok(f"{len(health)} GPUs")]


CHECKS: tuple[Check[Host], ...] = (
    ecc,
    remap,
    recovery,
    fabric,
    slowed,
    pcie,
    mig,
    persistence,
    memory_held,
    xid,
)
