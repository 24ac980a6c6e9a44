"""All that is on a host, as text that is the same as long as the host is: what a run left behind
is the difference of two.

Left out: the host's own services with their logins, Docker's root (images are no leftover), logs.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from . import host as hosts
from .layout import Host

OWN_SERVICES = ("sshd", "dockerd", "containerd")
LOGINS = "sshd"
VOLATILE = (  # /run/mount: what mount(8) notes for itself
    *("/var/log/", "/run/docker/", "/run/containerd/", "/run/mount/"),
    *("/run/sudo/", "/var/lib/sudo/"),
)
VOLATILE_FILES = ("/run/docker.pid", "/run/sshd.pid", "/run/utmp", "/run/motd.dynamic")
MEMORY = ("/run", "/dev/shm")  # file systems of their own, beside the host's layer


def snapshot(host: Host) -> str:
    taken = {
        "processes": processes(host),
        "listening": listening(host),
        "firewall": hosts.enter(host, ["iptables", "--list-rules"]).splitlines(),
        "containers": _docker(host, "ps", "--all", "--no-trunc", "--format", CONTAINER),
        "volumes": _docker(host, "volume", "ls", "--format", "{{.Driver}} {{.Name}}"),
        "networks": _docker(host, "network", "ls", "--format", "{{.Driver}} {{.Name}}"),
        "mounts": mounts(host),
        "files": files(host),
    }
    return json.dumps(taken, indent=1)


CONTAINER = "{{.Names}} {{.Image}} {{.Status}}"


def processes(host: Host) -> list[str]:
    """Command lines, without the first process, the services, and everything below sshd."""
    text = hosts.enter(host, ["ps", "-e", "-o", "pid=,ppid=,comm=,args="])
    table = {int(row[0]): row for row in (line.split(None, 3) for line in text.splitlines())}
    return sorted(row[3] for pid, row in table.items() if not _is_expected(pid, table))


def _is_expected(pid: int, table: dict[int, list[str]]) -> bool:
    _, parent, command, _ = table[pid]
    # A parent of 0: the first process, and this `ps`, which came in from outside.
    return int(parent) == 0 or command in OWN_SERVICES or _in_login(pid, table)


def _in_login(pid: int, table: dict[int, list[str]]) -> bool:
    while pid in table:
        if table[pid][2] == LOGINS:
            return True
        pid = int(table[pid][1])
    return False


def listening(host: Host) -> list[str]:
    rows = hosts.enter(host, ["ss", "-Hlntu"]).splitlines()
    return sorted(" ".join(row.split()[i] for i in (0, 4)) for row in rows)


def mounts(host: Host) -> list[str]:
    rows = hosts.enter(host, ["cat", "/proc/self/mounts"]).splitlines()
    points = (row.split()[1:3] for row in rows)
    return sorted(f"{kind} {point}" for point, kind in points if not _is_volatile(point))


def files(host: Host) -> dict[str, str]:
    """Path -> kind, mode, owner, size and hash of all that the host wrote."""
    root = Path(f"/proc/{hosts.first_process(host)}/root")
    written = _walk(host.upper, host.upper)
    found = {path: text for path, text in written if not _was_there(host, path, text)}
    for place in MEMORY:
        found.update(_walk(root / place.lstrip("/"), root))
    return dict(sorted(found.items()))


def _was_there(host: Host, path: str, description: str) -> bool:
    """Touching a directory copies it into the host's layer; that alone is no change."""
    below = host.lower / path.lstrip("/")
    return below.is_dir() and _describe(below) == description


def _walk(top: Path, root: Path) -> Iterator[tuple[str, str]]:
    for directory, names, plain in os.walk(top):
        for name in [*names, *plain]:
            path = Path(directory) / name
            seen = "/" + str(path.relative_to(root))
            if not _is_volatile(seen):
                yield seen, _describe(path)


def _describe(path: Path) -> str:
    status = path.lstat()
    mode = f"{stat.filemode(status.st_mode)} {status.st_uid}:{status.st_gid}"
    if stat.S_ISREG(status.st_mode):
        with path.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()[:16]
        return f"{mode} {status.st_size} {digest}"
    return f"{mode} -> {path.readlink()}" if stat.S_ISLNK(status.st_mode) else mode


def _is_volatile(path: str) -> bool:
    return path in VOLATILE_FILES or (path + "/").startswith(VOLATILE)


def _docker(host: Host, *words: str) -> list[str]:
    if not hosts.docker_answers(host):
        return ["dockerd does not answer"]
    return sorted(hosts.docker(host, *words).splitlines())
