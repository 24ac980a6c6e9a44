"""Checks of the machine itself: clock, memory, limits, kernel."""

from __future__ import annotations

from clusterctl.doctor.check import (
    Answer,
    Check,
    Evidence,
    Said,
    check,
    fail,
    ok,
    skip,
    unknown,
    warn,
)
from clusterctl.doctor.subject import Host

MAX_CLOCK_OFFSET_S = 5.0
MIN_SHM_BYTES = 1 << 30
MIN_DISK_BYTES, LOW_DISK_BYTES = 2 << 30, 5 << 30
MIN_INODES = 10_000
MIN_OPEN_FILES = 1024


@check(
    "host.clock",
    "Clocks agree",
    cause="clock-skew",
    needs=["host.clock_offset_s"],
    tags=["preflight"],
)
def clock(one: Host) -> Said:
    """Certificates and tokens are refused by a host whose clock is off, and the logs of several
    hosts cannot be put in order."""
    offset = one.facts.host.clock_offset_s
    if offset is None:
        return unknown("its clock could not be read")
    if abs(offset) <= MAX_CLOCK_OFFSET_S:
        return ok(f"{offset:+.1f} s off ours")
    return warn(
        f"its clock is {offset:+.0f} s off ours",
        "sudo systemctl restart systemd-timesyncd (or chronyd) on the host",
        values={"seconds": f"{offset:.0f}"},
    )


@check("host.shm", "/dev/shm is large enough", cause="shm-too-small", tags=["preflight"])
def shm(one: Host) -> Said:
    """Ray's object store and NCCL between GPUs of one host live in /dev/shm; containers share the
    host's. Too small, Ray falls back to disk and NCCL fails at its first large message."""
    disk = one.facts.host.disk("/dev/shm")
    if disk is None:
        return unknown("the size of /dev/shm could not be read")
    text = f"{disk.total_bytes / 2**20:.0f} MiB"
    if disk.total_bytes >= MIN_SHM_BYTES:
        return ok(text)
    return warn(
        f"/dev/shm holds {text}: Ray and NCCL will fall back to disk",
        "sudo mount -o remount,size=16g /dev/shm on the host",
        values={"mib": f"{disk.total_bytes / 2**20:.0f}"},
    )


@check("host.directories", "Directories to be mounted exist", tags=["preflight"])
def directories(one: Host) -> Said:
    """Docker would make a missing one, empty and owned by root, and the model is then missing in
    the container."""
    missing = ", ".join(one.facts.missing_directories)
    if not missing:
        return ok("all that are to be mounted are there")
    return fail(
        f"not on this host: {missing}",
        "copy it to the same path on every host, or take it out of `model_dirs:`/`mounts:`: "
        f"{missing}",
        cause="model-path-missing",
        values={"path": missing},
    )


@check("host.disk", "Disks for temporary files and weights have room", cause="disk-full")
def disk(one: Host) -> Said:
    """Ray keeps sessions and spilled objects in /tmp and stops making objects at 95 %; weights are
    downloaded into the Hugging Face home."""
    said = [_disk(one, path) for path in ("/tmp", one.facts.host.hf_home) if path]
    return [answer for answer in said if answer] or [unknown("no disk could be measured")]


def _disk(one: Host, path: str) -> Answer | None:
    found = one.facts.host.disk(path)
    if found is None:
        return None
    text = f"{found.free_bytes / 2**30:.1f} GiB free in {path}"
    if found.free_bytes < MIN_DISK_BYTES:
        return fail(f"only {text}", f"df -h {path} on the host, then make room there")
    if found.free_bytes < LOW_DISK_BYTES:
        return warn(f"only {text}", f"df -h {path} on the host, then make room there")
    if found.free_inodes is not None and found.free_inodes < MIN_INODES:
        return fail(f"only {found.free_inodes} inodes free in {path}", f"df -i {path} on the host")
    return ok(text)


