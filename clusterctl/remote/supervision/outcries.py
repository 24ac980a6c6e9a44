"""What went wrong first, rank by rank, in what a process prints."""

from __future__ import annotations

import re
import time
from typing import Any

# Ray's and vLLM's "(who pid=1, ip=...)", our engine's and torch's "[rank 1]".
_WHO = re.compile(rb"\((\w[\w.]*(?: (?:pid|rank)[^)]*)?)\)|\[?rank ?(\d+)[\]:]")
_ERROR = re.compile(rb"\b(?:ERROR|CRITICAL|FATAL)\b|\b\w*(?:Error|Exception)\b:|[Aa]ssert.*failed")
_ELSEWHERE = re.compile(rb"[Rr]etry|INFO|WARNING|DEBUG")
LINE_BYTES = 400
MOST_RANKS = 64

Outcry = dict[str, Any]  # who, at, line


class Outcries:
    """The first error line of each rank since the last `forget`, in the order they came."""

    def __init__(self) -> None:
        self._first: dict[str, Outcry] = {}

    def hear(self, line: bytes) -> None:
        if not _ERROR.search(line) or _ELSEWHERE.search(line):
            return
        who = _who(line)
        if who not in self._first and len(self._first) < MOST_RANKS:
            text = line[:LINE_BYTES].decode(errors="replace").strip()
            self._first[who] = {"who": who, "at": time.time(), "line": text}

    def forget(self) -> None:
        self._first = {}

    def all(self) -> list[Outcry]:
        return list(self._first.values())


def _who(line: bytes) -> str:
    if (match := _WHO.search(line)) is None:
        return ""
    return match[1].decode() if match[1] else f"rank {match[2].decode()}"
