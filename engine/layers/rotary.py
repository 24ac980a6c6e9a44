"""Rotary position embedding, with the Llama 3 and linear stretches of its frequencies."""

from __future__ import annotations

import math

import torch
from torch import nn

from engine.shapes import ModelShape, RopeScaling


class Rotary(nn.Module):
    """Positions -> rotation, once a step for all layers."""

    frequencies: torch.Tensor

    def __init__(self, shape: ModelShape, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.register_buffer("frequencies", rotary_frequencies(shape).to(device), persistent=False)

    def forward(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[tokens] -> cos and sin, each [tokens, 1, head_dim / 2]; angles are computed in fp32."""
        angles = (positions.float().unsqueeze(-1) * self.frequencies).unsqueeze(1)
        return angles.cos().to(self.dtype), angles.sin().to(self.dtype)


def rotate(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """[tokens, heads, head_dim] turned by its position; element i pairs with i + head_dim / 2."""
    first, second = heads.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def rotary_frequencies(shape: ModelShape) -> torch.Tensor:
    """Radians a position, [head_dim / 2], fp32, on the CPU."""
    exponents = torch.arange(0, shape.head_dim, 2, dtype=torch.float32, device="cpu")
    frequencies = 1.0 / shape.rope_theta ** (exponents / shape.head_dim)
    return _scaled(frequencies, shape.rope_scaling) if shape.rope_scaling else frequencies


def _scaled(frequencies: torch.Tensor, scaling: RopeScaling) -> torch.Tensor:
    slowed = frequencies / scaling.factor
    return slowed if scaling.kind == "linear" else _llama3(frequencies, slowed, scaling)


def _llama3(frequencies: torch.Tensor, slowed: torch.Tensor, scaling: RopeScaling) -> torch.Tensor:
    """Fast frequencies stay, slow ones are slowed, those between are blended.

    turns over the trained length   0 ... low ........ high ...
    share of the original           0     0  ↗ linear  1      1
    """
    turns = scaling.original_max_position / (2 * math.pi / frequencies)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - keep) * slowed + keep * frequencies
