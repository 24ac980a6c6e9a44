"""Processes that outlive the command which started them: found and ended by pid and start time."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from .shell import wait_until


def spawn(argv: Sequence[str | Path], pidfile: Path, log: Path) -> None:
    """Start in a session of its own, output to `log`; the pid file says who it is."""
    with log.open("ab") as sink:
        process = subprocess.Popen(
            [str(word) for word in argv],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd="/",
        )
    pidfile.write_text(f"{process.pid} {_start_time(process.pid)}\n")


def alive(pidfile: Path) -> int | None:
    """The pid, if that very process still runs: a number used again by another is not it."""
    if not pidfile.exists():
        return None
    pid, started = pidfile.read_text().split()
    return int(pid) if _start_time(int(pid)) == started else None


def end(pidfile: Path) -> None:
    pid = alive(pidfile)
    if pid is not None:
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: alive(pidfile) is None, f"process {pid} has ended", 20)
    pidfile.unlink(missing_ok=True)


def only_child(pid: int) -> int | None:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(children[0]) if children else None


def _start_time(pid: int) -> str | None:
    """Field 22 of stat; None when gone, or dead and waiting to be reaped."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else fields[19]
