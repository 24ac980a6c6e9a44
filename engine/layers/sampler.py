"""Logits -> the next token of each request.

The random number of a token depends on the request's seed and the token's place alone, so that a
request which was preempted and computed again, in any batch, gets the same text.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from engine.sampling_params import SamplingParams
from engine.step import ScheduledRequest


class Sampler:
    """`seed` serves requests that bring none."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __call__(self, logits: torch.Tensor, requests: Sequence[ScheduledRequest]) -> list[int]:
        """fp32 logits [requests, vocab] -> one id each."""
        chosen = logits.max(dim=-1).indices  # argmax's, in a quarter of its time on a CPU
        drawn = [row for row, request in enumerate(requests) if not request.sampling.greedy]
        if drawn:
            rows = torch.tensor(drawn, device=logits.device)
            chosen[rows] = self._draw(logits[rows], [requests[row] for row in drawn])
        return chosen.tolist()

    def _draw(self, logits: torch.Tensor, requests: Sequence[ScheduledRequest]) -> torch.Tensor:
        """The inverse of the cumulated distribution, at one uniform number a request."""
        weights = _kept_weights(logits, [request.sampling for request in requests])
        cumulated = weights.double().cumsum(dim=-1)
        uniform = [self._uniform(request) for request in requests]
        goal = cumulated[:, -1:] * _column(uniform, cumulated)
        return torch.searchsorted(cumulated, goal, right=True).squeeze(-1)

    def _uniform(self, request: ScheduledRequest) -> float:
        seed = request.sampling.seed
        source = f"{self.seed}/{request.request_id}" if seed is None else str(seed)
        return random.Random(f"{source}/{request.num_generated}").random()


def _kept_weights(logits: torch.Tensor, params: Sequence[SamplingParams]) -> torch.Tensor:
    """Unnormalised probabilities [rows, vocab], the best token's 1; what a filter drops is 0.

    Order as in vLLM: temperature, min_p, top_k, top_p.
    """
    scaled = logits / _column([min(p.temperature, 1e6) for p in params], logits)
    weights = (scaled - scaled.amax(dim=-1, keepdim=True)).exp()
    weights = weights.masked_fill(weights < _column([p.min_p for p in params], weights), 0)
    if any(p.top_k or p.top_p < 1 for p in params):
        weights = _top(weights, params)
    return weights


def _top(weights: torch.Tensor, params: Sequence[SamplingParams]) -> torch.Tensor:
    """Keep the top_k heaviest, and of these the fewest that together reach top_p."""
    ordered, order = weights.sort(dim=-1, descending=True, stable=True)
    vocab = weights.shape[-1]
    rank = torch.arange(vocab, device=weights.device)
    limit = _column([min(p.top_k or vocab, vocab) for p in params], rank)
    ordered = ordered.masked_fill(rank >= limit, 0)
    before = ordered.cumsum(dim=-1) - ordered
    enough = _column([p.top_p for p in params], ordered) * ordered.sum(dim=-1, keepdim=True)
    ordered = ordered.masked_fill((before >= enough) & (rank > 0), 0)
    return torch.zeros_like(weights).scatter_(-1, order, ordered)


def _column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    """One value a row, [rows, 1], in the dtype and on the device of `like`."""
    return torch.tensor(values, dtype=like.dtype, device=like.device).unsqueeze(-1)
