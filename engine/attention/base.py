"""The seam between the model and the KV cache: a backend plans a step, the model calls the plan.

runner  ── plan(spans) ──>  backend         once a step: where tokens go, what they may see
model   ── attend(layer, heads, turn) ──> plan  once a layer: turn, store k and v, attend
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn import functional

from engine.kernels.cpu import in_huge_pages


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
        parts = (torch.empty(size, dtype=self.dtype, device=device) for _ in range(self.layers))
        return tuple(in_huge_pages(part).zero_() for part in parts)


@dataclass(frozen=True)
class Turn:
    """What happens to queries and keys before they meet: a norm of each head, if the weights are
    given, then a rotation by position. `cos` and `sin` are fp32 [positions, dim / 2]."""

    cos: torch.Tensor
    sin: torch.Tensor
    query_norm: torch.Tensor | None = None
    key_norm: torch.Tensor | None = None
    eps: float = 0.0

    def apply(
        self, heads: torch.Tensor, positions: torch.Tensor, norm: torch.Tensor | None
    ) -> torch.Tensor:
        """[tokens, heads, dim]: of the first n = 2 * cos.shape[-1] elements i pairs with i + n / 2,
        the others stay; angles rounded to its dtype."""
        if norm is not None:
            heads = functional.rms_norm(heads, norm.shape, norm.to(heads.dtype), self.eps)
        cos = self.cos[positions].to(heads.dtype).unsqueeze(1)
        sin = self.sin[positions].to(heads.dtype).unsqueeze(1)
        turned = 2 * cos.shape[-1]
        first, second = heads[..., :turned].chunk(2, dim=-1)
        parts = (first * cos - second * sin, second * cos + first * sin, heads[..., turned:])
        return torch.cat(parts if turned < heads.shape[-1] else parts[:2], dim=-1)


@dataclass(frozen=True)
class View:
    """How a layer looks at the past. `window`: at the last that many positions, its own included;
    `softcap`: scores s become softcap * tanh(s / softcap); `scale`: of the scores, None for one
    over the root of the head size."""

    window: int | None = None
    softcap: float | None = None
    scale: float | None = None


WHOLE = View()


class Attend(Protocol):
    def __call__(
        self, layer: int, heads: torch.Tensor, turn: Turn | None, view: View = WHOLE
    ) -> torch.Tensor:
        """`heads` [tokens, queries + 2 kv_heads, dim] are this step's queries, keys and values.

        Turn queries and keys, store keys and values, then give each token's queries their mix of
        the values at or before its own position, as `view` says: [tokens, queries, dim]. May
        overwrite `heads`.
        """
        ...


class AttentionBackend(Protocol):
    """Built with the rank's KV memory, as KVLayout.allocate gives it."""

    def plan(self, spans: Sequence[Span]) -> Attend: ...
