"""One sequence on its way through the engine, and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from engine.sampling_params import SamplingParams
from engine.step import Details, Introduction

FinishReason = Literal["stop", "length", "abort"]


@dataclass(eq=False)
class Request:
    """`prompt + output` are its tokens. `priority`: lower comes first, as in vLLM.

    The scheduler's account: the first `num_computed` tokens are in the KV cache; with the steps
    that are not yet committed, `in_flight` of them, it will be `num_scheduled`, and `num_pending`
    more tokens will have been sampled. An aborted request in flight keeps its blocks until the
    last of these steps is committed. `introduced`: the ranks know of it (step.Introduction).
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    priority: int = 0
    output_token_ids: list[int] = field(default_factory=list)
    arrival: int = 0
    num_computed: int = 0
    num_scheduled: int = 0
    num_pending: int = 0
    in_flight: int = 0
    evicted: bool = False  # to be preempted as soon as no step has it
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    introduced: bool = False

    @property
    def order(self) -> tuple[int, int]:
        return self.priority, self.arrival

    @property
    def behind(self) -> int:
        """Tokens that are neither in the KV cache nor on the way."""
        return self.num_tokens + self.num_pending - self.num_scheduled

    @property
    def num_sampled(self) -> int:
        return len(self.output_token_ids) + self.num_pending

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_token_ids) + len(self.output_token_ids)

    def tokens(self, start: int, stop: int) -> tuple[int, ...]:
        """The tokens at positions `start .. stop-1`, prompt and output alike."""
        split = len(self.prompt_token_ids)
        return self.prompt_token_ids[start:stop] + tuple(
            self.output_token_ids[max(start - split, 0) : max(stop - split, 0)]
        )

    def introduction(self) -> Introduction:
        return Introduction(
            self.request_id, self.prompt_token_ids, tuple(self.output_token_ids), self.sampling
        )


@dataclass(frozen=True)
class Output:
    """What one step did to one request: a token, its end, or both.

    `stop_token_id` is set when the token that ended it is a stop token (end of sequence or one of
    `stop_token_ids`): such a token is counted, but is not part of the text.
    """

    request_id: str
    token_id: int | None
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    details: Details | None = None


def fan_out(sampling: SamplingParams) -> list[SamplingParams]:
    """`n` samples of one prompt are `n` requests: each with n=1, and its own seed if one is set."""
    return [
        replace(sampling, n=1, seed=None if sampling.seed is None else sampling.seed + index)
        for index in range(sampling.n)
    ]
