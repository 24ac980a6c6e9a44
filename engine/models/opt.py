"""OPT: learned positions that begin at row 2, layer norms before each half, a plain MLP."""

from __future__ import annotations

import torch
from torch import nn

from engine.attention.base import Attend
from engine.layers.activation import ACTIVATIONS
from engine.layers.attention import SelfAttention
from engine.layers.base import Build
from engine.layers.embedding import LearnedPositions, VocabParallelEmbedding
from engine.layers.linear import ColumnParallelLinear, RowParallelLinear, even_parts
from engine.layers.norm import LayerNorm
from engine.models.base import CausalLM
from engine.shapes import ModelShape, ShapeError

POSITION_OFFSET = 2


class OPTLayer(nn.Module):
    def __init__(self, build: Build, shape: ModelShape, index: int, layer: int) -> None:
        super().__init__()
        hidden, inner, bias = shape.hidden_size, shape.intermediate_size, shape.mlp_bias
        self.self_attn_layer_norm = LayerNorm(build, hidden, shape.norm_eps)
        self.self_attn = SelfAttention(build, shape, index, layer, None, output="out_proj")
        self.final_layer_norm = LayerNorm(build, hidden, shape.norm_eps)
        self.act = ACTIVATIONS[shape.activation]
        self.fc1 = ColumnParallelLinear(build, hidden, even_parts(build, ("fc1",), inner), bias)
        self.fc2 = RowParallelLinear(build, inner, hidden, bias)

    def forward(self, hidden: torch.Tensor, attend: Attend) -> torch.Tensor:
        hidden = hidden + self.self_attn(self.self_attn_layer_norm(hidden), attend)
        inner = self.act(self.fc1(self.final_layer_norm(hidden)))
        return hidden + self.fc2(inner)  # type: ignore[no-any-return]


class OPTDecoder(nn.Module):
    """The stage that holds `layers`; the first one embeds, the last one normalises."""

    def __init__(self, build: Build, shape: ModelShape, layers: range) -> None:
        super().__init__()
        hidden = shape.hidden_size
        if layers.start == 0:
            self.embed_tokens = VocabParallelEmbedding(build, shape.vocab_size, hidden)
            self.embed_positions = LearnedPositions(
                build, shape.learned_positions, hidden, POSITION_OFFSET
            )
        self.layers = nn.ModuleDict(
            {str(n): OPTLayer(build, shape, i, n) for i, n in enumerate(layers)}
        )
        if layers.stop == shape.num_layers:
            self.final_layer_norm = LayerNorm(build, hidden, shape.norm_eps)


class OPTModel(nn.Module):
    def __init__(self, build: Build, shape: ModelShape, layers: range) -> None:
        super().__init__()
        self.decoder = OPTDecoder(build, shape, layers)


class OPTForCausalLM(CausalLM):
    embedding, last_norm = "model.decoder.embed_tokens", "model.decoder.final_layer_norm"
    optional_prefix = "model."

    def make_body(self, build: Build, shape: ModelShape, layers: range) -> None:
        if shape.embedding_size is not None:
            raise ShapeError(
                f"OPT with an embedding of {shape.embedding_size} columns before "
                f"{shape.hidden_size} hidden ones (OPT-350M) is not supported"
            )
        self.model = OPTModel(build, shape, layers)

    def forward(
        self, hidden: torch.Tensor, positions: torch.Tensor, attend: Attend
    ) -> torch.Tensor:
        decoder = self.model.decoder
        if hasattr(decoder, "embed_positions"):
            hidden = hidden + decoder.embed_positions(positions)
        for layer in decoder.layers.values():
            hidden = layer(hidden, attend)
        return hidden
