"""What one request takes of the KV cache where layers keep different things.

vLLM's way (vllm/v1/core/kv_cache_utils.py, 0.10 and later): layers that keep the same are cut
into groups of equal size; a block is one page in each layer of a group; a request holds blocks in
every group, as many as that kind of layer needs.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from engine.shapes import DTYPE_BYTES, LayerKind, ModelShape

BLOCK = 16


@dataclass(frozen=True)
class CacheGroups:
    """`groups`: the kind of layer and the layers of each; `block`: tokens in an attention page."""

    groups: tuple[tuple[LayerKind, tuple[int, ...]], ...]
    page_bytes: int
    block: int

    def block_bytes(self, layers: range) -> int:
        """What a block takes on the stage that holds `layers`."""
        held = (len([one for one in group if one in layers]) for _, group in self.groups)
        return max(held) * self.page_bytes

    def blocks_of(self, shape: ModelShape, tokens: int, step_tokens: int) -> int:
        """That a request of `tokens` holds, with up to `step_tokens` computed in one step."""
        return sum(
            _blocks(kind, tokens, shape.window, self.block, step_tokens) for kind, _ in self.groups
        )

    def tokens(self, blocks: int) -> int:
        """As the log counts them: every group as long as the text."""
        return blocks // len(self.groups) * self.block


def cache_groups(
    shape: ModelShape, *, tp: int, dtype: str | None = None, page: int = BLOCK
) -> CacheGroups:
    """How the cache of `shape` is cut; `page`: tokens of a block. Every layer has to keep
    something."""
    by_kind: dict[LayerKind, list[int]] = defaultdict(list)
    for layer in range(shape.num_layers):
        if shape.kind_of(layer) != "none":
            by_kind[shape.kind_of(layer)].append(layer)
    size = _group_size([len(layers) for layers in by_kind.values()])
    groups = []
    for kind, layers in by_kind.items():
        count = -(-len(layers) // size)
        groups += [(kind, tuple(layers[i::count])) for i in range(count)]
    token = shape.kv_bytes_per_token(tp=tp, layers=1, dtype=dtype)
    state = state_bytes(shape, tp)
    # A page of attention is made as large as a layer's state, so that one pool serves both.
    block = page * max(1, -(-state // (page * token)))
    return CacheGroups(tuple(groups), block * token, block)


def _group_size(counts: list[int]) -> int:
    """The smallest kind's number of layers, unless padding the others to it would waste much."""
    return max(counts) if max(counts) < 1.5 * min(counts) else min(counts)


def _blocks(kind: LayerKind, tokens: int, window: int | None, block: int, step: int) -> int:
    if kind in ("linear", "state"):
        return 1
    if kind == "sliding" and window is not None:
        return -(-min(window - 1 + step, tokens) // block) + 1
    if kind == "chunked" and window is not None:
        return -(-min(window + step, tokens) // block)
    return -(-tokens // block)


def state_bytes(shape: ModelShape, tp: int) -> int:
    """What one request keeps in one linear-attention or Mamba layer on one rank."""
    if shape.linear is None:
        return 0
    one = shape.linear
    channels = (2 * one.key_size + one.value_size) // tp
    convolution = channels * (one.kernel - 1) * DTYPE_BYTES[shape.dtype]
    return convolution + one.value_heads // tp * one.key_dim * one.value_dim * one.state_bytes
