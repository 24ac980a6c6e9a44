"""The first process of a host: builds its root, then keeps its services as systemd would.

Started inside fresh mount, UTS and PID namespaces (and the host's network namespace) with one
argument, the JSON of a `Machine`. All imports stand here: after pivot_root the interpreter's own
files are out of reach.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field

RESTART_DELAY_S = 1.0
STANDARD_ENV = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
}
DEVICES = ["null", "zero", "full", "random", "urandom", "tty"]
SERVICES = {
    "sshd": ["/usr/sbin/sshd", "-D", "-e"],
    # systemd starts it with many open files; as many as we may give is the nearest to that.
    "dockerd": ["/bin/sh", "-c", "ulimit -n $(ulimit -Hn) && exec dockerd"],
}


@dataclass(frozen=True)
class Machine:
    hostname: str
    lower: str
    upper: str
    work: str
    root: str  # where the overlay is assembled, before it becomes /
    docker_root: str
    shares: dict[str, str]  # path on the host -> directory outside, read-only
    control: str  # path of our socket, in the file system outside


@dataclass
class Service:
    name: str
    argv: list[str]
    wanted: bool = True
    pid: int | None = None
    due: float = 0.0
    starts: int = 0

    def start_if_due(self) -> None:
        if not self.wanted or self.pid is not None or time.monotonic() < self.due:
            return
        self.pid = os.posix_spawn(self.argv[0], self.argv, STANDARD_ENV, setsid=True)
        self.starts += 1

    def ended(self) -> None:
        self.pid, self.due = None, time.monotonic() + RESTART_DELAY_S

    def start(self) -> None:
        self.wanted, self.due = True, 0.0

    def stop(self) -> None:
        self.wanted = False
        if self.pid is not None:
            os.kill(self.pid, signal.SIGTERM)

    def status(self) -> dict[str, object]:
        return {"wanted": self.wanted, "pid": self.pid, "starts": self.starts}


@dataclass
class Supervisor:
    control: socket.socket
    services: dict[str, Service] = field(
        default_factory=lambda: {name: Service(name, argv) for name, argv in SERVICES.items()}
    )

    def run(self) -> None:
        woken = _child_death_pipe()
        while True:
            for service in self.services.values():
                service.start_if_due()
            ready = select.select([self.control.fileno(), woken], [], [], RESTART_DELAY_S / 2)[0]
            if woken in ready:
                os.read(woken, 4096)
                self._reap()
            if self.control.fileno() in ready:
                self._answer()

    def _reap(self) -> None:
        """We are the parent of every orphan of the host as well."""
        while (dead := _next_dead_child()) is not None:
            for service in self.services.values():
                if service.pid == dead:
                    service.ended()

    def _answer(self) -> None:
        """`start NAME`, `stop NAME` or `status`; the answer is always the status of all."""
        caller, _ = self.control.accept()
        with caller:
            verb, *names = caller.recv(4096).decode().split()
            for name in names:
                getattr(self.services[name], verb)()
            status = {name: service.status() for name, service in self.services.items()}
            caller.sendall(json.dumps(status).encode())


def main() -> None:
    machine = Machine(**json.loads(sys.argv[1]))
    control = _listen(machine.control)
    assemble(machine)
    socket.sethostname(machine.hostname)
    enter_root(machine.root)
    os.makedirs("/run/sshd")
    Supervisor(control).run()


def assemble(machine: Machine) -> None:
    """The host's root: its own layer over the shared one, its own /proc, /sys, /dev and /run."""
    root = machine.root
    _mount("--make-rprivate", "/")
    layers = f"lowerdir={machine.lower},upperdir={machine.upper},workdir={machine.work}"
    _mount("-t", "overlay", "overlay", "-o", layers, root)
    _mount("-t", "proc", "proc", f"{root}/proc")
    # A fresh sysfs shows this network namespace's interfaces; the cgroups are carried over into it.
    _mount("-t", "sysfs", "sysfs", f"{root}/sys")
    _mount("--rbind", "/sys/fs/cgroup", f"{root}/sys/fs/cgroup")
    _mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", f"{root}/run")
    _mount("--bind", machine.docker_root, f"{root}/var/lib/docker")
    for target, source in machine.shares.items():
        _share(source, root + target)
    _devices(f"{root}/dev")


def enter_root(root: str) -> None:
    """pivot_root(".", "."): the old root lies under the new one until it is detached."""
    os.chdir(root)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(_PIVOT_ROOT[os.uname().machine], b".", b".") != 0:
        raise OSError(ctypes.get_errno(), "pivot_root")
    if libc.umount2(b".", _MNT_DETACH) != 0:
        raise OSError(ctypes.get_errno(), "umount2")
    os.chdir("/")


_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_MNT_DETACH = 2


def _devices(dev: str) -> None:
    _mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", dev)
    for name in DEVICES:
        there = os.stat(f"/dev/{name}")
        os.mknod(f"{dev}/{name}", there.st_mode, there.st_rdev)
        os.chmod(f"{dev}/{name}", 0o666)
    os.mkdir(f"{dev}/pts")
    _mount("-t", "devpts", "-o", "newinstance,ptmxmode=666,mode=620,gid=5", "devpts", f"{dev}/pts")
    os.symlink("pts/ptmx", f"{dev}/ptmx")
    os.mkdir(f"{dev}/shm")
    _mount("-t", "tmpfs", "-o", "mode=1777", "tmpfs", f"{dev}/shm")
    for link, target in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
        os.symlink(f"/proc/self/fd{target}", f"{dev}/{link}")


def _share(source: str, target: str) -> None:
    os.makedirs(target, exist_ok=True)
    _mount("--bind", source, target)
    _mount("-o", "remount,bind,ro", target)


def _mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)


def _listen(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    return listener


def _child_death_pipe() -> int:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    return reader


def _next_dead_child() -> int | None:
    try:
        pid, _ = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return None
    return pid or None


if __name__ == "__main__":
    main()
