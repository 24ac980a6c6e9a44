"""Calls of tools, found in text that comes in pieces of any size."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.server.tools import CallDelta, HermesReader, JsonReader, Reader, format_of

NAMES = ["now", "weather"]
NOW = '{"name": "now", "arguments": {"a": "</b>"}}'


def read(reader: Reader, text: str, size: int) -> tuple[str, list[tuple[str | None, str]]]:
    pieces = []
    for start in range(0, len(text), size):
        pieces += reader.push(text[start : start + size])
    pieces += reader.finish()
    content = "".join(piece for piece in pieces if isinstance(piece, str))
    calls = [piece for piece in pieces if isinstance(piece, CallDelta)]
    assert [call.index for call in calls] == list(range(len(calls)))
    return content, [(call.name, call.arguments) for call in calls]


ARGUMENTS = '{"a": "</b>"}'


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ("no call < here <tool", "no call < here <tool", []),
        (f"a<tool_call>\n{NOW}\n</tool_call>b", "ab", [("now", ARGUMENTS)]),
        (
            f"<tool_call>{NOW}</tool_call>\n<tool_call>{NOW}</tool_call>",
            "\n",
            [("now", ARGUMENTS)] * 2,
        ),
        ("<tool_call>{nope</tool_call>", "<tool_call>{nope</tool_call>", []),
        ("<tool_call>" + NOW, "<tool_call>" + NOW, []),
        (
            '<tool_call>{"name": "rm", "arguments": {}}</tool_call>',
            '<tool_call>{"name": "rm", "arguments": {}}</tool_call>',
            [],
        ),
    ],
)
def test_hermes(text: str, content: str, calls: list[tuple[str, str]], size: int) -> None:
    assert read(HermesReader(NAMES), text, size) == (content, calls)


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ('{"name": "now", "parameters": {"x": 1}}', "", [("now", '{"x": 1}')]),
        ('<|python_tag|>{"name": "now", "parameters": {}}', "", [("now", "{}")]),
        (
            '{"name": "now", "parameters": {}}; {"name": "weather", "parameters": {"d": 2}}',
            "",
            [("now", "{}"), ("weather", '{"d": 2}')],
        ),
        ("Hello there", "Hello there", []),
        ('{"name": "rm", "parameters": {}}', '{"name": "rm", "parameters": {}}', []),
        ('{"name": "now"', '{"name": "now"', []),
        ("", "", []),
    ],
)
def test_llama(text: str, content: str, calls: list[tuple[str, str]], size: int) -> None:
    assert read(JsonReader(NAMES, "parameters"), text, size) == (content, calls)


@given(st.text(alphabet='<tool_cal>/{}"\n', max_size=60), st.integers(1, 9))
def test_no_text_is_lost_or_made_up(text: str, size: int) -> None:
    assert read(HermesReader(NAMES), text, size) == (text, [])


def test_the_template_shows_the_format() -> None:
    assert format_of("{{ messages }}") is None
    assert format_of("{% if tools %}<tool_call>{% endif %}") == "hermes"
    assert format_of("{% if tools %}<|python_tag|>{% endif %}") == "llama3_json"
