"""What the driver asks of the ranks in one step. Torch-free: it crosses process borders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from engine.sampling_params import SamplingParams

PENDING = -1
"""In `token_ids`: the token that the step before sampled for this request. The ranks have it; the
driver has not seen it yet."""


class ScheduledRequest(NamedTuple):
    """One request's share of a step.

    `token_ids` are the tokens to compute now, at positions `start .. start+len-1`; `blocks` are
    the KV cache blocks that hold positions `0 .. start+len-1` in order. `sample` says that the
    last token's logits choose the next token (false for a prefill chunk that is not the last).
    """

    request_id: str
    token_ids: tuple[int, ...]
    start: int
    blocks: tuple[int, ...]
    sample: bool
    sampling: SamplingParams
    num_generated: int  # how many tokens were sampled before: seeds and min_tokens depend on it


@dataclass(frozen=True)
class Introduction:
    """A request whose sampling is `special`, and all its tokens so far: told to the ranks with the
    first step after each admission, so that a preempted request may be forgotten."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    output_token_ids: tuple[int, ...]
    sampling: SamplingParams


@dataclass(frozen=True)
class Step:
    """Single tokens come first, then what is longer. `introduced` are requests with `special`
    sampling, which the ranks have to remember from now on; `ended` is whatever they may forget."""

    step_id: int
    requests: tuple[ScheduledRequest, ...]
    introduced: tuple[Introduction, ...] = ()
    ended: tuple[str, ...] = ()


@dataclass(frozen=True)
class TokenLogprobs:
    """The natural logarithm of a token's probability before any penalty, bias or filter; its rank
    among all tokens, from 1; and the likeliest tokens with theirs, best first."""

    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Details:
    """What comes with a token beside its id, where the request asked for it.

    `prompt_logprobs` (first entry None: nothing comes before it) and `embedding` (unit length)
    come with the first token. `failure`: why the grammar ended the answer before its time.
    """

    logprobs: TokenLogprobs | None = None
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
    embedding: tuple[float, ...] | None = None
    failure: str | None = None


@dataclass(frozen=True)
class StepResult:
    """Sampled ids by request id, from the one rank that samples (last stage, tp rank 0)."""

    step_id: int
    token_ids: dict[str, int]
    details: dict[str, Details] = field(default_factory=dict)


@dataclass(frozen=True)
class Deferred:
    """A result that the device is still computing; `wait` blocks until it is there."""

    wait: Callable[[], StepResult]
