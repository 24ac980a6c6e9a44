"""The gated MLP's nonlinearity."""

from __future__ import annotations

import torch
from torch.nn import functional


def silu_gate(gate_and_up: torch.Tensor) -> torch.Tensor:
    """[..., 2n], gate first -> [..., n]."""
    if gate_and_up.is_cuda:
        from engine.kernels.fused import silu_gate as fused

        return fused(gate_and_up)
    gate, up = gate_and_up.chunk(2, dim=-1)
    return functional.silu(gate) * up
