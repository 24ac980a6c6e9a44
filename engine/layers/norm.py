"""Root mean square normalisation; whole on every rank."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn import functional

from engine.layers.base import Build, Shard, ShardedLayer


class RMSNorm(ShardedLayer):
    def __init__(self, build: Build, size: int, eps: float) -> None:
        super().__init__()
        self.weight = build.parameter(size)
        self.eps = eps

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(hidden, self.weight.shape, self.weight, self.eps)

    def after(
        self, hidden: torch.Tensor, delta: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The norm of `hidden + delta`, and that sum; neither argument is changed."""
        if hidden.is_cuda:
            from engine.kernels.fused import add_rms_norm

            return add_rms_norm(hidden, delta, self.weight, self.eps)
        total = hidden if delta is None else hidden + delta
        return self(total), total

    def shards(self, name: str) -> Iterator[Shard]:
        size = self.weight.shape[0]
        yield Shard(f"{name}.weight", (size,), (slice(0, size),), self.weight)
