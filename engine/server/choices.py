"""One choice of an answer, whole or in pieces, as each endpoint puts it. PURE."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from engine.detokenizer import UNFINISHED
from engine.outputs import Delta, PromptLogprobs, Sample
from engine.server.tools import CallDelta, Piece, Reader
from engine.step import TokenLogprobs

TokenText = Callable[[int], str]


class Choice(Protocol):
    def whole(self, sample: Sample) -> dict[str, Any]:
        """Of a sample that has ended."""
        ...

    def opening(self) -> dict[str, Any] | None: ...

    def chunk(self, delta: Delta) -> dict[str, Any] | None:
        """None: this delta says nothing yet."""
        ...


class TextChoice:
    """Of /v1/completions. `echo`: the prompt's text, where it was asked for; `prompt`: its ids."""

    def __init__(
        self, index: int, token_text: TokenText, echo: str | None, prompt: Sequence[int]
    ) -> None:
        self._index = index
        self._token_text = token_text
        self._echo = echo
        self._prompt = prompt
        self._offset = 0

    def whole(self, sample: Sample) -> dict[str, Any]:
        result = sample.result()
        ids, logprobs = list(result.token_ids), list(result.logprobs or ())
        told: dict[str, Any] | None = None
        if result.logprobs is not None:
            echoed = sample.prompt_logprobs if self._echo is not None else None
            before = list(self._prompt) if echoed is not None else []
            told = self._logprobs([*before, *ids], [*(echoed or ()), *logprobs])
        body = {
            "index": self._index,
            "text": (self._echo or "") + result.text,
            "logprobs": told,
            **_end(result.finish_reason, result.stop_reason),
        }
        return body | _prompt_logprobs(sample, self._token_text)

    def opening(self) -> dict[str, Any] | None:
        if self._echo is None:
            return None
        return {"index": self._index, "text": self._echo, "logprobs": None, **_end(None, None)}

    def chunk(self, delta: Delta) -> dict[str, Any] | None:
        if not (delta.text or delta.finish_reason or delta.logprobs):
            return None
        told = self._logprobs(delta.token_ids, [delta.logprobs]) if delta.logprobs else None
        end = _end(delta.finish_reason, delta.stop_reason)
        return {"index": self._index, "text": delta.text, "logprobs": told, **end}

    def _logprobs(
        self, ids: Sequence[int], logprobs: Sequence[TokenLogprobs | None]
    ) -> dict[str, Any]:
        texts = [self._token_text(one) for one in ids]
        offsets = []
        for text in texts:
            offsets.append(self._offset)
            self._offset += len(text)
        return {
            "tokens": texts,
            "token_logprobs": [one and _finite(one.logprob) for one in logprobs],
            "top_logprobs": [
                one and {self._token_text(token): _finite(value) for token, value in one.top}
                for one in logprobs
            ],
            "text_offset": offsets,
        }


