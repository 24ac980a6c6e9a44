"""Whether a deployment that gives no token computes one, by the CPU time of its ranks. PURE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .progress import STOPPED

BUSY = 0.2  # of a core; ranks that wait use some hundredths

Rank = Mapping[str, Any]  # node, and what ranks.py says of it


class Motion:
    """The ranks at each proof of life, and since."""

    def __init__(self) -> None:
        self._alive_at: float | None = None
        self._whole: set[tuple[str, int]] = set()

    def computes(self, ranks: Sequence[Rank], alive_at: float | None) -> bool:
        """Somebody computes, and of those that lived at the last proof of life (`alive_at`) nobody
        is gone or stands still."""
        here = {(rank["node"], rank["pid"]) for rank in ranks if not stands_still(rank)}
        if alive_at != self._alive_at:
            self._alive_at, self._whole = alive_at, here
        return self._whole <= here and any(rank["busy"] >= BUSY for rank in ranks)


def stands_still(rank: Rank) -> bool:
    """No signal but SIGCONT moves it."""
    return rank["state"] in STOPPED
