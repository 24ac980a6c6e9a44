"""Attention over a paged KV cache: one interface, a backend for each kind of device."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from engine.attention.base import AttentionBackend


def make_backend(cache: tuple[torch.Tensor, ...]) -> AttentionBackend:
    """The fastest that can serve `cache` (KVLayout.allocate's) where it lies."""
    from engine.attention.compiled import CompiledBackend
    from engine.attention.sdpa import SdpaBackend
    from engine.kernels import cpu

    return CompiledBackend(cache) if cpu.attends(cache[0]) else SdpaBackend(cache)
