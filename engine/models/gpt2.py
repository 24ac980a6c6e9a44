"""GPT-2: learned positions, layer norms, a plain MLP. Its matrices are stored as [in, out]."""

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
from engine.shapes import ModelShape


class GPT2MLP(nn.Module):
    def __init__(self, build: Build, shape: ModelShape) -> None:
        super().__init__()
        hidden, inner = shape.hidden_size, shape.intermediate_size
        parts = even_parts(build, ("c_fc",), inner)
        self.act = ACTIVATIONS[shape.activation]
        self.c_fc = ColumnParallelLinear(build, hidden, parts, True, transposed=True)
        self.c_proj = RowParallelLinear(build, inner, hidden, True, transposed=True)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.c_proj(self.act(self.c_fc(hidden)))  # type: ignore[no-any-return]


class GPT2Layer(nn.Module):
    def __init__(self, build: Build, shape: ModelShape, index: int, layer: int) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(build, shape.hidden_size, shape.norm_eps)
        self.attn = SelfAttention(
            build, shape, index, layer, None, fused="c_attn", output="c_proj", transposed=True
        )
        self.ln_2 = LayerNorm(build, shape.hidden_size, shape.norm_eps)
        self.mlp = GPT2MLP(build, shape)

    def forward(self, hidden: torch.Tensor, attend: Attend) -> torch.Tensor:
        hidden = hidden + self.attn(self.ln_1(hidden), attend)
        return hidden + self.mlp(self.ln_2(hidden))  # type: ignore[no-any-return]


class GPT2Model(nn.Module):
    """The stage that holds `layers`; the first one embeds, the last one normalises."""

    def __init__(self, build: Build, shape: ModelShape, layers: range) -> None:
        super().__init__()
        hidden = shape.hidden_size
        if layers.start == 0:
            self.wte = VocabParallelEmbedding(build, shape.vocab_size, hidden)
            self.wpe = LearnedPositions(build, shape.learned_positions, hidden)
        self.h = nn.ModuleDict(
            {str(n): GPT2Layer(build, shape, i, n) for i, n in enumerate(layers)}
        )
        if layers.stop == shape.num_layers:
            self.ln_f = LayerNorm(build, hidden, shape.norm_eps)


class GPT2LMHeadModel(CausalLM):
    embedding, last_norm = "transformer.wte", "transformer.ln_f"
    optional_prefix = "transformer."
    passed_over = (".attn.bias", ".attn.masked_bias")  # the causal mask, stored by old checkpoints

    def make_body(self, build: Build, shape: ModelShape, layers: range) -> None:
        self.transformer = GPT2Model(build, shape, layers)

    def forward(
        self, hidden: torch.Tensor, positions: torch.Tensor, attend: Attend
    ) -> torch.Tensor:
        if hasattr(self.transformer, "wpe"):
            hidden = hidden + self.transformer.wpe(positions)
        for layer in self.transformer.h.values():
            hidden = layer(hidden, attend)
        return hidden
