"""How the next token is chosen, per request."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Pooling = Literal["last", "mean"]

MAX_LOGPROBS = 20


@dataclass(frozen=True)
class Grammar:
    """What the whole answer must match: a JSON schema or a regular expression, as text."""

    kind: Literal["json_schema", "regex"]
    text: str


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """Names and defaults as vLLM's. temperature 0 is greedy. Raises ValueError on nonsense.

    The penalties are OpenAI's (presence, frequency) and CTRL's (repetition: it counts the prompt
    too). `logit_bias` is added to the logits of these token ids. `bad_words` are texts, or token
    ids, that must not be written. `logprobs` is how many alternatives to each token are wanted
    with their log-probabilities, 0: only the token's own; `prompt_logprobs` the same of the
    prompt. `pooling` asks for the prompt's embedding instead of a text.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: all
    min_p: float = 0.0
    seed: int | None = None
    max_tokens: int | None = 16
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    bad_words: tuple[str | tuple[int, ...], ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    grammar: Grammar | None = None
    pooling: Pooling | None = None
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):  # as vLLM: not one stop string a letter
            object.__setattr__(self, "stop", (self.stop,))
        if isinstance(self.logit_bias, Mapping):
            object.__setattr__(self, "logit_bias", self.logit_bias.items())
        for name in ("stop", "stop_token_ids", "bad_words", "logit_bias"):  # lists or None, as vLLM
            object.__setattr__(self, name, tuple(getattr(self, name) or ()))
        if "" in self.stop:
            raise ValueError("stop must not hold an empty string")
        if {"", ()} & set(self.bad_words):
            raise ValueError("bad_words must not hold an empty word")
        if not math.isfinite(self.temperature):
            raise ValueError(f"temperature must be a finite number, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
        self._check_least("n", 1)
        self._check_least("temperature", 0)
        self._check_least("top_k", 0)
        self._check_least("max_tokens", 1)
        self._check_least("min_tokens", 0)
        self._check_within("min_p", 0, 1)
        self._check_within("presence_penalty", -2, 2)
        self._check_within("frequency_penalty", -2, 2)
        self._check_within("repetition_penalty", 0.01, 100)  # beyond it logits may overflow
        self._check_within("logprobs", 0, MAX_LOGPROBS)
        self._check_within("prompt_logprobs", 0, MAX_LOGPROBS)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError(
                f"min_tokens ({self.min_tokens}) must not be above max_tokens ({self.max_tokens})"
            )
        for token_id, bias in self.logit_bias:
            if not -100 <= bias <= 100:
                raise ValueError(f"logit_bias must be in [-100, 100], got {bias} for {token_id}")

    @property
    def greedy(self) -> bool:
        return self.temperature < 1e-5  # as vLLM: below, fp32 logits overflow

    @property
    def special(self) -> bool:
        """Whether it asks for more than temperature, top_k, top_p, min_p and a seed: the ranks
        then remember the request (step.Introduction)."""
        return self._plain != SPECIAL_DEFAULTS

    @property
    def reads_whole_prompt(self) -> bool:
        """Whether every token of the prompt must be computed, whatever a cache holds of it."""
        return self.prompt_logprobs is not None or self.pooling == "mean"

    @property
    def _plain(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in SPECIAL)

    def _check_least(self, name: str, least: float) -> None:
        value = getattr(self, name)
        if value is not None and value < least:
            bound = "must not be negative" if least == 0 else f"must be at least {least}"
            raise ValueError(f"{name} {bound}, got {value}")

    def _check_within(self, name: str, low: float, high: float) -> None:
        value = getattr(self, name)
        if value is not None and not low <= value <= high:
            raise ValueError(f"{name} must be in [{low}, {high}], got {value}")


SPECIAL = (
    "min_tokens",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "bad_words",
    "logprobs",
    "prompt_logprobs",
    "grammar",
    "pooling",
)
SPECIAL_DEFAULTS = tuple(SamplingParams.__dataclass_fields__[name].default for name in SPECIAL)
