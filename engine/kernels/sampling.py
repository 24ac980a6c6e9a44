"""Sampling from logits without a sort and without the host, so that a CUDA graph may hold it.

The Gumbel trick: argmax(logit / temperature - log(-log(u))) is a draw from the softmax. The noise
u of a token depends on its request's seed, its place and the vocabulary index alone.

What top_k, top_p and min_p keep is everything above one logit and the first few that equal it. That
logit is found from its highest bit down, two bits a pass over the row: as whole numbers in the
order of the floats.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

PIECE = 4096
PASS = 16384
BITS = {torch.bfloat16: 16, torch.float16: 20, torch.float32: 32}
"""How many of a logit's bits, as fp32, can be set."""


class Settings(NamedTuple):
    """By row. `temperatures` 0: greedy; `top_ks` 0, `top_ps` 1, `min_ps` 0: all are kept."""

    temperatures: torch.Tensor
    top_ps: torch.Tensor
    min_ps: torch.Tensor
    top_ks: torch.Tensor
    seeds: torch.Tensor


@triton.jit
def _ordered(value):
    """fp32 -> uint32 of the same order."""
    bits = value.to(tl.uint32, bitcast=True)
    return tl.where(bits >> 31 == 1, bits ^ 0xFFFFFFFF, bits | 0x80000000)


@triton.jit
def _unordered(key):
    bits = tl.where(key >= 0x80000000, key ^ 0x80000000, key ^ 0xFFFFFFFF)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _weigh(value, top, temperature, min_p):
    """Probabilities, the best token's 1; what min_p drops is 0."""
    weight = tl.exp((value - top) / temperature)
    return tl.where(weight < min_p, 0.0, weight)


@triton.jit
def _reached(line, key, top, temperature, min_p, vocab, COUNTS: tl.constexpr, PASS: tl.constexpr):
    """How many tokens have this key or more, or (not COUNTS) how much they weigh; and the same of
    those that have more."""
    least = 0.0
    more = 0.0
    for start in range(0, vocab, PASS):
        token = start + tl.arange(0, PASS)
        value = tl.load(line + token, mask=token < vocab, other=float("-inf")).to(tl.float32)
        if COUNTS:
            weight = tl.where(token < vocab, 1.0, 0.0)
        else:
            weight = _weigh(value, top, temperature, min_p)
        keys = _ordered(value)
        least += tl.sum(tl.where(keys >= key, weight, 0.0), axis=0)
        more += tl.sum(tl.where(keys > key, weight, 0.0), axis=0)
    return least, more


