"""Which address each node uses for Ray and NCCL. PURE: all nodes' interfaces in, addresses out.

asked for       hosts[].cluster_address  >  network.interface  >  network.subnet
otherwise       the subnets that all nodes share: RDMA-capable first, then the fastest link
never, unasked  what a container engine or VPN made, public addresses, loopback
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from clusterctl.errors import PreflightFailed
from clusterctl.facts.types import HostFacts, Interface
from clusterctl.spec import ClusterSpec, NodeSpec

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True)
class ChosenAddress:
    """A node's address in the cluster, the interface that carries it, and why this one. `network`
    is the subnet that the address is in, as 10.0.0.0/24."""

    address: str
    interface: str
    reason: str
    network: str = ""


@dataclass(frozen=True)
class Option:
    """One address that a node could use."""

    node: NodeSpec
    interface: Interface
    ip: IpAddress
    network: IpNetwork


Chosen = Mapping[str, ChosenAddress]  # by node name


def choose_addresses(spec: ClusterSpec, facts: Mapping[str, HostFacts]) -> Chosen:
    """The best candidate. Raises PreflightFailed naming what each host has and the way out."""
    return candidates(spec, facts)[0]


def candidates(spec: ClusterSpec, facts: Mapping[str, HostFacts]) -> Sequence[Chosen]:
    """Every choice that looks possible from the interfaces alone, best first: whether the nodes
    reach each other there is for the caller to try. Raises PreflightFailed when there is none."""
    options = {node.name: list(_options(spec, node, facts[node.name])) for node in spec.nodes}
    if all(node.cluster_address for node in spec.nodes):
        found = [_each(options, "cluster_address")]
    else:
        found = _shared(options, _asked(spec)) + _routed(options, _asked(spec))
    distinct = [chosen for chosen in found if not _duplicates(chosen)]
    if not distinct:
        raise _nothing(spec, facts, found)
    return distinct


# What a node may use


def _options(spec: ClusterSpec, node: NodeSpec, facts: HostFacts) -> Iterator[Option]:
    allowed = _rule(spec, node)
    everything = list(_bound(node, facts))
    if node.cluster_address and not any(map(allowed, everything)):
        raise _not_bound(node, everything)
    for option in everything:
        if allowed(option):
            _refuse_public(spec, option, asked=bool(node.cluster_address or _asked(spec)))
            if spec.network.allow_public_address or not option.ip.is_global:
                yield option


def _bound(node: NodeSpec, facts: HostFacts) -> Iterator[Option]:
    for interface in facts.interfaces:
        for address in interface.addresses if interface.up else ():
            bound = ipaddress.ip_interface(f"{address.ip}/{address.prefix}")
            if not bound.ip.is_link_local:
                yield Option(node, interface, bound.ip, bound.network)


def _rule(spec: ClusterSpec, node: NodeSpec) -> Callable[[Option], bool]:
    """Which of a node's addresses may be used, by what was asked for."""
    if node.cluster_address:
        own = ipaddress.ip_address(node.cluster_address)
        return lambda option: option.ip == own
    if spec.network.interface:
        return lambda option: option.interface.name == spec.network.interface and _is_ipv4(option)
    if spec.network.subnet:
        subnet = ipaddress.ip_network(spec.network.subnet)
        return lambda option: option.ip in subnet
    local = all(_is_this_machine(node) for node in spec.nodes)
    return lambda option: (
        _is_ipv4(option)
        and not option.interface.is_virtual
        and (local or not option.ip.is_loopback)
    )


def _is_ipv4(option: Option) -> bool:
    return option.ip.version == 4


def _is_this_machine(node: NodeSpec) -> bool:
    return node.address in {"localhost", "127.0.0.1", "::1"}


# Choosing among them


def _asked(spec: ClusterSpec) -> str | None:
    if spec.network.interface:
        return f"network.interface {spec.network.interface}"
    return f"network.subnet {spec.network.subnet}" if spec.network.subnet else None


def _routed(options: Mapping[str, Sequence[Option]], asked: str | None) -> list[Chosen]:
    """With an interface or a subnet named, nodes may also sit in different networks."""
    return [_each(options, asked)] if asked and all(options.values()) else []


def _each(options: Mapping[str, Sequence[Option]], reason: str) -> Chosen:
    return {name: _chosen(max(own, key=_merit), reason) for name, own in options.items()}


def _shared(options: Mapping[str, Sequence[Option]], asked: str | None) -> list[Chosen]:
    """One choice for each network that all nodes are in, best first."""
    networks = [{option.network for option in own} for own in options.values()]
    shared = set.intersection(*networks)
    sets = [[_best_in(network, own) for own in options.values()] for network in shared]
    sets.sort(key=lambda found: (_worst_merit(found), -int(found[0].network[0])), reverse=True)
    return [
        {option.node.name: _chosen(option, asked or _reason(found, sets)) for option in found}
        for found in sets
    ]


