"""Checks of names, addresses, interfaces and what the environment says of them."""

from __future__ import annotations

import ipaddress
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping

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
from clusterctl.doctor.subject import Cluster, Host
from clusterctl.facts.types import Interface

_OWN_VALUE = ("VLLM_HOST_IP", "RAY_NODE_IP_ADDRESS", "RAY_OVERRIDE_NODE_IP_ADDRESS")


@check(
    "net.hostname-loopback",
    "The host's own name leads to its address",
    cause="hostname-resolves-loopback",
    needs=["host.hostname_resolves_to"],
    tags=["preflight"],
)
def hostname_loopback(one: Host) -> Said:
    """Gloo and others announce themselves under what their host's name leads to. Debian's installer
    writes 127.0.1.1 there, and the peers then connect to themselves."""
    found = one.facts.host.hostname_resolves_to
    name = one.facts.host.hostname
    if found is None:
        return unknown("there is no getent to ask what its name leads to")
    if not found:
        return warn(
            f"its own name {name} leads nowhere",
            f"let {name} stand beside its private address in its /etc/hosts",
            cause="hostname-unresolved",
        )
    loopback = [ip for ip in found if ipaddress.ip_address(ip.partition("%")[0]).is_loopback]
    if not loopback:
        return ok(f"{name} is {found[0]}")
    return warn(
        f"its own name {name} leads to {loopback[0]}: a program that announces itself by name is "
        "not found by the others",
        f"in its /etc/hosts, let {name} stand beside its private address instead of {loopback[0]}",
        evidence=Evidence(f"{loopback[0]} {name}", "/etc/hosts"),
        values={"hostname": name, "address": loopback[0]},
    )


@check(
    "net.same-subnet",
    "No two interfaces are in one subnet",
    cause="multi-nic-same-subnet-hang",
    tags=["preflight"],
)
def same_subnet(one: Host) -> Said:
    """Packets may leave by the one and be answered to the other: Ray's placement groups and NCCL
    then wait without an error."""
    found: dict[str, list[str]] = defaultdict(list)
    for interface, network in _networks(one):
        if interface.name not in found[network]:
            found[network].append(interface.name)
    doubled = {network: names for network, names in found.items() if len(names) > 1}
    if not doubled:
        return ok(f"{len(found)} subnets")
    return [
        warn(
            f"{' and '.join(names)} are in one subnet, {network}: packets may leave by the other "
            "one, and Ray or NCCL then waits forever",
            "give each interface a subnet of its own, or take the address off "
            + ", ".join(names[1:]),
            values={"subnet": network, "interfaces": " ".join(names)},
        )
        for network, names in doubled.items()
    ]


def _networks(one: Host) -> Iterator[tuple[Interface, str]]:
    for interface in one.facts.interfaces:
        for address in interface.addresses if interface.up and not interface.is_virtual else ():
            bound = ipaddress.ip_interface(f"{address.ip}/{address.prefix}")
            if not (bound.ip.is_loopback or bound.ip.is_link_local):
                yield interface, str(bound.network)


@check(
    "net.fabric-address",
    "Fabric interfaces have an address",
    cause="node-interface-no-ip",
    tags=["rdma"],
)
def fabric_address(one: Host) -> Said:
    """RoCE finds its peers by the addresses of its interfaces: without one it has no GID."""
    behind = [i for i in one.facts.interfaces if i.rdma_device and i.up]
    if not behind:
        return skip("no RDMA device carries an interface")
    bare = [i.name for i in behind if not i.addresses]
    if not bare:
        return ok(", ".join(i.name for i in behind))
    return warn(
        f"{', '.join(bare)} stand on RDMA devices and have no address",
        "give them addresses, or leave them out by NCCL_IB_HCA",
    )


@check("net.firewall", "The firewall lets the hosts talk", cause="firewall-blocks-port")
def firewall(one: Host) -> Said:
    """Ray, vLLM, torch and NCCL use ports that the kernel picks: a filter that opens only a list of
    ports lets a cluster form and its collectives hang."""
    known = one.facts.firewall
    if known is None:
        return unknown("its firewall could not be asked")
    closed = [name for name, on in (("ufw", known.ufw), ("firewalld", known.firewalld)) if on]
    rules = [rule for rule in known.rules if _for_us(one, rule)]
    if rules:
        return warn(
            f"its firewall drops what comes in: {rules[0]}",
            "trust the cluster's subnet: sudo iptables -I INPUT -s SUBNET -j ACCEPT",
            evidence=Evidence(rules[0], "iptables-save"),
            confidence=0.7,
        )
    if known.policy in ("DROP", "REJECT") or closed:
        what = " and ".join(closed) or f"INPUT's policy is {known.policy}"
        return warn(
            f"a firewall is on ({what}): is the cluster's subnet trusted?",
            "sudo ufw allow from SUBNET" if known.ufw else "trust the cluster's subnet there",
            confidence=0.4,
        )
    return ok("nothing is dropped" if known.policy else "its rules show to root alone")


