"""The Triton kernels against the same written in torch."""

from __future__ import annotations

import random

import pytest
import torch

pytest.importorskip("triton")

from engine.attention.base import KVLayout, Turn
from engine.attention.paged import PagedPlan, allocate, tiles_of
from engine.kernels.fused import add_rms_norm, silu_gate
from engine.kernels.sampling import sample
from tests.engine.test_attention import dense

pytestmark = pytest.mark.gpu
DEVICE = torch.device("cuda")


def ints(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


def noise(*size: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


@pytest.mark.parametrize("size", [32, 96, 576])
def test_norm_adds_what_came_before_and_changes_neither(size: int) -> None:
    x, delta, weight = noise(5, size), noise(5, size, seed=2), noise(size, seed=3)
    kept = x.clone(), delta.clone()
    normed, total = add_rms_norm(x, delta, weight, 1e-6)
    expected = torch.nn.functional.rms_norm(x + delta, (size,), weight, 1e-6)
    torch.testing.assert_close(normed, expected)
    torch.testing.assert_close(total, x + delta)
    assert torch.equal(x, kept[0])
    assert torch.equal(delta, kept[1])
    first, same = add_rms_norm(x, None, weight, 1e-6)
    torch.testing.assert_close(first, torch.nn.functional.rms_norm(x, (size,), weight, 1e-6))
    assert same is x


def test_gated_mlp() -> None:
    both = noise(3, 2 * 1500)
    gate, up = both.chunk(2, dim=-1)
    torch.testing.assert_close(silu_gate(both), torch.nn.functional.silu(gate) * up)


def turn(dim: int, head_norm: bool) -> Turn:
    angles = torch.arange(64.0).unsqueeze(1) * torch.logspace(0, -3, dim // 2)
    norms = (noise(dim, seed=8), noise(dim, seed=9)) if head_norm else (None, None)
    return Turn(angles.cos().to(DEVICE), angles.sin().to(DEVICE), *norms, eps=1e-6)


@pytest.mark.parametrize("kv", [1, 2, 4, 8])
@pytest.mark.parametrize(
    ("dim", "block_size", "head_norm"), [(8, 4, True), (24, 16, False), (32, 1, True)]
)
def test_random_steps_of_singles_and_chunks(
    kv: int, dim: int, block_size: int, head_norm: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four requests with scattered blocks and prefixes of any length; every row checked against
    dense attention over what its request has seen."""
    dice = random.Random(kv * 100 + dim)
    queries, width = 8, 48 // block_size
    rotation = turn(dim, head_norm)
    layout = KVLayout(1, block_size, kv, dim, torch.float32)
    cache = allocate(layout, 4 * width, DEVICE)
    tables = ints(dice.sample(range(4 * width), 4 * width)).view(4, width)
    seen = [(torch.empty(0, kv, dim, device=DEVICE),) * 2 for _ in range(4)]
    for number in range(5):
        rows = dice.sample(range(4), dice.randint(1, 4))
        starts = {row: len(seen[row][0]) for row in rows}
        sizes = {row: min(dice.choice((1, 1, 2, 7, 19)), 48 - starts[row]) for row in rows}
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
            expected.append(dense(query[part].cpu(), *(one.cpu() for one in seen[row])).to(DEVICE))
        plan = PagedPlan(
            cache, tables, positions, owners, len(spans) - len(long), tiles if long else None
        )
        mixed = plan(0, heads.clone(), rotation)
        torch.testing.assert_close(mixed, torch.cat(expected), atol=2e-5, rtol=2e-5)


def test_greedy_rows_take_the_best_and_all_is_written_down() -> None:
    logits = noise(3, 9000)
    logits[1, 5000] = logits[1, 8999] = 50.0  # the first of equals
    last = ints([0] * 6)
    chosen = sample(
        logits,
        ints([4, 0, 2]),
        ints([0, 0, 0]),
        torch.zeros(6, device=DEVICE),
        torch.zeros(6, dtype=torch.int64, device=DEVICE),
        last,
    )
    assert chosen.tolist() == logits.argmax(-1).tolist()
    assert last.tolist() == [chosen[1], 0, chosen[2], 0, chosen[0], 0]


def test_draws_follow_the_distribution_and_depend_on_seed_and_place_alone() -> None:
    """2,000 places of one request: the shares of three tokens are those of the softmax."""
    count = 2000
    logits = torch.full((count, 8), -30.0, device=DEVICE)
    logits[:, 1], logits[:, 4], logits[:, 7] = 1.0, 0.0, -1.0
    heat = torch.tensor([2.0, 2.0], device=DEVICE)
    seeds = torch.tensor([11, 12], device=DEVICE)

    def draw(order: list[int], row: int) -> list[int]:
        rows = ints([row] * len(order))
        drawn: list[int] = sample(
            logits[: len(order)], rows, ints(order), heat, seeds, ints([0, 0])
        ).tolist()
        return drawn

    drawn = draw(list(range(count)), 0)
    expected = torch.softmax(logits[0] / 2.0, -1)
    for token in (1, 4, 7):
        assert abs(drawn.count(token) / count - expected[token].item()) < 0.04
    assert draw([5, 1999, 3], 0) == [drawn[5], drawn[1999], drawn[3]]
    assert draw(list(range(count)), 1) != drawn
