"""Which RDMA ports a host's ranks use, and the variables that say so to NCCL and UCX, each with its
reason. PURE: all hosts' facts in, so that every value holds on every node and port.

Where InfiniBand or RoCE is found on every host, NCCL_NET is pinned: a host whose adapters cannot be
used then fails at once, where NCCL would fall back to TCP without a word.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from clusterctl.facts.types import Gid, HostFacts, RdmaPort

PER_HOST = (
    *("VLLM_HOST_IP", "NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME"),
    *("NCCL_IB_HCA", "NCCL_IB_GID_INDEX", "UCX_NET_DEVICES"),
)
"""What each host has to say for itself: another host's value is wrong there."""

# An entry of a GID table for an IPv4 address: ::ffff:a.b.c.d
_IPV4_GID = "0000:0000:0000:0000:0000:ffff:"
_KINDS = ("InfiniBand", "Ethernet")  # others (EFA) are no verbs devices to NCCL's own IB transport


@dataclass(frozen=True)
class Derived:
    """A variable's value, and what it comes from, in words."""

    value: str
    why: str


Variables = Mapping[str, Derived]


def derive(facts: Mapping[str, HostFacts]) -> dict[str, Variables]:
    """By node name. Nothing for any node unless every node has ports of one kind to use."""
    chosen = _alike({name: host.rdma_ports or () for name, host in facts.items()})
    return {name: _variables(ports) if chosen else {} for name, ports in chosen.items()} or {
        name: {} for name in facts
    }


def _alike(ports: Mapping[str, Sequence[RdmaPort]]) -> dict[str, tuple[RdmaPort, ...]]:
    """The first kind that every host has, InfiniBand before RoCE; of that kind the fastest rate
    that all have, since slower ports beside them are for storage or management."""
    for kind in _KINDS:
        usable = {
            name: [port for port in own if port.link_layer == kind and _is_usable(port)]
            for name, own in ports.items()
        }
        rates = [{port.rate_gbit for port in own} for own in usable.values()]
        shared = set.intersection(*rates) if rates else set()
        if shared:
            best = max(shared, key=lambda rate: rate or 0)
            return {
                name: _rails([port for port in own if port.rate_gbit == best])
                for name, own in usable.items()
            }
    return {}


def _is_usable(port: RdmaPort) -> bool:
    """Active; with RoCE also reachable by IPv4, which a port without an address is not."""
    return port.active and (port.link_layer == "InfiniBand" or any(map(is_routable, port.gids)))


def is_routable(entry: Gid) -> bool:
    return entry.kind == "RoCE v2" and entry.gid.startswith(_IPV4_GID)


def _rails(ports: Sequence[RdmaPort]) -> tuple[RdmaPort, ...]:
    """In the order of their numbers, on every host alike: mlx5_2 before mlx5_10."""
    return tuple(sorted(ports, key=lambda port: (_natural(port.device), port.port)))


def _natural(name: str) -> list[tuple[bool, int, str]]:
    return [
        (word.isdigit(), int(word) if word.isdigit() else 0, word)
        for word in re.findall(r"\d+|\D+", name)
    ]


def _variables(ports: Sequence[RdmaPort]) -> Variables:
    names = ",".join(f"{port.device}:{port.port}" for port in ports)
    first = ports[0]
    kind = "RoCE" if first.link_layer == "Ethernet" else first.link_layer
    rate = f" of {first.rate_gbit:g} Gbit/s" if first.rate_gbit else ""
    why = f"{len(ports)} active {kind} port{'s' if len(ports) > 1 else ''}{rate}"
    found = {
        "NCCL_IB_HCA": Derived(f"={names}", why),  # "=": exactly these, no prefixes
        "UCX_NET_DEVICES": Derived(names, why),
        "NCCL_NET": Derived("IB", f"every host has {kind}: no silent fall back to TCP"),
    }
    if first.link_layer == "Ethernet" and (index := _common_gid(ports)) is not None:
        said = f"the RoCE v2 entry of the IPv4 address on {names}"
        found["NCCL_IB_GID_INDEX"] = Derived(str(index), said)
    return found


def _common_gid(ports: Sequence[RdmaPort]) -> int | None:
    """The index that is RoCE v2 over IPv4 on every port of this host. None where there is no such
    one: NCCL 2.21 and later look for it on each port by themselves."""
    tables = [{gid.index for gid in port.gids if is_routable(gid)} for port in ports]
    return min(set.intersection(*tables), default=None)
