"""Products for the few tokens of a small batch, where reading the weights is all that counts.

A program reads its rows of the matrix before it waits for the kernel in front of it, which weights
do not depend on (programmatic dependent launch, Hopper and later): while one kernel ends, the
weights of the next are on their way. The norm before and the gate or sum after are computed here
too, so that a layer is a handful of kernels.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from engine.kernels import FEW_TOKENS


@cache
def _is_hopper() -> bool:
    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= (9, 0)


def launching(tokens: int) -> dict[str, bool]:
    """How a kernel of so many tokens is launched: EARLY ones wait by themselves for those in front
    of them, which must be told to the driver too."""
    early = tokens <= FEW_TOKENS and _is_hopper()
    return {"EARLY": early, "launch_pdl": early}


@triton.jit
def _product(
    inputs, weights, scales, bias, norm, residual, out, eps,
    N: tl.constexpr, K: tl.constexpr, PADDED: tl.constexpr, TOKENS: tl.constexpr,
    TILE: tl.constexpr, GATED: tl.constexpr, UNIT: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    column = tl.program_id(0) * TILE + tl.arange(0, TILE)
    at = tl.arange(0, PADDED)
    real = column < N
    inside = at < K
    place = column.to(tl.int64)[:, None] * K + at[None, :]
    read = real[:, None] & inside[None, :]
    matrix = tl.load(weights + place, mask=read, other=0.0)
    if GATED:
        second = tl.load(weights + N * K + place, mask=read, other=0.0)
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    dtype = out.dtype.element_ty
    for token in tl.static_range(TOKENS):
        x = tl.load(inputs + token * K + at, mask=inside, other=0.0).to(tl.float32)
        if norm is not None:
            x = x / tl.sqrt(tl.sum(x * x, axis=0) / K + eps)
            factor = tl.load(norm + at, mask=inside, other=0.0).to(tl.float32)
            x = x * (1.0 + factor) if UNIT else x.to(dtype).to(tl.float32) * factor
            x = x.to(dtype).to(tl.float32)
        result = tl.sum(matrix.to(tl.float32) * x[None, :], axis=1)
        if scales is not None:
            result *= tl.load(scales + column, mask=real, other=0.0).to(tl.float32)
        if bias is not None:
            result += tl.load(bias + column, mask=real, other=0.0).to(tl.float32)
        if GATED:
            up = tl.sum(second.to(tl.float32) * x[None, :], axis=1)
            if scales is not None:
                up *= tl.load(scales + N + column, mask=real, other=0.0).to(tl.float32)
            if bias is not None:
                up += tl.load(bias + N + column, mask=real, other=0.0).to(tl.float32)
            result = (result / (1.0 + tl.exp(-result))).to(dtype).to(tl.float32) * up
        if residual is not None:
            result += tl.load(residual + token * N + column, mask=real, other=0.0).to(tl.float32)
        tl.store(out + token * N + column, result.to(dtype), mask=real)


def product(
    inputs: torch.Tensor,
    weights: torch.Tensor,
    scales: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    norm: tuple[torch.Tensor, float, bool] | None = None,
    residual: torch.Tensor | None = None,
    gated: bool = False,
) -> torch.Tensor:
    """[tokens, k] times `weights` [n, k], transposed -> [tokens, n]; or [tokens, n / 2] where they
    are `gated`: two matrices, silu of the first's product times the second's.

    `scales` [n] belong to weights in 8 bits. `norm` is what the inputs go through first: weight,
    eps, and whether it is UnitRMSNorm's.
    """
    tokens, k = inputs.shape
    n = len(weights) // 2 if gated else len(weights)
    out = inputs.new_empty(tokens, n)
    padded = triton.next_power_of_2(k)
    tile = max(1, (4096 if gated else 8192) // padded)
    weight, eps, unit = norm or (None, 0.0, False)
    _product[(triton.cdiv(n, tile),)](
        inputs, weights, scales, bias, weight, residual, out, eps,
        N=n, K=k, PADDED=padded, TOKENS=tokens, TILE=tile, GATED=gated, UNIT=unit,
        num_warps=4 if padded <= 8192 else 8, **launching(tokens),
    )  # fmt: skip
    return out
