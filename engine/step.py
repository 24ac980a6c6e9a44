"""What the driver asks of the ranks in one step. Torch-free: it crosses process borders."""

from __future__ import annotations

from dataclasses import dataclass

from engine.sampling_params import SamplingParams


@dataclass(frozen=True)
class ScheduledRequest:
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
class Step:
    step_id: int
    requests: tuple[ScheduledRequest, ...]


@dataclass(frozen=True)
class StepResult:
    """Sampled ids by request id, from the one rank that samples (last stage, tp rank 0)."""

    step_id: int
    token_ids: dict[str, int]
