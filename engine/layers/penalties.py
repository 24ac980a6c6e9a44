"""One request's logits, changed in place before a token is chosen from them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from engine.sampling_params import SamplingParams


class Counts:
    """How often each token stands in a request's output, and whether it stands in its prompt."""

    def __init__(self, prompt: Sequence[int], output: Sequence[int], like: torch.Tensor) -> None:
        self.output = torch.zeros_like(like)
        self.output.index_add_(0, _ids(output, like), torch.ones(len(output), device=like.device))
        self.seen = torch.zeros_like(like, dtype=torch.bool)
        self.seen[_ids([*prompt, *output], like)] = True

    def add(self, token_id: int) -> None:
        self.output[token_id] += 1
        self.seen[token_id] = True


def penalise(logits: torch.Tensor, counts: Counts, sampling: SamplingParams) -> None:
    """Repetition as in CTRL (arXiv 1909.05858): what was seen becomes less likely by a factor.
    Frequency and presence as in OpenAI's API: a number less for each occurrence, and for any."""
    if sampling.repetition_penalty != 1:
        factor = sampling.repetition_penalty
        weaker = torch.where(logits > 0, logits / factor, logits * factor)
        logits.copy_(torch.where(counts.seen, weaker, logits))
    logits.sub_(counts.output, alpha=sampling.frequency_penalty)
    logits.sub_((counts.output > 0).to(logits.dtype), alpha=sampling.presence_penalty)


def bias(logits: torch.Tensor, biases: Sequence[tuple[int, float]]) -> None:
    added = torch.tensor([value for _, value in biases], dtype=logits.dtype, device=logits.device)
    logits.index_add_(0, _ids([token_id for token_id, _ in biases], logits), added)


def ban(logits: torch.Tensor, token_ids: Sequence[int]) -> None:
    if token_ids:
        logits[_ids(token_ids, logits)] = float("-inf")


def keep(logits: torch.Tensor, allowed: NDArray[np.bool_]) -> None:
    """Ban all but these; where the other rules had banned these too, they are equally likely."""
    mask = torch.from_numpy(allowed).to(logits.device)
    logits.masked_fill_(~mask, float("-inf"))
    if logits.amax() == float("-inf"):
        logits[mask] = 0


def _ids(values: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(list(values), dtype=torch.long, device=like.device)
