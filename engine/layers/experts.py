"""A mixture of gated MLPs: each token goes through the few that a router chooses for it.

Every rank holds its columns of every expert, so that each computes its part of every token and one
sum joins them, as in a dense MLP. With expert parallelism a rank holds some of the experts whole
and computes what is routed to those; the same sum joins them:

    4 experts, tp 2:        rank 0                 rank 1
    columns                 half of 0 1 2 3        half of 0 1 2 3
    expert parallel         all of 0 1             all of 2 3
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn import functional

from engine.layers.activation import ACTIVATIONS, gate
from engine.layers.base import Build, Shard, ShardedLayer
from engine.shapes import Experts, ModelShape


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
        columns, hidden = experts.intermediate_size, shape.hidden_size
        if build.expert_parallel:
            self.own = experts.held_whole(build.tp.rank, build.tp.size)
            self.held = slice(0, columns)
        else:
            self.own, self.held = range(experts.count), build.span(columns)
        inner = self.held.stop - self.held.start
        self.router = build.parameter(experts.count, hidden)
        self.gate_up = build.parameter(len(self.own), 2 * inner, hidden)
        self.down = build.parameter(len(self.own), hidden, inner)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[tokens, hidden] -> the same."""
        weights, chosen = self._route(hidden)
        mix = self._mix_grouped if hidden.is_cuda else self._mix_one_by_one
        return self.tp.all_reduce(mix(hidden, weights, chosen))

    def _mix_one_by_one(
        self, hidden: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor
    ) -> torch.Tensor:
        """A token's order of additions is its experts'."""
        mixed = torch.zeros_like(hidden)
        for expert in torch.unique(chosen).tolist():
            if expert not in self.own:
                continue
            rows, place = (chosen == expert).nonzero(as_tuple=True)
            index = expert - self.own.start
            inner = gate(self.act, functional.linear(hidden[rows], self.gate_up[index]))
            output = functional.linear(inner, self.down[index])
            mixed.index_add_(0, rows, output * weights[rows, place].unsqueeze(-1))
        return mixed

    def _mix_grouped(
        self, hidden: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor
    ) -> torch.Tensor:
        """All experts at once: pairs of a token and one of its experts."""
        from engine.kernels.experts import product, tiles_of

        tokens, each = chosen.shape
        tiles, first = tiles_of(chosen, self.experts.count), self.own.start
        both = hidden.new_empty(tokens * each, self.gate_up.shape[1])
        inner = gate(self.act, product(hidden, self.gate_up, tiles, each, first, both))
        outputs = hidden.new_zeros(tokens * each, hidden.shape[1])  # others' experts stay zero
        product(inner, self.down, tiles, 1, first, outputs)
        return torch.bmm(weights.unsqueeze(1), outputs.view(tokens, each, -1)).squeeze(1)

    def settle(self, quantization: str | None) -> int:
        """Raises ValueError: an expert's matrices have no form in 8 bits here."""
        if quantization is not None:
            raise ValueError(f"quantization {quantization!r} does not cover mixtures of experts")
        return super().settle(None)

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
        for index, expert in enumerate(self.own):
            sources = [pattern.format(expert=expert) for pattern in matrices]
            yield from self._expert_shards(index, *sources)

    def _expert_shards(self, index: int, gate: str, up: str, down: str) -> Iterator[Shard]:
        hidden, columns = self.router.shape[1], self.experts.intermediate_size
        whole = slice(0, hidden)
        halves = self.gate_up[index].chunk(2)
        for source, target in zip((gate, up), halves, strict=True):
            yield Shard(source, (columns, hidden), (self.held, whole), target)
        yield Shard(down, (hidden, columns), (whole, self.held), self.down[index])
