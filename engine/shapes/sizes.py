"""The sizes that every decoder has, by whatever word a config.json calls them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.shapes.errors import ShapeError

Config = Mapping[str, Any]

_WRAPPED = ("text_config", "llm_config", "language_config", "thinker_config")


def text_config(config: Config) -> Config:
    """The decoder's part of a multimodal model's configuration; else the whole."""
    for key in _WRAPPED:
        if isinstance(config.get(key), Mapping):
            return text_config(config[key])
    return config


def first(config: Config, *names: str) -> Any:
    """The first of these that is there and not null."""
    return next((config[name] for name in names if config.get(name) is not None), None)


def needed(config: Config, *names: str) -> Any:
    """Raises KeyError with the first name, which is the usual one."""
    found = first(config, *names)
    if found is None:
        raise KeyError(names[0])
    return found


def parse_sizes(config: Config) -> dict[str, Any]:
    """Fields of ModelShape. Raises KeyError naming what is missing, ShapeError for nonsense."""
    hidden = needed(config, "hidden_size", "n_embd", "d_model")
    heads = needed(config, "num_attention_heads", "n_head", "n_heads", "num_heads")
    sizes = {
        "num_layers": needed(config, "num_hidden_layers", "n_layer", "n_layers", "num_layers"),
        "hidden_size": hidden,
        "num_heads": heads,
        "num_kv_heads": _kv_heads(config) or heads,
        "head_dim": first(config, "head_dim", "kv_channels", "attention_head_dim")
        or hidden // heads,
        "intermediate_size": _intermediate(config, hidden),
        "vocab_size": needed(config, "vocab_size", "padded_vocab_size"),
        "max_position": needed(
            config,
            *("max_position_embeddings", "n_positions", "n_ctx"),
            *("max_sequence_length", "seq_length", "max_seq_len", "model_max_length"),
        ),
    }
    for name, value in sizes.items():
        if not isinstance(value, int) or value < 1:
            raise ShapeError(f"config.json: {name} must be a positive number, not {value!r}")
    return {
        **sizes,
        "attention_bias": bool(first(config, "attention_bias", "qkv_bias", "bias")),
        "mlp_bias": bool(first(config, "mlp_bias", "bias")),
    }


def _kv_heads(config: Config) -> int | None:
    found = first(config, "num_key_value_heads", "num_kv_heads", "n_head_kv", "n_kv_heads")
    if found is None and isinstance(config.get("attn_config"), Mapping):
        found = config["attn_config"].get("kv_n_heads")
    if found is None and config.get("multi_query_attention"):
        found = config.get("multi_query_group_num")
    if found is None and config.get("multi_query"):
        found = 1
    return int(found) if found is not None else None


def _intermediate(config: Config, hidden: int) -> int:
    """GPT-2 and Falcon leave it out where it is four times the hidden size."""
    found = first(config, "intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size")
    if found is None and isinstance(config.get("ffn_config"), Mapping):
        found = config["ffn_config"].get("ffn_hidden_size")
    if found is None and any(key in config for key in ("n_embd", "parallel_attn")):
        found = 4 * hidden
    if found is None:  # no layer has a dense MLP
        found = config.get("moe_intermediate_size")
    if found is None:
        raise KeyError("intermediate_size")
    return int(found)
