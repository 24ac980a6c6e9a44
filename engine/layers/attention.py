"""Grouped-query attention around a backend: project, rotate, attend, project back."""

from __future__ import annotations

import torch
from torch import nn

from engine.attention.base import Attend, Turn
from engine.layers.base import Build
from engine.layers.linear import ColumnParallelLinear, RowParallelLinear, qkv_parts
from engine.layers.norm import RMSNorm
from engine.layers.rotary import Rotary
from engine.shapes import ModelShape


class SelfAttention(nn.Module):
    """`index` counts the layers of this stage: it names the layer's KV memory."""

    def __init__(
        self,
        build: Build,
        shape: ModelShape,
        index: int,
        rotary: Rotary | None,
        head_norm: bool = False,
    ) -> None:
        super().__init__()
        self.index = index
        self.head_dim = shape.head_dim
        self.rotary = [rotary]  # in a list: the rotary is not this layer's child
        parts = qkv_parts(build, shape.num_heads, shape.num_kv_heads, shape.head_dim)
        self.qkv_proj = ColumnParallelLinear(build, shape.hidden_size, parts, shape.attention_bias)
        self.o_proj = RowParallelLinear(
            build, shape.num_heads * shape.head_dim, shape.hidden_size, shape.attention_bias
        )
        self.q_norm = RMSNorm(build, shape.head_dim, shape.norm_eps) if head_norm else None
        self.k_norm = RMSNorm(build, shape.head_dim, shape.norm_eps) if head_norm else None

    def forward(self, hidden: torch.Tensor, attend: Attend) -> torch.Tensor:
        heads = self.qkv_proj(hidden).unflatten(-1, (-1, self.head_dim))
        mixed = attend(self.index, heads, self._turn())
        return self.o_proj(mixed.flatten(1))  # type: ignore[no-any-return]

    def _turn(self) -> Turn | None:
        (rotary,) = self.rotary
        if rotary is None:
            return None
        if self.q_norm is None or self.k_norm is None:
            return Turn(rotary.cos, rotary.sin)
        norms = self.q_norm.weight, self.k_norm.weight
        return Turn(rotary.cos, rotary.sin, *norms, eps=self.q_norm.eps)
