"""Gemma 2: norms around both halves of a layer, capped scores, a window in every other layer."""

from __future__ import annotations

import torch
from torch import nn

from engine.attention.base import Attend
from engine.layers.attention import SelfAttention
from engine.layers.base import Build
from engine.layers.norm import UnitRMSNorm
from engine.layers.rotary import Rotary
from engine.models.llama import LlamaForCausalLM, LlamaMLP, LlamaModel
from engine.shapes import ModelShape


class Gemma2Attention(SelfAttention):
    norm = UnitRMSNorm


class Gemma2Layer(nn.Module):
    def __init__(
        self, build: Build, shape: ModelShape, index: int, layer: int, rotary: Rotary
    ) -> None:
        super().__init__()
        sizes = (build, shape.hidden_size, shape.norm_eps)
        self.input_layernorm = UnitRMSNorm(*sizes)
        self.self_attn = Gemma2Attention(build, shape, index, layer, rotary)
        self.post_attention_layernorm = UnitRMSNorm(*sizes)
        self.pre_feedforward_layernorm = UnitRMSNorm(*sizes)
        self.mlp = LlamaMLP(build, shape)
        self.post_feedforward_layernorm = UnitRMSNorm(*sizes)

    def forward(
        self, hidden: torch.Tensor, delta: torch.Tensor | None, attend: Attend
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As LlamaLayer's."""
        normed, hidden = self.input_layernorm.after(hidden, delta)
        mixed = self.post_attention_layernorm(self.self_attn(normed, attend))
        normed, hidden = self.pre_feedforward_layernorm.after(hidden, mixed)
        return hidden, self.post_feedforward_layernorm(self.mlp(normed))


class Gemma2Model(LlamaModel):
    layer = Gemma2Layer
    last_norm = UnitRMSNorm


class Gemma2ForCausalLM(LlamaForCausalLM):
    body: type[LlamaModel] = Gemma2Model

    def __init__(self, build: Build, shape: ModelShape, layers: range) -> None:
        super().__init__(build, shape, layers)
        # Rounded as the weights are: the model was trained with the rounded factor.
        self.embedding_factor = torch.tensor(shape.hidden_size**0.5, dtype=build.dtype).item()
        self.softcap = shape.logit_softcap

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        return super().embed(token_ids) * self.embedding_factor

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = super().logits(hidden)
        return logits if self.softcap is None else self.softcap * (logits / self.softcap).tanh()
