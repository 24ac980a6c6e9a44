"""One bridge, and for every host a network namespace with a cable into it."""

from __future__ import annotations

from collections.abc import Sequence

from .layout import Host, Testbed
from .shell import Failure, run, succeeds


def build_bridge(testbed: Testbed) -> None:
    if not _link_exists(testbed.bridge):
        _refuse_taken(testbed)
        run(["ip", "link", "add", testbed.bridge, "type", "bridge"])
        run(["ip", "addr", "add", f"{testbed.address}/24", "dev", testbed.bridge])
    run(["ip", "link", "set", testbed.bridge, "up"])
    if not succeeds(["iptables", "--check", *_forward_rule(testbed)]):
        run(["iptables", "--insert", *_forward_rule(testbed)])


def remove_bridge(testbed: Testbed) -> None:
    while succeeds(["iptables", "--delete", *_forward_rule(testbed)]):
        pass
    if _link_exists(testbed.bridge):
        run(["ip", "link", "delete", testbed.bridge])


def connect(host: Host) -> None:
    """Give the host a namespace, lo, and eth0 with its address. Nothing to do on a second call."""
    if has_namespace(host):
        return
    run(["ip", "netns", "add", host.namespace])
    inside = ["ip", "-n", host.namespace]
    run([*inside, "link", "set", "lo", "up"])
    plug_in(host, host.cable, "eth0", host.address)
    run([*inside, "route", "add", "default", "via", host.testbed.address])


def plug_in(host: Host, cable: str, interface: str, address: str) -> None:
    """A cable from the bridge to a new interface of the host."""
    veth = ["ip", "link", "add", cable, "type", "veth"]
    run([*veth, "peer", "name", interface, "netns", host.namespace])
    run(["ip", "link", "set", cable, "master", host.testbed.bridge, "up"])
    inside = ["ip", "-n", host.namespace]
    run([*inside, "addr", "add", f"{address}/24", "dev", interface])
    run([*inside, "link", "set", interface, "up"])


def remove_cable(cable: str) -> None:
    """Both ends go with the one that we hold. Nothing to do where there is none."""
    if _link_exists(cable):
        run(["ip", "link", "delete", cable])


def disconnect(host: Host) -> None:
    remove_cable(host.cable)
    if has_namespace(host):
        run(["ip", "netns", "delete", host.namespace])


def has_namespace(host: Host) -> bool:
    return succeeds(["test", "-e", f"/run/netns/{host.namespace}"])


def unplug(host: Host) -> None:
    """Our end goes down: the host loses its carrier and keeps its address, as with a real cable."""
    run(["ip", "link", "set", host.cable, "down"])


def plug(host: Host) -> None:
    run(["ip", "link", "set", host.cable, "up"])


def limit(host: Host, mbit: int) -> None:
    """Both ends send at this rate: a token bucket of a few packets' worth, a queue of 50 ms."""
    bucket = ["root", "tbf", "rate", f"{mbit}mbit", "burst", "256kb", "latency", "50ms"]
    run(["tc", "qdisc", "replace", "dev", host.cable, *bucket])
    in_namespace(host, ["tc", "qdisc", "replace", "dev", "eth0", *bucket])


def unlimit(host: Host) -> None:
    """Whatever limits either end, goes. Without one there is nothing to delete."""
    succeeds(["tc", "qdisc", "delete", "dev", host.cable, "root"])
    inside = ["nsenter", f"--net=/run/netns/{host.namespace}"]
    succeeds([*inside, "tc", "qdisc", "delete", "dev", "eth0", "root"])


def in_namespace(host: Host, argv: Sequence[str]) -> str:
    return run(["nsenter", f"--net=/run/netns/{host.namespace}", *argv])


def _forward_rule(testbed: Testbed) -> list[str]:
    """Another Docker Engine on this machine sets FORWARD to DROP, and bridged frames pass it."""
    bridge = testbed.bridge
    return ["FORWARD", "--in-interface", bridge, "--out-interface", bridge, "--jump", "ACCEPT"]


def _refuse_taken(testbed: Testbed) -> None:
    taken = run(["ip", "route", "show", f"10.99.{testbed.subnet}.0/24"]).strip()
    if taken:
        raise Failure(f"10.99.{testbed.subnet}.0/24 is in use ({taken}): choose one by --subnet N")


def _link_exists(name: str) -> bool:
    return succeeds(["ip", "link", "show", "dev", name])
