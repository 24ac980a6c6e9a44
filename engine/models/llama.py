"""Llama: the architecture alone. Module names are the checkpoint's."""

from __future__ import annotations

import torch
from torch import nn

from engine.attention.base import Attend
from engine.layers.activation import silu_gate
from engine.layers.attention import SelfAttention
from engine.layers.base import Build
from engine.layers.embedding import ParallelLMHead, VocabParallelEmbedding
from engine.layers.linear import ColumnParallelLinear, RowParallelLinear, even_parts
from engine.layers.norm import RMSNorm
from engine.layers.rotary import Rotary
from engine.models.base import CausalLM
from engine.shapes import ModelShape


class LlamaMLP(nn.Module):
    def __init__(self, build: Build, shape: ModelShape) -> None:
        super().__init__()
        hidden, inner, bias = shape.hidden_size, shape.intermediate_size, shape.mlp_bias
        parts = even_parts(build, ("gate_proj", "up_proj"), inner)
        self.gate_up_proj = ColumnParallelLinear(build, hidden, parts, bias)
        self.down_proj = RowParallelLinear(build, inner, hidden, bias)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.down_proj(silu_gate(self.gate_up_proj(hidden)))  # type: ignore[no-any-return]


class LlamaLayer(nn.Module):
    head_norm = False

    def __init__(self, build: Build, shape: ModelShape, index: int, rotary: Rotary) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(build, shape.hidden_size, shape.norm_eps)
        self.self_attn = SelfAttention(build, shape, index, rotary, self.head_norm)
        self.post_attention_layernorm = RMSNorm(build, shape.hidden_size, shape.norm_eps)
        self.mlp = LlamaMLP(build, shape)

    def forward(
        self, hidden: torch.Tensor, delta: torch.Tensor | None, attend: Attend
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The stream and what the last block wants to add to it: the next norm adds both."""
        normed, hidden = self.input_layernorm.after(hidden, delta)
        normed, hidden = self.post_attention_layernorm.after(hidden, self.self_attn(normed, attend))
        return hidden, self.mlp(normed)


class LlamaModel(nn.Module):
    """The stage that holds `layers`; the first one embeds, the last one normalises."""

    layer: type[LlamaLayer] = LlamaLayer

    def __init__(self, build: Build, shape: ModelShape, layers: range) -> None:
        super().__init__()
        if layers.start == 0:
            self.embed_tokens = VocabParallelEmbedding(build, shape.vocab_size, shape.hidden_size)
        self.rotary = Rotary(shape, build.device)
        self.layers = nn.ModuleDict(
            {str(n): self.layer(build, shape, i, self.rotary) for i, n in enumerate(layers)}
        )
        if layers.stop == shape.num_layers:
            self.norm = RMSNorm(build, shape.hidden_size, shape.norm_eps)

    def forward(self, hidden: torch.Tensor, attend: Attend) -> torch.Tensor:
        delta = None
        for layer in self.layers.values():
            hidden, delta = layer(hidden, delta, attend)
        return hidden if delta is None else hidden + delta


class LlamaForCausalLM(CausalLM):
    body: type[LlamaModel] = LlamaModel

    def __init__(self, build: Build, shape: ModelShape, layers: range) -> None:
        super().__init__(build, shape, layers)
        self.model = self.body(build, shape, layers)
        if layers.stop == shape.num_layers:
            self.lm_head = self._head(build, shape)

    def _head(self, build: Build, shape: ModelShape) -> ParallelLMHead:
        """Tied: read the embedding's tensor, and share its memory when it is on this stage."""
        source = "model.embed_tokens" if shape.tie_embeddings else None
        head = ParallelLMHead(build, shape.vocab_size, shape.hidden_size, source)
        if shape.tie_embeddings and hasattr(self.model, "embed_tokens"):
            head.weight = self.model.embed_tokens.weight
        return head

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        return self.model.embed_tokens(token_ids)  # type: ignore[no-any-return]

    def forward(
        self, hidden: torch.Tensor, positions: torch.Tensor, attend: Attend
    ) -> torch.Tensor:
        return self.model(hidden, attend)  # type: ignore[no-any-return]

    def normed(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.model.norm(hidden)  # type: ignore[no-any-return]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.lm_head(self.normed(hidden))  # type: ignore[no-any-return]
