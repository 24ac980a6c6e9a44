"""Whether a deployment that has given no token yet still moves, on any of its nodes: by new lines,
bytes read or written, or CPU time (who computes on a GPU waits for it in a loop). How long a model
takes to load says nothing; that nothing moves does."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LOOK_S = 10.0
BUSY = 0.05  # of a core; a process that only waits polls, and takes less
IO_BYTES = 1 << 20
MOST_LINES = 10_000  # that are remembered
LINE_CHARS = 200
STOPPED = "Tt"  # states of proc(5): by a signal, by a debugger

_NUMBER = re.compile(rb"(?<![\d/])[\d.,:]*\d(?![\d/%])")

Key = tuple[str, int]  # node, process id


class NewLines:
    """Counts lines that say something new. A wait that is told again with another number does not;
    "shard 3/30" and "40%" do."""

    def __init__(self) -> None:
        self.count = 0
        self.last = ""
        self._known: set[bytes] = set()

    def hear(self, line: bytes) -> None:
        words = _NUMBER.sub(b"#", line)
        if words in self._known:
            return
        if len(self._known) >= MOST_LINES:
            self._known.clear()
        self._known.add(words)
        self.count += 1
        self.last = line[:LINE_CHARS].decode(errors="replace").strip()

    def forget(self) -> None:
        """What is told from now on is new."""
        self._known.clear()


@dataclass(frozen=True)
class Look:
    """At all nodes. `lines`: new ones so far; `ranks`: as ranks.py says them; `last`: the last
    new line of any node that printed since the look before."""

    lines: Mapping[str, int]
    ranks: Mapping[Key, Mapping[str, Any]]
    last: Mapping[str, str]


def look(reports: Mapping[str, Mapping[str, Any]], name: str, owner: str) -> Look:
    """Reports of node.py, by node."""
    said = {
        node: report["deployments"][name]
        for node, report in reports.items()
        if name in report["deployments"]
    }
    ranks = {
        (node, rank["pid"]): rank
        for node, report in reports.items()
        for rank in report["ranks"].get(owner, ())
    }
    return Look(
        {node: one["lines"] for node, one in said.items()},
        ranks,
        {node: one["last_line"] for node, one in said.items()},
    )


def moves(before: Look, now: Look, seconds: float) -> bool:
    """Between two looks, so far apart. What waits for a process that was stopped can only wait, so
    nothing moves while one is."""
    if any(rank["state"] in STOPPED for rank in now.ranks.values()):
        return False
    if now.lines != before.lines:
        return True
    return any(_works(before.ranks.get(key), rank, seconds) for key, rank in now.ranks.items())


def _works(before: Mapping[str, Any] | None, now: Mapping[str, Any], seconds: float) -> bool:
    return (
        before is None  # it has just begun
        or now["cpu_s"] - before["cpu_s"] >= BUSY * seconds
        or now["io_bytes"] - before["io_bytes"] >= IO_BYTES
    )


class Progress:
    """Of one epoch, from its beginning. `moved_at`: seconds since 1970."""

    def __init__(self) -> None:
        self.moved_at = time.time()
        self._moved = self._looked = time.monotonic()
        self._before: Look | None = None
        self._last = ""

    def still_s(self, now: Look, patience_s: float) -> float:
        """For how long nothing has moved. Looks twice within `patience_s`, at least."""
        at = time.monotonic()
        apart = at - self._looked
        if self._before is None:
            self._before, self._looked = now, at
        elif apart >= min(LOOK_S, patience_s / 2):
            if moves(self._before, now, apart):
                self._move(self._before, now)
            self._before, self._looked = now, at
        return at - self._moved

    def _move(self, before: Look, now: Look) -> None:
        self.moved_at, self._moved = time.time(), time.monotonic()
        for node, count in now.lines.items():
            if count != before.lines.get(node):
                self._last = now.last[node]

    def told(self, seconds: float) -> str:
        """What stands still and since when, less who may be why."""
        clock = time.strftime("%H:%M:%S UTC", time.gmtime(self.moved_at))
        last = f"; last line: {self._last}" if self._last else ""
        return f"no new line, bytes or CPU time for {seconds:.0f} s, since {clock}{last}"
