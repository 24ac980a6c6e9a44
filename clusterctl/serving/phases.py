"""How far a starting engine is, from the lines of its log. PURE."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

PhaseName = Literal["waiting", "loading", "compiling", "kv cache", "graphs", "serving"]

BLOCK_TOKENS = 16  # of a KV cache block, where an engine counts in blocks

_WAITING = re.compile(r"Waiting for creating a placement group of specs for (\d+) seconds")
_LOADING = re.compile(r"Loading (?:safetensors|GGUF|weights|pt).*?(\d+)/(\d+)")
_COMPILING = re.compile(r"Dynamo bytecode transform|Compiling a graph|Start compiling function")
_GRAPHS = re.compile(r"Capturing (?:CUDA|cudagraph).*?(\d+)/(\d+)")
_KV_CACHE = re.compile(r"KV cache(?: size)?: ([\d,]+) tokens")
# Before vLLM 0.8: "# GPU blocks: 2014, # CPU blocks: 256"; some without the first "#".
_KV_BLOCKS = re.compile(r"(?:GPU|CUDA|cuda|HPU|TPU|XPU|NPU) blocks: (\d+)")
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
        return _counted("loading", "loading weights", match)
    if match := _GRAPHS.search(line):
        return _counted("graphs", "capturing graphs", match)
    if match := _WAITING.search(line):
        return Phase("waiting", f"Ray has had no devices for it for {match[1]} s")
    if _COMPILING.search(line):
        return Phase("compiling", "compiling the model")
    if (tokens := _tokens(line)) is not None:
        return Phase("kv cache", f"KV cache {tokens:,} tokens")
    if _SERVING.search(line):
        return Phase("serving", "the API is up; waiting for a first token")
    return None


def _counted(name: PhaseName, what: str, match: re.Match[str]) -> Phase:
    done, total = int(match[1]), int(match[2])
    return Phase(name, f"{what} {done}/{total}", done, total)


def _tokens(line: str) -> int | None:
    if match := _KV_CACHE.search(line):
        return int(match[1].replace(",", ""))
    if match := _KV_BLOCKS.search(line):
        return int(match[1]) * BLOCK_TOKENS
    return None


def kv_cache_tokens(lines: Iterable[str]) -> int | None:
    """What the cluster can hold: the smallest size that any rank reports."""
    found = (_tokens(line) for line in lines)
    return min((tokens for tokens in found if tokens is not None), default=None)
