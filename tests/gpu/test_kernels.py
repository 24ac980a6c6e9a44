"""The Triton kernels against the same written in torch.

Without a GPU: TRITON_INTERPRET=1 with triton 3.6 and a numpy before 2.4.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from engine.attention.base import WHOLE, KVLayout, Turn, View
from engine.attention.paged import PagedPlan, allocate, tiles_of
from engine.communicators import Solo
from engine.kernels import experts, thin
from engine.kernels.fused import add_rms_norm, silu_gate
from engine.kernels.sampling import Settings, sample
from engine.layers.base import Build
from engine.layers.norm import RMSNorm, UnitRMSNorm
from engine.layers.sampler import _kept_weights
from engine.sampling_params import SamplingParams
from tests.engine.test_attention import dense

pytestmark = pytest.mark.gpu
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def ints(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


def noise(*size: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


@pytest.mark.parametrize("size", [32, 96, 576])
@pytest.mark.parametrize("kind", [RMSNorm, UnitRMSNorm])
def test_norm_adds_what_came_before_and_changes_neither(kind: type[RMSNorm], size: int) -> None:
    norm = kind(Build(Solo(), DEVICE, torch.float32), size, 1e-6)
    norm.weight.copy_(noise(size, seed=3))
    x, delta = noise(5, size), noise(5, size, seed=2)
    kept = x.clone(), delta.clone()
    normed, total = add_rms_norm(x, delta, norm.weight, 1e-6, norm.unit)
    torch.testing.assert_close(normed, norm.normalise(x + delta))
    torch.testing.assert_close(total, x + delta)
    assert torch.equal(x, kept[0])
    assert torch.equal(delta, kept[1])
    first, same = add_rms_norm(x, None, norm.weight, 1e-6, norm.unit)
    torch.testing.assert_close(first, norm.normalise(x))
    assert same is x


def test_gated_mlp() -> None:
    both = noise(3, 2 * 1500)
    gate, up = both.chunk(2, dim=-1)
    torch.testing.assert_close(silu_gate(both), torch.nn.functional.silu(gate) * up)


def turn(dim: int, turned: int, head_norm: bool) -> Turn:
    angles = torch.arange(LONGEST).unsqueeze(1) * torch.logspace(0, -3, turned // 2)
    norms = (noise(dim, seed=8), noise(dim, seed=9)) if head_norm else (None, None)
    return Turn(angles.cos().to(DEVICE), angles.sin().to(DEVICE), *norms, eps=1e-6)


LONGEST = 48
FORMS = {  # head size, how much of it turns, block size, norm of heads, view
    "plain": (8, 8, 4, True, WHOLE),
    "odd": (24, 24, 16, False, WHOLE),
    "small blocks": (32, 32, 1, True, WHOLE),
    "partial": (24, 8, 16, False, WHOLE),
    "window": (16, 16, 4, False, View(window=5)),
    "wide window": (16, 16, 16, True, View(window=33)),
    "gemma": (16, 16, 16, False, View(window=9, softcap=2.0, scale=0.3)),
}


@pytest.mark.parametrize("kv", [1, 2, 4, 8])
@pytest.mark.parametrize("form", FORMS)
def test_random_steps_of_singles_and_chunks(kv: int, form: str) -> None:
    """Four requests with scattered blocks and prefixes of any length; every row checked against
    dense attention over what its request has seen."""
    dim, turned, block_size, head_norm, view = FORMS[form]
    dice = random.Random(kv * 100 + dim)
    queries, width = 8, LONGEST // block_size
    rotation = turn(dim, turned, head_norm)
    layout = KVLayout(1, block_size, kv, dim, torch.float32)
    cache = allocate(layout, 4 * width, DEVICE)
    tables = ints(dice.sample(range(4 * width), 4 * width)).view(4, width)
    seen = [(torch.empty(0, kv, dim, device=DEVICE),) * 2 for _ in range(4)]
    for number in range(5):
        rows = dice.sample(range(4), dice.randint(1, 4))
        starts = {row: len(seen[row][0]) for row in rows}
        sizes = {row: min(dice.choice((1, 1, 2, 7, 19)), LONGEST - starts[row]) for row in rows}
        work = [(row, sizes[row], starts[row]) for row in rows if sizes[row]]
        work.sort(key=lambda one: one[1] > 1)
        if not work:
            continue
        total = sum(n for _, n, _ in work)
        heads = noise(total, queries + 2 * kv, dim, seed=number)
        positions = ints([place for _, n, start in work for place in range(start, start + n)])
        owners = ints([row for row, n, _ in work for _ in range(n)])
        firsts = [sum(n for _, n, _ in work[:i]) for i in range(len(work))]
        spans = [(at, n, start, row) for at, (row, n, start) in zip(firsts, work, strict=True)]
        long = [span for span in spans if span[1] > 1]
        tiles = ints([part for piece in tiles_of(long) for part in piece]).view(-1, 4)
        query, key, value = heads.split([queries, kv, kv], dim=1)
        query = rotation.apply(query, positions, rotation.query_norm)
        key = rotation.apply(key, positions, rotation.key_norm)
        expected = []
        for at, n, _, row in spans:
            part = slice(at, at + n)
            seen[row] = (
                torch.cat((seen[row][0], key[part])),
                torch.cat((seen[row][1], value[part])),
            )
            both = (one.cpu() for one in seen[row])
            expected.append(dense(query[part].cpu(), *both, view).to(DEVICE))
        plan = PagedPlan(
            cache, tables, positions, owners, len(spans) - len(long), tiles if long else None
        )
        mixed = plan(0, heads.clone(), rotation, view)
        torch.testing.assert_close(mixed, torch.cat(expected), atol=2e-5, rtol=2e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="slow without a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("dim", [64, 80, 128, 256])
@pytest.mark.parametrize("window", [None, 300])
def test_long_contexts_in_sizes_that_models_have(
    dim: int, dtype: torch.dtype, window: int | None
) -> None:
    """700 tokens at once, then single tokens behind 1,000 others: splits, tiles, shared memory."""
    view, length, start, kv = View(window), 700, 331, 2
    layout = KVLayout(1, 16, kv, dim, dtype)
    cache, tables = allocate(layout, 80, DEVICE), ints(list(range(79, 14, -1))).view(1, 65)
    heads = noise(start + length + 1, 4 + 2 * kv, dim).to(dtype)
    query, key, value = (part.float().cpu() for part in heads.split([4, kv, kv], dim=1))
    expected = dense(query, key, value, view)
    got = []
    for first, stop in ((0, start), (start, start + length), (start + length, len(heads))):
        places = ints(list(range(first, stop)))
        tiles = ints([part for one in tiles_of([(0, stop - first, first, 0)]) for part in one])
        singles = int(stop - first == 1)
        plan = PagedPlan(
            cache, tables, places, places * 0, singles, None if singles else tiles.view(-1, 4)
        )
        got.append(plan(0, heads[first:stop].clone(), None, view).float().cpu())
    error = (torch.cat(got) - expected).norm() / expected.norm()
    assert error < (1e-5 if dtype == torch.float32 else 8e-3)


@pytest.mark.parametrize(
    ("tokens", "dtype"),
    [(1, torch.float32), (3, torch.float32), (90, torch.float32), (700, torch.bfloat16)],
)
@pytest.mark.parametrize("held", [(0, 6), (2, 3)])
def test_experts_of_random_tokens(tokens: int, dtype: torch.dtype, held: tuple[int, int]) -> None:
    """`held`: first and number of the experts that this rank has. Nothing else is written."""
    if not torch.cuda.is_available() and tokens > 100:
        pytest.skip("slow without a GPU")
    first, count = held
    x, weights = noise(tokens, 40).to(dtype), noise(count, 72, 40, seed=2).to(dtype)
    chosen = torch.stack([torch.randperm(6)[:2] for _ in range(tokens)]).to(DEVICE)
    chosen[tokens // 3 :, 0] = 3  # one is asked for more often than the others
    out = torch.full((2 * tokens, 72), 7.0, dtype=dtype, device=DEVICE)
    experts.product(x, weights, experts.tiles_of(chosen, 6), 2, first, out)
    for pair, expert in enumerate(chosen.flatten().tolist()):
        here = first <= expert < first + count
        row = (
            x[pair // 2].float() @ weights[expert - first].float().T if here else torch.tensor(7.0)
        )
        tolerance = 2e-5 if dtype == torch.float32 else 5e-2
        torch.testing.assert_close(
            out[pair].float(), row.expand(72).to(DEVICE), atol=tolerance, rtol=tolerance
        )


@pytest.mark.parametrize("kind", [RMSNorm, UnitRMSNorm])
@pytest.mark.parametrize(("tokens", "k", "n"), [(1, 64, 261), (1, 100, 40), (3, 2048, 96)])
def test_thin_products_are_those_of_their_parts(
    kind: type[RMSNorm], tokens: int, k: int, n: int
) -> None:
    norm = kind(Build(Solo(), DEVICE, torch.float32), k, 1e-6)
    norm.weight.copy_(noise(k, seed=3))
    x, weight, bias = noise(tokens, k), noise(2 * n, k, seed=4), noise(2 * n, seed=5)
    whole = torch.nn.functional.linear(norm.normalise(x), weight, bias)
    given = (norm.weight, norm.eps, norm.unit)
    close = {"atol": 2e-4, "rtol": 2e-5}
    torch.testing.assert_close(thin.product(x, weight, bias=bias, norm=given), whole, **close)
    gate, up = whole.chunk(2, dim=-1)
    gated = thin.product(x, weight, bias=bias, norm=given, gated=True)
    torch.testing.assert_close(gated, torch.nn.functional.silu(gate) * up, atol=5e-3, rtol=2e-5)
    residual = noise(tokens, 2 * n, seed=6)
    added = thin.product(x, weight, residual=residual)
    torch.testing.assert_close(added, residual + x @ weight.T, **close)


def settings(*rows: SamplingParams, seed: int = 11) -> Settings:
    heat = [0.0 if one.greedy else one.temperature for one in rows]
    floats = ([*heat], [one.top_p for one in rows], [one.min_p for one in rows])
    whole = ([one.top_k or 0 for one in rows], [seed + n for n in range(len(rows))])
    return Settings(
        *(torch.tensor(values, device=DEVICE) for values in floats),
        *(torch.tensor(values, device=DEVICE) for values in whole),
    )


def test_greedy_rows_take_the_best_and_all_is_written_down() -> None:
    logits = noise(3, 9000)
    logits[1, 5000] = logits[1, 8999] = 50.0  # the first of equals
    last = ints([0] * 6)
    chosen = sample(
        logits,
        ints([4, 0, 2]),
        ints([0, 0, 0]),
        settings(*[SamplingParams(temperature=0.0)] * 6),
        last,
    )
    assert chosen.tolist() == logits.argmax(-1).tolist()
    assert last.tolist() == [chosen[1], 0, chosen[2], 0, chosen[0], 0]


def test_draws_follow_the_distribution_and_depend_on_seed_and_place_alone() -> None:
    """2,000 places of one request: the shares of three tokens are those of the softmax."""
    count = 2000
    logits = torch.full((count, 8), -30.0, device=DEVICE)
    logits[:, 1], logits[:, 4], logits[:, 7] = 1.0, 0.0, -1.0
    hot = settings(*[SamplingParams(temperature=2.0)] * 2)

    def draw(order: list[int], row: int) -> list[int]:
        rows = ints([row] * len(order))
        drawn: list[int] = sample(
            logits[: len(order)], rows, ints(order), hot, ints([0, 0])
        ).tolist()
        return drawn

    drawn = draw(list(range(count)), 0)
    expected = torch.softmax(logits[0] / 2.0, -1)
    for token in (1, 4, 7):
        assert abs(drawn.count(token) / count - expected[token].item()) < 0.04
    assert draw([5, 1999, 3], 0) == [drawn[5], drawn[1999], drawn[3]]
    assert draw(list(range(count)), 1) != drawn


FILTERS = [
    {"top_k": 1},
    {"top_k": 7},
    {"top_p": 0.4},
    {"top_p": 0.99},
    {"min_p": 0.1},
    {"top_k": 40, "top_p": 0.5},
    {"top_k": 3, "top_p": 0.9, "min_p": 0.2},
    {"top_k": 400},
    {"top_p": 1e-9},
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("given", FILTERS, ids=str)
def test_filters_keep_what_the_cpus_sampler_keeps(
    given: dict[str, Any], dtype: torch.dtype
) -> None:
    """Every token that is kept is drawn, and no other; bf16 has many that are equally likely."""
    draws, vocab = 3000 if torch.cuda.is_available() else 60, 300
    params = SamplingParams(temperature=1.5, **given)
    line = (2 * noise(vocab)).to(dtype)
    line[7] = line[200] = float("-inf")
    weights = _kept_weights(line.float().unsqueeze(0), [params])[0]
    drawn = sample(
        line.expand(draws, vocab).contiguous(),
        ints([0] * draws),
        ints(list(range(draws))),
        settings(params),
        ints([0]),
    )
    shares = torch.bincount(drawn.long(), minlength=vocab) / draws
    kept = weights / weights.sum()
    assert not shares[kept == 0].any()
    assert (shares - kept).abs().max() < 4 * draws**-0.5
    assert shares[kept > 20 / draws].all()
