"""Whether a deployment that gives no token computes one, or waits for one that is gone. PURE."""

from __future__ import annotations

from .progress import LOOK_S, STOPPED, Look, Progress


class Motion:
    """The ranks at each proof of life, and since."""

    def __init__(self) -> None:
        self._progress = Progress()
        self._alive_at: float | None = None
        self._whole: set[tuple[str, int]] = set()

    def computes(self, seen: Look, alive_at: float | None, deadline_s: float) -> bool:
        """Something has moved in the last two looks, and of those that lived at the last proof of
        life (`alive_at`) nobody is gone or stands still."""
        here = {rank for rank, one in seen.ranks.items() if one["state"] not in STOPPED}
        if alive_at != self._alive_at:
            self._alive_at, self._whole = alive_at, here
        apart = min(LOOK_S, deadline_s / 2)
        return self._progress.still_s(seen, deadline_s) < 2 * apart and self._whole <= here
