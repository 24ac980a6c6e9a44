"""What every architecture offers the runner."""

from __future__ import annotations

import torch
from torch import nn

from engine.attention.base import Attend
from engine.layers.base import Build
from engine.layers.embedding import ParallelLMHead
from engine.shapes import ModelShape


class CausalLM(nn.Module):
    """A stage of a model, built from ShardedLayers: the one that holds `layers`. The first one
    embeds, the last one normalises and has the LM head.

    `embedding`, `last_norm`: these modules, as the checkpoint names them.
    `optional_prefix`: what some checkpoints leave out at the front of their tensors' names;
    `passed_over`: ends of names of tensors that a checkpoint may hold and no layer reads.
    """

    embedding: str
    last_norm: str
    optional_prefix: str | None = None
    passed_over: tuple[str, ...] = ()

    def __init__(self, build: Build, shape: ModelShape, layers: range) -> None:
        super().__init__()
        self.hidden_size, self.dtype = shape.hidden_size, build.dtype
        self.make_body(build, shape, layers)
        if layers.stop == shape.num_layers:
            tied = self.embedding if shape.tie_embeddings else None
            self.lm_head = ParallelLMHead(build, shape.vocab_size, shape.hidden_size, tied)
            if tied and layers.start == 0:  # on one stage they share their memory
                self.lm_head.weight = self.get_parameter(f"{tied}.weight")

    def make_body(self, build: Build, shape: ModelShape, layers: range) -> None:
        """Set all but the LM head, by the checkpoint's name of it."""
        raise NotImplementedError

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """[tokens] -> [tokens, hidden]. On the first stage only."""
        return self.get_submodule(self.embedding)(token_ids)  # type: ignore[no-any-return]

    def forward(
        self, hidden: torch.Tensor, positions: torch.Tensor, attend: Attend
    ) -> torch.Tensor:
        """[tokens, hidden] through this stage's layers."""
        raise NotImplementedError

    def normed(self, hidden: torch.Tensor) -> torch.Tensor:
        """[rows, hidden] as the LM head reads them. On the last stage only."""
        return self.get_submodule(self.last_norm)(hidden)  # type: ignore[no-any-return]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[rows, hidden] -> fp32 [rows, vocab]. On the last stage only."""
        return self.lm_head(self.normed(hidden))  # type: ignore[no-any-return]
