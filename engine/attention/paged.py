"""Paged attention by Triton kernels, for CUDA."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from engine.attention.base import WHOLE, KVLayout, Turn, View
from engine.kernels import attention, fused

TILE_TOKENS = 128


def allocate(layout: KVLayout, num_blocks: int, device: torch.device) -> tuple[torch.Tensor, ...]:
    """KVLayout.allocate's tensors, but with a head's slots of a block side by side in memory: one
    read for a kernel that computes one KV head."""
    size = (2, num_blocks, layout.kv_heads, layout.block_size, layout.head_dim)
    return tuple(
        torch.zeros(size, dtype=layout.dtype, device=device).transpose(2, 3)
        for _ in range(layout.layers)
    )


@dataclass(frozen=True)
class PagedPlan:
    """base.Attend. `positions` and `rows` are by token, int32; `tables` [rows, width] names each
    row's blocks. The first `singles` tokens are alone in their requests; the rest come in
    `tiles` (kernels.attention.chunks)."""

    cache: tuple[torch.Tensor, ...]
    tables: torch.Tensor
    positions: torch.Tensor
    rows: torch.Tensor
    singles: int
    tiles: torch.Tensor | None = None

    def __call__(
        self, layer: int, heads: torch.Tensor, turn: Turn | None, view: View = WHOLE
    ) -> torch.Tensor:
        cache = self.cache[layer]
        fused.turn_and_store(heads, self.positions, self.rows, self.tables, cache, turn)
        if self.tiles is None:
            return attention.decode(heads, self.positions, self.rows, self.tables, cache, view)
        tokens, total, dim = heads.shape
        queries = total - 2 * cache.shape[3]
        out = torch.empty(tokens, queries, dim, dtype=heads.dtype, device=heads.device)
        if self.singles:
            alone = slice(0, self.singles)
            out[alone] = attention.decode(
                heads[alone], self.positions[alone], self.rows[alone], self.tables, cache, view
            )
        attention.chunks(heads, self.tiles, self.tables, cache, view, out, TILE_TOKENS)
        return out


def tiles_of(spans: Sequence[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
    """Pieces of at most TILE_TOKENS of each span (first token in the step, tokens, position of
    the first, row). Those that see the longest context come first: the short ones fill the end."""
    pieces = [
        (first + offset, min(TILE_TOKENS, length - offset), position + offset, row)
        for first, length, position, row in spans
        for offset in range(0, length, TILE_TOKENS)
    ]
    return sorted(pieces, key=lambda piece: -piece[2])