def _best_in(network: IpNetwork, own: Sequence[Option]) -> Option:
    return max((option for option in own if option.network == network), key=_merit)


def _merit(option: Option) -> tuple[bool, bool, int, bool]:
    """Greater is better. An unknown speed loses against every known one."""
    return (
        not option.ip.is_loopback,
        option.interface.rdma_device is not None,
        option.interface.speed_mbit or 0,
        not option.ip.is_global,
    )


def _worst_merit(found: Sequence[Option]) -> tuple[bool, bool, int, bool]:
    """A network is as good as the node that is worst off in it."""
    return min(map(_merit, found))


def _reason(found: Sequence[Option], sets: Sequence[Sequence[Option]]) -> str:
    network = found[0].network
    if len(sets) == 1:
        return f"{network} is the only subnet that all nodes share"
    if found is not sets[0]:
        return f"{network} is another subnet that all nodes share"
    runner_up = _worst_merit(sets[1])
    _, rdma, speed, private = _worst_merit(found)
    if rdma and not runner_up[1]:
        return f"{network} is the shared subnet with RDMA on all nodes"
    if speed > runner_up[2]:
        return f"{network} is the fastest shared subnet ({speed / 1000:g} Gbit/s)"
    if private and not runner_up[3]:
        return f"{network} is the private one of the shared subnets"
    return f"{network} is the first of {len(sets)} shared subnets that look equal"


def _chosen(option: Option, reason: str) -> ChosenAddress:
    return ChosenAddress(str(option.ip), option.interface.name, reason, str(option.network))


def _duplicates(chosen: Chosen) -> list[str]:
    """Nodes that have the same address as another."""
    addresses = [choice.address for choice in chosen.values()]
    return [name for name, choice in chosen.items() if addresses.count(choice.address) > 1]


# Why not


def _refuse_public(spec: ClusterSpec, option: Option, *, asked: bool) -> None:
    if asked and option.ip.is_global and not spec.network.allow_public_address:
        raise PreflightFailed(
            f"{option.ip} is a public address: Ray and NCCL would listen on the internet",
            host=option.node.name,
            hint="choose a private one, or --allow-public-address (in cluster.yaml: network: "
            "{allow_public_address: true})",
        )


def _not_bound(node: NodeSpec, options: Sequence[Option]) -> PreflightFailed:
    return PreflightFailed(
        f"cluster_address {node.cluster_address} is not an address of this host, which has "
        f"{_listed(options)}",
        host=node.name,
        hint=f"correct cluster_address of {node.name}",
    )


def _nothing(
    spec: ClusterSpec, facts: Mapping[str, HostFacts], found: Sequence[Chosen]
) -> PreflightFailed:
    for chosen in found:
        if doubled := _duplicates(chosen):
            return PreflightFailed(
                f"{' and '.join(doubled)} have the same address {chosen[doubled[0]].address}",
                host=doubled[-1],
                hint="are they one machine under two names? Else give one of them an address of "
                "its own",
            )
    seen = {node.name: list(_bound(node, facts[node.name])) for node in spec.nodes}
    lines = [f"  {name}: {_listed(own)}" for name, own in seen.items()]
    return PreflightFailed("\n".join([_headline(spec), *lines]), hint=_way_out(spec, seen))


def _headline(spec: ClusterSpec) -> str:
    if spec.network.interface:
        return f"not every host has an address on {spec.network.interface}:"
    if spec.network.subnet:
        return f"not every host has an address in {spec.network.subnet}:"
    return "the hosts share no private subnet:"


def _way_out(spec: ClusterSpec, seen: Mapping[str, Sequence[Option]]) -> str:
    networks = [{o.network for o in own if not o.ip.is_loopback} for own in seen.values()]
    unused = [o for own in seen.values() for o in own if o.network in set.intersection(*networks)]
    if any(option.ip.is_global for option in unused):
        return (
            "to use their public network: --allow-public-address (in cluster.yaml: network: "
            "{allow_public_address: true})"
        )
    if unused and unused[0].interface.is_virtual and not spec.network.interface:
        return f"to use it all the same: network: {{interface: {unused[0].interface.name}}}"
    if spec.network.interface or spec.network.subnet:
        return "correct network: in cluster.yaml, or leave it out to have it chosen"
    return (
        "name the network with network: {subnet: 10.0.0.0/16}, or, where they are routed to each "
        "other, give every host its cluster_address"
    )


def _listed(options: Sequence[Option]) -> str:
    shown = [f"{o.ip}/{o.network.prefixlen} ({o.interface.name})" for o in options if _is_ipv4(o)]
    return ", ".join(shown) or "no address"
