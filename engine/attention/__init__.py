"""Attention over a paged KV cache: one interface, a backend for each kind of device."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from engine.attention.base import AttentionBackend


def make_backend(cache: tuple[torch.Tensor, ...]) -> AttentionBackend:
    """The backend for the device that `cache` (KVLayout.allocate's) lies on."""
    from engine.attention.sdpa import SdpaBackend

    return SdpaBackend(cache)