def _for_us(one: Host, rule: str) -> bool:
    """Whether the rule hits a port that Ray was given, or ports that the kernel picks."""
    port = re.search(r"--dports? (\d+)(?::(\d+))?", rule)
    if port is None:
        return False
    first, last = int(port[1]), int(port[2] or port[1])
    ray = one.spec.ray
    pinned = {ray.port, ray.node_manager_port, ray.object_manager_port, ray.min_worker_port}
    span = one.facts.host.ephemeral_ports or (32768, 60999)
    return any(first <= p <= last for p in pinned) or (first <= span[1] and last >= span[0])


@check("net.env-interface", "Interfaces named in the environment exist", tags=["preflight"])
def env_interface(one: Host) -> Said:
    """An interface that only some hosts have, or an RDMA device's name in its place, ends in
    `no socket interface found` on the others."""
    names = {interface.name for interface in one.facts.interfaces}
    return list(_unknown_interfaces(one, names)) or [ok("none is named that is not there")]


def _unknown_interfaces(one: Host, names: set[str]) -> Iterator[Answer]:
    causes = {
        "NCCL_SOCKET_IFNAME": "nccl-socket-ifname-wrong",
        "GLOO_SOCKET_IFNAME": "gloo-ifname-wrong",
    }
    environment = _environment(one)
    for variable, cause in causes.items():
        value = environment.get(variable, "")
        if not value or value.startswith("^"):
            continue
        wanted = [word for word in value.lstrip("=").split(",") if word]
        exact = value.startswith("=") or variable == "GLOO_SOCKET_IFNAME"
        found = [w for w in wanted if any(n == w if exact else n.startswith(w) for n in names)]
        if not found:
            yield fail(
                f"{variable}={value}: this host has {', '.join(sorted(names))}",
                f"leave {variable} out of env: and let it be chosen, or set it per host",
                cause=cause,
                values={"variable": variable, "value": value},
            )


@check(
    "net.env-address",
    "No host is told another's address",
    cause="vllm-host-ip-duplicate",
    tags=["preflight"],
    scope="cluster",
)
def env_address(whole: Cluster) -> Said:
    """An address in the environment of all nodes makes every node call itself by it: Ray and vLLM
    then find `a unique IP address` missing."""
    said = [name for name in _OWN_VALUE if whole.spec.env.get(name)]
    if not said or len(whole.spec.nodes) < 2:
        return ok("none is set for all")
    return [
        fail(
            f"env: sets {name}={whole.spec.env[name]} on all {len(whole.spec.nodes)} nodes",
            f"take {name} out of env:; every node gets its own",
            values={"variable": name, "value": whole.spec.env[name]},
        )
        for name in said
    ]


@check(
    "net.env-public",
    "No host is told a public address",
    cause="public-address",
    tags=["preflight"],
)
def env_public(one: Host) -> Said:
    """Under a public address Ray, gloo and the ranks' rendezvous listen on the internet. The
    addresses that are chosen are private; one in the environment wins over them."""
    said = _environment(one)
    public = [name for name in _OWN_VALUE if _is_public(said.get(name, ""))]
    if not public or one.spec.network.allow_public_address:
        return ok("allowed" if public else "none is named")
    return [
        fail(
            f"{name}={said[name]} is a public address: Ray and the ranks would listen on the "
            "internet",
            f"take {name} out of env: (a private one is chosen), or --allow-public-address",
            values={"variable": name, "value": said[name]},
        )
        for name in public
    ]


def _is_public(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).is_global
    except ValueError:
        return False


@check(
    "net.env-leftover",
    "No switch of a past search for faults is left",
    cause="nccl-fallback-tcp",
    tags=["rdma"],
)
def env_leftover(one: Host) -> Said:
    """NCCL_IB_DISABLE and NCCL_P2P_DISABLE prove a suspicion; left on, they cost most of
    the speed."""
    said = _environment(one)
    left = [
        n for n in ("NCCL_IB_DISABLE", "NCCL_P2P_DISABLE", "NCCL_SHM_DISABLE") if said.get(n) == "1"
    ]
    if not left:
        return ok("none is set")
    return warn(
        f"{', '.join(left)} is set to 1", f"take it out of env: {', '.join(left)}", confidence=0.6
    )


