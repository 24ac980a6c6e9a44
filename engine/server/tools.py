"""Calls of tools in what a model writes: found in its text as it comes. PURE."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeAlias

from engine.detokenizer import overlap
from engine.sampling_params import Grammar
from engine.server.flags import ToolFormat
from engine.server.protocol import Function

PYTHON_TAG = "<|python_tag|>"


@dataclass(frozen=True)
class CallDelta:
    """A call's beginning (with its name), or more of its arguments, which are JSON text."""

    index: int
    arguments: str
    name: str | None = None
    id: str = field(default_factory=lambda: f"call_{uuid.uuid4().hex[:24]}")


Piece: TypeAlias = str | CallDelta


class Reader(Protocol):
    """Text goes in as it comes; what is surely content, or part of a call, comes out."""

    def push(self, text: str) -> list[Piece]: ...

    def finish(self) -> list[Piece]:
        """The rest. What looked like a call but is none comes out as content."""
        ...


def format_of(chat_template: str) -> ToolFormat | None:
    """How a model with this template writes its calls; None: it was not taught to."""
    if "tools" not in chat_template:
        return None
    if "<tool_call>" in chat_template:
        return "hermes"
    return "llama3_json" if PYTHON_TAG in chat_template or '"parameters"' in chat_template else None


def reader_of(style: ToolFormat, names: Sequence[str]) -> Reader:
    return HermesReader(names) if style == "hermes" else JsonReader(names, "parameters")


def required_grammar(functions: Sequence[Function], parallel: bool) -> Grammar:
    """A JSON list of calls, at least one: what `JsonReader` reads."""
    calls = [_call_schema(function) for function in functions]
    schema = {"type": "array", "items": {"anyOf": calls}, "minItems": 1}
    if not parallel:
        schema["maxItems"] = 1
    return Grammar("json_schema", json.dumps(schema))


def named_grammar(function: Function) -> Grammar:
    """The arguments alone: what `NamedReader` reads."""
    return Grammar("json_schema", json.dumps(function.schema_of_arguments))


class HermesReader:
    """`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, any number of them, among text:
    Hermes, Qwen 2.5 and 3."""

    START, END = "<tool_call>", "</tool_call>"

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._inside = False
        self._text = ""  # not yet told
        self._count = 0

    def push(self, text: str) -> list[Piece]:
        pieces: list[Piece] = []
        self._text += text
        while (marker := self.END if self._inside else self.START) in self._text:
            before, _, self._text = self._text.partition(marker)
            pieces += self._call(before) if self._inside else _content(before)
            self._inside = not self._inside
        if not self._inside:
            sure = len(self._text) - overlap(self._text, self.START)
            pieces += _content(self._text[:sure])
            self._text = self._text[sure:]
        return pieces

    def finish(self) -> list[Piece]:
        return _content(f"{self.START}{self._text}" if self._inside else self._text)

    def _call(self, raw: str) -> list[Piece]:
        calls = _calls(_parsed(raw), self._names, "arguments", self._count)
        self._count += len(calls)
        return [*calls] or _content(f"{self.START}{raw}{self.END}")


class JsonReader:
    """Nothing but calls, as JSON objects: one, several with `;` between them, or a list; perhaps
    behind a tag: Llama 3.1 and later, and whatever follows `required_grammar`."""

    def __init__(self, names: Sequence[str], arguments: str) -> None:
        self._names = names
        self._arguments = arguments
        self._text = ""
        self._is_content = False

    def push(self, text: str) -> list[Piece]:
        if self._is_content:
            return _content(text)
        self._text += text
        if self._may_be_calls(self._text.lstrip()):
            return []
        self._is_content = True
        return _content(self._text)

    def finish(self) -> list[Piece]:
        if self._is_content:
            return []
        raw = self._text.strip().removeprefix(PYTHON_TAG)
        values = _parsed(raw, separator=";")
        flat = values[0] if len(values) == 1 and isinstance(values[0], list) else values
        return [*_calls(flat, self._names, self._arguments, 0)] or _content(self._text)

    def _may_be_calls(self, text: str) -> bool:
        return text.startswith(("{", "[", PYTHON_TAG)) or PYTHON_TAG.startswith(text)


class NamedReader:
    """The arguments of one function, from the first character on."""

    def __init__(self, name: str) -> None:
        self._call = CallDelta(0, "", name)
        self._begun = False

    def push(self, text: str) -> list[Piece]:
        first = not self._begun
        self._begun = True
        delta = replace(self._call, arguments=text)
        return [delta if first else replace(delta, name=None)]

    def finish(self) -> list[Piece]:
        return []


def _call_schema(function: Function) -> dict[str, Any]:
    properties = {"name": {"const": function.name}, "arguments": function.schema_of_arguments}
    return {
        "type": "object",
        "properties": properties,
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _parsed(raw: str, separator: str = "") -> list[Any]:
    """The JSON values that `raw` is made of; none if anything else is in it."""
    decoder, values, rest = json.JSONDecoder(), [], raw.strip()
    while rest:
        try:
            value, stop = decoder.raw_decode(rest)
        except (json.JSONDecodeError, RecursionError):
            return []
        values.append(value)
        rest = rest[stop:].lstrip().removeprefix(separator).lstrip()
    return values


def _calls(
    values: Iterable[Any], names: Sequence[str], arguments: str, first: int
) -> list[CallDelta]:
    """All of them as calls; none when one of them is not a call of a function in `names`."""
    calls = []
    for number, value in enumerate(values, first):
        known = isinstance(value, dict) and value.get("name") in names
        if not known or not isinstance(value.get(arguments, {}), dict):
            return []
        text = json.dumps(value.get(arguments, {}), ensure_ascii=False)
        calls.append(CallDelta(number, text, value["name"]))
    return calls


def _content(text: str) -> list[Piece]:
    return [text] if text else []
