"""How far a starting engine is, from the lines of its log. PURE."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

PhaseName = Literal["loading", "kv cache", "serving"]

_LOADING = re.compile(r"Loading (?:safetensors|GGUF|weights).*?(\d+)/(\d+)")
_KV_CACHE = re.compile(r"KV cache(?: size)?: ([\d,]+) tokens")
_SERVING = re.compile(r"Application startup complete")


@dataclass(frozen=True)
class Phase:
    """`done` of `total` where the phase counts something."""

    name: PhaseName
    detail: str
    done: int | None = None
    total: int | None = None


def phase_of(line: str) -> Phase | None:
    """What this line says about the start; None for most lines."""
    if match := _LOADING.search(line):
        done, total = int(match[1]), int(match[2])
        return Phase("loading", f"loading weights {done}/{total}", done, total)
    if match := _KV_CACHE.search(line):
        return Phase("kv cache", f"KV cache {match[1]} tokens")
    if _SERVING.search(line):
        return Phase("serving", "the API is up; waiting for a first token")
    return None


def kv_cache_tokens(lines: Iterable[str]) -> int | None:
    """What the cluster can hold: the smallest size that any rank reports."""
    found = [int(m[1].replace(",", "")) for line in lines if (m := _KV_CACHE.search(line))]
    return min(found, default=None)
