"""What layers are built with, and how each says which part of the checkpoint it holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from engine.parallel import Communicator


@dataclass(frozen=True)
class Build:
    """Given to every layer's constructor: its tensor-parallel group, device and dtype, and whether
    that group shares experts out whole."""

    tp: Communicator
    device: torch.device
    dtype: torch.dtype
    expert_parallel: bool = False

    def parameter(self, *size: int) -> nn.Parameter:
        """Memory for a weight, not initialised: its Shards fill it."""
        tensor = torch.empty(size, device=self.device, dtype=self.dtype)
        return nn.Parameter(tensor, requires_grad=False)

    def share(self, size: int) -> int:
        """This group's even share of `size`, which engine.shapes has checked to divide."""
        assert size % self.tp.size == 0
        return size // self.tp.size

    def span(self, size: int) -> slice:
        """The part of `size` elements that this rank holds."""
        share = self.share(size)
        return slice(self.tp.rank * share, (self.tp.rank + 1) * share)


@dataclass(frozen=True)
class Shard:
    """A part of one checkpoint tensor and the memory it fills: target = checkpoint[source][index].

    `shape` is the whole tensor's, as the checkpoint must have it; one that is `transposed` there,
    [in, out], is named as if it were not.
    """

    source: str
    shape: tuple[int, ...]
    index: tuple[slice, ...]
    target: torch.Tensor
    transposed: bool = False


class ShardedLayer(nn.Module):
    """A layer with weights. `name` is its path in the model: "model.layers.3.mlp.down_proj"."""

    def shards(self, name: str) -> Iterator[Shard]:
        """Unless a layer says otherwise it holds whole tensors, named as its parameters are."""
        for own, target in self.named_parameters(recurse=False):
            whole = tuple(slice(0, size) for size in target.shape)
            yield Shard(f"{name}.{own}", tuple(target.shape), whole, target)

    def settle(self, quantization: str | None) -> int:
        """Called once when the weights are there, to bring them into the form that they are
        computed with. Returns the bytes that this layer's weights now take."""
        return sum(parameter.nbytes for parameter in self.parameters(recurse=False))


def settle(model: nn.Module, quantization: str | None) -> int:
    """All of a model's layers; the bytes of its weights."""
    layers = [layer for layer in model.modules() if isinstance(layer, ShardedLayer)]
    return sum(layer.settle(quantization) for layer in layers)


def model_shards(model: nn.Module) -> Iterator[Shard]:
    """Everything a model wants from the checkpoint."""
    for name, module in model.named_modules():
        if isinstance(module, ShardedLayer):
            yield from module.shards(name)
