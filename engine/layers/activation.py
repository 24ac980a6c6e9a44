"""The MLP's nonlinearity, by the name that config.json gives it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch.nn import functional

from engine.kernels import cpu

Activation = Callable[[torch.Tensor], torch.Tensor]

_tanh_gelu = partial(functional.gelu, approximate="tanh")

ACTIVATIONS: Mapping[str, Activation] = {
    "silu": functional.silu,
    "relu": functional.relu,
    "gelu": functional.gelu,
    "gelu_new": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
}


def gate(activation: Activation, gate_and_up: torch.Tensor) -> torch.Tensor:
    """[..., 2n], gate first -> [..., n]."""
    if activation is functional.silu and gate_and_up.is_cuda:
        from engine.kernels.fused import silu_gate

        return silu_gate(gate_and_up)
    if activation is functional.silu and cpu.serves(gate_and_up):
        return cpu.silu_gate(gate_and_up)
    first, up = gate_and_up.chunk(2, dim=-1)
    return activation(first) * up