class ChatChoice:
    """Of /v1/chat/completions. `reader` finds the calls of tools, where tools were offered;
    `parallel`: whether more than one call may be told."""

    def __init__(
        self, index: int, token_text: TokenText, reader: Reader | None, parallel: bool
    ) -> None:
        self._index = index
        self._token_text = token_text
        self._reader = reader
        self._parallel = parallel
        self._called = False

    def whole(self, sample: Sample) -> dict[str, Any]:
        result = sample.result()
        pieces = self._pieces(result.text, ended=True)
        content = "".join(piece for piece in pieces if isinstance(piece, str))
        calls = _joined(piece for piece in pieces if isinstance(piece, CallDelta))
        message: dict[str, Any] = {"role": "assistant", "content": content}
        if calls:
            message |= {"content": content or None, "tool_calls": calls}
        logprobs = result.logprobs and self._logprobs(result.token_ids, result.logprobs)
        body = {
            "index": self._index,
            "message": message,
            "logprobs": logprobs,
            **self._end(result.finish_reason, result.stop_reason),
        }
        return body | _prompt_logprobs(sample, self._token_text)

    def opening(self) -> dict[str, Any] | None:
        """Who speaks."""
        return self._chunk({"role": "assistant", "content": ""}, None, _end(None, None))

    def chunk(self, delta: Delta) -> dict[str, Any] | None:
        pieces = self._pieces(delta.text, ended=delta.finish_reason is not None)
        if not (pieces or delta.finish_reason or delta.logprobs):
            return None
        said: dict[str, Any] = {}
        if content := "".join(piece for piece in pieces if isinstance(piece, str)):
            said["content"] = content
        if calls := [_call_chunk(piece) for piece in pieces if isinstance(piece, CallDelta)]:
            said["tool_calls"] = calls
        logprobs = self._logprobs(delta.token_ids, [delta.logprobs]) if delta.logprobs else None
        return self._chunk(said, logprobs, self._end(delta.finish_reason, delta.stop_reason))

    def _pieces(self, text: str, *, ended: bool) -> list[Piece]:
        if self._reader is None:
            return [text] if text else []
        pieces = self._reader.push(text) if text else []
        if ended:
            pieces = [*pieces, *self._reader.finish()]
        if not self._parallel:
            pieces = [p for p in pieces if isinstance(p, str) or p.index == 0]
        self._called = self._called or any(isinstance(piece, CallDelta) for piece in pieces)
        return pieces

    def _chunk(self, said: dict[str, Any], logprobs: Any, end: dict[str, Any]) -> dict[str, Any]:
        return {"index": self._index, "delta": said, "logprobs": logprobs, **end}

    def _end(self, finish_reason: str | None, stop_reason: int | str | None) -> dict[str, Any]:
        called = self._called and finish_reason == "stop"
        return _end("tool_calls" if called else finish_reason, stop_reason)

    def _logprobs(self, ids: Sequence[int], logprobs: Sequence[TokenLogprobs]) -> dict[str, Any]:
        pairs = zip(ids, logprobs, strict=True)
        content = [
            {
                **self._token(token, one.logprob),
                "top_logprobs": [self._token(other, value) for other, value in one.top],
            }
            for token, one in pairs
        ]
        return {"content": content, "refusal": None}

    def _token(self, token_id: int, logprob: float) -> dict[str, Any]:
        """`bytes` is unknown (null) where the token is not whole characters."""
        text = self._token_text(token_id)
        raw = None if UNFINISHED in text else list(text.encode())
        return {"token": text, "logprob": _finite(logprob), "bytes": raw}


def describe(logprobs: PromptLogprobs, token_text: TokenText) -> list[Any]:
    """vLLM's prompt_logprobs: for each token but the first the likeliest ones by their id."""
    return [one and _by_id(one, token_text) for one in logprobs]


def _by_id(logprobs: TokenLogprobs, token_text: TokenText) -> dict[str, Any]:
    return {
        str(token): {"logprob": _finite(value), "rank": rank, "decoded_token": token_text(token)}
        for rank, (token, value) in enumerate(logprobs.top, 1)
    }


def _prompt_logprobs(sample: Sample, token_text: TokenText) -> dict[str, Any]:
    if sample.prompt_logprobs is None:
        return {}
    return {"prompt_logprobs": describe(sample.prompt_logprobs, token_text)}


def _joined(deltas: Iterable[CallDelta]) -> list[dict[str, Any]]:
    """Whole calls, of their pieces."""
    calls: dict[int, dict[str, Any]] = {}
    for delta in deltas:
        empty = {"name": delta.name, "arguments": ""}
        call = calls.setdefault(
            delta.index, {"id": delta.id, "type": "function", "function": empty}
        )
        call["function"]["arguments"] += delta.arguments
    return list(calls.values())


def _call_chunk(delta: CallDelta) -> dict[str, Any]:
    """Its first chunk names the call; those after it only add arguments."""
    if delta.name is None:
        return {"index": delta.index, "function": {"arguments": delta.arguments}}
    function = {"name": delta.name, "arguments": delta.arguments}
    return {"index": delta.index, "id": delta.id, "type": "function", "function": function}


def _end(finish_reason: str | None, stop_reason: int | str | None) -> dict[str, Any]:
    return {"finish_reason": finish_reason, "stop_reason": stop_reason}


def _finite(logprob: float) -> float:
    """JSON knows no infinity: as OpenAI, -9999 stands for what cannot be."""
    return max(logprob, -9999.0)
