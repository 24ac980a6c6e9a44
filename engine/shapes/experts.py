"""Mixtures of experts, from config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.shapes.model import Experts
from engine.shapes.sizes import Config, first, needed

_WITH_SHARED_GATE = ("qwen2_moe", "qwen3_next", "qwen3_5_moe")


def expert_traits(text: Config, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """`experts` of ModelShape, and the dense MLP's size where it has a name of its own."""
    text = {**text, **(text.get("ffn_config") or {})}
    count = first(text, "num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    if not count or count == 1:
        return {}
    model = str(text.get("model_type", ""))
    inner = first(text, "moe_intermediate_size", "expert_ffn_hidden_size")
    inner = inner or sizes["intermediate_size"]
    experts = Experts(
        count=count,
        per_token=needed(text, "num_experts_per_tok", "moe_top_k", "moe_topk", "moe_k"),
        intermediate_size=inner,
        layers=_sparse_layers(text, sizes["num_layers"]),
        shared_size=_shared_size(text, model, inner),
        shared_gate=model.startswith(_WITH_SHARED_GATE),
        router_bias=text.get("topk_method") == "noaux_tc"
        or bool(text.get("use_routing_bias"))
        or model.startswith(("gpt_oss", "glm4_moe", "nemotron_h")),
        bias=model.startswith("gpt_oss"),
        renormalise=bool(text.get("norm_topk_prob", not model.startswith("qwen"))),
        gated=not model.startswith("nemotron_h"),
        latent_size=text.get("moe_latent_size"),
    )
    dense = first(text, "intermediate_size_mlp", "dense_intermediate_size")
    return {"experts": experts, **({"intermediate_size": dense} if dense else {})}


def _sparse_layers(text: Config, layers: int) -> frozenset[int]:
    if pattern := text.get("hybrid_override_pattern"):
        return frozenset(i for i, letter in enumerate(pattern) if letter == "E")
    if isinstance(given := first(text, "moe_layers", "moe_layer_freq"), list):
        # Either the indices, or one flag a layer.
        flags = len(given) == layers and set(given) <= {0, 1}
        return frozenset(i for i, one in enumerate(given) if one) if flags else frozenset(given)
    begin = first(text, "first_k_dense_replace", "moe_layer_start_index") or 0
    step = first(text, "decoder_sparse_step", "interleave_moe_layer_step", "moe_layer_freq") or 1
    dense = set(text.get("mlp_only_layers") or ())
    last_of_step = "moe_layer_freq" not in text
    return frozenset(
        i for i in range(begin, layers) if (i + last_of_step) % step == 0 and i not in dense
    )


def _shared_size(text: Config, model: str, inner: int) -> int:
    """Columns of all always-on experts together."""
    given = first(
        text,
        "shared_expert_intermediate_size",
        "moe_shared_expert_intermediate_size",
        "shared_intermediate_size",
    )
    if given is not None:
        return int(given)
    count = first(text, "n_shared_experts", "num_shared_experts", "moe_num_shared_experts")
    if count is None and model.startswith("llama4"):
        count = 1
    return int(count or 0) * inner