@check("host.open-files", "Processes may open many files", cause="too-many-open-files")
def open_files(one: Host) -> Said:
    """Every rank holds sockets to all others, and Ray a few for each worker: a low limit ends in
    `Too many open files` under load."""
    limit = dict(one.facts.host.ulimits).get("nofile")
    if limit is None:
        return unknown("the limit of open files could not be read")
    if limit == "unlimited" or int(limit) >= MIN_OPEN_FILES:
        return ok(f"{limit} files")
    return warn(
        f"a process may open {limit} files only", "raise `nofile` in /etc/security/limits.d"
    )


@check("host.ephemeral-ports", "Ephemeral ports stay clear of Ray's", cause="ray-port-taken")
def ephemeral_ports(one: Host) -> Said:
    """The kernel gives ports of this range to any connection. Where it holds Ray's pinned ports,
    one of them is taken every now and then, and a node does not start."""
    span = one.facts.host.ephemeral_ports
    if span is None:
        return unknown("the range of ephemeral ports could not be read")
    if span[0] > one.spec.ray.max_worker_port:
        return ok(f"{span[0]}-{span[1]}")
    return warn(
        f"ephemeral ports begin at {span[0]}, and Ray's end at {one.spec.ray.max_worker_port}",
        "sudo sysctl -w net.ipv4.ip_local_port_range='32768 60999' on the host",
    )


@check("host.selinux", "SELinux lets containers read what is mounted", cause="selinux-denies-mount")
def selinux(one: Host) -> Said:
    """An enforcing SELinux denies a container the host's files, whatever their modes say."""
    mode = one.facts.host.selinux
    if mode is None:
        return unknown("the mode of SELinux could not be read")
    if mode != "enforcing":
        return ok(mode)
    return warn(
        "SELinux is enforcing: the model and cache directories need a container's label",
        "sudo chcon -Rt container_file_t DIRECTORY for each mounted directory",
    )


@check("host.preload", "No shim stands between programs and the GPU", cause="vgpu-shim")
def preload(one: Host) -> Said:
    """Libraries that share GPUs between tenants (libvgpu of HAMi) are preloaded into every process
    and make NCCL hang."""
    said = one.facts.host.preloaded
    if said is None:
        return unknown("/etc/ld.so.preload could not be read")
    if "vgpu" not in said:
        return ok("none")
    return warn(f"/etc/ld.so.preload names {said}", "take the line out of /etc/ld.so.preload")


@check(
    "host.oom",
    "The kernel has killed no process for memory",
    cause="host-oom-killed",
    needs=["kernel_log"],
)
def oom(one: Host) -> Said:
    """A rank that the kernel kills leaves no word of its own: the others only see it gone."""
    log = one.facts.kernel_log
    if log is None:
        return unknown("the kernel's log may not be read by this user")
    killed = [line for line in log if "Out of memory: Kill" in line or "oom-kill:" in line]
    if not killed:
        return ok("none in the kernel's log")
    return warn(
        f"the kernel ended {len(killed)} processes for want of memory since it started",
        "free -g on the host; load fewer ranks at once, or use a smaller model",
        evidence=Evidence(killed[-1], "kernel log"),
        confidence=0.6,
    )


@check(
    "host.numa-balancing",
    "The kernel leaves memory on its node",
    cause="numa-balancing",
    tags=["amd"],
    needs=["host.numa_balancing"],
)
def numa_balancing(one: Host) -> Said:
    """On AMD GPUs the kernel's automatic NUMA balancing stalls transfers; AMD asks to switch it
    off."""
    if not any(gpu.vendor == "amd" for gpu in one.facts.gpu.gpus):
        return skip("no AMD GPU")
    on = one.facts.host.numa_balancing
    if on is None:
        return unknown("whether NUMA balancing is on could not be read")
    if not on:
        return ok("off")
    return warn("automatic NUMA balancing is on", "sudo sysctl -w kernel.numa_balancing=0")


CHECKS: tuple[Check[Host], ...] = (
    clock,
    shm,
    directories,
    disk,
    open_files,
    ephemeral_ports,
    selinux,
    preload,
    oom,
    numa_balancing,
)
