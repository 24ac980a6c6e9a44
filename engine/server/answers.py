"""What the client reads: whole answers and chunks of them, in OpenAI's shapes. PURE."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from engine.outputs import Delta, Sample

Kind = Literal["chat", "text"]


@dataclass(frozen=True)
class Answer:
    """One answer being written: its name, and the way its endpoint puts things."""

    kind: Kind
    model: str
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def name(self) -> str:
        return f"{'chatcmpl' if self.kind == 'chat' else 'cmpl'}-{self.id}"

    def whole(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """`samples` have all ended; choices are numbered in their order."""
        choices = [self._choice(index, sample) for index, sample in enumerate(samples)]
        kind = "chat.completion" if self.kind == "chat" else "text_completion"
        return {**self._head(kind), "choices": choices, "usage": usage(samples)}

    def chunk(self, index: int, delta: Delta) -> dict[str, Any]:
        text = {"delta": {"content": delta.text}} if self.kind == "chat" else {"text": delta.text}
        return self._chunk(
            [{"index": index, **text, **_end(delta.finish_reason, delta.stop_reason)}]
        )

    def opening(self, index: int) -> dict[str, Any]:
        """The first chunk of a chat choice: who speaks."""
        delta = {"role": "assistant", "content": ""}
        return self._chunk([{"index": index, "delta": delta, **_end(None, None)}])

    def usage_chunk(self, samples: Sequence[Sample]) -> dict[str, Any]:
        return {**self._chunk([]), "usage": usage(samples)}

    def _choice(self, index: int, sample: Sample) -> dict[str, Any]:
        result = sample.result()
        message = {"role": "assistant", "content": result.text}
        text = {"message": message} if self.kind == "chat" else {"text": result.text}
        return {"index": index, **text, **_end(result.finish_reason, result.stop_reason)}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self.kind == "chat" else "text_completion"
        return {**self._head(kind), "choices": choices}

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


def _end(finish_reason: str | None, stop_reason: int | str | None) -> dict[str, Any]:
    return {"logprobs": None, "finish_reason": finish_reason, "stop_reason": stop_reason}