@triton.jit
def _largest_key(
    line, goal, top, temperature, min_p, vocab, COUNTS: tl.constexpr, BITS: tl.constexpr,
    PASS: tl.constexpr,
):  # fmt: skip
    """The largest key that, with all above it, reaches `goal` (_reached)."""
    found = tl.full([], 0, tl.uint32)
    bit = tl.full([], 1 << 30, tl.uint32)
    for _ in range(BITS // 2):
        one = found | bit
        two = found | (bit << 1)
        three = two | bit
        reached_1 = 0.0
        reached_2 = 0.0
        reached_3 = 0.0
        for start in range(0, vocab, PASS):
            token = start + tl.arange(0, PASS)
            value = tl.load(line + token, mask=token < vocab, other=float("-inf")).to(tl.float32)
            if COUNTS:
                weight = tl.where(token < vocab, 1.0, 0.0)
            else:
                weight = _weigh(value, top, temperature, min_p)
            keys = _ordered(value)
            reached_1 += tl.sum(tl.where(keys >= one, weight, 0.0), axis=0)
            reached_2 += tl.sum(tl.where(keys >= two, weight, 0.0), axis=0)
            reached_3 += tl.sum(tl.where(keys >= three, weight, 0.0), axis=0)
        found = tl.where(reached_1 >= goal, one, found)
        found = tl.where(reached_2 >= goal, two, found)
        found = tl.where(reached_3 >= goal, three, found)
        bit = bit >> 2
    return found


@triton.jit
def _filter(
    logits, rows, temperatures, top_ps, min_ps, top_ks, least_keys, last_equals, vocab,
    BITS: tl.constexpr, PASS: tl.constexpr,
):  # fmt: skip
    """Which tokens of one line are kept: keys above its least one, and those that equal it up to
    a place in the vocabulary. Order as in engine.layers.sampler: min_p, top_k, top_p."""
    index = tl.program_id(0).to(tl.int64)
    line = logits + index * vocab
    row = tl.load(rows + index).to(tl.int64)
    temperature = tl.load(temperatures + row)
    top_p = tl.load(top_ps + row)
    min_p = tl.load(min_ps + row)
    top_k = tl.load(top_ks + row).to(tl.int32)
    top_k = tl.where(top_k < vocab, top_k, 0)
    key = tl.full([], 0, tl.uint32)
    equals = vocab
    if (temperature > 0) & ((top_k > 0) | (top_p < 1) | (min_p > 0)):
        top = float("-inf")
        for start in range(0, vocab, PASS):
            token = start + tl.arange(0, PASS)
            value = tl.load(line + token, mask=token < vocab, other=float("-inf")).to(tl.float32)
            top = tl.maximum(top, tl.max(value, axis=0))
        if top_k > 0:
            goal = top_k.to(tl.float32)
            key = _largest_key(line, goal, top, temperature, min_p, vocab, True, BITS, PASS)
            _, more = _reached(line, key, top, temperature, min_p, vocab, True, PASS)
            equals = top_k - more.to(tl.int32)
        own = _weigh(_unordered(key), top, temperature, min_p)
        if top_p < 1:
            least, more = _reached(line, key, top, temperature, min_p, vocab, False, PASS)
            total = tl.where(top_k > 0, more + equals * own, least)
            goal = top_p * total
            least_p = _largest_key(line, goal, top, temperature, min_p, vocab, False, BITS, PASS)
            if least_p > key:
                key = least_p
                equals = vocab
                own = _weigh(_unordered(key), top, temperature, min_p)
                _, more = _reached(line, key, top, temperature, min_p, vocab, False, PASS)
            wanted = tl.ceil((goal - more) / tl.maximum(own, 1e-30))
            wanted = tl.minimum(tl.maximum(wanted, 1.0), vocab.to(tl.float32))
            equals = tl.minimum(equals, wanted.to(tl.int32))
        if min_p > 0:
            lowest = top + temperature * tl.log(min_p)
            floor = _ordered(lowest)
            equals = tl.where(floor > key, vocab, equals)
            key = tl.maximum(floor, key)
        seen = 0
        last = vocab
        for start in range(0, vocab, PASS):
            token = start + tl.arange(0, PASS)
            value = tl.load(line + token, mask=token < vocab, other=float("-inf")).to(tl.float32)
            same = (_ordered(value) == key) & (token < vocab)
            count = seen + tl.cumsum(same.to(tl.int32), axis=0)
            here = tl.min(tl.where(same & (count == equals), token, vocab), axis=0)
            last = tl.minimum(last, here)
            seen += tl.sum(same.to(tl.int32), axis=0)
        equals = last
    tl.store(least_keys + index, key.to(tl.int32, bitcast=True))
    tl.store(last_equals + index, equals)


@triton.jit
def _best_of_piece(
    logits, rows, places, temperatures, seeds, least_keys, last_equals, best, index, vocab,
    PIECE: tl.constexpr,
):  # fmt: skip
    line = tl.program_id(0).to(tl.int64)
    piece = tl.program_id(1)
    row = tl.load(rows + line).to(tl.int64)
    temperature = tl.load(temperatures + row)
    least = tl.load(least_keys + line).to(tl.uint32, bitcast=True)
    last = tl.load(last_equals + line)
    QUARTER: tl.constexpr = PIECE // 4
    at = tl.arange(0, QUARTER)
    seed = tl.load(seeds + row)
    place = tl.load(places + line)
    counter = piece * QUARTER + at
    zero = counter * 0
    n0, n1, n2, n3 = tl.philox(seed, counter, zero + place, zero, zero)
    top = float("-inf")
    where = 0
    for quarter in tl.static_range(4):
        noise = n0 if quarter == 0 else (n1 if quarter == 1 else (n2 if quarter == 2 else n3))
        token = piece * PIECE + quarter * QUARTER + at
        value = tl.load(logits + line * vocab + token, mask=token < vocab, other=float("-inf"))
        value = value.to(tl.float32)
        if temperature > 0:
            key = _ordered(value)
            kept = (key > least) | ((key == least) & (token <= last))
            uniform = tl.maximum(tl.uint_to_uniform_float(noise), 1e-10)
            value = value / temperature - tl.log(-tl.log(uniform) + 1e-20)
            value = tl.where(kept, value, float("-inf"))
        here = tl.max(value, axis=0)
        token_here = tl.min(tl.where(value == here, token, 2147483647), axis=0)
        where = tl.where(here > top, token_here, where)
        top = tl.maximum(top, here)
    pieces = tl.num_programs(1)
    tl.store(best + line * pieces + piece, top)
    tl.store(index + line * pieces + piece, where)


@triton.jit
def _best_of_all(best, index, rows, last, chosen, pieces, BLOCK: tl.constexpr):
    line = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < pieces
    value = tl.load(best + line * pieces + at, mask=inside, other=float("-inf"))
    token = tl.load(index + line * pieces + at, mask=inside, other=2147483647)
    winner = tl.min(tl.where(value == tl.max(value, axis=0), token, 2147483647), axis=0)
    tl.store(chosen + line, winner)
    tl.store(last + tl.load(rows + line).to(tl.int64), winner)


def sample(
    logits: torch.Tensor,
    rows: torch.Tensor,
    places: torch.Tensor,
    settings: Settings,
    last: torch.Tensor,
) -> torch.Tensor:
    """[n, vocab] -> n ids, which are also written to `last`, each in its request's row.

    `settings` and `last` are by row; `places` count what each request sampled before.
    """
    lines, vocab = logits.shape
    pieces = triton.cdiv(vocab, PIECE)
    least_keys, last_equals, chosen = torch.empty(3, lines, dtype=torch.int32, device=logits.device)
    best = torch.empty(lines, pieces, dtype=torch.float32, device=logits.device)
    index = torch.empty(lines, pieces, dtype=torch.int32, device=logits.device)
    _filter[(lines,)](
        logits, rows, settings.temperatures, settings.top_ps, settings.min_ps, settings.top_ks,
        least_keys, last_equals, vocab, BITS=BITS[logits.dtype], PASS=PASS, num_warps=16,
    )  # fmt: skip
    _best_of_piece[(lines, pieces)](
        logits, rows, places, settings.temperatures, settings.seeds, least_keys, last_equals,
        best, index, vocab, PIECE=PIECE, num_warps=4,
    )  # fmt: skip
    block = triton.next_power_of_2(pieces)
    _best_of_all[(lines,)](best, index, rows, last, chosen, pieces, BLOCK=block, num_warps=1)
    return chosen
