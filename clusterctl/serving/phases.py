"""How far a starting engine is, and what went wrong, from the lines of its log. PURE."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

PhaseName = Literal["loading", "kv cache", "serving"]

_LOADING = re.compile(r"Loading (?:safetensors|GGUF|weights).*?(\d+)/(\d+)")
_KV_CACHE = re.compile(r"KV cache(?: size)?: ([\d,]+) tokens")
_SERVING = re.compile(r"Application startup complete")

# "(RankActor pid=71, ip=10.0.0.2) ": Ray writes it before what its actors print.
_ACTOR = re.compile(r"^(?:\x1b\[\d+m)?\((?P<who>\w+ pid=\d+(?:, ip=[\d.]+)?)\)(?:\x1b\[0m)? ?")
_ERROR = re.compile(
    r"^(?:ERROR\b|CRITICAL\b|[\w. -]+: error:"
    r"|(?:[\w.]+\.)?[A-Z]\w*(?:Error|Exception|Failed|Exit)\b(?::|$))"
)
_COLOR = re.compile(r"\x1b\[[\d;]*m")


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


def earliest_errors(lines: Iterable[str], limit: int = 3) -> list[str]:
    """The first distinct error lines over all ranks; later ones are mostly consequences."""
    found: dict[str, None] = {}
    for line in lines:
        plain = _COLOR.sub("", line).rstrip()
        actor = _ACTOR.match(plain)
        said = plain[actor.end() :] if actor else plain
        if _ERROR.match(said):
            found[f"{said} ({actor['who']})" if actor else said] = None
        if len(found) == limit:
            break
    return list(found)
