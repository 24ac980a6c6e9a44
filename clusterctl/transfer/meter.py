"""How fast it goes, and how long it will take, in words. PURE."""

from __future__ import annotations

from collections import deque

WINDOW_S = 10.0


class Meter:
    """Fed with the bytes done; the rate is that of the last ten seconds."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def feed(self, done: int, total: int, now: float) -> str:
        """`412 MB/s, 0:35 left`; empty until there is a rate."""
        self._seen.append((now, done))
        while now - self._seen[0][0] > WINDOW_S:
            self._seen.popleft()
        since, before = self._seen[0]
        if now <= since or done <= before:
            return ""
        rate = (done - before) / (now - since)
        left = round((total - done) / rate)
        return f"{size_text(round(rate))}/s, {left // 60}:{left % 60:02} left"


def size_text(size: int) -> str:
    """Bytes in decimal units, as disks and links are sold: `140 GB`, `1.5 MB`."""
    amount, unit = float(size), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if amount < 1000 or unit == "TB":
            break
        amount /= 1000
    return f"{amount:.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"
