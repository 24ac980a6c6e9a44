"""Attention over the paged cache: one token a request (split over its context), and chunks.

Both read keys and values through a row's block table, [2, blocks, block_size, kv, dim] of any
strides; the query heads that share a KV head are computed together in decoding. Softmax as in
FlashAttention: a running maximum and sum, fp32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from engine.kernels.thin import launching

if TYPE_CHECKING:
    from engine.attention.base import View

SPLIT_PROGRAMS = 528  # four for each of an H100's 132 multiprocessors
MOST_SPLITS = 32
LOG2_E = 1.4426950408889634  # exp2 is the machine's own: scores are kept to that base


@triton.jit
def _slots(table, place, valid, block_stride, slot_stride, BLOCK_SIZE: tl.constexpr):
    """Where in the cache these positions of a row lie. `valid` None: all are."""
    if valid is None:
        block = tl.load(table + place // BLOCK_SIZE)
    else:
        block = tl.load(table + place // BLOCK_SIZE, mask=valid, other=0)
    return block.to(tl.int64) * block_stride + (place % BLOCK_SIZE) * slot_stride


@triton.jit
def _load(memory, slot, at, valid, DIM: tl.constexpr, PADDED: tl.constexpr):
    """[slots, PADDED], with no mask where none is needed."""
    place = memory + slot[:, None] + at[None, :]
    inside = (at < DIM)[None, :]
    if valid is None:
        found = tl.load(place) if DIM == PADDED else tl.load(place, mask=inside, other=0.0)
    else:
        read = valid[:, None] if DIM == PADDED else valid[:, None] & inside
        found = tl.load(place, mask=read, other=0.0)
    return found


@triton.jit
def _scores(query, key, scale, cap):
    """Both factors are _scale_and_cap's: cap * tanh(x), where tanh(x) = 1 - 2 / (exp(2x) + 1)."""
    scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
    if cap is not None:
        scores = cap * (1.0 - 2.0 / (tl.exp2(scores) + 1.0))
    return scores


@triton.jit
def _absorb(best, mass, mixed, scores, value, MAY_BE_BLIND: tl.constexpr):
    """One more tile of keys. MAY_BE_BLIND: a row may see none of the keys so far."""
    peak = tl.maximum(best, tl.max(scores, axis=1))
    safe = tl.where(peak == float("-inf"), 0.0, peak) if MAY_BE_BLIND else peak
    weights = tl.exp2(scores - safe[:, None])
    fade = tl.exp2(best - safe)
    mass = mass * fade + tl.sum(weights, axis=1)
    mixed = mixed * fade[:, None]
    mixed = tl.dot(weights.to(value.dtype), value, mixed, input_precision="ieee")
    return peak, mass, mixed


