"""What can go wrong on the host itself: its name, clock, memory, disk, files and processes."""

from __future__ import annotations

import signal
from pathlib import PurePosixPath

from . import host as hosts
from .layout import Host
from .shell import Failure, wait_until

LOOPBACK_NAME = "127.0.1.1"
DATEFUDGE = "/usr/lib/x86_64-linux-gnu/datefudge/datefudge.so"
CLOCK_CONFIG = "/etc/ssh/sshd_config.d/fault-clock.conf"
SHADOWS = "/run/testbed-fault"  # what is bound over something else lies here
DOCKER_ROOT = "/var/lib/docker"
# Not ray::IDLE, nor Ray's agents. Written so that awk's own line is none.
RANKS = "engine[.]sanity_rank|engine[.]executor|ray[:]:(Rank|RayWorker)"


def heal(host: Host) -> None:
    _sh(host, f"grep -q '^{LOOPBACK_NAME} ' /etc/hosts && sed -i '/^{LOOPBACK_NAME} /d' /etc/hosts")
    if _sh(host, f"rm {CLOCK_CONFIG} 2>/dev/null && echo was there"):
        _reload_sshd(host)
    _sh(host, "mount -o remount,size=50% /dev/shm")  # tmpfs's own size
    _sh(host, "grep -o ' /models/[^ ]* ' /proc/mounts | while read -r at; do umount $at; done")
    _sh(host, f"rm -rf {SHADOWS}")
    _give_docker_its_disk_back(host)
    _signal_stopped(host)


def name_on_loopback(host: Host, _: str) -> None:
    _sh(host, f"sed -i '1i {LOOPBACK_NAME} {host.name}' /etc/hosts")


def skew_clock(host: Host, seconds: str) -> None:
    """A kernel's clock cannot be set for one host of many: every login gets datefudge, which shifts
    the time of day alone. (libfaketime 0.9.10 shifts absolute sleeps on the monotonic clock too:
    Python's time.sleep then ends in EINVAL, as on no host whose clock is merely wrong.)"""
    setting = f"SetEnv LD_PRELOAD={DATEFUDGE} DATEFUDGE={-int(seconds or 120)}"
    _sh(host, f"echo '{setting}' > {CLOCK_CONFIG}")
    _reload_sshd(host)


def shrink_shm(host: Host, mib: str) -> None:
    _sh(host, f"mount -o remount,size={int(mib or 64)}m /dev/shm")


def truncate_model(host: Host, path: str) -> None:
    there, shadow = _model(host, path)
    half = f'head -c $(($(stat -Lc %s "{there}") / 2)) "{there}" > "{shadow}"'
    _must(host, f'{half} && mount --bind "{shadow}" "{there}"')


def hide_model(host: Host, path: str) -> None:
    there, shadow = _model(host, path)
    _must(host, f'mkdir "{shadow}" && mount --bind "{shadow}" "{there}"')


def fill_docker_disk(host: Host, _: str) -> None:
    hosts.stop_service(host, "dockerd")
    _must(host, f"mount -t tmpfs -o size=64m tmpfs {DOCKER_ROOT}")
    hosts.control(host, "start", "dockerd")
    hosts.wait_for_services(host)
    _sh(host, f"cat /dev/zero > {DOCKER_ROOT}/filled 2>/dev/null")


def stop_ranks(host: Host, _: str) -> None:
    ranks = _sh(host, f"ps -eo pid=,args= | awk '/{RANKS}/ {{print $1}}'").split()
    if not ranks:
        raise Failure(f"{host.name}: no rank runs there")
    _sh(host, f"kill -STOP {' '.join(ranks)}")


def _signal_stopped(host: Host) -> None:
    _sh(host, "ps -eo pid=,stat= | awk '$2 ~ /^T/ {print $1}' | xargs -r kill -CONT")


def _give_docker_its_disk_back(host: Host) -> None:
    if not _sh(host, f"grep '^tmpfs {DOCKER_ROOT} ' /proc/mounts"):
        return
    hosts.stop_service(host, "dockerd")
    wait_until(
        lambda: bool(_sh(host, f"umount {DOCKER_ROOT} && echo done")), "Docker's disk is free", 30
    )


def _reload_sshd(host: Host) -> None:
    """It reads its settings again and keeps the sessions that are open."""
    pid = hosts.control(host, "status")["sshd"]["pid"]
    _sh(host, f"kill -{signal.SIGHUP.value} {pid}")
    wait_until(lambda: hosts.ssh_answers(host), f"{host.name}: sshd answers", 30)


def _model(host: Host, path: str) -> tuple[str, str]:
    """A path below /models, and where its shadow is put."""
    if not path or PurePosixPath(path).is_absolute():
        raise Failure("which file below /models? as in model-truncated:smollm2/model.safetensors")
    _must(host, f"mkdir -p {SHADOWS} && test -e '/models/{path}'")
    return f"/models/{path}", f"{SHADOWS}/{path.replace('/', '_')}"


def _must(host: Host, script: str) -> None:
    hosts.enter(host, ["sh", "-c", script])


def _sh(host: Host, script: str) -> str:
    """What a script printed, whether it succeeded or not."""
    return hosts.enter(host, ["sh", "-c", f"{script}; true"]).strip()
