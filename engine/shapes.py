"""config.json -> what a model's sizes allow: splits, partitions, bytes. Torch-free.

The one place for this arithmetic: the engine builds its layers from it, the planner its plans.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

DTYPE_BYTES: Mapping[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}

# One resident request of this length: what a decode step reads beside the weights.
_KV_TOKENS_READ = 1024


class ShapeError(ValueError):
    """The model cannot be split, partitioned or read as asked. The message names the way out."""


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the trained length. The last three fields are
    read for "llama3" only."""

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """A decoder's sizes, in elements; `dtype` is the checkpoint's."""

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
    norm_eps: float = 1e-5
    attention_bias: bool = False
    mlp_bias: bool = False
    dtype: str = "float32"
    eos_token_ids: tuple[int, ...] = ()

    @property
    def layer_parameters(self) -> int:
        """Of one decoder layer, biases aside."""
        attention = 2 * self.hidden_size * self.head_dim * (self.num_heads + self.num_kv_heads)
        return attention + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size

    @property
    def embedding_parameters(self) -> int:
        """Of the embedding, and as many again of the LM head."""
        return self.vocab_size * self.hidden_size

    @property
    def parameters(self) -> int:
        tables = 1 if self.tie_embeddings else 2
        body = self.num_layers * self.layer_parameters + self.hidden_size
        return body + tables * self.embedding_parameters

    def legal_splits(self) -> tuple[int, ...]:
        """Every tensor-parallel size this model allows, ascending."""
        return tuple(tp for tp in range(1, self.num_heads + 1) if self._split_fault(tp) is None)

    def check_split(self, tp: int, pp: int) -> None:
        """Raises ShapeError when the model cannot run over `tp` x `pp` ranks."""
        if fault := self._split_fault(tp):
            legal = ", ".join(map(str, self.legal_splits()))
            raise ShapeError(f"{fault} cannot be split over tp={tp} (legal: {legal})")
        if not 1 <= pp <= self.num_layers:
            raise ShapeError(
                f"{self.num_layers} layers cannot be split over pp={pp} "
                f"(legal: 1 to {self.num_layers})"
            )

    def kv_heads_per_rank(self, tp: int) -> int:
        """KV heads that one rank holds; below tp heads each is held by several ranks."""
        return max(1, self.num_kv_heads // tp)

    def kv_bytes_per_token(
        self, *, tp: int = 1, layers: int | None = None, dtype: str | None = None
    ) -> int:
        """Bytes of KV cache one token takes on one rank of a stage of `layers` (None: all)."""
        layers = self.num_layers if layers is None else layers
        elements = 2 * layers * self.kv_heads_per_rank(tp) * self.head_dim
        return elements * DTYPE_BYTES[dtype or self.dtype]

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

    def _split_fault(self, tp: int) -> str | None:
        if self.num_heads % tp:
            return f"{self.num_heads} attention heads"
        if self.num_kv_heads % tp and tp % self.num_kv_heads:
            return f"{self.num_kv_heads} KV heads"
        if self.intermediate_size % tp:
            return f"the MLP's {self.intermediate_size} columns"
        return None


def pipeline_partition(layers: int, extra_costs: tuple[float, ...]) -> tuple[int, ...]:
    """Layers of each stage so that the slowest stage is as fast as can be.

    `extra_costs` is what a stage does beside its layers, in layers (the last one: the LM head).
    Every stage gets one layer; each further layer goes to the stage that is then cheapest.
    Between equals the later one: the first stage also holds the embedding.
    """
    sizes = [1] * len(extra_costs)
    for _ in range(layers - len(sizes)):
        cheapest = min(range(len(sizes)), key=lambda i: (sizes[i] + extra_costs[i], -i))
        sizes[cheapest] += 1
    return tuple(sizes)


def stage_layers(partition: tuple[int, ...], stage: int) -> range:
    """The global indices of the layers that `stage` holds."""
    first = sum(partition[:stage])
    return range(first, first + partition[stage])


def read_shape(directory: Path) -> ModelShape:
    """The shape of a checkpoint directory, from config.json and generation_config.json.

    Raises ShapeError when config.json is absent or lacks a size.
    """
    path = directory / "config.json"
    if not path.is_file():
        raise ShapeError(f"{directory} is no checkpoint: it has no config.json")
    config = json.loads(path.read_text())
    generation = directory / "generation_config.json"
    if generation.is_file():
        # Chat models end a turn with more tokens than config.json names.
        eos = json.loads(generation.read_text()).get("eos_token_id")
        config = config if eos is None else {**config, "eos_token_id": eos}
    return parse_shape(config)


def parse_shape(config: Mapping[str, Any]) -> ModelShape:
    """The shape that a config.json describes, as transformers 4 or 5 wrote it."""
    try:
        _check_supported(config)
        return _parse(config)
    except KeyError as error:
        raise ShapeError(f"config.json lacks {error.args[0]}") from error


def _check_supported(config: Mapping[str, Any]) -> None:
    """Refuse what would otherwise run and give wrong text."""
    if quantisation := config.get("quantization_config"):
        method = quantisation.get("quant_method", "unknown")
        raise ShapeError(f"quantised weights ({method}) are not supported: use the original model")
    activation = config.get("hidden_act", "silu")
    if activation != "silu":
        raise ShapeError(f"activation {activation} is not supported (known: silu)")


def _parse(config: Mapping[str, Any]) -> ModelShape:
    heads: int = config["num_attention_heads"]
    # transformers 5 keeps theta and scaling in one table, 4 kept them apart.
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return ModelShape(
        architecture=config["architectures"][0],
        num_layers=config["num_hidden_layers"],
        hidden_size=config["hidden_size"],
        num_heads=heads,
        num_kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        intermediate_size=config["intermediate_size"],
        vocab_size=config["vocab_size"],
        max_position=config["max_position_embeddings"],
        tie_embeddings=config.get("tie_word_embeddings", False),
        rope_theta=rope.get("rope_theta") or config.get("rope_theta") or 10000.0,
        rope_scaling=_rope_scaling(rope, config["max_position_embeddings"]),
        norm_eps=config.get("rms_norm_eps", 1e-6),
        attention_bias=config.get("attention_bias", False),
        mlp_bias=config.get("mlp_bias", False),
        dtype=config.get("dtype") or config.get("torch_dtype") or "float32",
        eos_token_ids=_ids(config.get("eos_token_id")),
    )


def _rope_scaling(rope: Mapping[str, Any], max_position: int) -> RopeScaling | None:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling(kind="linear", factor=rope["factor"])
    if kind == "llama3":
        return RopeScaling(
            kind="llama3",
            factor=rope["factor"],
            low_freq_factor=rope["low_freq_factor"],
            high_freq_factor=rope["high_freq_factor"],
            original_max_position=rope.get("original_max_position_embeddings", max_position),
        )
    raise ShapeError(f"rope scaling {kind!r} is not supported (known: default, linear, llama3)")


def _ids(value: int | list[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)
