"""Requests that ask for more than the plain sampler does: penalties, biases, forbidden words,
grammars, log-probabilities, the prompt's embedding.

The rank that samples remembers each of them (step.Introduction) and its tokens, so that a step
need not repeat them. Order around the sampler, once a step:

    begin(step) -> read_prompts(...) -> adjust(logits) -> the sampler -> details(chosen)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch.nn import functional

from engine.grammar import Grammars, Matcher
from engine.layers.penalties import Counts, ban, bias, keep, penalise
from engine.sampling_params import SamplingParams
from engine.step import Details, ScheduledRequest, Step, TokenLogprobs

INFINITY = float("inf")


@dataclass
class Special:
    """One such request, as the sampling rank knows it."""

    sampling: SamplingParams
    prompt: tuple[int, ...]
    output: list[int]
    counts: Counts | None = None
    matcher: Matcher | None = None
    had_output: bool = False  # when it was introduced
    prompt_logprobs: list[TokenLogprobs | None] = field(default_factory=lambda: [None])
    pooled: torch.Tensor | None = None

    def embedding(self) -> tuple[float, ...] | None:
        if self.pooled is None:
            return None
        return tuple(functional.normalize(self.pooled, dim=0).tolist())


class SpecialRequests:
    """`eos_token_ids` are kept back until min_tokens."""

    def __init__(self, eos_token_ids: Sequence[int], grammars: Grammars) -> None:
        self._eos_token_ids = list(eos_token_ids)
        self._grammars = grammars
        self._known: dict[str, Special] = {}
        self._raw: torch.Tensor | None = None

    def begin(self, step: Step) -> None:
        """Forget what has ended, remember what is new."""
        for request_id in step.ended:
            self._known.pop(request_id, None)
        for one in step.introduced:
            self._known[one.request_id] = Special(
                one.sampling,
                one.prompt_token_ids,
                list(one.output_token_ids),
                had_output=bool(one.output_token_ids),
            )

    def read_prompts(
        self,
        step: Step,
        normed: Callable[[slice], torch.Tensor],
        logits: Callable[[slice], torch.Tensor],
    ) -> None:
        """Take from this step's prompt tokens what was asked of them. Both functions give rows of
        the step: final hidden states, or logits, which all ranks of the group compute together."""
        if not self._known:
            return
        start = 0
        for request in step.requests:
            rows = slice(start, start + len(request.token_ids))
            start = rows.stop
            if special := self._known.get(request.request_id):
                if special.sampling.pooling:
                    _pool(special, request, normed(rows))
                if _foretells_prompt(special, request):
                    _read_logprobs(special, request, logits(rows))

    def adjust(self, logits: torch.Tensor, request_ids: Sequence[str]) -> None:
        """Change, in place, the rows [requests, vocab] of those that ask for it."""
        rows = self._rows(request_ids)
        self._raw = None
        if any(special.sampling.logprobs is not None for _, special in rows):
            self._raw = logits.clone()
        for row, special in rows:
            self._adjust(logits[row], special)

    def details(self, request_ids: Sequence[str], token_ids: Sequence[int]) -> dict[str, Details]:
        """Take over the tokens that were chosen; what is to be said beside them."""
        rows = self._rows(request_ids)
        found = {
            request_ids[row]: self._details(row, special, token_ids[row]) for row, special in rows
        }
        for row, special in rows:
            _accept(special, token_ids[row])
        return {name: details for name, details in found.items() if details != Details()}

    def _rows(self, request_ids: Sequence[str]) -> list[tuple[int, Special]]:
        if not self._known:
            return []
        known = self._known
        return [(row, known[name]) for row, name in enumerate(request_ids) if name in known]

    def _adjust(self, logits: torch.Tensor, special: Special) -> None:
        sampling = special.sampling
        if sampling.logit_bias:
            bias(logits, sampling.logit_bias)
        if _penalised(sampling):
            if special.counts is None:
                special.counts = Counts(special.prompt, special.output, logits)
            penalise(logits, special.counts, sampling)
        ban(logits, _forbidden_next(sampling.bad_words, special.output))
        if len(special.output) < sampling.min_tokens:
            ban(logits, [*self._eos_token_ids, *sampling.stop_token_ids])
        if sampling.grammar is not None:
            if special.matcher is None:
                special.matcher = self._grammars.matcher(sampling.grammar)
                special.matcher.accept(special.output)
            keep(logits, special.matcher.allowed())
        elif logits.amax() == -INFINITY:  # all is forbidden: nothing is
            logits.zero_()

    def _details(self, row: int, special: Special, token_id: int) -> Details:
        logprobs = None
        if special.sampling.logprobs is not None:
            assert self._raw is not None
            logprobs = token_logprobs(self._raw[row], [token_id], special.sampling.logprobs)[0]
        failure = special.matcher.failure if special.matcher is not None else None
        if special.output:
            return Details(logprobs, failure=failure)
        wanted = special.sampling.prompt_logprobs is not None
        prompt = tuple(special.prompt_logprobs) if wanted else None
        return Details(logprobs, prompt, special.embedding(), failure)


def token_logprobs(
    logits: torch.Tensor, token_ids: Sequence[int], alternatives: int
) -> list[TokenLogprobs]:
    """Of `token_ids`, one a row of logits [vocab] or [rows, vocab]."""
    logprobs = logits.reshape(len(token_ids), -1).float().log_softmax(dim=-1)
    index = torch.tensor(token_ids, device=logits.device).unsqueeze(-1)
    own = logprobs.gather(-1, index)
    ranks = (logprobs > own).sum(dim=-1) + 1
    best = logprobs.topk(min(alternatives, logprobs.shape[-1]), dim=-1)
    columns = (own.squeeze(-1), ranks, best.indices, best.values)
    return [
        TokenLogprobs(value, rank, tuple(zip(ids, values, strict=True)))
        for value, rank, ids, values in zip(*(c.tolist() for c in columns), strict=True)
    ]


def _foretells_prompt(special: Special, request: ScheduledRequest) -> bool:
    """Whether this step's logits tell of prompt tokens that somebody asks about. It must be the
    same on every rank of the group, of which only one knows what was sampled since."""
    wanted = special.sampling.prompt_logprobs is not None and not special.had_output
    return wanted and request.start + 1 < len(special.prompt)


def _read_logprobs(special: Special, request: ScheduledRequest, logits: torch.Tensor) -> None:
    """Each row foretells the prompt token after its own; the last one foretells the answer."""
    follows = special.prompt[request.start + 1 : request.start + len(request.token_ids) + 1]
    alternatives = special.sampling.prompt_logprobs
    assert alternatives is not None
    if follows:
        rows = token_logprobs(logits[: len(follows)], follows, alternatives)
        del special.prompt_logprobs[request.start + 1 :]  # of a run before it was preempted
        special.prompt_logprobs.extend(rows)


def _pool(special: Special, request: ScheduledRequest, hidden: torch.Tensor) -> None:
    if special.sampling.pooling == "last":
        special.pooled = hidden[-1].float()
    else:  # its length is made 1 in the end, so that a sum will do
        before = special.pooled if special.pooled is not None and request.start else 0
        special.pooled = hidden.float().sum(dim=0) + before


def _accept(special: Special, token_id: int) -> None:
    special.output.append(token_id)
    if special.counts is not None:
        special.counts.add(token_id)
    if special.matcher is not None:
        special.matcher.accept([token_id])


def _forbidden_next(words: Sequence[str | tuple[int, ...]], output: Sequence[int]) -> list[int]:
    """The tokens that would complete a forbidden word now."""
    ended = [word for word in words if tuple(output[len(output) - len(word) + 1 :]) == word[:-1]]
    return [int(word[-1]) for word in ended]


def _penalised(sampling: SamplingParams) -> bool:
    neutral = (sampling.presence_penalty, sampling.frequency_penalty) == (0, 0)
    return not neutral or sampling.repetition_penalty != 1
