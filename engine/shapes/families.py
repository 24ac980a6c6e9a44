"""What a family of models means without saying it in config.json.

Read from transformers' configuration and modelling files of each family, and from checkpoints'
tensor lists.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from engine.shapes.experts import expert_traits
from engine.shapes.mixers import latent_traits, layer_kind_traits, nemotron_traits, state_traits
from engine.shapes.sizes import Config, first

Traits = dict[str, Any]
Sizes = Mapping[str, Any]


@dataclass(frozen=True)
class Family:
    """`tied`: whether embeddings are tied where config.json does not say. `defaults`: keys that
    config.json may leave out. `fixed`: fields of ModelShape; `own`: those that depend on it."""

    tied: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    own: Callable[[Config, Sizes], Traits] | None = None

    def traits(self, text: Config, sizes: Sizes) -> Traits:
        """Fields of ModelShape, for a decoder's configuration and its sizes."""
        found: Traits = {**self.fixed}
        found |= layer_kind_traits(text, sizes)
        found |= latent_traits(text, sizes)
        found |= state_traits(text, sizes)
        found |= expert_traits(text, sizes)
        if self.own is not None:
            found |= self.own(text, sizes)
        return found


def family_of(model_type: str, architecture: str) -> Family:
    """By `model_type`, of which newer members keep the beginning, else by the class's name."""
    key = model_type.lower().removesuffix("_text") or _snake(architecture)
    return next((family for name, family in _FAMILIES if key.startswith(name)), Family())


def _snake(architecture: str) -> str:
    """Qwen3MoeForCausalLM is qwen3moe: enough for the beginnings below."""
    name = architecture.lower()
    for end in ("forcausallm", "forconditionalgeneration", "lmheadmodel"):
        name = name.removesuffix(end)
    return _CLASS_NAMES.get(name, name)


_CLASS_NAMES = {
    "qwen2moe": "qwen2_moe",
    "qwen3next": "qwen3_next",
    "deepseekv2": "deepseek_v2",
    "deepseekv3": "deepseek_v3",
    "deepseekv32": "deepseek_v3",
    "gptoss": "gpt_oss",
    "glm4moe": "glm4_moe",
    "minimaxm2": "minimax_m2",
    "gptneox": "gpt_neox",
    "gptbigcode": "gpt_bigcode",
    "llama4": "llama4",
}


def _opt(text: Config, sizes: Sizes) -> Traits:
    inner = text.get("word_embed_proj_dim")
    return {
        # Two rows are kept for padding in front of position 0.
        "learned_positions": sizes["max_position"] + 2,
        "norm_eps": 1e-5,  # torch's own: OPT's config.json has no word for it
        "embedding_size": inner if inner != sizes["hidden_size"] else None,
        "attention_bias": text.get("enable_bias", True),
        "mlp_bias": text.get("enable_bias", True),
    }


def _learned(text: Config, sizes: Sizes) -> Traits:
    return {"learned_positions": sizes["max_position"]}


def _glm4_moe(text: Config, sizes: Sizes) -> Traits:
    return {"qk_norm": "head" if text.get("use_qk_norm") else "none"}


def _cohere(text: Config, sizes: Sizes) -> Traits:
    return {"qk_norm": "heads" if text.get("use_qk_norm") else "none"}


def _falcon(text: Config, sizes: Sizes) -> Traits:
    new = bool(text.get("new_decoder_architecture"))
    if not new and not text.get("multi_query", True):
        heads = sizes["num_heads"]
    else:
        heads = first(text, "num_kv_heads", "n_head_kv") if new else 1
    return {"num_kv_heads": heads, "norms_per_layer": 2 if new else 1}


def _seed(text: Config, sizes: Sizes) -> Traits:
    return {"output_bias": bool(text.get("attention_out_bias"))}


_QKV_BIAS = {"attention_bias": True, "output_bias": False}
_BIASES = {"attention_bias": True, "mlp_bias": True, "norm_bias": True, "gated_mlp": False}
_GEMMA = {"hidden_activation": "gelu_pytorch_tanh"}
_GPT2 = {"vocab_size": 50257, "n_positions": 1024, "activation_function": "gelu_new"}
# gemma-3-4b-it's config.json leaves out what transformers' Gemma3TextConfig holds.
_GEMMA3 = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "vocab_size": 262208,
    "max_position_embeddings": 131072,
    "sliding_window": 4096,
    "sliding_window_pattern": 6,
    "hidden_activation": "gelu_pytorch_tanh",
}

_FAMILIES: tuple[tuple[str, Family], ...] = (
    ("qwen2", Family(fixed=_QKV_BIAS)),
    ("qwen3_next", Family(fixed={"qk_norm": "head", "output_gate": True})),
    ("qwen3_5", Family(fixed={"qk_norm": "head", "output_gate": True})),
    ("qwen3", Family(fixed={"qk_norm": "head"})),
    ("gemma3", Family(True, _GEMMA3, {"norms_per_layer": 4, "qk_norm": "head"})),
    ("gemma2", Family(True, _GEMMA | {"sliding_window_pattern": 2}, {"norms_per_layer": 4})),
    ("gemma", Family(True, _GEMMA | {"head_dim": 256})),
    ("opt", Family(True, {"activation_function": "relu"}, _BIASES, _opt)),
    ("gpt2", Family(True, _GPT2, _BIASES, _learned)),
    ("gpt_bigcode", Family(True, {"multi_query": True}, _BIASES, _learned)),
    ("gpt_neox", Family(fixed=_BIASES)),
    ("starcoder2", Family(True, fixed=_BIASES)),
    (
        "falcon",
        Family(
            True,
            {"max_position_embeddings": 2048, "parallel_attn": True},
            {"norm_bias": True, "gated_mlp": False},
            _falcon,
        ),
    ),
    ("cohere", Family(True, fixed={"norms_per_layer": 1}, own=_cohere)),
    ("olmo2", Family(fixed={"qk_norm": "heads"})),
    ("olmo3", Family(fixed={"qk_norm": "heads"})),
    ("minimax_m2", Family(fixed={"qk_norm": "heads"})),
    ("glm4_moe", Family(fixed={"output_bias": False}, own=_glm4_moe)),
    ("glm4", Family(fixed={"norms_per_layer": 4, "output_bias": False})),
    ("glm", Family(fixed={"output_bias": False})),
    ("gpt_oss", Family(fixed={"sinks": True, "attention_bias": True})),
    ("seed_oss", Family(own=_seed)),
    ("phimoe", Family(fixed={"norm_bias": True, "attention_bias": True})),
    ("nemotron_h", Family(own=nemotron_traits)),
)
