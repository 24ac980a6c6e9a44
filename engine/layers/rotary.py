"""Rotary position embedding, with the Llama 3 and linear stretches of its frequencies."""

from __future__ import annotations

import math

import torch
from torch import nn

from engine.shapes import ModelShape, RopeScaling


class Rotary(nn.Module):
    """The rotation of every position, shared by all layers: fp32 [positions, head_dim / 2]."""

    cos: torch.Tensor
    sin: torch.Tensor

    def __init__(self, shape: ModelShape, device: torch.device) -> None:
        super().__init__()
        positions = torch.arange(shape.max_position, dtype=torch.float32, device="cpu")
        angles = positions.unsqueeze(-1) * rotary_frequencies(shape)
        self.register_buffer("cos", angles.cos().to(device), persistent=False)
        self.register_buffer("sin", angles.sin().to(device), persistent=False)


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
