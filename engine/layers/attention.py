"""Grouped-query attention around a backend: project, rotate, attend, project back."""

from __future__ import annotations

import torch
from torch import nn

from engine.attention.base import Attend
from engine.layers.base import Build
from engine.layers.linear import ColumnParallelLinear, RowParallelLinear, qkv_parts
from engine.layers.rotary import rotate
from engine.shapes import ModelShape


class SelfAttention(nn.Module):
    """`index` counts the layers of this stage: it names the layer's KV memory."""

    def __init__(self, build: Build, shape: ModelShape, index: int) -> None:
        super().__init__()
        self.index = index
        self.head_dim = shape.head_dim
        parts = qkv_parts(build, shape.num_heads, shape.num_kv_heads, shape.head_dim)
        self.qkv_proj = ColumnParallelLinear(build, shape.hidden_size, parts, shape.attention_bias)
        self.o_proj = RowParallelLinear(
            build, shape.num_heads * shape.head_dim, shape.hidden_size, shape.attention_bias
        )

    def forward(
        self, hidden: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, attend: Attend
    ) -> torch.Tensor:
        fused = self.qkv_proj(hidden).unflatten(-1, (-1, self.head_dim))
        query, key, value = fused.split(
            [size // self.head_dim for size in self.qkv_proj.sizes], dim=1
        )
        mixed = attend(self.index, rotate(query, cos, sin), rotate(key, cos, sin), value)
        return self.o_proj(mixed.flatten(1))  # type: ignore[no-any-return]
