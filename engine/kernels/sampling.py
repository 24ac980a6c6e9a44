"""Greedy and temperature sampling in one pass over the logits, without a sort or a sum.

The Gumbel trick: argmax(logit / temperature - log(-log(u))) is a draw from the softmax. The noise
u of a token depends on its request's seed, its place and the vocabulary index alone.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

PIECE = 4096


@triton.jit
def _best_of_piece(
    logits, rows, places, temperatures, seeds, best, index, vocab, PIECE: tl.constexpr
):
    line = tl.program_id(0).to(tl.int64)
    piece = tl.program_id(1)
    row = tl.load(rows + line).to(tl.int64)
    temperature = tl.load(temperatures + row)
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
            uniform = tl.maximum(tl.uint_to_uniform_float(noise), 1e-10)
            value = value / temperature - tl.log(-tl.log(uniform) + 1e-20)
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
    temperatures: torch.Tensor,
    seeds: torch.Tensor,
    last: torch.Tensor,
) -> torch.Tensor:
    """[n, vocab] -> n ids, which are also written to `last`, each in its request's row.

    `temperatures` (0: greedy), `seeds` and `last` are by row; `places` count what each request
    sampled before.
    """
    lines, vocab = logits.shape
    pieces = triton.cdiv(vocab, PIECE)
    best = torch.empty(lines, pieces, dtype=torch.float32, device=logits.device)
    index = torch.empty(lines, pieces, dtype=torch.int32, device=logits.device)
    chosen = torch.empty(lines, dtype=torch.int32, device=logits.device)
    _best_of_piece[(lines, pieces)](
        logits, rows, places, temperatures, seeds, best, index, vocab, PIECE=PIECE, num_warps=4
    )
    block = triton.next_power_of_2(pieces)
    _best_of_all[(lines,)](best, index, rows, last, chosen, pieces, BLOCK=block, num_warps=1)
    return chosen
