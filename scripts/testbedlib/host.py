"""Booting, entering and ending one host."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from . import hostinit, network, processes
from .layout import Host, Testbed
from .rootfs import OP_UID, SUDOER_UID, host_root
from .shell import Failure, run, tail, wait_until

PYTHON = "/usr/bin/python3"
CGROUPS = Path("/sys/fs/cgroup")


def boot(host: Host, shares: Mapping[str, Path]) -> None:
    """Make the host, or leave it as it is when it runs. Returns when sshd and dockerd answer.

    `shares`: directories of this machine that the host sees, read-only, under the paths named.
    """
    if not running(host):
        network.connect(host)
        _lay_out(host)
        _start(host, shares)
    wait_for_services(host)


def halt(host: Host) -> None:
    """Power off: everything of the host ends with its first process."""
    pidfile = _pidfile(host)
    first = first_process(host)
    if first is not None:
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: processes.alive(pidfile) is None, f"{host.name} has ended", 30)
    processes.end(pidfile)
    _remove_cgroups(host)


def erase(host: Host) -> None:
    halt(host)
    network.disconnect(host)
    for directory in (host.data, host.run):
        if directory.exists():
            shutil.rmtree(directory)


def running(host: Host) -> bool:
    return processes.alive(_pidfile(host)) is not None


def first_process(host: Host) -> int | None:
    """The pid, seen from outside, of the host's own first process."""
    outer = processes.alive(_pidfile(host))
    return processes.only_child(outer) if outer is not None else None


def enter(host: Host, argv: Sequence[str], *, stdin: bytes = b"", timeout: float = 120) -> str:
    """Run a command on the host without its sshd, as if at its console."""
    inside = ["nsenter", "--target", str(first_process(host)), "--mount", "--uts", "--net", "--pid"]
    return run([*inside, "--root", "--wd", *argv], stdin=stdin, timeout=timeout)


def docker(host: Host, *argv: str, stdin: bytes = b"", timeout: float = 120) -> str:
    return enter(host, ["docker", *argv], stdin=stdin, timeout=timeout)


def control(host: Host, *words: str) -> dict[str, dict[str, object]]:
    """Ask the host's first process to start or stop a service; its status of both."""
    with socket.socket(socket.AF_UNIX) as caller:
        caller.settimeout(10)
        caller.connect(str(host.control))
        caller.sendall(" ".join(words).encode())
        status: dict[str, dict[str, object]] = json.loads(caller.recv(65536))
    return status


def stop_service(host: Host, name: str) -> None:
    control(host, "stop", name)
    wait_until(
        lambda: control(host, "status")[name]["pid"] is None, f"{host.name}: {name} ends", 60
    )


def wait_for_services(host: Host) -> None:
    try:
        wait_until(lambda: ssh_answers(host), f"{host.name}: sshd answers", 60)
        wait_until(lambda: docker_answers(host), f"{host.name}: dockerd answers", 120)
    except Failure as failure:
        raise Failure(f"{failure}; {host.log} ends with\n{tail(host.log)}") from failure


def ssh_answers(host: Host) -> bool:
    try:
        with socket.create_connection((host.address, 22), timeout=1) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def docker_answers(host: Host) -> bool:
    """Asks the socket itself, through the host's root as /proc shows it."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(f"/proc/{first_process(host)}/root/run/docker.sock")
            connection.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
            return b" 200 " in connection.recv(64)
    except OSError:
        return False


def name_neighbours(host: Host, hosts: Sequence[Host]) -> None:
    """Write /etc/hosts: this machine and all others by name."""
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost"]
    lines += [f"{other.address} {other.name}" for other in hosts]
    enter(host, ["tee", "/etc/hosts"], stdin=("\n".join(lines) + "\n").encode())


def _pidfile(host: Host) -> Path:
    return host.run / "pid"


def _start(host: Host, shares: Mapping[str, Path]) -> None:
    host.control.unlink(missing_ok=True)
    machine = hostinit.Machine(
        hostname=host.name,
        lower=str(host.lower),
        upper=str(host.upper),
        work=str(host.data / "work"),
        root=str(host.data / "root"),
        docker_root=str(host.docker_root),
        shares={target: str(source) for target, source in shares.items()},
        control=str(host.control),
    )
    network_namespace = ["nsenter", f"--net=/run/netns/{host.namespace}"]
    others = ["unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child"]
    init = [PYTHON, "-I", hostinit.__file__, json.dumps(asdict(machine))]
    processes.spawn([*network_namespace, *others, *init], _pidfile(host), host.log)


def _lay_out(host: Host) -> None:
    """What differs from the shared root file system, written once before the first boot."""
    for path in (host.run, host.docker_root, host.data / "work", host.data / "root"):
        path.mkdir(parents=True, exist_ok=True)
    if host.upper.exists():
        return
    host.lower.symlink_to(host_root())
    _write(host, "etc/hostname", f"{host.name}\n")
    _write(host, "etc/resolv.conf", "# no name server: a lookup fails at once instead of hanging\n")
    _write(host, "etc/docker/daemon.json", json.dumps(_docker_config(host), indent=2) + "\n")
    _write(host, "etc/ssh/authorized_keys", host.testbed.key.with_suffix(".pub").read_text())
    _own_directory(host, "root", 0, 0o700)
    _own_directory(host, "home/op", OP_UID, 0o755)
    _own_directory(host, "home/sudoer", SUDOER_UID, 0o755)
    key = host.upper / "etc/ssh/ssh_host_ed25519_key"
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", host.name, "-f", key])


def _docker_config(host: Host) -> dict[str, object]:
    return {
        "bridge": "none",
        "iptables": False,
        "ip-forward": False,
        "insecure-registries": [host.testbed.registry],
        "exec-opts": ["native.cgroupdriver=cgroupfs"],
        "cgroup-parent": host.cgroup,
    }


def _write(host: Host, path: str, text: str) -> None:
    target = host.upper / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)


def _own_directory(host: Host, path: str, owner: int, mode: int) -> None:
    target = host.upper / path
    target.mkdir(parents=True)
    os.chown(target, owner, owner)
    target.chmod(mode)


def _remove_cgroups(host: Host) -> None:
    """Docker leaves its groups when it is killed; children go before parents."""
    for top in CGROUPS.glob(f"*{host.cgroup}"):
        for directory, _, _ in os.walk(top, topdown=False):
            os.rmdir(directory)


def remove_cgroup_root(testbed: Testbed) -> None:
    for top in CGROUPS.glob(f"*{testbed.cgroup}"):
        os.rmdir(top)
