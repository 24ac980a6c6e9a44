"""Paged attention in plain torch: gather a request's blocks, then scaled_dot_product_attention.

The reference for every faster backend, and the CPU's. Works on any device.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention

from engine.attention.base import WHOLE, Attend, Span, Turn, View


class SdpaBackend:
    def __init__(self, cache: tuple[torch.Tensor, ...]) -> None:
        self.cache = cache
        self.block_size = cache[0].shape[2]
        self.device = cache[0].device

    def plan(self, spans: Sequence[Span]) -> Attend:
        longer = (group for group in self._prefills(spans, 0) if group.length > 1)
        groups: list[Group] = [*longer, *self._decodes(spans)]
        return _Plan(self.cache, self._all_slots(spans), self._all_positions(spans), groups)

    def _all_slots(self, spans: Sequence[Span]) -> torch.Tensor:
        return self._ids([slot for span in spans for slot in self._slots(span)])

    def _all_positions(self, spans: Sequence[Span]) -> torch.Tensor:
        return self._ids([place for span in spans for place in range(span.start, span.stop)])

    def _ids(self, values: Sequence[object]) -> torch.Tensor:
        return torch.tensor(values, device=self.device)

    def _slots(self, span: Span) -> Iterator[int]:
        """Where in the cache, seen as one row of token slots, the new tokens go."""
        for position in range(span.start, span.stop):
            yield (
                span.blocks[position // self.block_size] * self.block_size
                + position % self.block_size
            )

    def _prefills(self, spans: Sequence[Span], skipped: int) -> Iterator[_Prefills]:
        """Of the spans but the first `skipped`, neighbours of the same positions together."""
        neighbours = groupby(self._after(spans, skipped), lambda one: (one[1].start, one[1].length))
        for (start, length), group in neighbours:
            members = list(group)
            row, blocks = members[0][0], self._num_blocks(members[0][1])
            tables = self._ids([span.blocks[:blocks] for _, span in members])
            yield _Prefills(slice(row, row + length * len(members)), start, length, tables)

    def _decodes(self, spans: Sequence[Span]) -> Iterator[_Decodes]:
        """Single tokens, batched by length: padded to the next power of two blocks, so that less
        than half of what is gathered is padding."""
        buckets: dict[int, list[tuple[int, Span]]] = defaultdict(list)
        for row, span in self._after(spans, 0):
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
            lengths=lengths.unsqueeze(1),
            visible=(positions < lengths.unsqueeze(1))[:, None, None, :],
        )

    def _num_blocks(self, span: Span) -> int:
        return -(-span.stop // self.block_size)

    @staticmethod
    def _after(spans: Sequence[Span], skipped: int) -> Iterator[tuple[int, Span]]:
        """Each span but the first `skipped`, with the row of its first token."""
        row = 0
        for number, span in enumerate(spans):
            if number >= skipped:
                yield row, span
            row += span.length


class Group(Protocol):
    """Some rows of a step that one attention call computes."""

    @property
    def rows(self) -> slice | torch.Tensor: ...

    def attend(self, query: torch.Tensor, cache: torch.Tensor, view: View) -> torch.Tensor: ...


@dataclass(frozen=True)
class _Plan:
    cache: tuple[torch.Tensor, ...]
    slots: torch.Tensor
    positions: torch.Tensor
    groups: Sequence[Group]

    def __call__(
        self, layer: int, heads: torch.Tensor, turn: Turn | None, view: View = WHOLE
    ) -> torch.Tensor:
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
            mixed[group.rows] = group.attend(query[group.rows], cache, view)
        return mixed


@dataclass(frozen=True)
class _Prefills:
    """Several tokens of each of some requests, the same positions of all: their blocks gathered,
    each token sees up to itself.

    Requests times KV heads are SDPA's batch and the query heads that share one are its heads: the
    expand below repeats keys and values by a stride of zero, without copying them.
    """

    rows: slice
    start: int
    length: int
    tables: torch.Tensor  # [requests, blocks]

    def attend(self, query: torch.Tensor, cache: torch.Tensor, view: View) -> torch.Tensor:
        requests, kv = len(self.tables), cache.shape[3]
        stop = self.start + self.length
        gathered = _gathered(cache, self.tables)[:, :, :stop].transpose(2, 3).flatten(1, 2)
        queries = query.view(requests, self.length, kv, -1, query.shape[-1])
        grouped = queries.permute(0, 2, 3, 1, 4).flatten(0, 1)
        keys, values = gathered.unsqueeze(2).expand(-1, -1, grouped.shape[1], -1, -1)
        if self.start == 0 and view == WHOLE:
            mixed = scaled_dot_product_attention(grouped, keys, values, is_causal=True)
        else:
            mixed = _masked(grouped, keys, values, self._mask(view.window), view)
        mixed = torch.unflatten(mixed, 0, (requests, kv))
        return mixed.permute(0, 3, 1, 2, 4).reshape(query.shape)

    def _mask(self, window: int | None) -> torch.Tensor:
        """A chunk that does not start at 0: the diagonal is moved right by what came before."""
        size = (self.length, self.start + self.length)
        seen = torch.ones(size, dtype=torch.bool, device=self.tables.device).tril(self.start)
        return seen if window is None else seen.triu(self.start - window + 1)


@dataclass(frozen=True)
class _Decodes:
    """One token of each of several requests; the query heads of a KV head are SDPA's rows."""

    rows: torch.Tensor
    tables: torch.Tensor
    lengths: torch.Tensor  # [rows, 1], with the new token
    visible: torch.Tensor  # [rows, 1, 1, positions]

    def attend(self, query: torch.Tensor, cache: torch.Tensor, view: View) -> torch.Tensor:
        keys, values = _gathered(cache, self.tables).transpose(2, 3)
        grouped = torch.unflatten(query, 1, (keys.shape[1], -1))
        return _masked(grouped, keys, values, self._mask(view.window), view).flatten(1, 2)

    def _mask(self, window: int | None) -> torch.Tensor:
        if window is None:
            return self.visible
        positions = torch.arange(self.visible.shape[-1], device=self.visible.device)
        return self.visible & (positions >= self.lengths - window)[:, None, None, :]


def _masked(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, view: View
) -> torch.Tensor:
    """SDPA, which knows no cap on the scores: with one, the same by hand."""
    if view.softcap is None:
        return scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=view.scale)
    scale = query.shape[-1] ** -0.5 if view.scale is None else view.scale
    scores = (query @ keys.transpose(-1, -2)).float() * scale
    capped = (view.softcap * (scores / view.softcap).tanh()).masked_fill(~mask, float("-inf"))
    mixed: torch.Tensor = capped.softmax(dim=-1).to(values.dtype) @ values
    return mixed


def _gathered(cache: torch.Tensor, tables: torch.Tensor) -> torch.Tensor:
    """Blocks joined along positions: [2, ..., blocks * block_size, kv_heads, dim] for tables
    [..., blocks]. Plain indexing would do, at a third of the speed on a CPU."""
    blocks = cache.index_select(1, tables.flatten())
    return torch.unflatten(blocks, 1, tables.shape).flatten(tables.ndim, tables.ndim + 1)


def _padded(blocks: tuple[int, ...], width: int) -> tuple[int, ...]:
    """Padding repeats the request's own first block: it is masked, but never another's data."""
    return blocks + blocks[:1] * (width - len(blocks))
