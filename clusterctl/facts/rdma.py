"""RDMA devices (InfiniBand, RoCE, EFA) and the network interfaces that stand on them."""

from __future__ import annotations

from collections.abc import Mapping

PROBES: Mapping[str, str] = {
    # A bond's or VLAN's interface shows only in the GID table, the plain one beside the device.
    "rdma": """
for d in /sys/class/infiniband/*; do
  [ -d "$d" ] || continue
  printf '%s' "${d##*/}"
  for n in "$d"/device/net/*; do [ -e "$n" ] && printf ' %s' "${n##*/}"; done
  for n in "$d"/ports/*/gid_attrs/ndevs/[0-9]; do
    v=; read -r v 2>/dev/null <"$n"; [ -n "$v" ] && printf ' %s' "$v"
  done
  echo
done""",
}


def parse_rdma(text: str) -> tuple[tuple[str, ...], dict[str, str]]:
    """Device names, and interface -> device. Lines of a device and its interfaces."""
    rows = [line.split() for line in text.splitlines() if line.strip()]
    behind = {interface: row[0] for row in rows for interface in row[1:]}
    return tuple(row[0] for row in rows), behind
