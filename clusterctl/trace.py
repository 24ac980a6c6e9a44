"""The transport log: every command and every Docker call, one line each, for `-vv` and for tests.

A line is `HOST<tab>run ARGV` or `HOST<tab>docker METHOD PATH`. No stdin, no bodies, so no secrets.
"""

from __future__ import annotations

import os
from collections.abc import Callable

Trace = Callable[[str], None]

TRACE_FILE = "INFERCLUSTER_TRACE"


def untraced(_: str) -> None:
    """A Trace for callers who do not watch."""


def to_file(path: str) -> Trace:
    """Append each line in one write, so that threads and processes may share the file."""

    def write(line: str) -> None:
        with open(path, "a", encoding="utf-8") as file:
            file.write(line + "\n")

    return write


def traced(watcher: Trace = untraced) -> Trace:
    """`watcher`, and the file that INFERCLUSTER_TRACE names, where it is set."""
    path = os.environ.get(TRACE_FILE)
    if path is None:
        return watcher
    append = to_file(path)

    def both(line: str) -> None:
        watcher(line)
        append(line)

    return both
