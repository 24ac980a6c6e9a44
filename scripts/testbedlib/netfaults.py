"""What can go wrong with a host's network: firewall, link, addresses."""

from __future__ import annotations

import json
from collections.abc import Sequence

from . import network
from .layout import Host, Testbed
from .shell import Failure, run, succeeds

CHAIN = "TESTBED-FAULT"
HOOKS = (("INPUT", "--in-interface"), ("OUTPUT", "--out-interface"))
MTU = 1500
TWIN = 100  # added to the last part of the address


def heal(host: Host) -> None:
    _open_firewall(host)
    network.in_namespace(host, ["ip", "link", "set", "eth0", "mtu", str(MTU)])
    network.remove_cable(_twin_cable(host))
    for address in _addresses(host):
        if address != host.address:
            network.in_namespace(host, ["ip", "addr", "del", f"{address}/24", "dev", "eth0"])
            _forget(host.testbed, address)


def lose_packets(host: Host, percent: str) -> None:
    share = float(percent or 10) / 100
    drop(host, ["--match", "statistic", "--mode", "random", "--probability", f"{share:.4f}"])


def lose_large_packets(host: Host, size: str) -> None:
    """Between the hosts alone: logins from this machine come another way, as an operator's do."""
    add_rule(host, ["--source", host.testbed.address, "--jump", "RETURN"])
    add_rule(host, ["--destination", host.testbed.address, "--jump", "RETURN"])
    drop(host, ["--match", "length", "--length", f"{int(size or 1400) + 1}:65535"])


def set_mtu(host: Host, size: str) -> None:
    network.in_namespace(host, ["ip", "link", "set", "eth0", "mtu", size or "1400"])


def block_return_ports(host: Host, _: str) -> None:
    drop(host, ["--in-interface", "eth0", "--protocol", "tcp", "--syn", "--dport", "1024:65535"])


def add_twin(host: Host, _: str) -> None:
    prefix, _, last = host.address.rpartition(".")
    network.plug_in(host, _twin_cable(host), "eth1", f"{prefix}.{int(last) + TWIN}")


def take_address(host: Host, other: str) -> None:
    if not other.startswith("gpu") or other == host.name:
        raise Failure("whose address? as in address-duplicate:gpu01")
    owner = host.testbed.host(int(other.removeprefix("gpu")))
    _remember(owner)
    network.in_namespace(host, ["ip", "addr", "add", f"{owner.address}/24", "dev", "eth0"])


def _remember(owner: Host) -> None:
    """This machine goes on finding the owner: logins come another way, as an operator's do."""
    shown = json.loads(network.in_namespace(owner, ["ip", "-j", "link", "show", "dev", "eth0"]))
    neighbour = [owner.address, "lladdr", shown[0]["address"], "dev", owner.testbed.bridge]
    run(["ip", "neigh", "replace", *neighbour, "nud", "permanent"])


def _forget(testbed: Testbed, address: str) -> None:
    """Nobody keeps the wrong machine's hardware address."""
    succeeds(["ip", "neigh", "del", address, "dev", testbed.bridge])
    for host in testbed.hosts():
        if network.has_namespace(host):
            network.in_namespace(host, ["ip", "neigh", "flush", "to", address])


def drop(host: Host, packets: Sequence[str]) -> None:
    add_rule(host, [*packets, "--jump", "DROP"])


def add_rule(host: Host, rule: Sequence[str]) -> None:
    """A rule for packets in and out, in a chain of our own. Traffic within the host passes."""
    if not _chain_exists(host):
        _iptables(host, "--new-chain", CHAIN)
        for hook, interface in HOOKS:
            _iptables(host, "--insert", hook, "!", interface, "lo", "--jump", CHAIN)
    _iptables(host, "--append", CHAIN, *rule)


def _open_firewall(host: Host) -> None:
    if not _chain_exists(host):
        return
    for hook, interface in HOOKS:
        _iptables(host, "--delete", hook, "!", interface, "lo", "--jump", CHAIN)
    _iptables(host, "--flush", CHAIN)
    _iptables(host, "--delete-chain", CHAIN)


def _chain_exists(host: Host) -> bool:
    return f"-N {CHAIN}" in _iptables(host, "--list-rules")


def _iptables(host: Host, *words: str) -> str:
    return network.in_namespace(host, ["iptables", *words])


def _addresses(host: Host) -> list[str]:
    shown = json.loads(network.in_namespace(host, ["ip", "-j", "addr", "show", "dev", "eth0"]))
    found = (info for entry in shown for info in entry.get("addr_info", ()))
    return [info["local"] for info in found if info["family"] == "inet"]


def _twin_cable(host: Host) -> str:
    return f"{host.cable}b"