@triton.jit
def _decode(
    heads, positions, rows, tables, keys, values, out, partial, scale, cap,
    table_width, block_stride, slot_stride, head_stride,
    BLOCK_SIZE: tl.constexpr, QUERIES: tl.constexpr, KV: tl.constexpr, DIM: tl.constexpr,
    PADDED: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, SPLITS: tl.constexpr,
    WINDOW: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    token = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    GROUP: tl.constexpr = QUERIES // KV
    length = tl.load(positions + token) + 1
    oldest = tl.maximum(length - WINDOW, 0) if WINDOW else 0
    share = tl.cdiv(tl.cdiv(length - oldest, SPLITS), TILE) * TILE
    begin = oldest + split * share
    stop = tl.minimum(begin + share, length)
    table = tables + tl.load(rows + token).to(tl.int64) * table_width
    at = tl.arange(0, PADDED)
    member = tl.arange(0, ROWS)
    query_at = (token * (QUERIES + 2 * KV) + kv_head * GROUP + member)[:, None] * DIM + at[None, :]
    real = (member < GROUP)[:, None] & (at < DIM)[None, :]
    query = tl.load(heads + query_at, mask=real, other=0.0)
    best = tl.full([ROWS], float("-inf"), tl.float32)
    mass = tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([ROWS, PADDED], tl.float32)
    for start in range(begin, stop, TILE):
        place = start + tl.arange(0, TILE)
        valid = place < stop
        slot = _slots(table, place, valid, block_stride, slot_stride, BLOCK_SIZE)
        slot += kv_head * head_stride
        key = _load(keys, slot, at, valid, DIM, PADDED)
        value = _load(values, slot, at, valid, DIM, PADDED)
        scores = _scores(query, key, scale, cap)
        scores = tl.where(valid[None, :], scores, float("-inf"))
        best, mass, mixed = _absorb(best, mass, mixed, scores, value, False)
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
def _join(
    partial, out,
    DIM: tl.constexpr, PADDED: tl.constexpr, SPLITS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """The splits of one head of one token into one: each weighed by its share of the sum."""
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
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
    view: View,
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
    tile, warps, stages = _decode_form(padded, heads.element_size())
    _decode[(tokens, kv, splits)](
        heads, positions, rows, tables, cache[0], cache[1], out, partial,
        *_scale_and_cap(view, dim),
        tables.shape[1], cache.stride(1), cache.stride(2), cache.stride(3),
        BLOCK_SIZE=block_size, QUERIES=queries, KV=kv, DIM=dim, PADDED=padded,
        ROWS=max(16, triton.next_power_of_2(queries // kv)), TILE=tile, SPLITS=splits,
        WINDOW=view.window or 0,
        num_warps=warps, num_stages=stages, **launching(tokens),
    )  # fmt: skip
    if splits > 1:
        _join[(tokens * queries,)](
            partial, out,
            DIM=dim, PADDED=padded, SPLITS=splits, num_warps=4, **launching(tokens),
        )  # fmt: skip
    return out


@triton.jit
def _chunk(
    heads, tiles, tables, keys, values, out, scale, cap,
    table_width, block_stride, slot_stride, head_stride,
    BLOCK_SIZE: tl.constexpr, QUERIES: tl.constexpr, KV: tl.constexpr, DIM: tl.constexpr,
    PADDED: tl.constexpr, TILE_M: tl.constexpr, TILE_N: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
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
    member = tl.arange(0, TILE_M)
    real = (member < count)[:, None] & (at < DIM)[None, :]
    query_at = ((first + member) * (QUERIES + 2 * KV) + head)[:, None] * DIM + at[None, :]
    query = tl.load(heads + query_at, mask=real, other=0.0)
    best = tl.full([TILE_M], float("-inf"), tl.float32)
    mass = tl.zeros([TILE_M], tl.float32)
    mixed = tl.zeros([TILE_M, PADDED], tl.float32)
    own = position + member
    stop = position + count
    keys += kv_head * head_stride
    values += kv_head * head_stride
    if WINDOW:
        free = tl.maximum(position - WINDOW + 1, 0) // TILE_N * TILE_N
    else:
        free = position // TILE_N * TILE_N  # up to here every token of the tile sees every key
        for start in range(0, free, TILE_N):
            place = start + tl.arange(0, TILE_N)
            slot = _slots(table, place, None, block_stride, slot_stride, BLOCK_SIZE)
            key = _load(keys, slot, at, None, DIM, PADDED)
            scores = _scores(query, key, scale, cap)
            value = _load(values, slot, at, None, DIM, PADDED)
            best, mass, mixed = _absorb(best, mass, mixed, scores, value, False)
    for start in range(free, stop, TILE_N):
        place = start + tl.arange(0, TILE_N)
        valid = place < stop
        slot = _slots(table, place, valid, block_stride, slot_stride, BLOCK_SIZE)
        key = _load(keys, slot, at, valid, DIM, PADDED)
        scores = _scores(query, key, scale, cap)
        sees = place[None, :] <= own[:, None]
        if WINDOW:
            sees &= place[None, :] > own[:, None] - WINDOW
        scores = tl.where(sees, scores, float("-inf"))
        value = _load(values, slot, at, valid, DIM, PADDED)
        best, mass, mixed = _absorb(best, mass, mixed, scores, value, WINDOW > 0)
    target = ((first + member) * QUERIES + head)[:, None] * DIM + at[None, :]
    tl.store(out + target, (mixed / mass[:, None]).to(out.dtype.element_ty), mask=real)


def chunks(
    heads: torch.Tensor,
    tiles: torch.Tensor,
    tables: torch.Tensor,
    cache: torch.Tensor,
    view: View,
    out: torch.Tensor,
    tile_tokens: int,
) -> None:
    """Several tokens each: `tiles` [n, 4] int32 names pieces of at most `tile_tokens`. Writes
    their rows of `out` [tokens, queries, dim]."""
    _, total, dim = heads.shape
    _, _, block_size, kv, _ = cache.shape
    queries = total - 2 * kv
    padded = _padded(dim)
    tile, warps, stages = _chunk_form(padded, heads.element_size())
    _chunk[(queries, len(tiles))](
        heads, tiles, tables, cache[0], cache[1], out, *_scale_and_cap(view, dim),
        tables.shape[1], cache.stride(1), cache.stride(2), cache.stride(3),
        BLOCK_SIZE=block_size, QUERIES=queries, KV=kv, DIM=dim, PADDED=padded,
        TILE_M=tile_tokens, TILE_N=tile, WINDOW=view.window or 0,
        num_warps=warps, num_stages=stages,
    )  # fmt: skip


def _decode_form(padded: int, itemsize: int) -> tuple[int, int, int]:
    """As _chunk_form."""
    return 64 if padded * itemsize <= 512 else 32, 2 if itemsize == 2 else 4, 3


def _chunk_form(padded: int, itemsize: int) -> tuple[int, int, int]:
    """Keys a tile, warps and stages that fit into a multiprocessor's shared memory."""
    if itemsize == 2:
        return (32, 4, 4) if padded <= 128 else (64, 8, 2)
    return (32, 4, 2) if padded <= 128 else (16, 8, 2)


def _scale_and_cap(view: View, dim: int) -> tuple[float, float | None]:
    """What _scores takes."""
    scale = dim**-0.5 if view.scale is None else view.scale
    if view.softcap is None:
        return scale * LOG2_E, None
    return 2 * LOG2_E * scale / view.softcap, view.softcap * LOG2_E


def _padded(dim: int) -> int:
    """Tensor cores multiply no fewer than 16 by 16."""
    return int(max(16, triton.next_power_of_2(dim)))
