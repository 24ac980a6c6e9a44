"""Paged attention in plain torch: gather a request's blocks, then scaled_dot_product_attention.

The reference for every faster backend, and the CPU's. Works on any device.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention

from engine.attention.base import Attend, Span, Turn


class SdpaBackend:
    def __init__(self, cache: tuple[torch.Tensor, ...]) -> None:
        self.cache = cache
        self.block_size = cache[0].shape[2]
        self.device = cache[0].device

    def plan(self, spans: Sequence[Span]) -> Attend:
        slots = [slot for span in spans for slot in self._slots(span)]
        groups: list[_Group] = [*self._prefills(spans), *self._decodes(spans)]
        positions = [place for span in spans for place in range(span.start, span.stop)]
        return _Plan(self.cache, self._ids(slots), self._ids(positions), groups)

    def _ids(self, values: list[int]) -> torch.Tensor:
        return torch.tensor(values, device=self.device)

    def _slots(self, span: Span) -> Iterator[int]:
        """Where in the cache, seen as one row of token slots, the new tokens go."""
        for position in range(span.start, span.stop):
            yield (
                span.blocks[position // self.block_size] * self.block_size
                + position % self.block_size
            )

    def _prefills(self, spans: Sequence[Span]) -> Iterator[_Prefill]:
        for row, span in _with_rows(spans):
            if span.length > 1:
                rows = slice(row, row + span.length)
                blocks = span.blocks[: self._num_blocks(span)]
                yield _Prefill(rows, span, torch.tensor(blocks, device=self.device))

    def _decodes(self, spans: Sequence[Span]) -> Iterator[_Decodes]:
        """Single tokens, batched by length: padded to the next power of two blocks, so that less
        than half of what is gathered is padding."""
        buckets: dict[int, list[tuple[int, Span]]] = defaultdict(list)
        for row, span in _with_rows(spans):
            if span.length == 1:
                buckets[1 << (self._num_blocks(span) - 1).bit_length()].append((row, span))
        for width, members in buckets.items():
            yield self._decode_bucket(width, members)

    def _decode_bucket(self, width: int, members: list[tuple[int, Span]]) -> _Decodes:
        tables = [_padded(span.blocks[: self._num_blocks(span)], width) for _, span in members]
        lengths = torch.tensor([span.stop for _, span in members], device=self.device)
        positions = torch.arange(width * self.block_size, device=self.device)
        return _Decodes(
            rows=torch.tensor([row for row, _ in members], device=self.device),
            tables=torch.tensor(tables, device=self.device),
            visible=(positions < lengths.unsqueeze(1))[:, None, None, :],
        )

    def _num_blocks(self, span: Span) -> int:
        return -(-span.stop // self.block_size)


class _Group(Protocol):
    """Some rows of a step that one attention call computes."""

    @property
    def rows(self) -> slice | torch.Tensor: ...

    def attend(self, query: torch.Tensor, cache: torch.Tensor) -> torch.Tensor: ...


@dataclass(frozen=True)
class _Plan:
    cache: tuple[torch.Tensor, ...]
    slots: torch.Tensor
    positions: torch.Tensor
    groups: Sequence[_Group]

    def __call__(self, layer: int, heads: torch.Tensor, turn: Turn | None) -> torch.Tensor:
        cache = self.cache[layer]
        kv = cache.shape[3]
        query, key, value = torch.split(heads, [heads.shape[1] - 2 * kv, kv, kv], dim=1)
        if turn is not None:
            query = turn.apply(query, self.positions, turn.query_norm)
            key = turn.apply(key, self.positions, turn.key_norm)
        keys, values = cache.flatten(1, 2)
        keys.index_copy_(0, self.slots, key)
        values.index_copy_(0, self.slots, value)
        mixed = torch.empty_like(query)
        for group in self.groups:
            mixed[group.rows] = group.attend(query[group.rows], cache)
        return mixed


@dataclass(frozen=True)
class _Prefill:
    """Several tokens of one request: its blocks gathered, each token sees up to itself.

    KV heads are SDPA's batch and the query heads that share one are its heads: the expand below
    repeats keys and values by a stride of zero, without copying them.
    """

    rows: slice
    span: Span
    blocks: torch.Tensor

    def attend(self, query: torch.Tensor, cache: torch.Tensor) -> torch.Tensor:
        gathered = _gathered(cache, self.blocks)[:, : self.span.stop].transpose(1, 2)
        grouped = torch.unflatten(query, 1, (gathered.shape[1], -1)).permute(1, 2, 0, 3)
        keys, values = gathered.unsqueeze(2).expand(-1, -1, grouped.shape[1], -1, -1)
        whole = self.span.start == 0
        mixed = scaled_dot_product_attention(
            grouped, keys, values, attn_mask=None if whole else self._mask(), is_causal=whole
        )
        return mixed.permute(2, 0, 1, 3).flatten(1, 2)

    def _mask(self) -> torch.Tensor:
        """A chunk that does not start at 0: the diagonal is moved right by what came before."""
        ones = torch.ones(
            self.span.length, self.span.stop, dtype=torch.bool, device=self.blocks.device
        )
        return ones.tril(self.span.start)


@dataclass(frozen=True)
class _Decodes:
    """One token of each of several requests; the query heads of a KV head are SDPA's rows."""

    rows: torch.Tensor
    tables: torch.Tensor
    visible: torch.Tensor

    def attend(self, query: torch.Tensor, cache: torch.Tensor) -> torch.Tensor:
        keys, values = _gathered(cache, self.tables).transpose(2, 3)
        grouped = torch.unflatten(query, 1, (keys.shape[1], -1))
        return scaled_dot_product_attention(grouped, keys, values, attn_mask=self.visible).flatten(
            1, 2
        )


def _gathered(cache: torch.Tensor, tables: torch.Tensor) -> torch.Tensor:
    """Blocks joined along positions: [2, ..., blocks * block_size, kv_heads, dim] for tables
    [..., blocks]. Plain indexing would do, at a third of the speed on a CPU."""
    blocks = cache.index_select(1, tables.flatten())
    return torch.unflatten(blocks, 1, tables.shape).flatten(tables.ndim, tables.ndim + 1)


def _with_rows(spans: Sequence[Span]) -> Iterator[tuple[int, Span]]:
    """Each span with the row of its first token."""
    row = 0
    for span in spans:
        yield row, span
        row += span.length


def _padded(blocks: tuple[int, ...], width: int) -> tuple[int, ...]:
    """Padding repeats the request's own first block: it is masked, but never another's data."""
    return blocks + blocks[:1] * (width - len(blocks))
