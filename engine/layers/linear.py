"""Matrices split over the tensor-parallel group: a column split, then a row split, one sum.

    x ──> [ column: my rows of W ] ──> my part of y ──> [ row: my columns of W ] ──> all_reduce

A checkpoint stores W as [out, in], so a *column* parallel layer reads rows of the file's tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from engine.layers.base import Build, Shard, ShardedLayer
from engine.layers.norm import RMSNorm
from engine.layers.product import Plain, Product, fastest, quantised


@dataclass(frozen=True)
class Part:
    """One checkpoint matrix of a fused layer: its name, its rows, and those this rank holds.
    Where the checkpoint itself has the matrices stacked, the parts name the same one."""

    source: str
    rows: int
    held: slice

    @property
    def size(self) -> int:
        return int(self.held.stop - self.held.start)


class Linear(ShardedLayer):
    """One matrix [out, in], this rank's part of it."""

    weight: nn.Parameter

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight
        self.product: Product = Plain(weight)

    def settle(self, quantization: str | None) -> int:
        self.product = fastest(self.weight) if quantization is None else quantised(self.weight)
        if not isinstance(self.product, Plain):
            del self.weight  # the product holds its own form of it
        rest = super().settle(quantization)
        return rest if isinstance(self.product, Plain) else rest + self.product.nbytes


class ColumnParallelLinear(Linear):
    """Several matrices of one input, stacked: each rank computes its part of each, in order.

    The parts carry their own names in the checkpoint, beside this layer's:
    `...mlp.gate_up_proj` reads `...mlp.gate_proj` and `...mlp.up_proj`. `transposed`: the
    checkpoint stores them as [in, out].
    """

    def __init__(
        self,
        build: Build,
        in_features: int,
        parts: Sequence[Part],
        bias: bool,
        transposed: bool = False,
    ) -> None:
        sizes = [part.size for part in parts]
        super().__init__(build.parameter(sum(sizes), in_features))
        self.transposed = transposed
        self.parts = tuple(parts)
        self.sizes = sizes
        self.bias = build.parameter(sum(self.sizes)) if bias else None

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.product(inputs, self.bias)

    def after(self, norm: RMSNorm, hidden: torch.Tensor, gated: bool = False) -> torch.Tensor:
        """Of few tokens (kernels.thin), what `norm` makes of them; `gated`: silu of the first half
        times the second."""
        from engine.kernels import thin

        first = (norm.weight, norm.eps, norm.unit)
        matrix = (self.product.weight, self.product.scale, self.bias)
        return thin.product(hidden, *matrix, norm=first, gated=gated)

    def shards(self, name: str) -> Iterator[Shard]:
        parent = name.rpartition(".")[0]
        columns = self.weight.shape[1]
        for part, target in zip(self.parts, torch.split(self.weight, self.sizes), strict=True):
            shape, held = (part.rows, columns), (part.held, slice(0, columns))
            yield Shard(f"{parent}.{part.source}.weight", shape, held, target, self.transposed)
        if self.bias is None:
            return
        for part, target in zip(self.parts, torch.split(self.bias, self.sizes), strict=True):
            yield Shard(f"{parent}.{part.source}.bias", (part.rows,), (part.held,), target)


def even_parts(build: Build, sources: Sequence[str], rows: int) -> list[Part]:
    """Matrices of `rows` rows each, cut evenly."""
    return [Part(source, rows, build.span(rows)) for source in sources]


def stacked(source: str, parts: Sequence[Part]) -> list[Part]:
    """The same parts, where the checkpoint has their matrices stacked under one name."""
    rows = sum(part.rows for part in parts)
    placed, first = [], 0
    for part in parts:
        held = slice(first + part.held.start, first + part.held.stop)
        placed.append(Part(source, rows, held))
        first += part.rows
    return placed


def qkv_parts(build: Build, heads: int, kv_heads: int, head_dim: int) -> list[Part]:
    """Query heads cut evenly. With fewer KV heads than ranks, neighbours hold the same KV head:

    heads=8 kv_heads=2 tp=4    rank 0: q 0-1 kv 0 | rank 1: q 2-3 kv 0 | rank 2: q 4-5 kv 1 | ...
    """
    kv_held = max(1, kv_heads // build.tp.size)
    first = build.tp.rank * kv_heads // build.tp.size * head_dim
    kv_span = slice(first, first + kv_held * head_dim)
    return [
        Part("q_proj", heads * head_dim, build.span(heads * head_dim)),
        Part("k_proj", kv_heads * head_dim, kv_span),
        Part("v_proj", kv_heads * head_dim, kv_span),
    ]


class RowParallelLinear(Linear):
    """Takes each rank's part of the input, gives the whole output to all. `source`: its name in
    the checkpoint, beside this layer's; `transposed`: stored as [in, out]."""

    def __init__(
        self,
        build: Build,
        in_features: int,
        out_features: int,
        bias: bool,
        *,
        source: str | None = None,
        transposed: bool = False,
    ) -> None:
        super().__init__(build.parameter(out_features, build.share(in_features)))
        self.tp = build.tp
        self.source = source
        self.transposed = transposed
        self.in_features = in_features
        self.held = build.span(in_features)
        self.bias = build.parameter(out_features) if bias else None

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        output = self.tp.all_reduce(self.product(inputs))
        return output if self.bias is None else output + self.bias  # once, not once a rank

    def onto(self, residual: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """Of few tokens (kernels.thin), added to `residual`."""
        from engine.kernels import thin

        bias, added = (self.bias, residual) if self.tp.rank == 0 else (None, None)  # once
        matrix = (self.product.weight, self.product.scale, bias)
        return self.tp.all_reduce(thin.product(inputs, *matrix, residual=added))

    def shards(self, name: str) -> Iterator[Shard]:
        name = f"{name.rpartition('.')[0]}.{self.source}" if self.source else name
        rows = self.weight.shape[0]
        shape, held = (rows, self.in_features), (slice(0, rows), self.held)
        yield Shard(f"{name}.weight", shape, held, self.weight, self.transposed)
        if self.bias is not None:
            yield Shard(f"{name}.bias", (rows,), (slice(0, rows),), self.bias)
