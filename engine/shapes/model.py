"""A decoder's sizes, and how far they let it be split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from engine.shapes.errors import ShapeError
from engine.shapes.partition import pipeline_partition
from engine.shapes.quantisation import Quantisation

DTYPE_BYTES: Mapping[str, int] = {
    "float32": 4,
    "bfloat16": 2,
    "float16": 2,
    "fp8": 1,  # of a KV cache alone: weights in eight bits are a Quantisation
}

LayerKind = Literal["full", "sliding", "chunked", "linear", "state", "none"]
"""What a layer's mixer keeps of the past: every token, the last window of them, those of the
token's chunk, or (linear attention, Mamba) one state of fixed size. "none": it has no mixer."""

NO_EXPERTS = "expert parallelism needs a mixture of experts"

# One resident request of this length: what a decode step reads beside the weights.
_KV_TOKENS_READ = 1024


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the trained length. The last three fields are
    read for "llama3" only. The engine computes "linear" and "llama3"."""

    kind: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192


@dataclass(frozen=True, kw_only=True)
class Experts:
    """A mixture of MLPs. `layers` have it in place of the dense MLP.

    `renormalise`: the chosen experts' weights are scaled to sum to one.
    `shared_size`: columns of all always-on experts together; `latent_size`: the width that tokens
    are projected to before the experts, where that is not the hidden size.
    """

    count: int
    per_token: int
    intermediate_size: int
    layers: frozenset[int]
    shared_size: int = 0
    shared_gate: bool = False
    router_bias: bool = False
    bias: bool = False
    gated: bool = True
    renormalise: bool = True
    latent_size: int | None = None

    def held_whole(self, rank: int, ranks: int) -> range:
        """The experts of one rank where each lies whole on one, as evenly spread as can be."""
        return range(rank * self.count // ranks, (rank + 1) * self.count // ranks)


@dataclass(frozen=True, kw_only=True)
class LatentAttention:
    """Multi-head latent attention: one compressed key/value a token, the same for all heads.

    `index_heads` x `index_dim`: the selector of DeepSeek's sparse attention, 0 where there is none.
    """

    kv_rank: int
    rope_dim: int
    nope_dim: int
    value_dim: int
    query_rank: int | None = None
    index_heads: int = 0
    index_dim: int = 0

    @property
    def cached(self) -> int:
        """Elements of the KV cache that a token takes in a layer."""
        return self.kv_rank + self.rope_dim


@dataclass(frozen=True, kw_only=True)
class LinearAttention:
    """The mixer of "linear" (gated delta rule) and "state" (Mamba 2) layers.

    Of Mamba 2 `key_heads` are its groups and `key_dim` its state size, as vLLM shards them.
    """

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    kernel: int = 4
    state_bytes: int = 2  # an element of the recurrent state

    @property
    def key_size(self) -> int:
        return self.key_heads * self.key_dim

    @property
    def value_size(self) -> int:
        return self.value_heads * self.value_dim


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """A decoder's sizes, in elements; `dtype` is the checkpoint's.

    `layer_kinds` is empty where every layer attends to everything before it; `alternating`: a
    layer of kind "none" is an MLP, any other has none (Nemotron-H). `window`: how many
    tokens a "sliding" layer sees, or the length of a "chunked" one's chunk. `output_bias` None:
    as `attention_bias`. `local_rope_theta`: of layers with a window, where they have their own;
    `rotary_fraction`: how much of each head turns. `query_scalar`: its root divides the attention
    scores in place of the head size's; `attention_softcap`, `logit_softcap`: c in c * tanh(x / c).
    `learned_positions`: rows of a learned position table. `draft_layers`:
    multi-token prediction layers that the checkpoint holds and a plain engine does not load;
    `draft_tables`: each with an embedding and an LM head of its own.
    `tower_parameters`: vision and audio encoders with their projectors, which the planner counts.
    """

    architecture: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_position: int
    tie_embeddings: bool = False
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    local_rope_theta: float | None = None
    rotary_fraction: float = 1.0
    norm_eps: float = 1e-5
    attention_bias: bool = False
    output_bias: bool | None = None
    mlp_bias: bool = False
    dtype: str = "float32"
    eos_token_ids: tuple[int, ...] = ()
    activation: str = "silu"
    gated_mlp: bool = True
    norms_per_layer: int = 2
    norm_bias: bool = False
    qk_norm: Literal["none", "head", "heads"] = "none"
    output_gate: bool = False
    sinks: bool = False
    learned_positions: int = 0
    embedding_size: int | None = None
    layer_kinds: tuple[LayerKind, ...] = ()
    alternating: bool = False
    window: int | None = None
    query_scalar: float | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    experts: Experts | None = None
    latent: LatentAttention | None = None
    linear: LinearAttention | None = None
    quantisation: Quantisation | None = None
    kv_dtype: str | None = None
    draft_layers: int = 0
    draft_tables: bool = False
    tower_parameters: int = 0

    @property
    def layer_parameters(self) -> int:
        """Of one dense decoder layer, biases aside."""
        attention = 2 * self.hidden_size * self.head_dim * (self.num_heads + self.num_kv_heads)
        matrices = 3 if self.gated_mlp else 2
        mlp = matrices * self.hidden_size * self.intermediate_size
        return attention + mlp + self.norms_per_layer * self.hidden_size

    @property
    def embedding_parameters(self) -> int:
        """Of the embedding, and as many again of the LM head."""
        return self.vocab_size * self.hidden_size

    def kind_of(self, layer: int) -> LayerKind:
        """What the mixer of `layer` keeps."""
        return self.layer_kinds[layer] if self.layer_kinds else "full"

    def has_mlp(self, layer: int) -> bool:
        """Where every layer is either a mixer or an MLP, only the latter has one."""
        return not self.alternating or self.kind_of(layer) == "none"

    # --- tensor parallel -------------------------------------------------------------------------

    def legal_splits(self, expert_parallel: bool = False) -> tuple[int, ...]:
        """Every tensor-parallel size this model allows, ascending."""
        sizes = range(1, self.num_heads + 1)
        return tuple(tp for tp in sizes if self.split_fault(tp, expert_parallel) is None)

    def check_split(self, tp: int, pp: int, expert_parallel: bool = False) -> None:
        """Raises ShapeError when the model cannot run over `tp` x `pp` ranks; `expert_parallel`:
        with each expert whole on one of the `tp`."""
        if expert_parallel and self.experts is None:
            raise ShapeError(f"{NO_EXPERTS}, which {self.architecture} is not")
        if fault := self.split_fault(tp, expert_parallel):
            legal = ", ".join(map(str, self.legal_splits(expert_parallel)))
            raise ShapeError(f"{fault} cannot be split over tp={tp} (legal: {legal})")
        if not 1 <= pp <= self.num_layers:
            raise ShapeError(
                f"{self.num_layers} layers cannot be split over pp={pp} "
                f"(legal: 1 to {self.num_layers})"
            )

    def split_fault(self, tp: int, expert_parallel: bool = False) -> str | None:
        """What does not divide by `tp`; None for a legal split."""
        if fault := next((what for size, what in self._split_sizes() if size % tp), None):
            return fault
        if not self._kv_heads_split(tp):
            return f"{self.num_kv_heads} KV heads"
        return None if self.experts is None else _expert_fault(self.experts, tp, expert_parallel)

    def _split_sizes(self) -> list[tuple[int, str]]:
        sizes = [(self.num_heads, f"{self.num_heads} attention heads")]
        if self.linear is not None:
            sizes.append((self.linear.key_heads, f"{self.linear.key_heads} linear key heads"))
            sizes.append((self.linear.value_heads, f"{self.linear.value_heads} linear value heads"))
        if self.experts is None or len(self.experts.layers) < self.num_layers:
            width = self.intermediate_size
            sizes.append((width, f"the MLP's {width} columns"))
        return sizes

    def _kv_heads_split(self, tp: int) -> bool:
        """Below tp heads each is held by several ranks; latent attention has none to split."""
        if self.latent is not None:
            return True
        return self.num_kv_heads % tp == 0 or tp % self.num_kv_heads == 0

    def kv_heads_per_rank(self, tp: int) -> int:
        """KV heads that one rank holds; below tp heads each is held by several ranks."""
        return max(1, self.num_kv_heads // tp)

    # --- KV cache --------------------------------------------------------------------------------

    def kv_elements_per_layer(self, tp: int) -> int:
        """Elements that one token takes in one attention layer on one rank."""
        if self.latent is not None:
            return self.latent.cached
        return 2 * self.kv_heads_per_rank(tp) * self.head_dim

    def kv_bytes_per_token(
        self, *, tp: int = 1, layers: int | None = None, dtype: str | None = None
    ) -> int:
        """Bytes of KV cache one token takes on one rank over `layers` attention layers (None: all
        that the model has)."""
        layers = len(self.attention_layers) if layers is None else layers
        width = DTYPE_BYTES[dtype or self.kv_dtype or self.dtype]
        per_layer = self.kv_elements_per_layer(tp) * width
        if self.latent is not None and self.latent.index_dim:
            # DeepSeek's selector keeps its key in fp8 beside one scale for every 128 elements.
            per_layer += self.latent.index_dim + 4 * self.latent.index_dim // 128
        return layers * per_layer

    @cached_property
    def attention_layers(self) -> tuple[int, ...]:
        """The layers whose cache grows with the text, at least up to a window."""
        growing = ("full", "sliding", "chunked")
        return tuple(i for i in range(self.num_layers) if self.kind_of(i) in growing)

    # --- pipeline parallel -----------------------------------------------------------------------

    def head_cost(self, kv_tokens: int = _KV_TOKENS_READ) -> float:
        """What the LM head costs a decode step, in layers: bytes read, with `kv_tokens` resident.

        The more KV a layer reads, the less the head weighs.
        """
        width = DTYPE_BYTES[self.dtype]
        layer = self.layer_parameters * width + kv_tokens * self.kv_bytes_per_token(layers=1)
        return self.embedding_parameters * width / layer

    def partition(self, pp: int, override: tuple[int, ...] | None = None) -> tuple[int, ...]:
        """Layers of each pipeline stage: `override` if given, else the fastest split.

        Raises ShapeError when the override does not fit the model.
        """
        if override is None:
            return pipeline_partition(self.num_layers, (0.0,) * (pp - 1) + (self.head_cost(),))
        if len(override) != pp or sum(override) != self.num_layers or min(override) < 1:
            raise ShapeError(
                f"pipeline partition {','.join(map(str, override))} must be {pp} positive numbers "
                f"that sum to {self.num_layers}"
            )
        return override


def _expert_fault(experts: Experts, tp: int, whole: bool) -> str | None:
    if whole:
        return f"{experts.count} whole experts" if tp > experts.count else None
    columns = experts.intermediate_size
    return f"the experts' {columns} columns" if columns % tp else None
