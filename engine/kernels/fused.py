"""Small kernels that save passes over memory: norm with residual, gated MLP, rotation and store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from engine.kernels.thin import launching

if TYPE_CHECKING:
    from engine.attention.base import Turn


@triton.jit
def _add_rms_norm(
    x, delta, weight, normed, total, eps,
    UNIT: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < SIZE
    place = row * SIZE + at
    summed = tl.load(x + place, mask=inside, other=0.0)
    if delta is not None:
        summed = summed + tl.load(delta + place, mask=inside, other=0.0)
        tl.store(total + place, summed, mask=inside)
    value = summed.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(value * value, axis=0) / SIZE + eps)
    weights = tl.load(weight + at, mask=inside, other=0.0)
    if UNIT:
        result = value * scale * (1.0 + weights.to(tl.float32))
    else:
        result = (value * scale).to(normed.dtype.element_ty) * weights
    tl.store(normed + place, result.to(normed.dtype.element_ty), mask=inside)


def add_rms_norm(
    x: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, eps: float, unit: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """rms_norm(x + delta) and x + delta, both [tokens, size]; neither argument is changed. `unit`:
    as UnitRMSNorm does it."""
    x = x.contiguous()
    normed = torch.empty_like(x)
    total = x if delta is None else torch.empty_like(x)
    size = x.shape[-1]
    block = triton.next_power_of_2(size)
    warps = min(max(block // 512, 1), 8)
    _add_rms_norm[(x.shape[0],)](
        x, delta, weight, normed, total, eps, UNIT=unit, SIZE=size, BLOCK=block, num_warps=warps
    )
    return normed, total


@triton.jit
def _silu_gate(gate_and_up, out, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < SIZE
    gate = tl.load(gate_and_up + row * 2 * SIZE + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_and_up + row * 2 * SIZE + SIZE + at, mask=inside, other=0.0)
    opened = (gate / (1.0 + tl.exp(-gate))).to(out.dtype.element_ty)
    tl.store(out + row * SIZE + at, opened * up, mask=inside)


def silu_gate(gate_and_up: torch.Tensor) -> torch.Tensor:
    """[tokens, 2n], gate first -> [tokens, n]."""
    rows, size = gate_and_up.shape[0], gate_and_up.shape[1] // 2
    out = torch.empty(rows, size, dtype=gate_and_up.dtype, device=gate_and_up.device)
    block = 1024
    _silu_gate[(rows, triton.cdiv(size, block))](
        gate_and_up, out, SIZE=size, BLOCK=block, num_warps=4
    )
    return out


@triton.jit
def _normed(first, second, weight, low, high, inside, HALF: tl.constexpr, eps, dtype):
    """RMS norm of heads given as two halves [heads, HALF], the elements `low` and `high`."""
    squares = tl.sum(first * first, axis=1) + tl.sum(second * second, axis=1)
    scale = (1.0 / tl.sqrt(squares / (2 * HALF) + eps))[:, None]
    low_weight = tl.load(weight + low, mask=inside, other=0.0).to(tl.float32)
    high_weight = tl.load(weight + high, mask=inside, other=0.0).to(tl.float32)
    first = (first * scale).to(dtype).to(tl.float32) * low_weight[None, :]
    second = (second * scale).to(dtype).to(tl.float32) * high_weight[None, :]
    return first, second


@triton.jit
def _turn_and_store(
    heads, positions, rows, tables, cosines, sines, query_norm, key_norm, keys, values, eps,
    table_width, block_stride, slot_stride, head_stride,
    BLOCK_SIZE: tl.constexpr, QUERIES: tl.constexpr, KV: tl.constexpr, HALF: tl.constexpr,
    TURNED: tl.constexpr, PADDED: tl.constexpr, GROUP: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One token, GROUP of its heads: queries, then keys, then values. Of the first 2 * TURNED
    elements of a head i pairs with i + TURNED; the others stay, and are paired to be carried along.
    """
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * GROUP + tl.arange(0, GROUP)
    at = tl.arange(0, PADDED)
    inside = at < HALF
    exists = (head < QUERIES + 2 * KV)[:, None] & inside[None, :]
    dtype = heads.dtype.element_ty
    low = at if TURNED == HALF else tl.where(at < TURNED, at, at + TURNED)
    high = at + HALF if TURNED == HALF else tl.where(at < TURNED, at + TURNED, at + HALF)
    base = heads + (token * (QUERIES + 2 * KV) + head)[:, None] * (2 * HALF)
    first = tl.load(base + low[None, :], mask=exists, other=0.0).to(tl.float32)
    second = tl.load(base + high[None, :], mask=exists, other=0.0).to(tl.float32)
    is_query = (head < QUERIES)[:, None]
    is_value = (head >= QUERIES + KV)[:, None]
    position = tl.load(positions + token).to(tl.int64)
    new_first = first
    new_second = second
    if query_norm is not None:
        q1, q2 = _normed(first, second, query_norm, low, high, inside, HALF, eps, dtype)
        k1, k2 = _normed(first, second, key_norm, low, high, inside, HALF, eps, dtype)
        new_first = tl.where(is_query, q1, k1).to(dtype).to(tl.float32)
        new_second = tl.where(is_query, q2, k2).to(dtype).to(tl.float32)
    if cosines is not None:
        turns = at < TURNED
        cos = tl.load(cosines + position * TURNED + at, mask=turns, other=1.0)[None, :]
        sin = tl.load(sines + position * TURNED + at, mask=turns, other=0.0)[None, :]
        turned = new_first * cos - new_second * sin
        new_second = new_second * cos + new_first * sin
        new_first = turned
    new_first = tl.where(is_value, first, new_first).to(dtype)
    new_second = tl.where(is_value, second, new_second).to(dtype)
    tl.store(base + low[None, :], new_first, mask=exists & is_query)
    tl.store(base + high[None, :], new_second, mask=exists & is_query)
    row = tl.load(rows + token).to(tl.int64)
    block = tl.load(tables + row * table_width + position // BLOCK_SIZE).to(tl.int64)
    slot = block * block_stride + (position % BLOCK_SIZE) * slot_stride
    kv_head = tl.where(head >= QUERIES + KV, head - QUERIES - KV, head - QUERIES)
    target = slot + kv_head[:, None] * head_stride
    is_key = exists & (~is_query) & (~is_value)
    tl.store(keys + target + low[None, :], new_first, mask=is_key)
    tl.store(keys + target + high[None, :], new_second, mask=is_key)
    tl.store(values + target + low[None, :], new_first, mask=exists & is_value)
    tl.store(values + target + high[None, :], new_second, mask=exists & is_value)


def turn_and_store(
    heads: torch.Tensor,
    positions: torch.Tensor,
    rows: torch.Tensor,
    tables: torch.Tensor,
    cache: torch.Tensor,
    turn: Turn | None,
) -> None:
    """Normalise and rotate queries in place, and keys on their way into the cache, with values.

    `heads` is [tokens, queries + 2 kv, dim]; `cache` is [2, blocks, block_size, kv, dim] with any
    strides but a last one of 1; `tables` [rows, width] names the blocks of each row.
    """
    tokens, total, dim = heads.shape
    _, _, block_size, kv, _ = cache.shape
    group = 4
    _turn_and_store[(tokens, triton.cdiv(total, group))](
        heads, positions, rows, tables,
        turn.cos if turn else None, turn.sin if turn else None,
        turn.query_norm if turn else None, turn.key_norm if turn else None,
        cache[0], cache[1], turn.eps if turn else 0.0,
        tables.shape[1], cache.stride(1), cache.stride(2), cache.stride(3),
        BLOCK_SIZE=block_size, QUERIES=total - 2 * kv, KV=kv, HALF=dim // 2,
        TURNED=turn.cos.shape[1] if turn else dim // 2,
        PADDED=triton.next_power_of_2(dim // 2), GROUP=group,
        num_warps=1, **launching(tokens),
    )  # fmt: skip
