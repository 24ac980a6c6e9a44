"""What every architecture offers the runner."""

from __future__ import annotations

import torch
from torch import nn

from engine.attention.base import Attend
from engine.layers.base import Build
from engine.shapes import ModelShape


class CausalLM(nn.Module):
    """A stage of a model, built from ShardedLayers: the one that holds `layers`.

    `optional_prefix`: what some checkpoints leave out at the front of their tensors' names;
    `passed_over`: ends of names of tensors that a checkpoint may hold and no layer reads.
    """

    optional_prefix: str | None = None
    passed_over: tuple[str, ...] = ()

    def __init__(self, build: Build, shape: ModelShape, layers: range) -> None:
        super().__init__()

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """[tokens] -> [tokens, hidden]. On the first stage only."""
        raise NotImplementedError

    def forward(
        self, hidden: torch.Tensor, positions: torch.Tensor, attend: Attend
    ) -> torch.Tensor:
        """[tokens, hidden] through this stage's layers."""
        raise NotImplementedError

    def normed(self, hidden: torch.Tensor) -> torch.Tensor:
        """[rows, hidden] as the LM head reads them. On the last stage only."""
        raise NotImplementedError

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[rows, hidden] -> fp32 [rows, vocab]. On the last stage only."""
        raise NotImplementedError
