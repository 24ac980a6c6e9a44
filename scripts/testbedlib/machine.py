"""What the testbed needs of the machine: checked first, and refused with the reason."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from .layout import DATA
from .shell import Failure, logged, run, say, succeeds

PACKAGES = {  # Debian package -> a file of it
    "ca-certificates": "/usr/sbin/update-ca-certificates",
    "debootstrap": "/usr/sbin/debootstrap",
    "docker-registry": "/usr/bin/docker-registry",
    "docker.io": "/usr/sbin/dockerd",  # not for the hosts: the contract tests start one here
    "iproute2": "/usr/sbin/ip",
    "iptables": "/usr/sbin/iptables",
    "openssh-client": "/usr/bin/ssh",
    "openssh-server": "/usr/sbin/sshd",  # likewise
    "python3-venv": "/usr/lib/python3.11/ensurepip/__init__.py",
    "util-linux": "/usr/bin/nsenter",
}
FREE_GB = 15
OVERLAY_UPPERS = ("ext4", "xfs", "btrfs")
NO_SERVICES = Path("/usr/sbin/policy-rc.d")


def check() -> None:
    """Raises Failure with every reason at once."""
    DATA.mkdir(parents=True, exist_ok=True)
    reasons = [reason for reason in _reasons() if reason]
    if reasons:
        raise Failure("this machine cannot carry the testbed:\n  " + "\n  ".join(reasons))


def _reasons() -> list[str | None]:
    return [_not_root(), _not_debian_12(), _cgroups_v2(), _no_overlay(), _disk_full()]


def _not_root() -> str | None:
    return None if os.geteuid() == 0 else "it makes namespaces and mounts: run it as root"


def _not_debian_12() -> str | None:
    """The node image is Debian 12, and its wheels are resolved by this machine's Python."""
    if shutil.which("apt-get") and sys.version_info[:2] == (3, 11):
        return None
    return "not a Debian 12: apt-get and Python 3.11 as /usr/bin/python3 are needed"


def _cgroups_v2() -> str | None:
    if Path("/sys/fs/cgroup/memory").is_dir():
        return None
    return "no cgroup v1 under /sys/fs/cgroup: cgroup v2 alone has not been made to work"


def _no_overlay() -> str | None:
    if "overlay" not in Path("/proc/filesystems").read_text() and not succeeds(
        ["modprobe", "overlay"]
    ):
        return "the kernel has no overlayfs"
    kind = run(["stat", "--file-system", "--format=%T", DATA]).strip()
    if kind in ("ext2/ext3", *OVERLAY_UPPERS):
        return None
    return f"{DATA} is on {kind}: mount one of {', '.join(OVERLAY_UPPERS)} there"


def _disk_full() -> str | None:
    free = shutil.disk_usage(DATA).free / 1e9
    return None if free >= FREE_GB else f"{DATA} has {free:.0f} GB free, {FREE_GB} are needed"


def install_packages() -> None:
    missing = [name for name, file in PACKAGES.items() if not Path(file).exists()]
    if not missing:
        return
    say(f"installing {', '.join(missing)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    log = DATA / "apt.log"
    install = ["apt-get", "install", "--yes", "--no-install-recommends", *missing]
    with _ServicesOff():
        logged(["apt-get", "update"], log, env=environment)
        logged(install, log, env=environment)


class _ServicesOff:
    """Debian starts what it installs, unless this file says no; we run our own."""

    def __enter__(self) -> None:
        self.ours = not NO_SERVICES.exists()
        if self.ours:
            NO_SERVICES.write_text("#!/bin/sh\nexit 101\n")
            NO_SERVICES.chmod(0o755)

    def __exit__(self, *_: object) -> None:
        if self.ours:
            NO_SERVICES.unlink()
