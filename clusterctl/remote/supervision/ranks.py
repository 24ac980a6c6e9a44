"""The processes of a deployment on this node, whoever started them: found by what their environment
says, as Ray's actors are no children of ours."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path
from typing import Any

MARK = b"ENGINE_DEPLOYMENT="
NODE_MARK = "RAY_TMPDIR"  # tells the nodes of `up --local` apart, which share one machine
PROC = Path("/proc")

# Of proc_pid_io(5): by read(2) and write(2), and from and to storage, as for mapped files too.
_IO = re.compile(r"^(?:rchar|wchar|read_bytes|write_bytes): (\d+)$", re.MULTILINE)

# pid, title, state (a letter of proc(5)), cpu_s, io_bytes, busy (of a core, since the last look)
Rank = dict[str, Any]


class Ranks:
    """Every marked process, looked at again and again. Empty where a system does not show its
    processes' environments."""

    def __init__(self) -> None:
        self.by_owner: dict[str, list[Rank]] = {}
        self._used: dict[int, float] = {}  # CPU seconds by pid
        self._looked_at = 0.0

    def look(self) -> None:
        now, seen = time.monotonic(), [(owner, _look(pid)) for owner, pid in _marked()]
        passed, before = now - self._looked_at, self._used
        self.by_owner, self._used, self._looked_at = {}, {}, now
        for owner, rank in seen:
            if rank is not None:
                pid, used = rank["pid"], rank["cpu_s"]
                busy = round((used - before.get(pid, used)) / passed, 2)
                self.by_owner.setdefault(owner, []).append({**rank, "busy": busy})
                self._used[pid] = used


def kill(owner: str) -> int:
    """SIGKILL to every process of this owner; how many there were."""
    pids = [pid for said, pid in _marked() if said == owner]
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    return len(pids)


def _marked() -> list[tuple[str, int]]:
    if not (PROC / "self/environ").exists():
        return []
    pids = [int(path.name) for path in PROC.iterdir() if path.name.isdigit()]
    return [(owner, pid) for pid in sorted(pids) if (owner := _owner(pid))]


def _owner(pid: int) -> str:
    """Empty: not marked, of another node, or gone."""
    try:
        environment = (PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        return ""
    here = os.environ.get(NODE_MARK)
    if here is not None and f"{NODE_MARK}={here}".encode() not in environment:
        return ""
    marks = [entry for entry in environment if entry.startswith(MARK)]
    return marks[0].removeprefix(MARK).decode() if marks else ""


def _look(pid: int) -> Rank | None:
    """None when it has just ended."""
    try:
        stat = (PROC / str(pid) / "stat").read_text()
        title = (PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
        counters = (PROC / str(pid) / "io").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    ticks = int(fields[11]) + int(fields[12])  # utime and stime
    cpu_s = round(ticks / os.sysconf("SC_CLK_TCK"), 1)
    io_bytes = sum(int(number) for number in _IO.findall(counters))
    return {
        "pid": pid,
        "title": title[:60],
        "state": fields[0],
        "cpu_s": cpu_s,
        "io_bytes": io_bytes,
    }
