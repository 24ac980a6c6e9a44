"""config.json in the dialects people publish it in -> ModelShape."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from engine.shapes.errors import ShapeError
from engine.shapes.families import family_of
from engine.shapes.model import ModelShape, RopeScaling
from engine.shapes.quantisation import Quantisation, parse_quantisation
from engine.shapes.sizes import Config, first, parse_sizes, text_config

RUNNABLE_ROPE = ("default", "linear", "llama3")
RUNNABLE_ACTIVATIONS = ("silu", "relu", "gelu", "gelu_new", "gelu_pytorch_tanh")


def read_config(directory: Path) -> dict[str, Any]:
    """config.json of a checkpoint directory, with what generation_config.json and ModelOpt's
    hf_quant_config.json add. Raises ShapeError when there is none, or it is no JSON object."""
    path = directory / "config.json"
    if not path.is_file():
        raise ShapeError(f"{directory} is no checkpoint: it has no config.json")
    config = _read_object(path)
    generation = directory / "generation_config.json"
    if generation.is_file():
        # Chat models end a turn with more tokens than config.json names.
        eos = _read_object(generation).get("eos_token_id")
        config = config if eos is None else {**config, "eos_token_id": eos}
    quantised = directory / "hf_quant_config.json"
    if quantised.is_file() and "quantization_config" not in config:
        config["quantization_config"] = _read_object(quantised)
    return config


def _read_object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ShapeError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ShapeError(f"{path} holds no JSON object")
    return found


def read_shape(directory: Path) -> ModelShape:
    """The shape of a checkpoint directory that the engine can run. Raises ShapeError."""
    shape = parse_shape(read_config(directory))
    check_runnable(shape)
    return shape


def check_runnable(shape: ModelShape) -> None:
    """Refuse what the engine would otherwise run and give wrong text for. Raises ShapeError."""
    if shape.quantisation is not None:
        method = shape.quantisation.method
        raise ShapeError(f"quantised weights ({method}) are not supported: use the original model")
    if shape.activation not in RUNNABLE_ACTIVATIONS:
        known = ", ".join(RUNNABLE_ACTIVATIONS)
        raise ShapeError(f"activation {shape.activation} is not supported (known: {known})")
    if shape.rope_scaling is not None and shape.rope_scaling.kind not in RUNNABLE_ROPE:
        known = ", ".join(RUNNABLE_ROPE)
        raise ShapeError(
            f"rope scaling {shape.rope_scaling.kind!r} is not supported (known: {known})"
        )


def parse_shape(config: Config) -> ModelShape:
    """The shape that a config.json describes, whoever wrote it: transformers 4 or 5, a wrapper
    around a `text_config`, or a family with words of its own. Raises ShapeError naming what lacks.
    """
    text = text_config(config)
    try:
        return _parse(config, text)
    except KeyError as error:
        raise ShapeError(f"config.json lacks {error.args[0]}") from error


def _parse(config: Config, text: Config) -> ModelShape:
    architecture = first(config, "architectures") or first(text, "architectures")
    if not architecture:
        raise KeyError("architectures")
    family = family_of(first(text, "model_type") or "", architecture[0])
    sizes = parse_sizes({**family.defaults, **text})
    ropes: Config = first(text, "rope_parameters", "rope_scaling") or {}
    rope = ropes.get("full_attention", ropes)
    local_rope = ropes.get("sliding_attention") or {}
    quantisation = _quantisation(config, text)
    tied = first(config, "tie_word_embeddings")
    tied = first(text, "tie_word_embeddings") if tied is None else tied
    return ModelShape(
        architecture=architecture[0],
        **{
            **sizes,
            "tie_embeddings": family.tied if tied is None else tied,
            "rope_theta": rope.get("rope_theta") or text.get("rope_theta") or 10000.0,
            "rope_scaling": _rope_scaling(rope, sizes["max_position"]),
            "local_rope_theta": first(text, "rope_local_base_freq") or local_rope.get("rope_theta"),
            "rotary_fraction": first({**text, **rope}, "partial_rotary_factor") or 1.0,
            "query_scalar": first(text, "query_pre_attn_scalar"),
            "attention_softcap": first(text, "attn_logit_softcapping"),
            "logit_softcap": first(text, "final_logit_softcapping"),
            "norm_eps": first(text, "rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps") or 1e-6,
            "activation": first(
                {**family.defaults, **text},
                "hidden_act",
                "activation_function",
                "hidden_activation",
            )
            or "silu",
            "dtype": _dtype(config, text, quantisation),
            "eos_token_ids": _ids(config.get("eos_token_id", text.get("eos_token_id"))),
            "quantisation": quantisation,
            "kv_dtype": _kv_dtype(config, text),
            **family.traits({**family.defaults, **text}, sizes),
        },
    )


def _dtype(config: Config, text: Config, quantisation: Quantisation | None) -> str:
    named = first(text, "dtype", "torch_dtype") or first(config, "dtype", "torch_dtype")
    if named:
        return str(named).removeprefix("torch.")
    # transformers reads nothing as float32; nobody keeps the rest of a quantised model in that.
    return "bfloat16" if quantisation else "float32"


def _quantisation(config: Config, text: Config) -> Quantisation | None:
    found = config.get("quantization_config") or text.get("quantization_config")
    found = found or config.get("compression_config")
    return parse_quantisation(found) if found else None


def _kv_dtype(config: Config, text: Config) -> str | None:
    """fp8 where the checkpoint brings scales for it, as vLLM's `--kv-cache-dtype auto` takes it."""
    found: Config = first(config, "quantization_config") or {}
    found = found or first(text, "quantization_config") or {}
    algorithm = found.get("quantization", found).get("kv_cache_quant_algo")
    return "fp8" if algorithm == "FP8" or found.get("kv_cache_scheme") else None


def _rope_scaling(rope: Config, max_position: int) -> RopeScaling | None:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default" or "factor" not in rope:
        return None
    if kind == "linear":
        return RopeScaling(kind=kind, factor=rope["factor"])
    original = rope.get("original_max_position_embeddings", max_position)
    if kind != "llama3":
        return RopeScaling(kind=kind, factor=rope["factor"], original_max_position=original)
    return RopeScaling(
        kind=kind,
        factor=rope["factor"],
        low_freq_factor=rope["low_freq_factor"],
        high_freq_factor=rope["high_freq_factor"],
        original_max_position=original,
    )


def _ids(value: int | list[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)
