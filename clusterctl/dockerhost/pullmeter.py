"""A pull's many layers as one figure. PURE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clusterctl.runtime import PullProgress

FETCHED = ("Download complete", "Pull complete", "Verifying Checksum", "Extracting")


class PullMeter:
    """Counts the bytes downloaded. A layer is known from its first size on; one that is on the
    host already never counts."""

    def __init__(self) -> None:
        self._done: dict[str, int] = {}
        self._total: dict[str, int] = {}

    def feed(self, event: Mapping[str, Any]) -> PullProgress:
        layer, status = event.get("id", ""), event.get("status", "")
        detail = event.get("progressDetail") or {}
        if status == "Downloading" and detail.get("total"):
            self._total[layer] = detail["total"]
            self._done[layer] = detail["current"]
        elif status in FETCHED and layer in self._total:
            self._done[layer] = self._total[layer]
        return PullProgress(sum(self._done.values()), sum(self._total.values()), status)
