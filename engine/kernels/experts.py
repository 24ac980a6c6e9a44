"""A product a chosen expert: rows sorted by expert on the device, then one launch for all.

Nothing here asks the device how many tokens an expert got, so that a CUDA graph may hold it: the
grid has room for the worst case, and programs without work end at once.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl


class Tiles(NamedTuple):
    """Pieces of at most `rows` pairs (a token and one of its experts, numbered token by token) of
    one expert: pairs `order[first:stop]` go through expert `expert`. One that is not among the
    matrices has no work."""

    rows: int
    order: torch.Tensor
    expert: torch.Tensor
    first: torch.Tensor
    stop: torch.Tensor


def tiles_of(chosen: torch.Tensor, experts: int) -> Tiles:
    """`chosen` [tokens, per token] are the experts of each token, of `experts`."""
    flat = chosen.flatten()
    pairs, device = len(flat), flat.device
    index = torch.arange(pairs, device=device)
    if pairs <= experts:  # so few that most are alone with their expert
        return Tiles(16, index, flat, index, index + 1)
    rows = min(max(16, triton.next_power_of_2(pairs // experts)), 128)
    by_expert, order = flat.sort(stable=True)
    edges = torch.searchsorted(by_expert, torch.arange(experts + 1, device=device))
    counts = (edges.diff() + rows - 1) // rows
    ends = counts.cumsum(0)
    index = torch.arange(pairs // rows + experts, device=device)
    expert = torch.searchsorted(ends, index, right=True)  # `experts` itself past the last tile
    held = expert.clamp(max=experts - 1)
    first = edges[held] + (index - (ends - counts)[held]) * rows
    return Tiles(rows, order, expert, first, edges[held + 1])


@triton.jit
def _product(
    inputs, weights, out, order, experts, firsts, stops, first_held,
    SHARED_BY: tl.constexpr, HELD: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
    TILE_M: tl.constexpr, TILE_N: tl.constexpr, TILE_K: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(1)
    expert = tl.load(experts + tile) - first_held
    if (expert < 0) | (expert >= HELD):
        return
    at = tl.load(firsts + tile) + tl.arange(0, TILE_M)
    real = at < tl.load(stops + tile)
    pair = tl.load(order + at, mask=real, other=0)
    column = tl.program_id(0) * TILE_N + tl.arange(0, TILE_N)
    exists = column < N
    left = inputs + (pair // SHARED_BY)[:, None] * K
    right = weights + expert.to(tl.int64) * N * K + column[None, :] * K
    total = tl.zeros([TILE_M, TILE_N], tl.float32)
    for start in range(0, K, TILE_K):
        k = start + tl.arange(0, TILE_K)
        inside = k < K
        x = tl.load(left + k[None, :], mask=real[:, None] & inside[None, :], other=0.0)
        w = tl.load(right + k[:, None], mask=inside[:, None] & exists[None, :], other=0.0)
        total = tl.dot(x, w, total, input_precision="ieee")
    target = out + pair[:, None] * N + column[None, :]
    tl.store(target, total.to(out.dtype.element_ty), mask=real[:, None] & exists[None, :])


def product(
    inputs: torch.Tensor,
    weights: torch.Tensor,
    tiles: Tiles,
    shared_by: int,
    first_held: int,
    out: torch.Tensor,
) -> torch.Tensor:
    """`out` [pairs, n], its rows of the experts held here written: each pair's row of `inputs`,
    [pairs / shared_by, k], times its expert's matrix. `weights` [held, n, k] are those of the
    experts from `first_held` on."""
    held, n, k = weights.shape
    wide = inputs.dtype == torch.float32
    tile_n = 64 if wide or tiles.rows == 16 else 128
    tile_k = 32 if wide else (128 if tiles.rows == 16 else 64)
    _product[(triton.cdiv(n, tile_n), len(tiles.expert))](
        inputs, weights, out, tiles.order, tiles.expert, tiles.first, tiles.stop, first_held,
        SHARED_BY=shared_by, HELD=held, N=n, K=k,
        TILE_M=tiles.rows, TILE_N=tile_n, TILE_K=tile_k,
        num_warps=8 if tiles.rows >= 64 else 4, num_stages=3,
    )  # fmt: skip
    return out
