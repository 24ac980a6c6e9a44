"""A mixture of gated MLPs: each token goes through the few that a router chooses for it.

Every rank holds its columns of every expert, so that each computes its part of every token and one
sum joins them, as in a dense MLP.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn import functional

from engine.layers.activation import ACTIVATIONS, gate
from engine.layers.base import Build, Shard, ShardedLayer
from engine.shapes import Experts, ModelShape, ShapeError


class ExpertMLP(ShardedLayer):
    """`names`: of the router and of an expert's gate, up and down matrices in the checkpoint,
    with {expert} where its number stands."""

    def __init__(
        self, build: Build, shape: ModelShape, experts: Experts, names: tuple[str, str, str, str]
    ) -> None:
        super().__init__()
        self.tp = build.tp
        self.experts = experts
        self.names = names
        self.act = ACTIVATIONS[shape.activation]
        if experts.intermediate_size % build.tp.size:
            raise ShapeError(
                f"the experts' {experts.intermediate_size} columns cannot be split over "
                f"tp={build.tp.size}"
            )
        self.held = build.span(experts.intermediate_size)
        inner, hidden = build.share(experts.intermediate_size), shape.hidden_size
        self.router = build.parameter(experts.count, hidden)
        self.gate_up = build.parameter(experts.count, 2 * inner, hidden)
        self.down = build.parameter(experts.count, hidden, inner)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[tokens, hidden] -> the same; a token's order of additions is its experts'."""
        weights, chosen = self._route(hidden)
        mixed = torch.zeros_like(hidden)
        for expert in torch.unique(chosen).tolist():
            rows, place = (chosen == expert).nonzero(as_tuple=True)
            inner = gate(self.act, functional.linear(hidden[rows], self.gate_up[expert]))
            output = functional.linear(inner, self.down[expert])
            mixed.index_add_(0, rows, output * weights[rows, place].unsqueeze(-1))
        return self.tp.all_reduce(mixed)

    def _route(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights and numbers of each token's experts, both [tokens, per_token]."""
        scores = functional.linear(hidden, self.router).float().softmax(dim=-1)
        weights, chosen = scores.topk(self.experts.per_token, dim=-1)
        if self.experts.renormalise:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        return weights.to(hidden.dtype), chosen

    def shards(self, name: str) -> Iterator[Shard]:
        router, *matrices = (f"{name}.{pattern}.weight" for pattern in self.names)
        count, hidden = self.router.shape
        yield Shard(router, (count, hidden), (slice(0, count), slice(0, hidden)), self.router)
        for expert in range(count):
            sources = [pattern.format(expert=expert) for pattern in matrices]
            yield from self._expert_shards(expert, *sources)

    def _expert_shards(self, expert: int, gate: str, up: str, down: str) -> Iterator[Shard]:
        hidden, columns = self.router.shape[1], self.experts.intermediate_size
        whole = slice(0, hidden)
        halves = self.gate_up[expert].chunk(2)
        for source, target in zip((gate, up), halves, strict=True):
            yield Shard(source, (columns, hidden), (self.held, whole), target)
        yield Shard(down, (hidden, columns), (whole, self.held), self.down[expert])
