"""Interfaces with their addresses, and the TCP ports that are taken."""

from __future__ import annotations

import ipaddress
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from clusterctl.facts.sections import Section
from clusterctl.facts.types import Address, Interface, Listener

PROBES: Mapping[str, str] = {
    "ip_addr": "ip -j addr show",
    # Only read where `ip` cannot tell: a router's table may be long.
    "proc_addr": """
ip -j addr show >/dev/null 2>&1 && exit
cat /proc/net/route; echo; cat /proc/net/fib_trie; echo; cat /proc/net/if_inet6""",
    "sys_net": """
get() { v=; read -r v 2>/dev/null <"$d/$1"; printf '\\t%s' "$v"; }
for d in /sys/class/net/*; do
  [ -d "$d" ] || continue
  printf '%s' "${d##*/}"
  get flags; get carrier; get mtu; get speed; get address; echo
done""",
    "ss": "ss -ltnp",
    "proc_tcp": """
ss -ltnp >/dev/null 2>&1 && exit
cat /proc/net/tcp /proc/net/tcp6""",
}

# Made by container engines, hypervisors, overlays and VPNs: they carry no traffic between nodes,
# or not the traffic that is wanted.
_VIRTUAL = re.compile(
    r"(docker|br-|virbr|veth|vnet|cni|cali|flannel|cilium|kube|podman|lxc|lxd|tailscale|zt|wg|tun|tap"
    r"|utun|ifb|dummy|nerdctl|vmnet|vboxnet|ovs)"
)
_LISTEN = "0A"
_UP = 1  # IFF_UP


@dataclass(frozen=True)
class SysInterface:
    """What /sys/class/net says of an interface."""

    up: bool
    mtu: int
    speed_mbit: int | None
    mac: str


def parse_interfaces(
    sections: Mapping[str, Section], rdma: Mapping[str, str]
) -> tuple[Interface, ...]:
    """`rdma`: interface -> RDMA device behind it."""
    sys_net = parse_sys_net(sections["sys_net"].stdout)
    if sections["ip_addr"].ok:
        seen = parse_ip_addr(sections["ip_addr"].stdout)
    else:
        seen = from_proc(sections["proc_addr"].stdout, sys_net)
    return tuple(
        replace(
            interface, speed_mbit=_speed(interface, sys_net), rdma_device=rdma.get(interface.name)
        )
        for interface in seen
    )


def _speed(interface: Interface, sys_net: Mapping[str, SysInterface]) -> int | None:
    """/sys may show another network namespace: an equal name counts only with an equal MAC."""
    known = sys_net.get(interface.name)
    return known.speed_mbit if known and known.mac == interface.mac else None


def is_virtual(name: str) -> bool:
    return _VIRTUAL.match(name) is not None


def parse_ip_addr(text: str) -> tuple[Interface, ...]:
    """`ip -j addr show`."""
    return tuple(_from_ip(entry) for entry in json.loads(text) if entry)


def _from_ip(entry: Mapping[str, Any]) -> Interface:
    return Interface(
        name=entry["ifname"],
        up={"UP", "LOWER_UP"} <= set(entry["flags"]),  # switched on, and something at the other end
        addresses=tuple(
            Address(info["local"], info["prefixlen"])
            for info in entry.get("addr_info", ())
            if "local" in info
        ),
        mtu=entry["mtu"],
        speed_mbit=None,
        mac=entry.get("address", ""),
        is_virtual=is_virtual(entry["ifname"]),
    )


def parse_sys_net(text: str) -> dict[str, SysInterface]:
    """Lines of name, flags, carrier, MTU, speed, MAC, by tabs; a speed may be missing or -1."""
    return dict(_sys_lines(text))


def _sys_lines(text: str) -> Iterator[tuple[str, SysInterface]]:
    for line in text.splitlines():
        name, flags, carrier, mtu, speed, mac = line.split("\t")
        up = bool(int(flags, 16) & _UP) and carrier == "1"
        mbit = int(speed) if speed.isdecimal() and speed != "0" else None
        yield name, SysInterface(up, int(mtu), mbit, mac)


