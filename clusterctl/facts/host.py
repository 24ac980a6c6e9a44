"""The machine itself: system, CPU, memory, disks, limits, clock, its own name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from clusterctl.errors import PreflightFailed
from clusterctl.facts.kernel import parse_count, parse_iommu, parse_numa, parse_range
from clusterctl.facts.model import parse_hf_home
from clusterctl.facts.sections import NOT_FOUND, Section
from clusterctl.facts.types import Disk, HostInfo

CLOCK = "date +%s.%N"

PROBES: Mapping[str, str] = {
    "system": 'uname -s; uname -n; uname -r; uname -m; id -un; id -u; echo "$HOME"',
    "os_release": "cat /etc/os-release",
    "sudo": "sudo -n true",
    "cpus": "getconf _NPROCESSORS_ONLN || grep -c ^processor /proc/cpuinfo",
    "cpu_model": "grep -m1 '^model name' /proc/cpuinfo || lscpu | grep -m1 '^Model name'",
    "memory": "grep -E '^Mem(Total|Available|Free):' /proc/meminfo",
    "disks": """
for path in /dev/shm / /tmp; do
  printf '%s\\t%s\\t%s\\n' "$path" "$(df -Pk "$path" | tail -n 1)" "$(df -Pi "$path" | tail -n 1)"
done""",
    "limits": "cat /proc/self/limits",
    "resolve": 'getent ahosts "$(uname -n)" || getent hosts "$(uname -n)"',
    "selinux": """
if [ -e /sys/fs/selinux/enforce ]; then cat /sys/fs/selinux/enforce; else echo disabled; fi""",
}

# /proc/self/limits name -> ulimit's name and unit (bytes in one of it)
_LIMITS = {
    "Max locked memory": ("memlock", 1024),
    "Max open files": ("nofile", 1),
    "Max stack size": ("stack", 1024),
    "Max processes": ("nproc", 1),
}
_DF = re.compile(r"\s(\d+)\s+\d+\s+(\d+)\s+\d+%\s")
_SELINUX = {"1": "enforcing", "0": "permissive", "disabled": "disabled"}


def parse_host(
    name: str,
    sections: Mapping[str, Section],
    *,
    more_disks: Sequence[str],
    clock_offset_s: float | None,
) -> HostInfo:
    """`more_disks`: lines of disks that other probes found, as parse_disks reads them.

    Raises PreflightFailed on a machine that is no Linux.
    """
    system, hostname, kernel, architecture, user, uid, home = sections["system"].stdout.split("\n")[
        :7
    ]
    if system != "Linux":
        raise PreflightFailed(
            f"this is a {system} machine",
            host=name,
            hint="nodes must run Linux; leave this host out of hosts:",
        )
    total, available, free = parse_memory(sections["memory"].stdout)
    numa_nodes, numa_balancing = parse_numa(sections["numa"])
    iommu_groups, kernel_options = parse_iommu(sections["iommu"])
    hf_home, hf_token, _ = parse_hf_home(sections["hf_home"])
    return HostInfo(
        hostname=hostname,
        os=parse_os(sections["os_release"].stdout) or system,
        kernel=kernel,
        architecture=architecture,
        user=user,
        home=home,
        is_root=uid == "0",
        can_sudo=sections["sudo"].ok,
        cpus=int(sections["cpus"].stdout),
        cpu_model=parse_cpu_model(sections["cpu_model"]),
        memory_bytes=total,
        memory_available_bytes=available,
        memory_free_bytes=free,
        clock_offset_s=clock_offset_s,
        hostname_resolves_to=parse_resolved(sections["resolve"]),
        ulimits=parse_limits(sections["limits"].stdout),
        disks=parse_disks("\n".join([*more_disks, sections["disks"].stdout])),
        selinux=_SELINUX.get(sections["selinux"].stdout.strip()),
        numa_nodes=numa_nodes,
        numa_balancing=numa_balancing,
        kernel_options=kernel_options,
        iommu_groups=iommu_groups,
        acs_bridges=parse_count(sections["acs"]),
        preloaded=sections["preload"].stdout.strip() if sections["preload"].ok else None,
        ephemeral_ports=parse_range(sections["ephemeral"]),
        hf_home=hf_home,
        hf_token=hf_token,
    )


def parse_os(text: str) -> str | None:
    """PRETTY_NAME of /etc/os-release."""
    match = re.search(r'^PRETTY_NAME=["\']?(.*?)["\']?$', text, re.MULTILINE)
    return match[1] if match else None


def parse_cpu_model(section: Section) -> str | None:
    return section.stdout.partition(":")[2].strip() or None


def parse_memory(text: str) -> tuple[int, int, int | None]:
    """Total, available and free bytes of /proc/meminfo."""
    found = re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)
    size = {name: int(kib) * 1024 for name, kib in found}
    return size["MemTotal"], size["MemAvailable"], size.get("MemFree")


def parse_limits(text: str) -> tuple[tuple[str, str], ...]:
    """Soft limits of /proc/self/limits, in the units of `ulimit` (KiB for memory)."""
    return tuple(
        (name, soft if soft == "unlimited" else str(int(soft) // unit))
        for title, (name, unit) in _LIMITS.items()
        for soft in re.findall(rf"^{title}\s+(\S+)", text, re.MULTILINE)
    )


def parse_disks(text: str) -> tuple[Disk, ...]:
    """Lines of PATH, a line of `df -Pk` and one of `df -Pi`, by tabs. A path that is not there has
    no line; a file system without a fixed number of inodes (btrfs) counts none."""
    return tuple(_disks(text))


def _disks(text: str) -> Iterator[Disk]:
    for line in text.splitlines():
        path, blocks, inodes = [*line.split("\t"), "", ""][:3]
        if size := _DF.search(blocks):
            count = _DF.search(inodes)
            free = int(count[2]) if count and count[1] != "0" else None
            yield Disk(path, int(size[1]) * 1024, int(size[2]) * 1024, free)


def parse_resolved(section: Section) -> tuple[str, ...] | None:
    """Addresses that the host's own name leads to there; () when it leads nowhere."""
    if section.exit_code == NOT_FOUND:
        return None
    return tuple(
        dict.fromkeys(line.split()[0] for line in section.stdout.splitlines() if line.strip())
    )


def clock_offset(first: Section, last: Section, *, sent: float, received: float) -> float | None:
    """Host clock minus ours. `first` and `last` are its clock at both ends of the probe, so the
    time that the probe itself takes falls out and only the way there and back is halved."""
    begin, end = _seconds(first), _seconds(last)
    if begin is None or end is None:
        return None
    return ((begin - sent) + (end - received)) / 2


def _seconds(section: Section) -> float | None:
    match = re.match(r"\d+(\.\d+)?", section.stdout)  # busybox leaves "%N" behind the dot
    return float(match[0]) if match else None
