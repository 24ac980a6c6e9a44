"""What the client reads: whole answers and chunks of them, in OpenAI's shapes. PURE."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from engine.outputs import Delta, Sample
from engine.server.choices import Choice

Kind = Literal["chat", "text"]


@dataclass(frozen=True)
class Answer:
    """One answer being written: its name, and how its endpoint puts each of its choices."""

    kind: Kind
    model: str
    choices: Sequence[Choice]
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def name(self) -> str:
        return f"{'chatcmpl' if self.kind == 'chat' else 'cmpl'}-{self.id}"

    def whole(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """`samples` have all ended; choices are in their order."""
        pairs = zip(self.choices, samples, strict=True)
        choices = [choice.whole(sample) for choice, sample in pairs]
        kind = "chat.completion" if self.kind == "chat" else "text_completion"
        return {**self._head(kind), "choices": choices, "usage": usage(samples)}

    def opening(self, number: int) -> dict[str, Any] | None:
        """The chunk before a choice's first token, where there is one."""
        return self._chunk(self.choices[number].opening())

    def chunk(self, number: int, delta: Delta) -> dict[str, Any] | None:
        """None: nothing that could be said yet."""
        return self._chunk(self.choices[number].chunk(delta))

    def usage_chunk(self, samples: Sequence[Sample]) -> dict[str, Any]:
        return {**self._head(self._chunk_kind), "choices": [], "usage": usage(samples)}

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self.kind == "chat" else "text_completion"

    def _chunk(self, choice: dict[str, Any] | None) -> dict[str, Any] | None:
        return None if choice is None else {**self._head(self._chunk_kind), "choices": [choice]}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.name, "object": kind, "created": self.created, "model": self.model}


def usage(samples: Sequence[Sample]) -> dict[str, int]:
    """A prompt counts once, however many samples it has: those begin with the sample 0."""
    prompt = sum(len(s.request.prompt_token_ids) for s in samples if s.index == 0)
    completion = sum(sample.num_tokens for sample in samples)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
