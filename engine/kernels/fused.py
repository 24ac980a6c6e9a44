"""Small kernels that save passes over memory: norm with residual, gated MLP, rotation and store."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _add_rms_norm(x, delta, weight, normed, total, eps, SIZE: tl.constexpr, BLOCK: tl.constexpr):
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
    rounded = (value * scale).to(normed.dtype.element_ty)
    tl.store(normed + place, rounded * weights, mask=inside)


def add_rms_norm(
    x: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """rms_norm(x + delta) and x + delta, both [tokens, size]; neither argument is changed."""
    x = x.contiguous()
    normed = torch.empty_like(x)
    total = x if delta is None else torch.empty_like(x)
    size = x.shape[-1]
    block = triton.next_power_of_2(size)
    warps = min(max(block // 512, 1), 8)
    _add_rms_norm[(x.shape[0],)](
        x, delta, weight, normed, total, eps, SIZE=size, BLOCK=block, num_warps=warps
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
def _normed(first, second, weight, at, inside, HALF: tl.constexpr, eps, dtype):
    """RMS norm of heads given as two halves [heads, HALF]."""
    squares = tl.sum(first * first, axis=1) + tl.sum(second * second, axis=1)
    scale = (1.0 / tl.sqrt(squares / (2 * HALF) + eps))[:, None]
    low = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    high = tl.load(weight + HALF + at, mask=inside, other=0.0).to(tl.float32)
    first = (first * scale).to(dtype).to(tl.float32) * low[None, :]
    second = (second * scale).to(dtype).to(tl.float32) * high[None, :]
    return first, second


@triton.jit
def _turn_and_store(
    heads,
    positions,
    rows,
    tables,
    cosines,
    sines,
    query_norm,
    key_norm,
    keys,
    values,
    eps,
    table_width,
    block_stride,
    slot_stride,
    head_stride,
    BLOCK_SIZE: tl.constexpr,
    QUERIES: tl.constexpr,
    KV: tl.constexpr,
    HALF: tl.constexpr,
    PADDED: tl.constexpr,
    GROUP: tl.constexpr,
):
    """One token, GROUP of its heads: queries, then keys, then values."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * GROUP + tl.arange(0, GROUP)
    at = tl.arange(0, PADDED)
    inside = at < HALF
    exists = (head < QUERIES + 2 * KV)[:, None] & inside[None, :]
    dtype = heads.dtype.element_ty
    place = (token * (QUERIES + 2 * KV) + head)[:, None] * (2 * HALF) + at[None, :]
    first = tl.load(heads + place, mask=exists, other=0.0).to(tl.float32)
    second = tl.load(heads + place + HALF, mask=exists, other=0.0).to(tl.float32)
    is_query = (head < QUERIES)[:, None]
    is_value = (head >= QUERIES + KV)[:, None]
    position = tl.load(positions + token).to(tl.int64)
    new_first = first
    new_second = second
    if query_norm is not None:
        q1, q2 = _normed(first, second, query_norm, at, inside, HALF, eps, dtype)
        k1, k2 = _normed(first, second, key_norm, at, inside, HALF, eps, dtype)
        new_first = tl.where(is_query, q1, k1).to(dtype).to(tl.float32)
        new_second = tl.where(is_query, q2, k2).to(dtype).to(tl.float32)
    if cosines is not None:
        cos = tl.load(cosines + position * HALF + at, mask=inside, other=0.0)[None, :]
        sin = tl.load(sines + position * HALF + at, mask=inside, other=0.0)[None, :]
        turned = new_first * cos - new_second * sin
        new_second = new_second * cos + new_first * sin
        new_first = turned
    new_first = tl.where(is_value, first, new_first).to(dtype)
    new_second = tl.where(is_value, second, new_second).to(dtype)
    tl.store(heads + place, new_first, mask=exists & (~is_value))
    tl.store(heads + place + HALF, new_second, mask=exists & (~is_value))
    row = tl.load(rows + token).to(tl.int64)
    block = tl.load(tables + row * table_width + position // BLOCK_SIZE).to(tl.int64)
    slot = block * block_stride + (position % BLOCK_SIZE) * slot_stride
    kv_head = tl.where(head >= QUERIES + KV, head - QUERIES - KV, head - QUERIES)
    target = slot + kv_head[:, None] * head_stride + at[None, :]
    is_key = exists & (~is_query) & (~is_value)
    tl.store(keys + target, new_first, mask=is_key)
    tl.store(keys + target + HALF, new_second, mask=is_key)
    tl.store(values + target, new_first, mask=exists & is_value)
    tl.store(values + target + HALF, new_second, mask=exists & is_value)


def turn_and_store(
    heads: torch.Tensor,
    positions: torch.Tensor,
    rows: torch.Tensor,
    tables: torch.Tensor,
    cache: torch.Tensor,
    cosines: torch.Tensor | None,
    sines: torch.Tensor | None,
    query_norm: torch.Tensor | None,
    key_norm: torch.Tensor | None,
    eps: float,
) -> None:
    """Normalise and rotate queries and keys in place, and store keys and values in the cache.

    `heads` is [tokens, queries + 2 kv, dim]; `cache` is [2, blocks, block_size, kv, dim] with any
    strides but a last one of 1; `tables` [rows, width] names the blocks of each row.
    """
    tokens, total, dim = heads.shape
    _, _, block_size, kv, _ = cache.shape
    group = 4
    _turn_and_store[(tokens, triton.cdiv(total, group))](
        heads,
        positions,
        rows,
        tables,
        cosines,
        sines,
        query_norm,
        key_norm,
        cache[0],
        cache[1],
        eps,
        tables.shape[1],
        cache.stride(1),
        cache.stride(2),
        cache.stride(3),
        BLOCK_SIZE=block_size,
        QUERIES=total - 2 * kv,
        KV=kv,
        HALF=dim // 2,
        PADDED=triton.next_power_of_2(dim // 2),
        GROUP=group,
        num_warps=1,
    )
