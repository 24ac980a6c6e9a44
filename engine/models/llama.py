"""Llama: the architecture alone. Module names are the checkpoint's.

Families that differ from it in a part alone are subclasses which name that part.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from engine.attention.base import Attend
from engine.kernels import FEW_TOKENS
from engine.layers.activation import ACTIVATIONS, gate
from engine.layers.attention import SelfAttention
from engine.layers.base import Build
from engine.layers.embedding import VocabParallelEmbedding
from engine.layers.linear import ColumnParallelLinear, RowParallelLinear, even_parts, stacked
from engine.layers.norm import RMSNorm
from engine.layers.rotary import Rotary
from engine.models.base import CausalLM
from engine.shapes import ModelShape


class LlamaMLP(nn.Module):
    """`fused`: the checkpoint's name of one matrix that holds gate and up."""

    def __init__(self, build: Build, shape: ModelShape, fused: str | None = None) -> None:
        super().__init__()
        hidden, inner, bias = shape.hidden_size, shape.intermediate_size, shape.mlp_bias
        parts = even_parts(build, ("gate_proj", "up_proj"), inner)
        parts = stacked(fused, parts) if fused else parts
        self.act = ACTIVATIONS[shape.activation]
        self.gate_up_proj = ColumnParallelLinear(build, hidden, parts, bias)
        self.down_proj = RowParallelLinear(build, inner, hidden, bias)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.down_proj(gate(self.act, self.gate_up_proj(hidden)))  # type: ignore[no-any-return]


class LlamaLayer(nn.Module):
    """`index` is its place in this stage, `layer` its number in the model."""

    def __init__(
        self, build: Build, shape: ModelShape, index: int, layer: int, rotary: Rotary
    ) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(build, shape.hidden_size, shape.norm_eps)
        self.self_attn = self.make_attention(build, shape, index, layer, rotary)
        self.post_attention_layernorm = RMSNorm(build, shape.hidden_size, shape.norm_eps)
        self.make_mlp(build, shape, layer)

    def make_attention(
        self, build: Build, shape: ModelShape, index: int, layer: int, rotary: Rotary
    ) -> SelfAttention:
        return SelfAttention(build, shape, index, layer, rotary)

    def make_mlp(self, build: Build, shape: ModelShape, layer: int) -> None:
        """Set the module, by the checkpoint's name of it."""
        self.mlp: nn.Module = LlamaMLP(build, shape)

    def feed_forward(self, normed: torch.Tensor) -> torch.Tensor:
        return self.mlp(normed)  # type: ignore[no-any-return]

    def forward(
        self, hidden: torch.Tensor, delta: torch.Tensor | None, attend: Attend
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The stream and what the last block wants to add to it: the next norm adds both."""
        if hidden.is_cuda and len(hidden) <= FEW_TOKENS:
            return self._forward_few(hidden if delta is None else hidden + delta, attend)
        normed, hidden = self.input_layernorm.after(hidden, delta)
        normed, hidden = self.post_attention_layernorm.after(hidden, self.self_attn(normed, attend))
        return hidden, self.feed_forward(normed)

    def _forward_few(
        self, hidden: torch.Tensor, attend: Attend
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The same with norms, gate and sums inside the products."""
        attention, norm = self.self_attn, self.post_attention_layernorm
        mixed = attention.mix(attention.qkv_proj.after(self.input_layernorm, hidden), attend)
        hidden = attention.o_proj.onto(hidden, mixed)
        mlp = getattr(self, "mlp", None)  # some families have none of that name
        if not isinstance(mlp, LlamaMLP) or mlp.act is not functional.silu:
            return hidden, self.feed_forward(norm(hidden))
        inner = mlp.gate_up_proj.after(norm, hidden, gated=True)
        return mlp.down_proj.onto(hidden, inner), None


class LlamaModel(nn.Module):
    """The stage that holds `layers`; the first one embeds, the last one normalises."""

    layer: type[nn.Module] = LlamaLayer
    last_norm: type[RMSNorm] = RMSNorm

    def __init__(self, build: Build, shape: ModelShape, layers: range) -> None:
        super().__init__()
        if layers.start == 0:
            self.embed_tokens = VocabParallelEmbedding(build, shape.vocab_size, shape.hidden_size)
        self.rotary = Rotary(shape, build.device)
        local = shape.local_rope_theta is not None
        self.local_rotary = Rotary(shape, build.device, local=True) if local else None
        self.layers = nn.ModuleDict(
            {
                str(n): self.layer(build, shape, i, n, self._rotary_of(shape, n))
                for i, n in enumerate(layers)
            }
        )
        if layers.stop == shape.num_layers:
            self.norm = self.last_norm(build, shape.hidden_size, shape.norm_eps)

    def _rotary_of(self, shape: ModelShape, layer: int) -> Rotary:
        windowed = shape.kind_of(layer) == "sliding"
        return self.local_rotary if windowed and self.local_rotary else self.rotary

    def forward(self, hidden: torch.Tensor, attend: Attend) -> torch.Tensor:
        delta = None
        for layer in self.layers.values():
            hidden, delta = layer(hidden, delta, attend)
        return hidden if delta is None else hidden + delta


class LlamaForCausalLM(CausalLM):
    embedding, last_norm = "model.embed_tokens", "model.norm"
    body: type[LlamaModel] = LlamaModel

    def make_body(self, build: Build, shape: ModelShape, layers: range) -> None:
        self.model = self.body(build, shape, layers)

    def forward(
        self, hidden: torch.Tensor, positions: torch.Tensor, attend: Attend
    ) -> torch.Tensor:
        return self.model(hidden, attend)  # type: ignore[no-any-return]