def from_proc(text: str, sys_net: Mapping[str, SysInterface]) -> tuple[Interface, ...]:
    """/proc/net/route, fib_trie and if_inet6, a blank line between them, for hosts without `ip`."""
    route, fib, inet6 = ([*text.split("\n\n"), "", "", ""])[:3]
    addresses: dict[str, list[Address]] = defaultdict(list)
    for name, address in [
        *_ipv4_of(local_addresses(fib), connected(route)),
        *parse_if_inet6(inet6),
    ]:
        addresses[name].append(address)
    return tuple(
        Interface(
            name, sys.up, tuple(addresses[name]), sys.mtu, None, sys.mac, None, is_virtual(name)
        )
        for name, sys in sys_net.items()
    )


def local_addresses(fib_trie: str) -> list[str]:
    """The host's own IPv4 addresses: entries marked "/32 host LOCAL"."""
    found = re.findall(r"\|-- ([\d.]+)\n\s+/32 host LOCAL", fib_trie)
    return list(dict.fromkeys(found))


def connected(route: str) -> list[tuple[str, ipaddress.IPv4Network]]:
    """Networks of /proc/net/route that need no gateway, with their interface."""
    rows = [line.split() for line in route.splitlines()[1:]]
    return [
        (row[0], ipaddress.IPv4Network((_little(row[1]), _little_text(row[7]))))
        for row in rows
        if len(row) > 7 and row[2] == "00000000" and row[7] != "00000000"
    ]


def _ipv4_of(
    local: Iterable[str], networks: Iterable[tuple[str, ipaddress.IPv4Network]]
) -> Iterator[tuple[str, Address]]:
    known = [("lo", ipaddress.IPv4Network("127.0.0.0/8")), *networks]
    for ip in local:
        for name, network in known:
            if ipaddress.IPv4Address(ip) in network:
                yield name, Address(ip, network.prefixlen)
                break


def parse_if_inet6(text: str) -> Iterator[tuple[str, Address]]:
    """Lines of address, index, prefix length, scope, flags (hex) and name."""
    for line in text.splitlines():
        digits, _, prefix, _, _, name = line.split()
        yield name, Address(str(ipaddress.IPv6Address(int(digits, 16))), int(prefix, 16))


def parse_listeners(sections: Mapping[str, Section]) -> tuple[Listener, ...] | None:
    """None when neither ss nor /proc/net/tcp could be read."""
    if sections["ss"].ok:
        return parse_ss(sections["ss"].stdout)
    # without IPv6 there is no tcp6 and cat says so, having shown tcp
    proc = sections["proc_tcp"].stdout
    return parse_proc_tcp(proc) if proc.strip() else None


def parse_ss(text: str) -> tuple[Listener, ...]:
    """`ss -ltnp`: State Recv-Q Send-Q Local Peer [Process]."""
    rows = [line.split(None, 5) for line in text.splitlines() if line.startswith("LISTEN")]
    return tuple(_listener(row[3], row[5] if len(row) > 5 else "") for row in rows)


def _listener(local: str, process: str) -> Listener:
    address, _, port = local.rpartition(":")
    named = re.search(r'\(\("([^"]+)"', process)
    bare = address.strip("[]").partition("%")[0]
    return Listener("::" if bare == "*" else bare, int(port), named[1] if named else None)


def parse_proc_tcp(text: str) -> tuple[Listener, ...]:
    """/proc/net/tcp and tcp6, one after the other."""
    rows = [line.split() for line in text.splitlines() if "local_address" not in line]
    return tuple(_proc_listener(row[1]) for row in rows if len(row) > 3 and row[3] == _LISTEN)


def _proc_listener(local: str) -> Listener:
    address, _, port = local.partition(":")
    return Listener(_little_text(address), int(port, 16))


def _little(digits: str) -> int:
    """The kernel prints addresses as 32-bit words in the machine's (little-endian) order."""
    words = [bytes.fromhex(digits[i : i + 8])[::-1] for i in range(0, len(digits), 8)]
    return int.from_bytes(b"".join(words), "big")


def _little_text(digits: str) -> str:
    kind = ipaddress.IPv4Address if len(digits) == 8 else ipaddress.IPv6Address
    return str(kind(_little(digits)))
