"""Grouped-query attention around a backend: project, turn and attend, project back."""

from __future__ import annotations

import torch
from torch import nn

from engine.attention.base import Attend, Turn, View
from engine.layers.base import Build
from engine.layers.linear import ColumnParallelLinear, RowParallelLinear, qkv_parts, stacked
from engine.layers.norm import RMSNorm
from engine.layers.rotary import Rotary
from engine.shapes import ModelShape


class SelfAttention(nn.Module):
    """`index` counts the layers of this stage: it names the layer's KV memory. `layer` is the
    model's own number of it. `fused` and `output` are the checkpoint's names where they are not
    q_proj, k_proj, v_proj and o_proj; `transposed`: it stores matrices as [in, out]."""

    norm: type[RMSNorm] = RMSNorm

    def __init__(
        self,
        build: Build,
        shape: ModelShape,
        index: int,
        layer: int,
        rotary: Rotary | None,
        *,
        fused: str | None = None,
        output: str | None = None,
        transposed: bool = False,
    ) -> None:
        super().__init__()
        self.index = index
        self.head_dim = shape.head_dim
        self.rotary = [rotary]  # in a list: the rotary is not this layer's child
        self.view = layer_view(shape, layer)
        parts = qkv_parts(build, shape.num_heads, shape.num_kv_heads, shape.head_dim)
        parts = stacked(fused, parts) if fused else parts
        self.qkv_proj = ColumnParallelLinear(
            build, shape.hidden_size, parts, shape.attention_bias, transposed
        )
        bias = shape.attention_bias if shape.output_bias is None else shape.output_bias
        inner = shape.num_heads * shape.head_dim
        self.o_proj = RowParallelLinear(
            build, inner, shape.hidden_size, bias, source=output, transposed=transposed
        )
        head_norm = shape.qk_norm == "head"
        self.q_norm = self.norm(build, shape.head_dim, shape.norm_eps) if head_norm else None
        self.k_norm = self.norm(build, shape.head_dim, shape.norm_eps) if head_norm else None

    def forward(self, hidden: torch.Tensor, attend: Attend) -> torch.Tensor:
        return self.o_proj(self.mix(self.qkv_proj(hidden), attend))  # type: ignore[no-any-return]

    def mix(self, projected: torch.Tensor, attend: Attend) -> torch.Tensor:
        """From qkv_proj's output to o_proj's input."""
        heads = projected.view(len(projected), -1, self.head_dim)
        return attend(self.index, heads, self._turn(), self.view).flatten(1)

    def _turn(self) -> Turn | None:
        (rotary,) = self.rotary
        if rotary is None:
            return None
        if self.q_norm is None or self.k_norm is None:
            return Turn(rotary.cos, rotary.sin)
        norms = self.q_norm.factor(), self.k_norm.factor()
        return Turn(rotary.cos, rotary.sin, *norms, eps=self.q_norm.eps)


def layer_view(shape: ModelShape, layer: int) -> View:
    """What `layer` sees of the past."""
    window = shape.window if shape.kind_of(layer) == "sliding" else None
    scale = None if shape.query_scalar is None else shape.query_scalar**-0.5
    return View(window, shape.attention_softcap, scale)
