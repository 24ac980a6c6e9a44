"""Every weight that a model's sizes imply, and the share of them that one rank holds.

Names are those of Hugging Face checkpoints as far as quantisation patterns ask for them. What is
summed here is what safetensors files hold: `scripts/validate_plan` compares it with published
sizes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from clusterctl.planner.quantised import covers, matrix_bytes
from engine.shapes import DTYPE_BYTES, Experts, LatentAttention, LinearAttention, ModelShape

Place = Literal["embedding", "layer", "head", "draft"]
Cut = Literal["tp", "kv", "vocab", "expert", "whole"]
"""How tensor parallelism shares a tensor out: evenly, by KV heads (several ranks hold the same one
where there are fewer than ranks), by rows of the vocabulary, by expert, or not at all."""


@dataclass(frozen=True)
class Tensor:
    """`count` equal weights of [rows, columns]; a vector has one column."""

    name: str
    rows: int
    columns: int
    cut: Cut = "whole"
    count: int = 1
    linear: bool = True

    @property
    def parameters(self) -> int:
        return self.count * self.rows * self.columns


def tensors(shape: ModelShape) -> Iterator[tuple[Place, int, Tensor]]:
    """(place, layer, tensor) of the whole checkpoint; the layer counts within its place."""
    width = shape.embedding_size or shape.hidden_size
    yield "embedding", 0, _table("model.embed_tokens", shape.vocab_size, width)
    if width != shape.hidden_size:
        yield "embedding", 0, Tensor("model.project_in", shape.hidden_size, width)
        yield "head", 0, Tensor("model.project_out", width, shape.hidden_size)
    if shape.learned_positions:
        positions = shape.learned_positions
        yield "embedding", 0, Tensor("model.positions", positions, shape.hidden_size, linear=False)
    for layer in range(shape.num_layers):
        for tensor in _layer(shape, layer):
            yield "layer", layer, tensor
    yield "head", 0, _vector("model.norm", shape.hidden_size * (2 if shape.norm_bias else 1))
    if not shape.tie_embeddings:
        yield "head", 0, _table("lm_head", shape.vocab_size, width)
    if shape.tower_parameters:
        yield "embedding", 0, _vector("visual", shape.tower_parameters)
    for draft in range(shape.draft_layers):
        for tensor in _draft(shape, draft):
            yield "draft", draft, tensor


def parameters(shape: ModelShape) -> int:
    """Of the model as its name counts them: draft layers aside."""
    return sum(t.parameters for place, _, t in tensors(shape) if place != "draft")


def checkpoint_bytes(shape: ModelShape) -> int:
    """Of the whole checkpoint in its own dtype and quantisation, draft layers included."""
    return sum(_bytes(shape, tensor) for _, _, tensor in tensors(shape))


@lru_cache(maxsize=4096)
def rank_bytes(shape: ModelShape, layers: range, tp: int, ep: int = 1) -> int:
    """Bytes of weights on one rank of the stage that holds `layers`.

    `ep` > 1: the routed experts lie whole on their ranks, spread over `ep` of them.
    """
    held = {"embedding": layers.start == 0, "head": layers.stop == shape.num_layers}
    padding = _padding(shape, tp, ep)
    total = sum(
        int(_share(shape, tensor, whole, tp, ep) * (padding if tensor.cut == "expert" else 1.0))
        for place, layer, tensor, whole in _loaded(shape)
        if (layer in layers if place == "layer" else held[place])
    )
    if shape.tie_embeddings and held["head"] and not held["embedding"]:
        head = _table("lm_head", shape.vocab_size, shape.embedding_size or shape.hidden_size)
        total += _share(shape, head, _bytes(shape, head), tp, ep)
    return total


@lru_cache(maxsize=64)
def _loaded(shape: ModelShape) -> tuple[tuple[Place, int, Tensor, int], ...]:
    """With the bytes of each, draft layers aside."""
    return tuple(
        (place, layer, tensor, _bytes(shape, tensor))
        for place, layer, tensor in tensors(shape)
        if place != "draft"
    )


def _padding(shape: ModelShape, tp: int, ep: int) -> float:
    """How much larger experts in MXFP4 lie in memory than in the checkpoint: vLLM's kernels want
    the hidden size in multiples of 256 and a rank's columns in multiples of 128. gpt-oss-120b is
    60.8 GiB on disk and 66.0 GiB loaded (vllm#23278), gpt-oss-20b 12.8 and 13.7."""
    experts, quantised = shape.experts, shape.quantisation
    if experts is None or quantised is None or quantised.method != "mxfp4":
        return 1.0
    width = experts.latent_size or shape.hidden_size
    columns = experts.intermediate_size // (1 if ep > 1 else tp)
    return _rounded(width, 256) / width * _rounded(columns, 128) / columns


def _rounded(size: int, unit: int) -> int:
    return -(-size // unit) * unit


def _share(shape: ModelShape, tensor: Tensor, whole: int, tp: int, ep: int) -> int:
    """The largest share that a rank gets of a tensor of `whole` bytes."""
    if tensor.cut == "tp":
        return -(-whole // tp)
    if tensor.cut == "kv":
        return whole * shape.kv_heads_per_rank(tp) // shape.num_kv_heads
    if tensor.cut == "vocab":
        return -(-tensor.rows // tp) * tensor.columns * DTYPE_BYTES[shape.dtype]
    if tensor.cut == "expert":
        return whole * -(-tensor.count // ep) // tensor.count if ep > 1 else -(-whole // tp)
    return whole


def _bytes(shape: ModelShape, tensor: Tensor) -> int:
    quantised = shape.quantisation
    if quantised is None or not tensor.linear or not covers(quantised, tensor.name):
        return tensor.parameters * DTYPE_BYTES[shape.dtype]
    return tensor.count * matrix_bytes(quantised, tensor.rows, tensor.columns)


# --- one layer -----------------------------------------------------------------------------------


def _layer(shape: ModelShape, layer: int) -> Iterator[Tensor]:
    prefix = f"model.layers.{layer}"
    norms = shape.norms_per_layer * shape.hidden_size * (2 if shape.norm_bias else 1)
    yield _vector(f"{prefix}.input_layernorm", norms)
    yield from _mixer(shape, layer, f"{prefix}.self_attn")
    experts = shape.experts
    if experts is not None and layer in experts.layers:
        yield from _sparse(shape, experts, f"{prefix}.mlp")
    elif shape.has_mlp(layer):
        yield from _mlp(shape, f"{prefix}.mlp")


def _mixer(shape: ModelShape, layer: int, name: str) -> Iterator[Tensor]:
    kind = shape.kind_of(layer)
    if kind == "none":
        return
    if shape.linear is not None and kind == "linear":
        yield from _delta_rule(shape.hidden_size, shape.linear, name.replace("self", "linear"))
    elif shape.linear is not None and kind == "state":
        yield from _mamba(shape.hidden_size, shape.linear, name.replace("self_attn", "mixer"))
    elif shape.latent is not None:
        yield from _latent(shape, shape.latent, name)
    else:
        yield from _attention(shape, name)


def _attention(shape: ModelShape, name: str) -> Iterator[Tensor]:
    hidden, query = shape.hidden_size, shape.num_heads * shape.head_dim
    key = shape.num_kv_heads * shape.head_dim
    rows = query * 2 if shape.output_gate else query
    yield Tensor(f"{name}.q_proj", rows, hidden, "tp")
    yield Tensor(f"{name}.k_proj", key, hidden, "kv")
    yield Tensor(f"{name}.v_proj", key, hidden, "kv")
    yield Tensor(f"{name}.o_proj", hidden, query, "tp")
    if shape.attention_bias:
        yield _vector(f"{name}.qkv_bias", rows + 2 * key, "tp")
    if shape.attention_bias if shape.output_bias is None else shape.output_bias:
        yield _vector(f"{name}.o_bias", hidden)
    if norm := _qk_norm_size(shape):
        yield _vector(f"{name}.qk_norm", norm)
    if shape.sinks:
        yield _vector(f"{name}.sinks", shape.num_heads, "tp")


def _qk_norm_size(shape: ModelShape) -> int:
    """Of both norms: of one head's width, shared by all, or of all heads side by side."""
    heads = {"none": 0, "head": 2, "heads": shape.num_heads + shape.num_kv_heads}
    return heads[shape.qk_norm] * shape.head_dim


def _latent(shape: ModelShape, latent: LatentAttention, name: str) -> Iterator[Tensor]:
    hidden, heads = shape.hidden_size, shape.num_heads
    query = heads * (latent.nope_dim + latent.rope_dim)
    if latent.query_rank is None:
        yield Tensor(f"{name}.q_proj", query, hidden, "tp")
    else:
        yield Tensor(f"{name}.q_a_proj", latent.query_rank, hidden)
        yield _vector(f"{name}.q_a_layernorm", latent.query_rank)
        yield Tensor(f"{name}.q_b_proj", query, latent.query_rank, "tp")
    yield Tensor(f"{name}.kv_a_proj_with_mqa", latent.cached, hidden)
    yield _vector(f"{name}.kv_a_layernorm", latent.kv_rank)
    both = heads * (latent.nope_dim + latent.value_dim)
    yield Tensor(f"{name}.kv_b_proj", both, latent.kv_rank, "tp")
    yield Tensor(f"{name}.o_proj", hidden, heads * latent.value_dim, "tp")
    if latent.index_dim and latent.query_rank is not None:
        yield Tensor(
            f"{name}.indexer.wq_b", latent.index_heads * latent.index_dim, latent.query_rank
        )
        yield Tensor(f"{name}.indexer.wk", latent.index_dim, hidden)
        yield Tensor(f"{name}.indexer.weights_proj", latent.index_heads, hidden, linear=False)
        yield _vector(f"{name}.indexer.k_norm", 2 * latent.index_dim)


def _delta_rule(hidden: int, linear: LinearAttention, name: str) -> Iterator[Tensor]:
    mixed = 2 * linear.key_size + linear.value_size
    yield Tensor(f"{name}.in_proj_qkvz", mixed + linear.value_size, hidden, "tp")
    yield Tensor(f"{name}.in_proj_ba", 2 * linear.value_heads, hidden, "tp")
    yield Tensor(f"{name}.conv1d", mixed, linear.kernel, "tp", linear=False)
    yield _vector(f"{name}.a_log_and_dt", 2 * linear.value_heads, "tp")
    yield _vector(f"{name}.norm", linear.value_dim)
    yield Tensor(f"{name}.out_proj", hidden, linear.value_size, "tp")


def _mamba(hidden: int, linear: LinearAttention, name: str) -> Iterator[Tensor]:
    """Mamba 2: [gate, x, B, C, dt] in one projection; B and C are shared by a group of heads."""
    mixed = 2 * linear.key_size + linear.value_size
    rows = mixed + linear.value_size + linear.value_heads
    yield Tensor(f"{name}.in_proj", rows, hidden, "tp")
    yield Tensor(f"{name}.conv1d", mixed, linear.kernel + 1, "tp", linear=False)
    yield _vector(f"{name}.a_d_and_dt", 3 * linear.value_heads, "tp")
    yield _vector(f"{name}.norm", linear.value_size, "tp")
    yield Tensor(f"{name}.out_proj", hidden, linear.value_size, "tp")


def _mlp(shape: ModelShape, name: str) -> Iterator[Tensor]:
    yield from _matrices(name, shape.hidden_size, shape.intermediate_size, shape.gated_mlp)
    if shape.mlp_bias:
        up = shape.intermediate_size * (2 if shape.gated_mlp else 1)
        yield _vector(f"{name}.up_bias", up, "tp")
        yield _vector(f"{name}.down_bias", shape.hidden_size)


def _matrices(name: str, width: int, inner: int, gated: bool) -> Iterator[Tensor]:
    if gated:
        yield Tensor(f"{name}.gate_proj", inner, width, "tp")
    yield Tensor(f"{name}.up_proj", inner, width, "tp")
    yield Tensor(f"{name}.down_proj", width, inner, "tp")


def _sparse(shape: ModelShape, experts: Experts, name: str) -> Iterator[Tensor]:
    hidden, inner, count = shape.hidden_size, experts.intermediate_size, experts.count
    width = experts.latent_size or hidden
    yield Tensor(f"{name}.gate", count, hidden, linear=False)
    if experts.router_bias:
        yield _vector(f"{name}.gate_bias", count)
    up = ("gate_proj", "up_proj") if experts.gated else ("up_proj",)
    for part in up:
        yield Tensor(f"{name}.experts.0.{part}", inner, width, "expert", count)
    yield Tensor(f"{name}.experts.0.down_proj", width, inner, "expert", count)
    if experts.bias:
        biases = len(up) * inner + width
        yield Tensor(f"{name}.experts.bias", biases, 1, "expert", count, linear=False)
    if experts.latent_size is not None:
        yield Tensor(f"{name}.latent_down", width, hidden)
        yield Tensor(f"{name}.latent_up", hidden, width)
    if experts.shared_size:
        shared = f"{name}.shared_experts"
        yield from _matrices(shared, hidden, experts.shared_size, experts.gated)
    if experts.shared_gate:
        yield _vector(f"{name}.shared_expert_gate", hidden)


def _draft(shape: ModelShape, draft: int) -> Iterator[Tensor]:
    """A multi-token prediction layer: the model's last layer again, and what joins it to the
    text. DeepSeek's checkpoints keep the embedding and the LM head in it once more."""
    hidden, name = shape.hidden_size, f"model.layers.{shape.num_layers + draft}"
    yield Tensor(f"{name}.eh_proj", hidden, 2 * hidden, linear=False)
    yield _vector(f"{name}.norms", 3 * hidden)
    if shape.draft_tables:
        yield _table(f"{name}.embed_tokens", shape.vocab_size, hidden)
        yield _table(f"{name}.shared_head", shape.vocab_size, hidden)
    last = max(shape.attention_layers, default=shape.num_layers - 1)
    yield from _layer(shape, last)


def _vector(name: str, size: int, cut: Cut = "whole") -> Tensor:
    return Tensor(name, size, 1, cut, linear=False)


def _table(name: str, vocab: int, width: int) -> Tensor:
    return Tensor(name, vocab, width, "vocab", linear=False)