def _environment(one: Host) -> Mapping[str, str]:
    return {**one.spec.env, **one.node.env}


@check(
    "net.duplicate-address",
    "No address is used twice",
    cause="duplicate-address",
    scope="cluster",
    tags=["preflight"],
)
def duplicate_address(whole: Cluster) -> Said:
    """Two hosts with one address answer for each other at random."""
    owners: dict[str, list[str]] = defaultdict(list)
    for name, host in whole.hosts.items():
        for ip in dict.fromkeys(_addresses(host)):
            owners[ip].append(name)
    if whole.spec.runtime == "process":
        return skip("all nodes are this machine")
    machines = {_machine(host) for host in whole.hosts.values()}
    doubled = {ip: names for ip, names in owners.items() if len(names) > 1}
    if not doubled or len(machines) < len(whole.hosts):
        return ok(f"{len(owners)} addresses")
    return [
        fail(
            f"{' and '.join(names)} both have the address {ip}",
            f"give one of them another address: ip addr show | grep {ip}",
            host=names[-1],
            values={"address": ip, "hosts": " ".join(names)},
        )
        for ip, names in doubled.items()
    ]


def _addresses(one: Host) -> Iterator[str]:
    for interface in one.facts.interfaces:
        for address in interface.addresses if not interface.is_virtual else ():
            ip = ipaddress.ip_address(address.ip)
            if not (ip.is_loopback or ip.is_link_local):
                yield address.ip


def _machine(one: Host) -> tuple[str, ...]:
    """What tells a machine from others that have the same address."""
    macs = sorted(i.mac for i in one.facts.interfaces if not i.is_virtual)
    return one.facts.host.hostname, *macs


@check("net.mtu-equal", "All hosts send packets of one size", cause="mtu-mismatch", scope="cluster")
def mtu_equal(whole: Cluster) -> Said:
    """A host that sends larger packets than its peer takes: small messages pass,
    large ones hang."""
    return _equal(whole, "MTU", lambda i: i.mtu, "sudo ip link set dev INTERFACE mtu SIZE")


@check("net.speed-equal", "All hosts' links are equally fast", cause="slow-link", scope="cluster")
def speed_equal(whole: Cluster) -> Said:
    """One cable that trained at a tenth of its speed slows every collective to that."""
    return _equal(
        whole, "Mbit/s", lambda i: i.speed_mbit, "sudo ethtool INTERFACE; check the cable"
    )


def _equal(whole: Cluster, unit: str, value: Callable[[Interface], int | None], fix: str) -> Said:
    """Interfaces of one subnet, over the hosts."""
    seen: dict[str, dict[str, tuple[str, int]]] = defaultdict(dict)
    for name, host in whole.hosts.items():
        for interface, network in _networks(host):
            if (number := value(interface)) is not None:
                seen[network][name] = (interface.name, number)
    shared = {network: hosts for network, hosts in seen.items() if len(hosts) > 1}
    odd = {n: h for n, h in shared.items() if len({number for _, number in h.values()}) > 1}
    if not shared:
        return skip("no two hosts share a subnet")
    if not odd:
        return ok(f"equal in {', '.join(shared)}")
    return [_odd_ones(network, hosts, unit, fix) for network, hosts in odd.items()]


def _odd_ones(network: str, hosts: Mapping[str, tuple[str, int]], unit: str, fix: str) -> Answer:
    """Names the hosts that are not as most are."""
    numbers = [number for _, number in hosts.values()]
    usual = max(dict.fromkeys(numbers), key=numbers.count)
    odd = {name: said for name, said in hosts.items() if said[1] != usual}
    text = ", ".join(f"{name} has {number} on {nic}" for name, (nic, number) in odd.items())
    return warn(
        f"{unit} differ in {network}: {text}, the others {usual}",
        fix.replace("INTERFACE", next(iter(odd.values()))[0]).replace("SIZE", str(usual)),
        host=next(iter(odd)) if len(odd) == 1 else None,
        values={"usual": str(usual), "hosts": " ".join(odd)},
    )


CHECKS: tuple[Check[Host], ...] = (
    hostname_loopback,
    same_subnet,
    fabric_address,
    firewall,
    env_interface,
    env_public,
    env_leftover,
)
CLUSTER_CHECKS: tuple[Check[Cluster], ...] = (
    env_address,
    duplicate_address,
    mtu_equal,
    speed_equal,
)
