"""Paged attention for a CPU with compiled kernels: single tokens read their blocks where they
lie; longer spans are SDPA's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch

from engine.attention.base import WHOLE, Attend, Span, Turn, View
from engine.attention.sdpa import Group, SdpaBackend
from engine.kernels import cpu


class CompiledBackend(SdpaBackend):
    """The single tokens at the front of a step are computed by kernels.cpu.decode."""

    def plan(self, spans: Sequence[Span]) -> Attend:
        singles = list(takewhile(lambda span: span.length == 1, spans))
        blocks = [span.blocks[: self._num_blocks(span)] for span in singles]
        width = max(map(len, blocks), default=0)
        tables = [(*one, *[0] * (width - len(one))) for one in blocks]
        return CompiledPlan(
            cache=self.cache,
            slots=self._all_slots(spans),
            positions=self._all_positions(spans),
            tables=torch.tensor(tables, dtype=torch.int32) if singles else None,
            groups=list(self._prefills(spans, len(singles))),
        )


@dataclass(frozen=True)
class CompiledPlan:
    cache: tuple[torch.Tensor, ...]
    slots: torch.Tensor
    positions: torch.Tensor
    tables: torch.Tensor | None  # of the single tokens at the front: int32 [tokens, blocks]
    groups: Sequence[Group]

    def __call__(
        self, layer: int, heads: torch.Tensor, turn: Turn | None, view: View = WHOLE
    ) -> torch.Tensor:
        cache = self.cache[layer]
        heads = heads.contiguous()
        self._turn_and_store(heads, cache, turn)
        query = heads[:, : heads.shape[1] - 2 * cache.shape[3]]
        mixed = torch.empty(query.shape, dtype=heads.dtype)
        if self.tables is not None:
            scale = heads.shape[-1] ** -0.5 if view.scale is None else view.scale
            past = (heads, self.positions, self.tables, cache)
            cpu.decode(*past, mixed, view.window, view.softcap, scale)
        for group in self.groups:
            mixed[group.rows] = group.attend(query[group.rows], cache, view)
        return mixed

    def _turn_and_store(self, heads: torch.Tensor, cache: torch.Tensor, turn: Turn | None) -> None:
        angles = norms = None
        if turn is not None:
            angles = turn.cos, turn.sin
            if turn.query_norm is not None and turn.key_norm is not None:
                norms = turn.query_norm, turn.key_norm
        eps = 0.0 if turn is None else turn.eps
        cpu.turn_and_store(heads, self.positions, self.slots, cache, angles, norms, eps)
