"""What can go wrong with a host on purpose, and how it is put right again.

Nothing is remembered: `heal` undoes every kind, and undoing what was not done changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from . import host as hosts
from . import network
from .images import IMAGES
from .layout import REGISTRY_PORT, Host
from .shell import Failure

CHAIN = "TESTBED-FAULT"
HOOKS = (("INPUT", "--in-interface"), ("OUTPUT", "--out-interface"))
OURS = "label=clusterctl.cluster"
KILLED = "exited=137"


@dataclass(frozen=True)
class Fault:
    effect: str
    inflict: Callable[[Host, str], None]  # the second: what follows the colon in KIND:ARGUMENT


def inflict(host: Host, kind: str) -> None:
    name, _, argument = kind.partition(":")
    if name not in FAULTS:
        raise Failure(f"no fault {name!r}; there are:\n{describe()}")
    FAULTS[name].inflict(host, argument)


def heal(host: Host) -> None:
    network.plug(host)
    network.unlimit(host)
    _open_firewall(host)
    hosts.control(host, "start", "sshd", "dockerd")
    hosts.wait_for_services(host)
    killed = _containers(host, "--all", "--filter", KILLED)
    if killed:
        hosts.docker(host, "start", *killed)


def describe() -> str:
    return "\n".join(f"  {kind:16} {fault.effect}" for kind, fault in FAULTS.items())


def _unplug(host: Host, _: str) -> None:
    network.unplug(host)


def _block_port(host: Host, port: str) -> None:
    if not port.isdecimal():
        raise Failure("which port? as in port-blocked:6379")
    _filter(host, ["--protocol", "tcp", "--dport", port, "--jump", "DROP"])


def _slow_down(host: Host, mbit: str) -> None:
    if not mbit.isdecimal() or mbit == "0":
        raise Failure("how slow, in Mbit/s? as in slow-link:200")
    network.limit(host, int(mbit))


def _stop_dockerd(host: Host, _: str) -> None:
    hosts.stop_service(host, "dockerd")


def _stop_sshd(host: Host, _: str) -> None:
    hosts.stop_service(host, "sshd")


def _kill_container(host: Host, _: str) -> None:
    running = _containers(host)
    if not running:
        raise Failure(f"{host.name}: no container of clusterctl runs")
    hosts.docker(host, "kill", *running)


def _lose_image(host: Host, _: str) -> None:
    there = hosts.docker(host, "images", "--format", "{{.Repository}}:{{.Tag}}").split()
    lost = [image for image in map(host.testbed.image, IMAGES) if image in there]
    if lost:
        hosts.docker(host, "rmi", "--force", *lost)
    registry = ["--destination", host.testbed.address, "--protocol", "tcp"]
    refusal = ["--jump", "REJECT", "--reject-with", "tcp-reset"]
    _filter(host, [*registry, "--dport", str(REGISTRY_PORT), *refusal])


def _reboot(host: Host, _: str) -> None:
    hosts.halt(host)
    hosts.boot(host, host.testbed.shares)


FAULTS = {
    "link-down": Fault("its network cable is unplugged", _unplug),
    "port-blocked": Fault(
        "port-blocked:N, a firewall drops TCP port N, in and out, except on lo", _block_port
    ),
    "slow-link": Fault("slow-link:N, its network cable carries N Mbit/s each way", _slow_down),
    "dockerd-stopped": Fault("as by systemctl stop docker", _stop_dockerd),
    "sshd-stopped": Fault("as by systemctl stop ssh: open sessions live on", _stop_sshd),
    "container-killed": Fault("docker kill of clusterctl's container there", _kill_container),
    "image-missing": Fault(
        "the images are removed and the registry refuses this host", _lose_image
    ),
    "reboot": Fault("power off and on again; heals by itself", _reboot),
}


def _filter(host: Host, rule: Sequence[str]) -> None:
    """Add a rule for packets in and out, in a chain of our own. Traffic within the host passes."""
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


def _containers(host: Host, *which: str) -> list[str]:
    return hosts.docker(host, "ps", "--quiet", "--filter", OURS, *which).split()
