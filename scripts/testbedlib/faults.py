"""What can go wrong with a host on purpose, and how it is put right again.

Nothing is remembered: `heal` undoes every kind, and undoing what was not done changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from . import host as hosts
from . import hostfaults, imagefaults, netfaults, network
from .images import IMAGES
from .layout import REGISTRY_PORT, Host
from .shell import Failure

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
    netfaults.heal(host)
    hostfaults.heal(host)
    hosts.control(host, "start", "sshd", "dockerd")
    hosts.wait_for_services(host)
    killed = _containers(host, "--all", "--filter", KILLED)
    if killed:
        hosts.docker(host, "start", *killed)
    imagefaults.heal(host)


def describe() -> str:
    return "\n".join(f"  {kind:20} {fault.effect}" for kind, fault in FAULTS.items())


def _unplug(host: Host, _: str) -> None:
    network.unplug(host)


def _block_port(host: Host, port: str) -> None:
    if not port.isdecimal():
        raise Failure("which port? as in port-blocked:6379")
    netfaults.drop(host, ["--protocol", "tcp", "--dport", port])


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
    netfaults.add_rule(host, [*registry, "--dport", str(REGISTRY_PORT), *refusal])


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
    "loss": Fault("loss:PERCENT of all packets, each way (10)", netfaults.lose_packets),
    "mtu": Fault("mtu:BYTES of its interface (1400), against its neighbours'", netfaults.set_mtu),
    "large-lost": Fault(
        "large-lost:BYTES, larger packets between hosts vanish (1400): a path MTU nobody tells",
        netfaults.lose_large_packets,
    ),
    "return-ports-blocked": Fault(
        "a firewall lets no new TCP connection in above port 1023", netfaults.block_return_ports
    ),
    "nic-twin": Fault("a second interface in the same subnet", netfaults.add_twin),
    "address-duplicate": Fault(
        "address-duplicate:HOST, it takes that host's address as well", netfaults.take_address
    ),
    "hostname-loopback": Fault(
        "its name means 127.0.1.1 in /etc/hosts, as Debian's installer writes",
        hostfaults.name_on_loopback,
    ),
    "clock-skewed": Fault(
        "clock-skewed:SECONDS, in every login by ssh (120)", hostfaults.skew_clock
    ),
    "shm-small": Fault("shm-small:MIB of /dev/shm (64)", hostfaults.shrink_shm),
    "model-truncated": Fault(
        "model-truncated:FILE, half of a file below /models", hostfaults.truncate_model
    ),
    "model-missing": Fault(
        "model-missing:DIRECTORY below /models is empty here", hostfaults.hide_model
    ),
    "docker-disk-full": Fault(
        "Docker's root is a small and full disk; its images are out of sight",
        hostfaults.fill_docker_disk,
    ),
    "rank-hung": Fault(
        "SIGSTOP to every rank of a deployment or collective check", hostfaults.stop_ranks
    ),
    "image-differs": Fault(
        "the node image under its name is another one", imagefaults.replace_image
    ),
    "ray-skew": Fault("the node image has another version of Ray", imagefaults.age_ray),
    "ray-stray": Fault(
        "somebody's Ray, in a container that is not ours", imagefaults.start_stray_ray
    ),
    "reboot": Fault("power off and on again; heals by itself", _reboot),
}


def _containers(host: Host, *which: str) -> list[str]:
    return hosts.docker(host, "ps", "--quiet", "--filter", OURS, *which).split()
