"""Attention over the paged cache: one token a request (split over its context), and chunks.

Both read keys and values through a row's block table, [2, blocks, block_size, kv, dim] of any
strides; the query heads that share a KV head are computed together in decoding. Softmax as in
FlashAttention: a running maximum and sum, fp32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

SPLIT_PROGRAMS = 528  # four for each of an H100's 132 multiprocessors
MOST_SPLITS = 32


@triton.jit
def _decode(
    heads,
    positions,
    rows,
    tables,
    keys,
    values,
    out,
    partial,
    scale,
    table_width,
    block_stride,
    slot_stride,
    head_stride,
    BLOCK_SIZE: tl.constexpr,
    QUERIES: tl.constexpr,
    KV: tl.constexpr,
    DIM: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    SPLITS: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    GROUP: tl.constexpr = QUERIES // KV
    length = tl.load(positions + token) + 1
    share = tl.cdiv(tl.cdiv(length, SPLITS), TILE) * TILE
    begin = split * share
    stop = tl.minimum(begin + share, length)
    table = tables + tl.load(rows + token).to(tl.int64) * table_width
    at = tl.arange(0, PADDED)
    inside = at < DIM
    member = tl.arange(0, ROWS)
    query_at = (token * (QUERIES + 2 * KV) + kv_head * GROUP + member)[:, None] * DIM + at[None, :]
    real = (member < GROUP)[:, None] & inside[None, :]
    query = tl.load(heads + query_at, mask=real, other=0.0)
    best = tl.full([ROWS], float("-inf"), tl.float32)
    mass = tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([ROWS, PADDED], tl.float32)
    for start in range(begin, stop, TILE):
        place = start + tl.arange(0, TILE)
        valid = place < stop
        block = tl.load(table + place // BLOCK_SIZE, mask=valid, other=0).to(tl.int64)
        slot = block * block_stride + (place % BLOCK_SIZE) * slot_stride + kv_head * head_stride
        read = valid[:, None] & inside[None, :]
        key = tl.load(keys + slot[:, None] + at[None, :], mask=read, other=0.0)
        value = tl.load(values + slot[:, None] + at[None, :], mask=read, other=0.0)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        scores = tl.where(valid[None, :], scores, float("-inf"))
        peak = tl.maximum(best, tl.max(scores, axis=1))
        weights = tl.exp2(scores - peak[:, None])
        fade = tl.exp2(best - peak)
        mass = mass * fade + tl.sum(weights, axis=1)
        mixed = mixed * fade[:, None]
        mixed += tl.dot(weights.to(value.dtype), value, input_precision="ieee")
        best = peak
    head = kv_head * GROUP + member
    if SPLITS == 1:
        result = mixed / mass[:, None]
        target = (token * QUERIES + head)[:, None] * DIM + at[None, :]
        tl.store(out + target, result.to(out.dtype.element_ty), mask=real)
    else:
        width = DIM + 2
        target = ((token * QUERIES + head) * SPLITS + split) * width
        tl.store(partial + target[:, None] + at[None, :], mixed, mask=real)
        tl.store(partial + target + DIM, best, mask=member < GROUP)
        tl.store(partial + target + DIM + 1, mass, mask=member < GROUP)


@triton.jit
def _join(partial, out, DIM: tl.constexpr, PADDED: tl.constexpr, SPLITS: tl.constexpr):
    """The splits of one head of one token into one: each weighed by its share of the sum."""
    head = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, PADDED)
    split = tl.arange(0, SPLITS)
    base = (head * SPLITS + split) * (DIM + 2)
    best = tl.load(partial + base + DIM)
    mass = tl.load(partial + base + DIM + 1)
    weights = tl.exp2(best - tl.max(best, axis=0))
    inside = (at < DIM)[None, :]
    mixed = tl.load(partial + base[:, None] + at[None, :], mask=inside, other=0.0)
    result = tl.sum(mixed * weights[:, None], axis=0) / tl.sum(mass * weights, axis=0)
    tl.store(out + head * DIM + at, result.to(out.dtype.element_ty), mask=at < DIM)


def decode(
    heads: torch.Tensor,
    positions: torch.Tensor,
    rows: torch.Tensor,
    tables: torch.Tensor,
    cache: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """One token each: heads [tokens, queries + 2 kv, dim] -> [tokens, queries, dim].

    The grid depends on the number of tokens alone, so that a CUDA graph may hold it.
    """
    tokens, total, dim = heads.shape
    _, _, block_size, kv, _ = cache.shape
    queries = total - 2 * kv
    splits = triton.next_power_of_2(max(1, SPLIT_PROGRAMS // (tokens * kv)))
    splits = min(splits, MOST_SPLITS)
    out = torch.empty(tokens, queries, dim, dtype=heads.dtype, device=heads.device)
    partial = torch.empty(
        tokens * queries * splits * (dim + 2) if splits > 1 else 1,
        dtype=torch.float32,
        device=heads.device,
    )
    padded = _padded(dim)
    _decode[(tokens, kv, splits)](
        heads,
        positions,
        rows,
        tables,
        cache[0],
        cache[1],
        out,
        partial,
        scale * 1.4426950408889634,  # exp2 instead of exp
        tables.shape[1],
        cache.stride(1),
        cache.stride(2),
        cache.stride(3),
        BLOCK_SIZE=block_size,
        QUERIES=queries,
        KV=kv,
        DIM=dim,
        PADDED=padded,
        ROWS=max(16, triton.next_power_of_2(queries // kv)),
        TILE=64,
        SPLITS=splits,
        num_warps=4,
        num_stages=3,
    )
    if splits > 1:
        _join[(tokens * queries,)](partial, out, DIM=dim, PADDED=padded, SPLITS=splits, num_warps=4)
    return out


@triton.jit
def _chunk(
    heads,
    tiles,
    tables,
    keys,
    values,
    out,
    scale,
    table_width,
    block_stride,
    slot_stride,
    head_stride,
    BLOCK_SIZE: tl.constexpr,
    QUERIES: tl.constexpr,
    KV: tl.constexpr,
    DIM: tl.constexpr,
    PADDED: tl.constexpr,
    TILE_M: tl.constexpr,
    TILE_N: tl.constexpr,
):
    """TILE_M tokens of one request, one head. A tile: its first token in the step, how many, the
    position of the first, the request's row."""
    tile = tl.program_id(1) * 4
    head = tl.program_id(0)
    first = tl.load(tiles + tile).to(tl.int64)
    count = tl.load(tiles + tile + 1)
    position = tl.load(tiles + tile + 2)
    table = tables + tl.load(tiles + tile + 3).to(tl.int64) * table_width
    kv_head = head // (QUERIES // KV)
    at = tl.arange(0, PADDED)
    inside = at < DIM
    member = tl.arange(0, TILE_M)
    real = (member < count)[:, None] & inside[None, :]
    query_at = ((first + member) * (QUERIES + 2 * KV) + head)[:, None] * DIM + at[None, :]
    query = tl.load(heads + query_at, mask=real, other=0.0)
    best = tl.full([TILE_M], float("-inf"), tl.float32)
    mass = tl.zeros([TILE_M], tl.float32)
    mixed = tl.zeros([TILE_M, PADDED], tl.float32)
    own = position + member
    stop = position + count
    free = position // TILE_N * TILE_N  # up to here every token of the tile sees every key
    for start in range(0, free, TILE_N):
        place = start + tl.arange(0, TILE_N)
        block = tl.load(table + place // BLOCK_SIZE).to(tl.int64)
        slot = block * block_stride + (place % BLOCK_SIZE) * slot_stride + kv_head * head_stride
        key = tl.load(keys + slot[:, None] + at[None, :], mask=inside[None, :], other=0.0)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        peak = tl.maximum(best, tl.max(scores, axis=1))
        weights = tl.exp2(scores - peak[:, None])
        fade = tl.exp2(best - peak)
        mass = mass * fade + tl.sum(weights, axis=1)
        value = tl.load(values + slot[:, None] + at[None, :], mask=inside[None, :], other=0.0)
        mixed = mixed * fade[:, None]
        mixed = tl.dot(weights.to(value.dtype), value, mixed, input_precision="ieee")
        best = peak
    for start in range(free, stop, TILE_N):
        place = start + tl.arange(0, TILE_N)
        valid = place < stop
        block = tl.load(table + place // BLOCK_SIZE, mask=valid, other=0).to(tl.int64)
        slot = block * block_stride + (place % BLOCK_SIZE) * slot_stride + kv_head * head_stride
        read = valid[:, None] & inside[None, :]
        key = tl.load(keys + slot[:, None] + at[None, :], mask=read, other=0.0)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        scores = tl.where(place[None, :] <= own[:, None], scores, float("-inf"))
        peak = tl.maximum(best, tl.max(scores, axis=1))
        weights = tl.exp2(scores - peak[:, None])
        fade = tl.exp2(best - peak)
        mass = mass * fade + tl.sum(weights, axis=1)
        value = tl.load(values + slot[:, None] + at[None, :], mask=read, other=0.0)
        mixed = mixed * fade[:, None]
        mixed = tl.dot(weights.to(value.dtype), value, mixed, input_precision="ieee")
        best = peak
    target = ((first + member) * QUERIES + head)[:, None] * DIM + at[None, :]
    tl.store(out + target, (mixed / mass[:, None]).to(out.dtype.element_ty), mask=real)


def chunks(
    heads: torch.Tensor,
    tiles: torch.Tensor,
    tables: torch.Tensor,
    cache: torch.Tensor,
    scale: float,
    out: torch.Tensor,
    tile_tokens: int,
) -> None:
    """Several tokens each: `tiles` [n, 4] int32 names pieces of at most `tile_tokens`. Writes
    their rows of `out` [tokens, queries, dim]."""
    _, total, dim = heads.shape
    _, _, block_size, kv, _ = cache.shape
    queries = total - 2 * kv
    wide = heads.dtype == torch.float32  # twice the shared memory an element
    _chunk[(queries, len(tiles))](
        heads,
        tiles,
        tables,
        cache[0],
        cache[1],
        out,
        scale * 1.4426950408889634,
        tables.shape[1],
        cache.stride(1),
        cache.stride(2),
        cache.stride(3),
        BLOCK_SIZE=block_size,
        QUERIES=queries,
        KV=kv,
        DIM=dim,
        PADDED=_padded(dim),
        TILE_M=tile_tokens,
        TILE_N=32 if wide else 64,
        num_warps=4 if wide else 8,
        num_stages=2 if wide else 3,
    )


def _padded(dim: int) -> int:
    """Tensor cores multiply no fewer than 16 by 16."""
    return int(max(16, triton.next_power_of_2(dim)))
