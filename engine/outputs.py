"""What a caller gets back: text made of the core's outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from engine.detokenizer import Decode, Detokenizer, StopMatcher
from engine.request import FinishReason, Output, Request, fan_out
from engine.sampling_params import SamplingParams
from engine.step import TokenLogprobs
from engine.tokenizer import Tokenizer

PromptLogprobs = tuple[TokenLogprobs | None, ...]


@dataclass(frozen=True)
class CompletionOutput:
    """One sample. `stop_reason` is the stop string or stop token id that ended it; None when it
    ended by the end of sequence or by length. `logprobs`, where asked for: one a token."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stop_reason: int | str | None = None
    logprobs: tuple[TokenLogprobs, ...] | None = None


@dataclass(frozen=True)
class RequestOutput:
    """A prompt and its `n` samples. `prompt` is None when it was given as token ids.
    `prompt_logprobs`, where asked for: one a token, None for the first."""

    request_id: str
    prompt: str | None
    prompt_token_ids: tuple[int, ...]
    outputs: tuple[CompletionOutput, ...]
    prompt_logprobs: PromptLogprobs | None = None


@dataclass(frozen=True)
class EmbeddingOutput:
    """A prompt's embedding: unit length, as many numbers as the model's hidden size."""

    prompt_token_ids: tuple[int, ...]
    embedding: tuple[float, ...]


@dataclass(frozen=True)
class Delta:
    """What one token added."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    logprobs: TokenLogprobs | None = None


class GrammarFailed(ValueError):
    """The grammar could not be followed to its end: too complex, says llguidance."""


class Sample:
    """One request and its text, growing with its tokens."""

    def __init__(self, index: int, request: Request, decode: Decode) -> None:
        self.index = index
        self.request = request
        self._text = Detokenizer(decode)
        self._stop = StopMatcher(request.sampling.stop)
        self._deltas: list[Delta] = []
        self._num_tokens = 0
        self.embedding: tuple[float, ...] | None = None
        self.prompt_logprobs: PromptLogprobs | None = None

    @property
    def num_tokens(self) -> int:
        return self._num_tokens

    @property
    def ended(self) -> bool:
        return bool(self._deltas) and self._deltas[-1].finish_reason is not None

    def feed(self, output: Output) -> Delta:
        """Once the sample has `ended` though `output.finish_reason` is None, a stop string was
        found: the core cannot know, and must be told to abort the request. Raises GrammarFailed."""
        self._num_tokens += output.token_id is not None
        self._take_details(output)
        self._deltas.append(self._delta(output))
        return self._deltas[-1]

    def result(self) -> CompletionOutput:
        """The whole of it. Call it when it has ended."""
        last = self._deltas[-1]
        assert last.finish_reason is not None
        return CompletionOutput(
            index=self.index,
            text="".join(delta.text for delta in self._deltas),
            token_ids=tuple(token for delta in self._deltas for token in delta.token_ids),
            finish_reason=last.finish_reason,
            stop_reason=last.stop_reason,
            logprobs=self._logprobs(),
        )

    def embedded(self) -> EmbeddingOutput:
        """The embedding of its prompt, which it was to be made for. Call it when it has ended."""
        assert self.embedding is not None
        return EmbeddingOutput(self.request.prompt_token_ids, self.embedding)

    def _logprobs(self) -> tuple[TokenLogprobs, ...] | None:
        if self.request.sampling.logprobs is None:
            return None
        return tuple(delta.logprobs for delta in self._deltas if delta.logprobs is not None)

    def _take_details(self, output: Output) -> None:
        if (details := output.details) is None:
            return
        if details.failure is not None:
            raise GrammarFailed(f"the grammar could not be followed: {details.failure}")
        self.embedding = details.embedding or self.embedding
        self.prompt_logprobs = details.prompt_logprobs or self.prompt_logprobs

    def _delta(self, output: Output) -> Delta:
        ids = () if output.token_id is None else (output.token_id,)
        text, stop = self._advance(ids if output.stop_token_id is None else ())
        if stop is None and output.finish_reason is not None:
            rest, stop = self._finish()
            text += rest
        logprobs = output.details.logprobs if output.details is not None else None
        if stop is not None:
            return Delta(text, ids, "stop", stop, logprobs)
        own = output.stop_token_id in self.request.sampling.stop_token_ids
        reason = output.stop_token_id if own else None
        return Delta(text, ids, output.finish_reason, reason, logprobs)

    def _advance(self, ids: Sequence[int]) -> tuple[str, str | None]:
        text = "".join(self._text.push(token_id) for token_id in ids)
        if self._num_tokens <= self.request.sampling.min_tokens:
            return text, None
        return self._stop.push(text)

    def _finish(self) -> tuple[str, str | None]:
        text, stop = self._stop.push(self._text.flush())
        return text + ("" if stop else self._stop.flush()), stop


def make_samples(
    request_id: str, prompt_token_ids: Sequence[int], sampling: SamplingParams, tokenizer: Tokenizer
) -> list[Sample]:
    """The `n` samples of one prompt: a request each, `request_id` followed by its number."""
    prompt = tuple(prompt_token_ids)
    words = tokenizer.forbidden(sampling.bad_words)
    decode = partial(tokenizer.decode, skip_special_tokens=sampling.skip_special_tokens)
    return [
        Sample(index, Request(f"{request_id}-{index}", prompt, one), decode)
        for index, one in enumerate(fan_out(replace(sampling, bad_words=words)))
    ]
