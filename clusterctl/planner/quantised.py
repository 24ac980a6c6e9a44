"""What weights in fewer bits take, and what of a checkpoint they cover."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fnmatch import translate
from functools import lru_cache

from engine.shapes import Quantisation, ShapeError


def named_quantisation(name: str) -> Quantisation:
    """What people mean by "fp8", "awq" or "nvfp4" where no config.json says more: all linear
    layers, the embedding and LM head aside. Raises ShapeError."""
    if name not in NAMED:
        raise ShapeError(f"{name!r} is no quantisation (known: {', '.join(NAMED)})")
    return NAMED[name]


NAMED: Mapping[str, Quantisation] = {
    "fp8": Quantisation(method="fp8", bits=8),
    "fp8-block": Quantisation(method="fp8", bits=8, block=(128, 128), scale_bytes=4),
    "int8": Quantisation(method="int8", bits=8, scale_bytes=4),
    "awq": Quantisation(method="awq", bits=4, group=128, scale_bytes=2, zero_bits=4),
    "gptq": Quantisation(method="gptq", bits=4, group=128, scale_bytes=2, zero_bits=4),
    "gptq-int8": Quantisation(method="gptq", bits=8, group=128, scale_bytes=2, zero_bits=8),
    "int4": Quantisation(method="int4", bits=4, group=128, scale_bytes=2),
    "nvfp4": Quantisation(method="nvfp4", bits=4, group=16, scale_bytes=1),
    "mxfp4": Quantisation(method="mxfp4", bits=4, group=32, scale_bytes=1),
    "bnb-4bit": Quantisation(method="bitsandbytes", bits=4, group=64, scale_bytes=1 + 4 / 256),
}


def matrix_bytes(quantised: Quantisation, rows: int, columns: int) -> int:
    """Of one [rows, columns] weight with its scales."""
    packed = rows * columns * quantised.bits / 8
    groups = _groups(quantised, rows, columns)
    return round(packed + groups * (quantised.scale_bytes + quantised.zero_bits / 8))


def _groups(quantised: Quantisation, rows: int, columns: int) -> int:
    if quantised.block is not None:
        return -(-rows // quantised.block[0]) * -(-columns // quantised.block[1])
    return rows * -(-columns // quantised.group) if quantised.group else rows


def covers(quantised: Quantisation, module: str) -> bool:
    """Whether the weight of this module ("model.layers.0.mlp.gate_proj") is quantised."""
    literals, pattern = _ignored(quantised.ignored)
    if pattern is not None and pattern.match(module):
        return False
    return literals.isdisjoint(_runs(module))


@lru_cache(maxsize=64)
def _ignored(names: tuple[str, ...]) -> tuple[frozenset[str], re.Pattern[str] | None]:
    """The names that mean themselves, and one pattern for the others."""
    parts = [f"(?:{_regex(name)})" for name in names if _is_pattern(name)]
    literals = frozenset(_plain(name) for name in names if not _is_pattern(name))
    return literals, re.compile("|".join(parts)) if parts else None


def _is_pattern(text: str) -> bool:
    return text.startswith("re:") or "*" in text


def _regex(pattern: str) -> str:
    """Of whole module names. A name that a pattern stands for covers what is below it."""
    if pattern.startswith("re:"):
        return pattern[3:].replace("language_model\\.", "(?:language_model\\.)?")
    return rf"(?:.*\.)?{translate(_plain(pattern))[:-2]}(?:\..*)?\Z"


def _plain(name: str) -> str:
    """Multimodal checkpoints keep the decoder a step further down."""
    for wrapper in ("model.language_model.", "language_model.model."):
        name = name.replace(wrapper, "model.")
    return name.removeprefix("language_model.").strip(".")


def _runs(module: str) -> set[str]:
    """Every run of dotted parts: "a.b.c" -> a, a.b, a.b.c, b, b.c, c."""
    parts = module.split(".")
    return {
        ".".join(parts[start:stop])
        for start in range(len(parts))
        for stop in range(start + 1, len(parts) + 1)
    }
