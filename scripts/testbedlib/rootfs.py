"""The Debian root file system that all hosts share as their lower layer, built once and kept."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from .layout import CACHE
from .shell import logged, run, say

SUITE = "bookworm"
MIRROR = "http://deb.debian.org/debian"
HOST_PACKAGES = (  # pigz: Docker unpacks layers with it, faster than by itself
    "docker.io,openssh-server,sudo,iproute2,iptables,procps,pciutils,kmod,ca-certificates,pigz,"
    "python3,datefudge"  # every server has a Python; the other is for a clock that is wrong
)
OP_UID = 1000  # may speak to Docker
SUDOER_UID = 1001  # may not, but may sudo without a password

SETUP = f"""
set -e
useradd --uid {OP_UID} --shell /bin/bash --groups docker op
useradd --uid {SUDOER_UID} --shell /bin/bash sudoer
echo 'sudoer ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/sudoer
chmod 440 /etc/sudoers.d/sudoer
cat > /etc/ssh/sshd_config.d/testbed.conf <<'END'
AuthorizedKeysFile /etc/ssh/authorized_keys .ssh/authorized_keys
HostKey /etc/ssh/ssh_host_ed25519_key
PasswordAuthentication no
END
rm -f /etc/ssh/ssh_host_*
mkdir -p /var/lib/docker /home/op /home/sudoer
rm -rf /var/cache/apt/* /var/lib/apt/lists/* /var/log/*.log /usr/share/doc /usr/share/man
"""


def host_root() -> Path:
    recipe = "\n".join([SUITE, HOST_PACKAGES, SETUP])
    return CACHE / f"host-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"


def build_host_root() -> None:
    if host_root().exists():
        return
    say("building the hosts' root file system (about a minute)")
    partial = debootstrap(HOST_PACKAGES)
    run(["chroot", partial, "/bin/sh", "-c", SETUP])
    partial.rename(host_root())


def debootstrap(packages: str) -> Path:
    """A fresh minimal Debian with these packages, in a directory of its own."""
    CACHE.mkdir(parents=True, exist_ok=True)
    partial = CACHE / "partial"
    discard(partial)
    bootstrap = ["debootstrap", "--variant=minbase", f"--include={packages}"]
    logged([*bootstrap, SUITE, partial, MIRROR], CACHE / "build.log")
    return partial


def discard(directory: Path) -> None:
    """Remove a tree, also one in which an interrupted debootstrap left /proc mounted."""
    rows = (line.split()[1] for line in Path("/proc/mounts").read_text().splitlines())
    for point in sorted((row for row in rows if row.startswith(f"{directory}/")), reverse=True):
        run(["umount", point])
    if directory.exists():
        shutil.rmtree(directory)
