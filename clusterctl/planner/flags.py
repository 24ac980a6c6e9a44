"""What an engine's own flags say of its memory: those that stand after `--` of `serve`. PURE."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from clusterctl.planner.memory import Settings

_UNITS = {"k": 10**3, "m": 10**6, "g": 10**9, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}

KV_DTYPES: Mapping[str, str] = {
    "bf16": "bfloat16",
    "fp16": "float16",
    "half": "float16",
    "fp8_e4m3": "fp8",
    "fp8_e5m2": "fp8",
    "int8": "fp8",
}
"""Other words for what a cache may hold -> ours."""


def with_flags(settings: Settings, flags: Sequence[str]) -> Settings:
    """`--name value` and `--name=value`, in vLLM's names. A value that cannot be read is left to
    the engine, which will refuse it."""
    for name, value in _pairs(flags):
        if name in _READ:
            field, read = _READ[name]
            found = read(value)
            settings = settings if found is None else replace(settings, **{field: found})
    return settings


def _pairs(flags: Sequence[str]) -> list[tuple[str, str]]:
    following = [*flags[1:], ""][: len(flags)]
    split = [(flag.partition("="), after) for flag, after in zip(flags, following, strict=True)]
    return [(name, value if equals else after) for (name, equals, value), after in split]


def _count(text: str) -> int | None:
    """vLLM takes 8192, 8k (8000) and 8K (8192)."""
    number, unit = (text[:-1], _UNITS[text[-1]]) if text[-1:] in _UNITS else (text, 1)
    return int(number) * unit if number.isdecimal() else None


def _share(text: str) -> float | None:
    try:
        share = float(text)
    except ValueError:
        return None
    return share if 0 < share <= 1 else None


def _kv_dtype(text: str) -> str | None:
    return None if text == "auto" else KV_DTYPES.get(text, text)


def _partition(text: str) -> tuple[int, ...] | None:
    parts = text.split(",")
    return tuple(map(int, parts)) if all(part.isdecimal() for part in parts) else None


_READ: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "--block-size": ("block_size", _count),
    "--gpu-memory-utilization": ("utilization", _share),
    "--kv-cache-dtype": ("kv_dtype", _kv_dtype),
    "--kv-cache-memory-bytes": ("kv_cache_bytes", _count),
    "--max-model-len": ("max_model_len", _count),
    "--max-num-batched-tokens": ("max_num_batched_tokens", _count),
    "--max-num-seqs": ("max_num_seqs", _count),
    "--pipeline-partition": ("partition", _partition),
}
