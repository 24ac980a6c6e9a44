"""Checks of InfiniBand and RoCE: devices, ports, GID tables, the way from the GPU to the wire."""

from __future__ import annotations

from collections.abc import Mapping

from clusterctl.doctor.check import Check, Said, check, fail, ok, skip, unknown, warn
from clusterctl.doctor.subject import Cluster, Host
from clusterctl.fabric import is_routable
from clusterctl.facts.types import RdmaPort


@check("rdma.ports", "RDMA ports are up", cause="ib-port-down", tags=["rdma"], needs=["rdma_ports"])
def ports(one: Host) -> Said:
    """A port that is down is one rail less; where the peers' same rail is up, NCCL fails on it."""
    if not one.facts.rdma_devices:
        return skip("no RDMA device")
    known = one.facts.rdma_ports
    if known is None:
        return unknown("/sys/class/infiniband could not be read")
    down = [port for port in known if not port.active]
    if len(down) == len(known):
        return fail("no RDMA port is active", "ibstat on the host; check cables and subnet manager")
    if not down:
        return ok(", ".join(f"{p.device} {p.rate_gbit:g} Gbit/s" for p in known if p.rate_gbit))
    said = ", ".join(f"{port.device} is {port.state}" for port in down)
    return warn(f"{said}", "leave them out by NCCL_IB_HCA, or plug them in", confidence=0.4)


@check(
    "rdma.gid",
    "RoCE ports have a GID that can be routed",
    cause="roce-gid-index-wrong",
    tags=["rdma"],
    needs=["rdma_ports"],
)
def gid(one: Host) -> Said:
    """RoCE v2 over IPv4 needs an entry of the GID table for the interface's address; a fixed
    NCCL_IB_GID_INDEX must hold that very entry."""
    roce = [p for p in one.facts.rdma_ports or () if p.link_layer == "Ethernet" and p.active]
    if not one.facts.rdma_devices:
        return skip("no RDMA device")
    if one.facts.rdma_ports is None:
        return unknown("/sys/class/infiniband could not be read")
    if not roce:
        return skip("no active RoCE port")
    without = [port.device for port in roce if not any(map(is_routable, port.gids))]
    if without:
        return warn(
            f"{', '.join(without)} have no RoCE v2 GID of an IPv4 address",
            "give their interfaces an address: show_gids shows the table",
        )
    asked = {**one.spec.env, **one.node.env}.get("NCCL_IB_GID_INDEX", "-1")
    wrong = [p.device for p in roce if asked != "-1" and not _holds(p, asked)]
    if wrong:
        return fail(
            f"NCCL_IB_GID_INDEX={asked} is no RoCE v2 IPv4 entry on {', '.join(wrong)}",
            "take NCCL_IB_GID_INDEX out of env:; NCCL 2.21 and later find it by themselves",
            values={"index": asked},
        )
    return ok(f"{len(roce)} ports")


def _holds(port: RdmaPort, index: str) -> bool:
    return any(str(entry.index) == index and is_routable(entry) for entry in port.gids)


@check(
    "rdma.hca",
    "RDMA devices named in the environment exist",
    cause="nccl-ib-hca-wrong",
    tags=["rdma", "preflight"],
)
def hca(one: Host) -> Said:
    """NCCL_IB_HCA takes verbs devices (mlx5_0), not interfaces; with a name that fits none, NCCL
    falls back to TCP without a word."""
    asked = {**one.spec.env, **one.node.env}.get("NCCL_IB_HCA", "")
    if not asked or asked.startswith("^"):
        return skip("NCCL_IB_HCA chooses none")
    words = [word.partition(":")[0] for word in asked.lstrip("=").split(",")]
    found = [d for d in one.facts.rdma_devices if any(d.startswith(word) for word in words)]
    if found:
        return ok(", ".join(found))
    return fail(
        f"NCCL_IB_HCA={asked} fits none of: {', '.join(one.facts.rdma_devices) or 'nothing'}",
        "name devices that ibv_devices lists",
        values={"value": asked},
    )


@check(
    "rdma.gpudirect", "RDMA reaches GPU memory", cause="gdr-peermem-error", tags=["rdma", "nvidia"]
)
def gpudirect(one: Host) -> Said:
    """Without nvidia_peermem, or the open driver's DMA-BUF, every byte between hosts is staged
    through host memory at half the speed or less."""
    if not one.nvidia or not one.facts.rdma_devices:
        return skip("no NVIDIA GPU beside an RDMA device")
    nvidia = one.facts.nvidia
    if nvidia.open_module:
        return ok("DMA-BUF of the open kernel module")
    if {"nvidia_peermem", "nv_peer_mem"} & set(nvidia.modules):
        return ok("nvidia_peermem is loaded")
    return warn("nvidia_peermem is not loaded", "sudo modprobe nvidia_peermem")


@check(
    "rdma.alike",
    "All hosts have the same RDMA devices",
    cause="rdma-devices-differ",
    scope="cluster",
    tags=["rdma"],
)
def alike(whole: Cluster) -> Said:
    """Where one host lacks a device, NCCL uses TCP there, or all hang; InfiniBand and RoCE do not
    mix."""
    kinds = {name: _kind(host.facts.rdma_ports or ()) for name, host in whole.hosts.items()}
    if len(kinds) < 2 or not any(kinds.values()):
        return skip("no two hosts, or no RDMA device on any")
    if len(set(kinds.values())) == 1:
        return ok(next(iter(kinds.values())))
    said = "; ".join(f"{name}: {kind or 'none'}" for name, kind in kinds.items())
    return warn(f"the hosts' active RDMA ports differ: {said}", "choose alike ones by NCCL_IB_HCA")


def _kind(known: tuple[RdmaPort, ...]) -> str:
    said = [f"{port.link_layer} {port.rate_gbit or 0:g} Gbit/s" for port in known if port.active]
    return ", ".join(f"{said.count(kind)} x {kind}" for kind in sorted(set(said)))


@check(
    "rdma.mtu-equal",
    "All RDMA ports use one MTU",
    cause="mtu-mismatch",
    scope="cluster",
    tags=["rdma"],
)
def mtu_equal(whole: Cluster) -> Said:
    """Different active MTUs pass small messages and fail large ones: a local length error, or
    a hang."""
    seen: Mapping[str, set[int]] = {
        name: {p.mtu for p in host.facts.rdma_ports or () if p.active and p.mtu}
        for name, host in whole.hosts.items()
    }
    sizes = set().union(*seen.values()) if seen else set()
    if len(sizes) < 1 or len(whole.hosts) < 2:
        return skip("no active MTU is known of two hosts")
    if len(sizes) == 1:
        return ok(f"{sizes.pop()} bytes")
    said = "; ".join(f"{name}: {sorted(mtus)}" for name, mtus in seen.items() if mtus)
    return warn(f"active MTUs differ: {said}", "set one MTU on the interfaces and the switch")


CHECKS: tuple[Check[Host], ...] = (ports, gid, hca, gpudirect)
CLUSTER_CHECKS: tuple[Check[Cluster], ...] = (alike, mtu_equal)
