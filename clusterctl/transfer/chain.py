"""In which order the hosts pass a tree on, and what it asks of their disks. PURE.

One chain, not a tree: each host receives once and sends once, so that every link carries the bytes
once in each direction, and N hosts cost the time of one and N - 1 times the delay of one slice. In
a tree of two branches every inner host sends twice, and takes twice as long. A chain goes at the
pace of its slowest link: slow hosts stand at its end, where nobody waits for them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clusterctl.errors import PreflightFailed
from clusterctl.transfer.meter import size_text

SPARE = 64 << 20  # bytes that a disk keeps free


@dataclass(frozen=True)
class Hop:
    """One host as it was found: the bytes it lacks, where it serves, how fast its link is."""

    node: str
    missing: int
    address: str = ""
    port: int = 0
    speed_mbit: int = 0


@dataclass(frozen=True)
class Room:
    """Of the disk that a tree is to lie on."""

    path: str
    free: int
    writable: bool


def ordered(hops: Sequence[Hop]) -> list[Hop]:
    """Those that lack least come first, then the fast ones: nobody waits for a slow one who need
    not. The rest keep their order."""
    return sorted(hops, key=lambda hop: (hop.missing, -hop.speed_mbit))


def sources(hops: Sequence[Hop], node: str) -> list[dict[str, Any]]:
    """Whom a host asks, nearest first: when one is lost, the one before it takes its place."""
    before: list[dict[str, Any]] = []
    for hop in hops:
        if hop.node == node:
            break
        before.insert(0, {"name": hop.node, "address": hop.address, "port": hop.port})
    return before


def shared(seen: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Node -> the node whose disk it shares (itself, where it has its own). `seen`: whose markers
    each node found in the directory."""
    first: dict[str, str] = {}
    for node, markers in seen.items():
        same = [other for other in first if other in markers and node in seen[other]]
        first[node] = first[same[0]] if same else node
    return first


def refuse_full(rooms: Mapping[str, Room], missing: Mapping[str, int]) -> None:
    """Raises PreflightFailed naming every host whose disk does not take what it lacks."""
    lines = [
        f"  {node}: {said}" for node, room in rooms.items() if (said := _full(room, missing[node]))
    ]
    if lines:
        raise PreflightFailed(
            "\n".join(["nothing was moved, as it does not fit everywhere:", *lines]),
            host=", ".join(line.split(":")[0].strip() for line in lines),
            hint="free some space there, or choose another disk: --to PATH",
        )


def _full(room: Room, missing: int) -> str | None:
    if missing and not room.writable:
        return f"{room.path} cannot be written to"
    if missing and missing + SPARE > room.free:
        return f"{room.path} needs {size_text(missing)} and has {size_text(room.free)} free"
    return None
