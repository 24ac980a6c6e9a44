"""Checks of how the GPUs of one host reach each other."""

from __future__ import annotations

from clusterctl.doctor.check import (
    Check,
    Said,
    check,
    fail,
    ok,
    skip,
    unknown,
    warn,
)
from clusterctl.doctor.subject import Host


@check("gpu.nvlink", "All NVLinks are up", cause="nvlink-error", tags=["nvidia"])
def nvlink(one: Host) -> Said:
    """A link that is down halves what tensor parallelism gets, or breaks it."""
    if not one.nvidia:
        return skip("no NVIDIA GPU")
    links = one.facts.nvidia.links
    if links is None:
        return unknown("nvidia-smi nvlink -s does not answer")
    if len(one.nvidia) < 2 or not links:
        return skip("no NVLink between GPUs of this host")
    down = [link for link in links if link.inactive and link.active]
    if not down:
        return ok(f"{links[0].active} links a GPU")
    return [
        fail(
            f"GPU {link.index}: {link.inactive} of {link.active + link.inactive} NVLinks are down",
            "sudo nvidia-smi nvlink -s on the host; reset or reseat the GPU",
        )
        for link in down
    ]


@check(
    "gpu.paths",
    "GPUs of one host reach each other directly",
    cause="nccl-p2p-unsupported",
    tags=["nvidia"],
)
def paths(one: Host) -> Said:
    """GPUs that meet only across the CPU sockets (SYS) exchange through host memory: tensor
    parallelism is slow there, pipeline parallelism is not."""
    if len(one.nvidia) < 2:
        return skip("fewer than two NVIDIA GPUs")
    known = one.facts.nvidia.paths
    if known is None:
        return unknown("nvidia-smi topo -m does not answer")
    far = [p for p in known if p.a.startswith("GPU") and p.b.startswith("GPU") and p.kind == "SYS"]
    if not far:
        return ok("NVLink or PCIe within one socket")
    pairs = ", ".join(f"{p.a}-{p.b}" for p in far[:4])
    return warn(
        f"joined only across CPU sockets: {pairs}",
        "prefer --pp to --tp across them",
        confidence=0.4,
    )


@check(
    "gpu.acs", "PCIe lets GPUs talk to each other", cause="nccl-p2p-unsupported", tags=["nvidia"]
)
def acs(one: Host) -> Said:
    """With ACS on, bridges send traffic between GPUs up to the root, where an IOMMU may drop it:
    NCCL hangs at its first message inside one host."""
    if len(one.nvidia) < 2:
        return skip("fewer than two NVIDIA GPUs")
    bridges = one.facts.host.acs_bridges
    if bridges is None:
        return unknown(
            "lspci -vvv did not show it: it needs root, and pciutils on the host",
            fix="sudo lspci -vvv | grep ACSCtl",
        )
    if not bridges:
        return ok("no bridge redirects")
    return warn(
        f"{bridges} PCIe bridges redirect traffic between devices (ACS)",
        "switch ACS off in the BIOS or by setpci; NCCL_P2P_DISABLE=1 only to prove it",
        confidence=0.5,
    )


CHECKS: tuple[Check[Host], ...] = (nvlink, paths, acs)
