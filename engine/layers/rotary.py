"""Rotary position embedding, with the Llama 3 and linear stretches of its frequencies."""

from __future__ import annotations

import math

import torch
from torch import nn

from engine.shapes import ModelShape, RopeScaling


class Rotary(nn.Module):
    """The rotation of every position, shared by all layers: fp32 [positions, turned / 2]."""

    cos: torch.Tensor
    sin: torch.Tensor

    def __init__(self, shape: ModelShape, device: torch.device, *, local: bool = False) -> None:
        """`local`: as the layers with a window turn, where they have a theta of their own."""
        super().__init__()
        positions = torch.arange(shape.max_position, dtype=torch.float32, device="cpu")
        angles = positions.unsqueeze(-1) * rotary_frequencies(shape, local=local)
        self.register_buffer("cos", angles.cos().to(device), persistent=False)
        self.register_buffer("sin", angles.sin().to(device), persistent=False)


def rotary_frequencies(shape: ModelShape, *, local: bool = False) -> torch.Tensor:
    """Radians a position, [turned / 2], fp32, on the CPU."""
    dim = int(shape.head_dim * shape.rotary_fraction)
    exponents = torch.arange(0, dim, 2, dtype=torch.float32, device="cpu") / dim
    if local and shape.local_rope_theta is not None:
        return 1.0 / shape.local_rope_theta**exponents
    frequencies = 1.0 / shape.rope_theta**exponents
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
