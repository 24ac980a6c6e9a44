"""Weights in fewer bits: which of them, and what each takes with its scales.

What a scheme stores beside the numbers is what its own checkpoints hold: compressed-tensors,
AutoGPTQ, AutoAWQ, ModelOpt, the OCP microscaling formats, bitsandbytes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import translate
from functools import cached_property
from typing import Any

from engine.shapes.errors import ShapeError


@dataclass(frozen=True, kw_only=True)
class Quantisation:
    """`bits` a weight, and `scale_bytes` for every `group` weights along the input, or every
    `block` (rows, columns), or every row where there is neither. `zero_bits`: a zero point a group.
    `scale_bytes` 0: one scale a matrix, too small to count.

    `ignored`: patterns of module names that stay in the checkpoint's dtype, as the field
    `modules_to_not_convert`, `ignore` or `exclude_modules` writes them.
    """

    method: str
    bits: float
    group: int | None = None
    block: tuple[int, int] | None = None
    scale_bytes: float = 0
    zero_bits: float = 0
    ignored: tuple[str, ...] = ()

    def matrix_bytes(self, rows: int, columns: int) -> int:
        """Of one [rows, columns] weight with its scales."""
        packed = rows * columns * self.bits / 8
        groups = self._groups(rows, columns)
        return round(packed + groups * (self.scale_bytes + self.zero_bits / 8))

    def _groups(self, rows: int, columns: int) -> int:
        if self.block is not None:
            return -(-rows // self.block[0]) * -(-columns // self.block[1])
        return rows * -(-columns // self.group) if self.group else rows

    def covers(self, module: str) -> bool:
        """Whether the weight of this module ("model.layers.0.mlp.gate_proj") is quantised."""
        if self._ignored_regex is not None and self._ignored_regex.match(module):
            return False
        return self._literals.isdisjoint(_runs(module))

    @cached_property
    def _literals(self) -> frozenset[str]:
        return frozenset(_plain(one) for one in self.ignored if not _is_pattern(one))

    @cached_property
    def _ignored_regex(self) -> re.Pattern[str] | None:
        parts = [_regex(one) for one in self.ignored if _is_pattern(one)]
        return re.compile("|".join(f"(?:{part})" for part in parts)) if parts else None

    def split_fault(self, rows: int, columns: int) -> str | None:
        """Why a rank cannot hold a [rows, columns] part of a matrix; None when it can.

        Rules of vLLM's fp8, AWQ and GPTQ kernels (vllm/model_executor/layers/quantization).
        """
        if self.block is not None:
            for size, step in ((rows, self.block[0]), (columns, self.block[1])):
                if size % step:
                    return f"{size} is no multiple of the quantisation block {step}"
        if self.group and columns % self.group:
            return f"{columns} is no multiple of the quantisation group {self.group}"
        return None


def parse_quantisation(config: Mapping[str, Any]) -> Quantisation | None:
    """Of the `quantization_config` of a config.json, or of ModelOpt's hf_quant_config.json.

    Raises ShapeError for a method that is not known here.
    """
    method = str(config.get("quant_method", "")).lower()
    if "quantization" in config:
        return _modelopt(config["quantization"], config["quantization"].get("quant_algo", ""))
    if method == "modelopt" or "quant_algo" in config:
        return _modelopt(config, config.get("quant_algo", ""))
    parse = _METHODS.get(method)
    if parse is None:
        raise ShapeError(f"quantisation {method!r} is not known (known: {', '.join(_METHODS)})")
    found: Quantisation | None = parse(config)
    return found


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
    # NF4 with double quantisation: one byte for 64 weights, and one float32 for 256 of those.
    "bnb-4bit": Quantisation(method="bitsandbytes", bits=4, group=64, scale_bytes=1 + 4 / 256),
}


def _fp8(config: Mapping[str, Any]) -> Quantisation:
    block = config.get("weight_block_size")
    return Quantisation(
        method="fp8",
        bits=8,
        block=(block[0], block[1]) if block else None,
        scale_bytes=4 if block else 0,
        ignored=_names(config, "modules_to_not_convert", "ignored_layers"),
    )


def _fbgemm(config: Mapping[str, Any]) -> Quantisation:
    ignored = _names(config, "modules_to_not_convert")
    return Quantisation(method="fp8", bits=8, scale_bytes=4, ignored=ignored)


def _gptq(config: Mapping[str, Any]) -> Quantisation:
    bits = config.get("bits") or config.get("w_bit") or 4
    group = config.get("group_size") or config.get("q_group_size") or 128
    return Quantisation(
        method=config["quant_method"],
        bits=bits,
        group=group if group > 0 else None,
        scale_bytes=2,
        zero_bits=bits,
        ignored=_names(config, "modules_to_not_convert"),
    )


def _mxfp4(config: Mapping[str, Any]) -> Quantisation:
    ignored = _names(config, "modules_to_not_convert")
    return Quantisation(method="mxfp4", bits=4, group=32, scale_bytes=1, ignored=ignored)


def _bitsandbytes(config: Mapping[str, Any]) -> Quantisation:
    ignored = _names(config, "llm_int8_skip_modules")
    if config.get("load_in_8bit"):
        return Quantisation(method="bitsandbytes", bits=8, scale_bytes=4, ignored=ignored)
    return Quantisation(
        method="bitsandbytes", bits=4, group=64, scale_bytes=1 + 4 / 256, ignored=ignored
    )


def _compressed(config: Mapping[str, Any]) -> Quantisation | None:
    groups = config.get("config_groups") or {}
    weights = next((group["weights"] for group in groups.values() if group.get("weights")), None)
    if weights is None:
        return None
    bits, group = weights["num_bits"], weights.get("group_size")
    block = weights.get("block_structure")
    ignored = _names(config, "ignore")
    if bits == 4 and weights.get("type") == "float":
        return Quantisation(
            method="nvfp4", bits=4, group=group or 16, scale_bytes=1, ignored=ignored
        )
    return Quantisation(
        method=f"{'fp' if weights.get('type') == 'float' else 'int'}{bits}",
        bits=bits,
        group=group if group and group > 0 else None,
        block=(block[0], block[1]) if isinstance(block, Sequence) and block else None,
        scale_bytes=0 if weights.get("strategy") == "tensor" else 2,
        zero_bits=0 if weights.get("symmetric", True) else bits,
        ignored=ignored,
    )


def _modelopt(config: Mapping[str, Any], algorithm: str) -> Quantisation | None:
    ignored = _names(config, "ignore", "exclude_modules")
    if algorithm.startswith("FP8"):
        return Quantisation(method="fp8", bits=8, ignored=ignored)
    if algorithm.startswith(("NVFP4", "W4A")):
        group = config.get("group_size") or 16
        return Quantisation(method="nvfp4", bits=4, group=group, scale_bytes=1, ignored=ignored)
    if not algorithm:
        return None
    raise ShapeError(f"ModelOpt's quantisation {algorithm!r} is not known (known: FP8, NVFP4)")


_METHODS: Mapping[str, Any] = {
    "fp8": _fp8,
    "fbgemm_fp8": _fbgemm,
    "gptq": _gptq,
    "awq": _gptq,
    "auto-round": _gptq,
    "mxfp4": _mxfp4,
    "bitsandbytes": _bitsandbytes,
    "compressed-tensors": _compressed,
}


def _names(config: Mapping[str, Any], *keys: str) -> tuple[str, ...]:
    return tuple(name for key in keys for name in config.get(key) or ())


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
