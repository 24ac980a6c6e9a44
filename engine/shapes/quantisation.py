"""Weights in fewer bits: which of them, and what each takes with its scales.

What a scheme stores beside the numbers is what its own checkpoints hold: compressed-tensors,
AutoGPTQ, AutoAWQ, ModelOpt, the OCP microscaling formats, bitsandbytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from engine.shapes.errors import ShapeError


@dataclass(frozen=True, kw_only=True)
class Quantisation:
    """`bits` a weight, and `scale_bytes` for every `group` weights along the input, or every
    `block` (rows, columns), or every row where there is neither. `zero_bits`: a zero point a group.
    `scale_bytes` 0: one scale a matrix, too small to count.

    `ignored`: patterns of module names that stay in the checkpoint's dtype, as `_IGNORED` fields
    write them.
    """

    method: str
    bits: float
    group: int | None = None
    block: tuple[int, int] | None = None
    scale_bytes: float = 0
    zero_bits: float = 0
    ignored: tuple[str, ...] = ()


def parse_quantisation(config: Mapping[str, Any]) -> Quantisation | None:
    """Of the `quantization_config` of a config.json, or of ModelOpt's hf_quant_config.json.

    Raises ShapeError for a method that is not known here.
    """
    method = str(config.get("quant_method", "")).lower()
    if "quantization" in config or "quant_algo" in config:
        method, config = "modelopt", config.get("quantization", config)
    if method not in _METHODS:
        raise ShapeError(f"quantisation {method!r} is not known (known: {', '.join(_METHODS)})")
    found = _METHODS[method](config)
    ignored = tuple(name for key in _IGNORED for name in config.get(key) or ())
    return found and replace(found, ignored=ignored)


def _fp8(config: Mapping[str, Any]) -> Quantisation:
    if block := config.get("weight_block_size"):
        return Quantisation(method="fp8", bits=8, block=(block[0], block[1]), scale_bytes=4)
    return Quantisation(method="fp8", bits=8)


def _gptq(config: Mapping[str, Any]) -> Quantisation:
    bits = config.get("bits") or config.get("w_bit") or 4
    group = config.get("group_size") or config.get("q_group_size") or 128
    return Quantisation(
        method=config["quant_method"],
        bits=bits,
        group=group if group > 0 else None,
        scale_bytes=2,
        zero_bits=bits,
    )


def _bitsandbytes(config: Mapping[str, Any]) -> Quantisation:
    if config.get("load_in_8bit"):
        return Quantisation(method="bitsandbytes", bits=8, scale_bytes=4)
    # NF4 with double quantisation: one byte for 64 weights, and one float32 for 256 of those.
    return Quantisation(method="bitsandbytes", bits=4, group=64, scale_bytes=1 + 4 / 256)


def _compressed(config: Mapping[str, Any]) -> Quantisation | None:
    groups = config.get("config_groups") or {}
    weights = next((group["weights"] for group in groups.values() if group.get("weights")), None)
    if weights is None:
        return None
    bits, group = weights["num_bits"], weights.get("group_size")
    block = weights.get("block_structure")
    if bits == 4 and weights.get("type") == "float":
        return Quantisation(method="nvfp4", bits=4, group=group or 16, scale_bytes=1)
    return Quantisation(
        method=f"{'fp' if weights.get('type') == 'float' else 'int'}{bits}",
        bits=bits,
        group=group if group and group > 0 else None,
        block=(block[0], block[1]) if isinstance(block, Sequence) and block else None,
        scale_bytes=0 if weights.get("strategy") == "tensor" else 2,
        zero_bits=0 if weights.get("symmetric", True) else bits,
    )


def _modelopt(config: Mapping[str, Any]) -> Quantisation | None:
    algorithm = config.get("quant_algo", "")
    if algorithm.startswith("FP8"):
        return Quantisation(method="fp8", bits=8)
    if algorithm.startswith(("NVFP4", "W4A")):
        group = config.get("group_size") or 16
        return Quantisation(method="nvfp4", bits=4, group=group, scale_bytes=1)
    if not algorithm:
        return None
    raise ShapeError(f"ModelOpt's quantisation {algorithm!r} is not known (known: FP8, NVFP4)")


_METHODS: Mapping[str, Callable[[Mapping[str, Any]], Quantisation | None]] = {
    "fp8": _fp8,
    "fbgemm_fp8": lambda _: Quantisation(method="fp8", bits=8, scale_bytes=4),
    "gptq": _gptq,
    "awq": _gptq,
    "auto-round": _gptq,
    "mxfp4": lambda _: Quantisation(method="mxfp4", bits=4, group=32, scale_bytes=1),
    "bitsandbytes": _bitsandbytes,
    "compressed-tensors": _compressed,
    "modelopt": _modelopt,
}
# What the methods call the modules that they leave as they were.
_IGNORED = (
    *("modules_to_not_convert", "ignored_layers", "llm_int8_skip_modules"),
    *("ignore", "exclude_modules"),
)
