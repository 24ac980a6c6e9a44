"""Normalisation, by the root mean square or by mean and deviation; whole on every rank."""

from __future__ import annotations

import torch
from torch.nn import functional

from engine.kernels import cpu
from engine.layers.base import Build, ShardedLayer


class RMSNorm(ShardedLayer):
    unit = False  # whether the checkpoint holds the weight's distance from one

    def __init__(self, build: Build, size: int, eps: float) -> None:
        super().__init__()
        self.weight = build.parameter(size)
        self.eps = eps

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.after(hidden, None)[0]

    def factor(self) -> torch.Tensor:
        """[size], what the normalised values are multiplied by."""
        return self.weight

    def after(
        self, hidden: torch.Tensor, delta: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The norm of `hidden + delta`, and that sum; neither argument is changed."""
        if hidden.is_cuda:
            from engine.kernels.fused import add_rms_norm

            return add_rms_norm(hidden, delta, self.weight, self.eps, self.unit)
        if not self.unit and cpu.serves(hidden):
            return cpu.add_rms_norm(hidden, delta, self.weight, self.eps)
        total = hidden if delta is None else hidden + delta
        return self.normalise(total), total

    def normalise(self, hidden: torch.Tensor) -> torch.Tensor:
        """In plain torch."""
        return functional.rms_norm(hidden, self.weight.shape, self.weight, self.eps)


class UnitRMSNorm(RMSNorm):
    """Gemma's, computed in fp32."""

    unit = True

    def normalise(self, hidden: torch.Tensor) -> torch.Tensor:
        normed = functional.rms_norm(hidden.float(), self.weight.shape, None, self.eps)
        return (normed * self.factor()).to(hidden.dtype)

    def factor(self) -> torch.Tensor:
        return 1 + self.weight.float()


class LayerNorm(ShardedLayer):
    def __init__(self, build: Build, size: int, eps: float) -> None:
        super().__init__()
        self.weight = build.parameter(size)
        self.bias = build.parameter(size)
        self.eps = eps

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(hidden, self.weight.shape, self.weight, self.bias, self.eps)
