"""The seam between the model and the KV cache: a backend plans a step, the model calls the plan.

runner  ── plan(spans) ──>  backend         once a step: where tokens go, what they may see
model   ── attend(layer, q, k, v) ──> plan  once a layer: store k and v, then attend
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch


@dataclass(frozen=True)
class Span:
    """One request's new tokens: positions start .. start+length-1. `blocks` hold all positions
    from 0 on, in order. The tokens of a step's spans follow each other in its tensors."""

    start: int
    length: int
    blocks: tuple[int, ...]

    @property
    def stop(self) -> int:
        return self.start + self.length


@dataclass(frozen=True)
class KVLayout:
    """One rank's KV memory: a tensor a layer, [2 (key, value), blocks, block_size, heads, dim]."""

    layers: int
    block_size: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype

    @property
    def block_bytes(self) -> int:
        elements = 2 * self.layers * self.block_size * self.kv_heads * self.head_dim
        return elements * self.dtype.itemsize

    def allocate(self, num_blocks: int, device: torch.device) -> tuple[torch.Tensor, ...]:
        """Zeros, because attention also multiplies slots that it masks: no NaN may lie there."""
        size = (2, num_blocks, self.block_size, self.kv_heads, self.head_dim)
        return tuple(torch.zeros(size, dtype=self.dtype, device=device) for _ in range(self.layers))


class Attend(Protocol):
    def __call__(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        """Store key and value [tokens, kv_heads, dim] of this step's tokens, then give each token
        of query [tokens, heads, dim] its mix of the values at or before its own position."""
        ...


class AttentionBackend(Protocol):
    """Built with the rank's KV memory, as KVLayout.allocate gives it."""

    def plan(self, spans: Sequence[Span]) -> Attend: ...
