"""What each layer's mixer keeps of the past, from config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.shapes.errors import ShapeError
from engine.shapes.model import LatentAttention, LayerKind, LinearAttention
from engine.shapes.sizes import Config, first

_KINDS: Mapping[str, LayerKind] = {
    "full_attention": "full",
    "attention": "full",
    "sliding_attention": "sliding",
    "chunked_attention": "chunked",
    "linear_attention": "linear",
    # Sparse attention still keeps every token.
    "deepseek_sparse_attention": "full",
}
# Mixers that are not counted here; a plan that passed over them would be wrong in silence.
_UNKNOWN = (
    "ssm_cfg",
    "mamba_d_state",
    "rwkv_head_size",
    "linear_attn_config",
    "block_configs",
    "compress_ratios",
)


def layer_kind_traits(text: Config, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """`layer_kinds` and `window` of ModelShape; nothing where all layers see everything."""
    if found := [key for key in _UNKNOWN if text.get(key)]:
        raise ShapeError(
            f"config.json describes layers ({found[0]}) whose sizes are not known to the planner"
        )
    kinds = _kinds(text, sizes["num_layers"])
    if kinds is None or set(kinds) == {"full"}:
        return {}
    window = text.get("attention_chunk_size" if "chunked" in kinds else "sliding_window")
    return {"layer_kinds": kinds, "window": window}


def _kinds(text: Config, layers: int) -> tuple[LayerKind, ...] | None:
    if names := text.get("layer_types"):
        if unknown := set(names) - set(_KINDS):
            raise ShapeError(f"layer type {sorted(unknown)[0]!r} is not known")
        return tuple(_KINDS[name] for name in names)
    if interval := text.get("full_attention_interval"):
        return _every(interval, layers, "linear")
    if text.get("attention_chunk_size"):
        return _llama4(text, layers)
    if not text.get("sliding_window") or text.get("use_sliding_window") is False:
        return None
    if pattern := first(text, "sliding_window_pattern", "_sliding_window_pattern"):
        return _every(pattern, layers, "sliding")
    if text.get("sliding_window") >= text.get("max_position_embeddings", 0):
        return None
    whole: LayerKind = "sliding"
    return (whole,) * layers


def _every(interval: int, layers: int, others: LayerKind) -> tuple[LayerKind, ...]:
    """Every `interval`-th layer sees everything, the last of its group."""
    return tuple("full" if (i + 1) % interval == 0 else others for i in range(layers))


def _llama4(text: Config, layers: int) -> tuple[LayerKind, ...]:
    """Layers without rotary positions see everything, the others their chunk."""
    rotary = text.get("no_rope_layers") or [(i + 1) % 4 for i in range(layers)]
    kinds: list[LayerKind] = ["chunked" if has else "full" for has in rotary]
    return tuple(kinds)


def latent_traits(text: Config, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """`latent` of ModelShape, where keys and values are compressed."""
    if not text.get("kv_lora_rank"):
        return {}
    latent = LatentAttention(
        kv_rank=text["kv_lora_rank"],
        rope_dim=text["qk_rope_head_dim"],
        nope_dim=text["qk_nope_head_dim"],
        value_dim=text["v_head_dim"],
        query_rank=text.get("q_lora_rank"),
        index_heads=text.get("index_n_heads") or 0,
        index_dim=text.get("index_head_dim") or 0,
    )
    drafts = text.get("num_nextn_predict_layers") or 0
    return {"latent": latent, "draft_layers": drafts, "draft_tables": drafts > 0}


def state_traits(text: Config, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """`linear` of ModelShape for the gated delta rule (Qwen3-Next, Qwen3.5)."""
    if not text.get("linear_num_value_heads"):
        return {}
    linear = LinearAttention(
        key_heads=text["linear_num_key_heads"],
        value_heads=text["linear_num_value_heads"],
        key_dim=text["linear_key_head_dim"],
        value_dim=text["linear_value_head_dim"],
        kernel=text["linear_conv_kernel_dim"],
        state_bytes=4 if text.get("mamba_ssm_dtype") == "float32" else 2,
    )
    return {"linear": linear}


def nemotron_traits(text: Config, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Nemotron-H writes its layers as letters: M Mamba 2, * attention, E experts, - MLP."""
    pattern = text["hybrid_override_pattern"]
    kinds: Mapping[str, LayerKind] = {"M": "state", "*": "full"}
    linear = LinearAttention(
        key_heads=text["n_groups"],
        value_heads=text["mamba_num_heads"],
        key_dim=text["ssm_state_size"],
        value_dim=text["mamba_head_dim"],
        kernel=text["conv_kernel"],
        state_bytes=4 if text.get("mamba_ssm_cache_dtype") == "float32" else 2,
    )
    return {
        "layer_kinds": tuple(kinds.get(letter, "none") for letter in pattern),
        "window": None,
        "alternating": True,
        "gated_mlp": False,
        "norms_per_layer": 1,
        "linear": linear,
    }
