"""What the kernel logged of GPUs, RDMA and memory; what its packet filter drops; where PCIe sends
traffic between devices."""

from __future__ import annotations

import re
from collections.abc import Mapping

from clusterctl.facts.sections import Section
from clusterctl.facts.types import Firewall

LOG_LINES = 60
_WORTH = (
    "NVRM: (Xid|GPU.*fallen|API mismatch)|nvidia.peermem|nv_peer_mem|Out of memory: Kill|oom-kill:"
    "|amdgpu.*(ring .* timeout|GPU reset|uncorrectable|RAS)|mlx5_core.*(error|fatal|health)"
)

PROBES: Mapping[str, str] = {
    "kernel_log": f"""
log=$(dmesg 2>/dev/null) || log=$(sudo -n dmesg 2>/dev/null) || exit 1
printf '%s\\n' "$log" | grep -E '{_WORTH}' | tail -n {LOG_LINES}; exit 0""",
    "firewall": """
ask() { "$@" 2>/dev/null || sudo -n "$@" 2>/dev/null; }
echo "ufw $(sed -n 's/^ENABLED=//p' /etc/ufw/ufw.conf 2>/dev/null)"
echo "firewalld $(systemctl is-active firewalld 2>/dev/null)"
if ! command -v iptables-save >/dev/null 2>&1; then echo absent
elif rules=$(ask iptables-save); then echo read; printf '%s\\n' "$rules" | grep -E '^(:INPUT|-A)'
fi
exit 0""",
    # Only what a machine with GPUs can suffer from; lspci shows it to root alone.
    "acs": """
for d in /sys/bus/pci/devices/*; do
  vendor=; class=
  read -r vendor 2>/dev/null <"$d/vendor"; read -r class 2>/dev/null <"$d/class"
  case $vendor$class in 0x10de0x03*|0x10020x03*) gpu=1;; esac
done
[ -n "$gpu" ] || exit 1
sudo=; [ "$(id -u)" = 0 ] || sudo='sudo -n'
pci=$($sudo lspci -vvv 2>/dev/null) || exit 1
printf '%s\\n' "$pci" | grep -c 'ACSCtl:.*SrcValid+'; exit 0""",
    "iommu": "ls /sys/kernel/iommu_groups | wc -l; cat /proc/cmdline",
    "numa": "cat /sys/devices/system/node/online /proc/sys/kernel/numa_balancing",
    "preload": "cat /etc/ld.so.preload 2>/dev/null || true",
    "ephemeral": "cat /proc/sys/net/ipv4/ip_local_port_range",
}


def parse_log(section: Section) -> tuple[str, ...] | None:
    """Lines that speak of trouble; None when this user may not read the log."""
    return tuple(section.stdout.strip().splitlines()) if section.ok else None


def parse_firewall(section: Section) -> Firewall | None:
    if not section.ok:
        return None
    lines = section.stdout.splitlines()
    readable = bool({"read", "absent"} & set(lines))
    policy = re.search(r"^:INPUT (\w+)", section.stdout, re.MULTILINE)
    return Firewall(
        policy=(policy[1] if policy else "ACCEPT") if readable else None,
        rules=tuple(line for line in lines if re.match(r"-A INPUT\b.*-j (DROP|REJECT)", line)),
        ufw="ufw yes" in lines,
        firewalld="firewalld active" in lines,
    )


def parse_numa(section: Section) -> tuple[int | None, bool | None]:
    """How many nodes, and whether the kernel moves memory between them by itself."""
    online, _, balancing = section.stdout.partition("\n")
    spans = re.findall(r"(\d+)(?:-(\d+))?", online)
    nodes = sum(int(last or first) - int(first) + 1 for first, last in spans)
    word = balancing.strip()
    return nodes or None, word != "0" if word.isdecimal() else None


def parse_iommu(section: Section) -> tuple[int | None, str | None]:
    """How many groups, and the kernel's command line."""
    groups, _, options = section.stdout.partition("\n")
    return int(groups) if groups.strip().isdecimal() else None, options.strip() or None


def parse_count(section: Section) -> int | None:
    text = section.text
    return int(text) if text and text.isdecimal() else None


def parse_range(section: Section) -> tuple[int, int] | None:
    words = section.stdout.split()
    return (int(words[0]), int(words[1])) if len(words) == 2 else None
