"""The paged backends of the CPU against attention written out densely, over random histories."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
import torch

from engine.attention.base import WHOLE, AttentionBackend, KVLayout, Span, View
from engine.attention.compiled import CompiledBackend
from engine.attention.sdpa import SdpaBackend

HEAD_DIM = 8
CPU = torch.device("cpu")


def dense(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, view: View = WHOLE
) -> torch.Tensor:
    """The last len(query) positions of one sequence, in fp64, KV heads repeated."""
    repeats = query.shape[1] // keys.shape[1]
    keys, values = (t.double().repeat_interleave(repeats, dim=1) for t in (keys, values))
    scale = query.shape[-1] ** -0.5 if view.scale is None else view.scale
    scores = torch.einsum("qhd,khd->hqk", query.double(), keys) * scale
    if view.softcap is not None:
        scores = view.softcap * (scores / view.softcap).tanh()
    first = len(keys) - len(query)
    hidden = torch.ones(len(query), len(keys), dtype=torch.bool).triu(first + 1)
    if view.window is not None:
        hidden |= torch.ones_like(hidden).tril(first - view.window)
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, values).float()


@dataclass
class History:
    """One request as the test knows it: its blocks, and every key and value so far."""

    blocks: tuple[int, ...]
    keys: torch.Tensor
    values: torch.Tensor
    spans: list[Span] = field(default_factory=list)


@pytest.fixture(params=[SdpaBackend, CompiledBackend], autouse=True)
def _backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(World, "kind", request.param, raising=False)


class World:
    kind: Callable[[tuple[torch.Tensor, ...]], AttentionBackend]

    def __init__(self, *, heads: int, kv_heads: int, block_size: int, num_blocks: int) -> None:
        self.heads, self.kv_heads, self.block_size = heads, kv_heads, block_size
        layout = KVLayout(2, block_size, kv_heads, HEAD_DIM, torch.float32)
        self.cache = layout.allocate(num_blocks, CPU)
        self.backend = type(self).kind(self.cache)
        self.noise = torch.Generator().manual_seed(7)

    def sequence(self, blocks: Sequence[int]) -> History:
        empty = torch.empty(0, self.kv_heads, HEAD_DIM)
        return History(tuple(blocks), empty, empty)

    def random(self, tokens: int, heads: int) -> torch.Tensor:
        return torch.randn(tokens, heads, HEAD_DIM, generator=self.noise)

    def step(self, work: Sequence[tuple[History, int]], layer: int = 0) -> None:
        """New tokens of some sequences in one call; checks every row against `dense`."""
        spans = [self._span(sequence, length) for sequence, length in work]
        total = sum(span.length for span in spans)
        query = self.random(total, self.heads)
        key, value = self.random(total, self.kv_heads), self.random(total, self.kv_heads)
        mixed = self.backend.plan(spans)(layer, torch.cat((query, key, value), dim=1), None)
        row = 0
        for sequence, length in work:
            rows = slice(row, row + length)
            sequence.keys = torch.cat((sequence.keys, key[rows]))
            sequence.values = torch.cat((sequence.values, value[rows]))
            expected = dense(query[rows], sequence.keys, sequence.values)
            torch.testing.assert_close(mixed[rows], expected, atol=1e-5, rtol=1e-5)
            row += length

    def _span(self, sequence: History, length: int) -> Span:
        start = len(sequence.keys)
        used = -(-(start + length) // self.block_size)
        return Span(start, length, sequence.blocks[:used])


@pytest.mark.parametrize("kv_heads", [1, 2, 4, 8])
@pytest.mark.parametrize("block_size", [1, 4, 16])
def test_random_histories_of_chunks_and_decodes(kv_heads: int, block_size: int) -> None:
    """Five requests with scattered blocks; each step takes some of them, chunks and single
    tokens mixed."""
    dice = random.Random(kv_heads * 100 + block_size)
    per_sequence = 48 // block_size
    world = World(heads=8, kv_heads=kv_heads, block_size=block_size, num_blocks=5 * per_sequence)
    order = dice.sample(range(5 * per_sequence), 5 * per_sequence)
    sequences = [world.sequence(order[i * per_sequence : (i + 1) * per_sequence]) for i in range(5)]
    for _ in range(12):
        chosen = dice.sample(sequences, dice.randint(1, 5))
        sizes = [(s, min(dice.choice((1, 1, 2, 5, 17)), 48 - len(s.keys))) for s in chosen]
        if work := [(s, size) for s, size in sizes if size]:
            world.step(work)


def test_neighbours_of_the_same_positions() -> None:
    """They are computed together: one that differs parts them, and so does a single token."""
    world = World(heads=4, kv_heads=2, block_size=4, num_blocks=12)
    first, second, third, fourth = (world.sequence([n, n + 4, n + 8]) for n in range(4))
    world.step([(first, 5), (second, 5), (third, 1), (fourth, 5)])
    world.step([(third, 4), (first, 3), (second, 3), (fourth, 1)])
    world.step([(first, 1), (second, 1), (third, 4), (fourth, 4)])


@pytest.mark.parametrize("length", [15, 16, 17, 31, 32, 33])
def test_decodes_at_block_edges(length: int) -> None:
    world = World(heads=4, kv_heads=2, block_size=16, num_blocks=4)
    sequence = world.sequence([3, 1, 2, 0])
    world.step([(sequence, length)])
    for _ in range(2):
        world.step([(sequence, 1)])


def test_a_prompt_of_one_token() -> None:
    world = World(heads=4, kv_heads=2, block_size=16, num_blocks=1)
    world.step([(world.sequence([0]), 1)])


def test_layers_do_not_share_memory() -> None:
    world = World(heads=4, kv_heads=2, block_size=4, num_blocks=4)
    first, second = world.sequence([0, 1]), world.sequence([0, 1])
    world.step([(first, 6)], layer=0)
    world.step([(second, 6)], layer=1)
    world.step([(first, 1)], layer=0)


def test_a_step_writes_its_own_slots_alone() -> None:
    world = World(heads=4, kv_heads=2, block_size=4, num_blocks=4)
    for cache in world.cache:
        cache.fill_(5.0)
    world.step([(world.sequence([2, 1]), 6)])
    keys = world.cache[0][0].flatten(0, 1)
    untouched = [slot for slot in range(16) if bool((keys[slot] == 5.0).all())]
    assert untouched == [0, 1, 2, 3, 6, 7, 12, 13, 14, 15]
    assert bool((world.cache[1] == 5.0).all())


def test_what_lies_in_another_requests_blocks_does_not_matter() -> None:
    """Padding multiplies masked slots: a NaN of a neighbour must not come through."""
    world = World(heads=4, kv_heads=2, block_size=4, num_blocks=8)
    world.cache[0][:, 0].fill_(float("nan"))
    long, short = world.sequence([1, 2, 3, 4]), world.sequence([5, 6, 7])
    world.step([(long, 15), (short, 8)])
    world.step([(long, 1), (short, 1)])


def test_block_bytes_are_what_allocate_takes() -> None:
    layout = KVLayout(3, 16, 2, 8, torch.bfloat16)
    taken = sum(t.numel() * t.element_size() for t in layout.allocate(5, CPU))
    assert layout.block_bytes * 5 == taken
