"""RDMA devices (InfiniBand, RoCE, EFA): their ports, GID tables, and the interfaces on them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from clusterctl.facts.sections import Section
from clusterctl.facts.types import Gid, RdmaPort

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
    "rdma_ports": """
get() { v=; read -r v 2>/dev/null <"$1"; printf '\\t%s' "$v"; }
for p in /sys/class/infiniband/*/ports/*; do
  [ -d "$p" ] || continue
  d=${p%/ports/*}; at="${d##*/}	${p##*/}"
  printf 'port\\t%s' "$at"; get "$p/state"; get "$p/rate"; get "$p/link_layer"; echo
  for g in "$p"/gids/*; do
    v=; read -r v 2>/dev/null <"$g"
    case $v in *[1-9a-f]*) ;; *) continue;; esac
    i=${g##*/}
    printf 'gid\\t%s\\t%s\\t%s' "$at" "$i" "$v"
    get "$p/gid_attrs/types/$i"; get "$p/gid_attrs/ndevs/$i"; echo
  done
done""",
    "ibv_devinfo": "ibv_devinfo",
    "ibdev2netdev": "ibdev2netdev",
    "show_gids": "show_gids",
}


@dataclass(frozen=True)
class VerbsPort:
    """A port as `ibv_devinfo` tells it."""

    state: str
    mtu: int | None
    link_layer: str


At = tuple[str, int]  # device and port


def parse_rdma(text: str) -> tuple[tuple[str, ...], dict[str, str]]:
    """Device names, and interface -> device. Lines of a device and its interfaces."""
    rows = [line.split() for line in text.splitlines() if line.strip()]
    behind = {interface: row[0] for row in rows for interface in row[1:]}
    return tuple(row[0] for row in rows), behind


def parse_ports(sections: Mapping[str, Section]) -> tuple[RdmaPort, ...] | None:
    """What /sys says; the active MTU, which it does not know, from ibv_devinfo. A container that
    is shown no GID attributes may still have show_gids."""
    gids = {**parse_show_gids(sections["show_gids"].stdout), **_sys_gids(sections["rdma_ports"])}
    verbs = parse_devinfo(sections["ibv_devinfo"].stdout)
    if not sections["rdma_ports"].ok:
        return None
    rows = [line.split("\t") for line in sections["rdma_ports"].stdout.splitlines()]
    return tuple(
        _port((row[1], int(row[2])), row[3:], verbs, gids) for row in rows if row[0] == "port"
    )


def _port(
    at: At, said: list[str], verbs: Mapping[At, VerbsPort], gids: Mapping[At, tuple[Gid, ...]]
) -> RdmaPort:
    state, rate, link_layer = said
    device, port = at
    return RdmaPort(
        device=device,
        port=port,
        state=state.rpartition(" ")[2],  # "4: ACTIVE"
        link_layer=link_layer,
        rate_gbit=parse_rate(rate),
        mtu=verbs[at].mtu if at in verbs else None,
        gids=gids.get(at, ()),
    )


def parse_rate(text: str) -> float | None:
    """`400 Gb/sec (4X NDR)`"""
    match = re.match(r"[\d.]+", text)
    return float(match[0]) if match else None


def _sys_gids(section: Section) -> dict[At, tuple[Gid, ...]]:
    rows = [line.split("\t") for line in section.stdout.splitlines() if line.startswith("gid")]
    return _by_port(
        ((row[1], int(row[2])), Gid(int(row[3]), row[4], row[5], row[6] or None)) for row in rows
    )


def parse_show_gids(text: str) -> dict[At, tuple[Gid, ...]]:
    """`show_gids`: device, port, index, GID, IPv4 where there is one, version, interface."""
    rows = [line.split() for line in text.splitlines()]
    kinds = {"v1": "IB/RoCE v1", "v2": "RoCE v2"}
    return _by_port(
        ((row[0], int(row[1])), Gid(int(row[2]), row[3], kinds[row[-2]], row[-1]))
        for row in rows
        if len(row) > 5 and row[-2] in kinds
    )


def _by_port(entries: Iterable[tuple[At, Gid]]) -> dict[At, tuple[Gid, ...]]:
    found: dict[At, list[Gid]] = defaultdict(list)
    for at, gid in entries:
        found[at].append(gid)
    return {at: tuple(sorted(gids, key=lambda gid: gid.index)) for at, gids in found.items()}


def parse_devinfo(text: str) -> dict[At, VerbsPort]:
    """`ibv_devinfo`: blocks of `hca_id:`, in them of `port:`, in them `key: value (code)`."""
    found: dict[At, VerbsPort] = {}
    for block in re.split(r"^hca_id:", text, flags=re.MULTILINE)[1:]:
        device = block.split(maxsplit=1)[0]
        for port in re.split(r"^\s+port:", block, flags=re.MULTILINE)[1:]:
            number, rest = port.split(maxsplit=1)
            found[device, int(number)] = _verbs_port(dict(re.findall(r"(\w+):\s+(\w+)", rest)))
    return found


def _verbs_port(said: Mapping[str, str]) -> VerbsPort:
    mtu = said.get("active_mtu", "")
    state = said.get("state", "").removeprefix("PORT_")
    return VerbsPort(state, int(mtu) if mtu.isdecimal() else None, said.get("link_layer", ""))


def parse_ibdev2netdev(text: str) -> dict[str, str]:
    """Interface -> device: `mlx5_0 port 1 ==> ib0 (Up)`."""
    return {
        interface: device
        for device, interface in re.findall(r"^(\S+) port \d+ ==> (\S+)", text, re.M)
    }
