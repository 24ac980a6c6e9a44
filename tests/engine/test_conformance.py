"""OpenAI's own client against the server, streamed and not, over every parameter it takes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from shutil import copytree
from typing import Any

import httpx
import openai
import pytest
from transformers import AutoTokenizer

from tests.engine.conftest import MakeCheckpoint
from tests.engine.test_server import CHAT, Served, serving

TOOL_TEMPLATE = (
    "{% if tools %}tools: {{ tools | tojson }} <tool_call>\n{% endif %}"
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}"
    "{% for call in message.tool_calls or [] %}{{ call.function.arguments | tojson }}{% endfor %}\n"
    "{% endfor %}assistant: "
)
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 6}, "days": {"enum": [1, 7]}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "weather", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "now", "description": "the time"}},
]


@pytest.fixture(scope="module")
def model(checkpoint: MakeCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, with a chat template that knows tools, and room to speak."""
    directory = tmp_path_factory.mktemp("tools") / "model"
    copytree(checkpoint(max_position_embeddings=2048), directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.chat_template = TOOL_TEMPLATE
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module", params=[1, 2], ids=["alone", "replicas"])
def served(model: Path, request: pytest.FixtureRequest) -> Iterator[Served]:
    options = {"max_num_batched_tokens": 64, "data_parallel_size": request.param}
    options |= {"distributed_executor_backend": "inproc"}
    with serving(model, options=options) as served:
        yield served


@pytest.fixture(params=[False, True], ids=["whole", "streamed"])
def stream(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


class Said:
    """A chat choice, joined from its chunks where it was streamed."""

    def __init__(self) -> None:
        self.text = ""
        self.finish_reason: str | None = None
        self.logprobs: list[Any] = []
        self.calls: dict[int, dict[str, Any]] = {}
        self.pieces = 0


def chat(served: Served, stream: bool, index: int = 0, **asked: Any) -> Said:
    asked = {"model": "tiny", "messages": CHAT, "temperature": 0, "max_tokens": 12, **asked}
    return streamed(served, index, asked) if stream else whole(served, index, asked)


def whole(served: Served, index: int, asked: dict[str, Any]) -> Said:
    said = Said()
    choice = served.client.chat.completions.create(**asked).choices[index]
    said.text = choice.message.content or ""
    said.finish_reason = choice.finish_reason
    said.logprobs = (choice.logprobs and choice.logprobs.content) or []
    for number, call in enumerate(choice.message.tool_calls or []):
        function = call.function  # type: ignore[union-attr]
        said.calls[number] = {"id": call.id, "name": function.name, "text": function.arguments}
    return said


def streamed(served: Served, index: int, asked: dict[str, Any]) -> Said:
    said = Said()
    for chunk in served.client.chat.completions.create(**asked, stream=True):
        choice = chunk.choices[0]
        if choice.index == index:
            said.pieces += 1
            said.text += choice.delta.content or ""
            said.finish_reason = choice.finish_reason or said.finish_reason
            said.logprobs += (choice.logprobs and choice.logprobs.content) or []
            for delta in choice.delta.tool_calls or []:
                assert delta.function is not None
                call = said.calls.setdefault(
                    delta.index, {"id": delta.id, "name": delta.function.name, "text": ""}
                )
                call["text"] += delta.function.arguments or ""
    return said


def complete(served: Served, stream: bool, **asked: Any) -> tuple[str, str | None]:
    """Text and finish reason of the first choice."""
    asked = {"model": "tiny", "prompt": "hello", "temperature": 0, "max_tokens": 12, **asked}
    if not stream:
        choice = served.client.completions.create(**asked).choices[0]
        return choice.text, choice.finish_reason
    chunks = list(served.client.completions.create(**asked, stream=True))
    return "".join(one.choices[0].text for one in chunks), chunks[-1].choices[0].finish_reason


def test_max_tokens_and_its_newer_name(served: Served, stream: bool) -> None:
    short = chat(served, stream, max_tokens=3, logprobs=True)
    assert (len(short.logprobs), short.finish_reason) == (3, "length")
    newer = chat(served, stream, max_tokens=openai.omit, max_completion_tokens=3)
    assert newer.text == short.text


def test_a_temperature_and_a_seed_give_the_same_text_again(served: Served, stream: bool) -> None:
    asked: dict[str, Any] = {"temperature": 1.3, "seed": 7, "max_tokens": 20}
    assert chat(served, stream, **asked).text == chat(served, False, **asked).text
    assert chat(served, stream, **{**asked, "seed": 8}).text != chat(served, False, **asked).text


@pytest.mark.parametrize("narrow", [{"top_p": 1e-9}, {"top_k": 1}, {"min_p": 1.0}])
def test_filters_that_leave_one_token_are_greedy(
    served: Served, stream: bool, narrow: dict[str, float]
) -> None:
    greedy = chat(served, stream)
    assert chat(served, stream, temperature=2, extra_body=narrow).text == greedy.text


@pytest.mark.parametrize("index", [0, 1, 2])
def test_each_of_n_choices_is_what_its_own_seed_gives(
    served: Served, stream: bool, index: int
) -> None:
    many = chat(served, stream, index, temperature=1, seed=5, n=3)
    assert many.text == chat(served, False, temperature=1, seed=5 + index).text


def test_stop_strings_and_stop_tokens(served: Served, stream: bool) -> None:
    text = complete(served, stream)[0]
    assert complete(served, stream, stop=[text[5:7], "never"]) == (
        text[: text.index(text[5:7])],
        "stop",
    )
    (token,) = tokens(served, text[4])
    ended = complete(served, stream, extra_body={"stop_token_ids": [token]})
    assert ended == (text[: text.index(text[4])], "stop")


def test_min_tokens_and_ignore_eos_keep_the_end_back(served: Served, stream: bool) -> None:
    ends = {"logit_bias": {"1": 100}}  # </s>
    assert complete(served, stream, **ends) == ("", "stop")
    at_least = {"extra_body": {"min_tokens": 4, "guided_regex": "x*"}}
    assert complete(served, stream, **ends, **at_least) == ("xxxx", "stop")
    _, reason = complete(served, stream, **ends, extra_body={"ignore_eos": True})
    assert reason == "length"


def test_logit_bias_forces_and_forbids(served: Served, stream: bool) -> None:
    (token,) = tokens(served, "q")
    assert complete(served, stream, logit_bias={str(token): 100})[0] == "q" * 12
    others = {"extra_body": {"guided_regex": "[qr]{12}"}}
    assert complete(served, stream, logit_bias={str(token): -100}, **others)[0] == "r" * 12


def test_penalties_end_repetition(served: Served, stream: bool) -> None:
    (q,), (z,) = tokens(served, "q"), tokens(served, "z")
    favoured = {"logit_bias": {str(q): 90, str(z): 80}, "extra_body": {"guided_regex": "[qz]{12}"}}
    assert complete(served, stream, **favoured)[0] == "q" * 12
    body = favoured["extra_body"]
    for penalty in (
        {"frequency_penalty": 2},
        {"extra_body": {**body, "repetition_penalty": 9.0}},
    ):
        assert "z" in complete(served, stream, **{**favoured, **penalty})[0]
    presence = complete(served, stream, **favoured, presence_penalty=-2)[0]
    assert presence == "q" * 12


def test_bad_words_are_not_written(served: Served, stream: bool) -> None:
    words = {"bad_words": ["q"], "guided_regex": "[qr]{12}"}
    assert complete(served, stream, extra_body=words)[0] == "r" * 12


def test_logprobs_of_a_chat(served: Served, stream: bool) -> None:
    said = chat(served, stream, logprobs=True, top_logprobs=3)
    assert len(said.logprobs) == 12
    for token in said.logprobs:
        best = token.top_logprobs
        assert len(best) == 3
        assert (best[0].token, best[0].logprob) == (token.token, token.logprob)  # greedy
        assert best[0].logprob >= best[1].logprob >= best[2].logprob
    if "\ufffd" not in said.text:
        assert b"".join(bytes(t.bytes) for t in said.logprobs).decode() == said.text


def test_logprobs_of_a_completion_and_its_echo(served: Served) -> None:
    asked: dict[str, Any] = {"model": "tiny", "prompt": "hello", "max_tokens": 4, "temperature": 0}
    plain = served.client.completions.create(**asked, logprobs=2).choices[0]
    echoed = served.client.completions.create(**asked, logprobs=2, echo=True).choices[0]
    assert echoed.text == "hello" + plain.text
    assert plain.logprobs is not None
    assert echoed.logprobs is not None
    assert echoed.logprobs.tokens is not None
    assert echoed.logprobs.tokens[:5] == list("hello")
    assert echoed.logprobs.text_offset == list(range(9))
    assert echoed.logprobs.token_logprobs is not None
    assert echoed.logprobs.token_logprobs[0] is None
    assert plain.logprobs.token_logprobs is not None
    assert echoed.logprobs.token_logprobs[5:] == pytest.approx(
        plain.logprobs.token_logprobs, abs=1e-4
    )
    assert {len(one) for one in (plain.logprobs.top_logprobs or [])} <= {1, 2}  # equal texts


def test_echo_and_usage_while_streaming(served: Served) -> None:
    assert complete(served, True, echo=True)[0] == complete(served, False, echo=True)[0]
    chunks = list(
        served.client.chat.completions.create(
            model="tiny",
            messages=CHAT,  # type: ignore[arg-type]
            max_tokens=5,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 5
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_response_format(served: Served, stream: bool) -> None:
    schema = {"name": "weather", "schema": WEATHER, "strict": True}
    wanted = {"type": "json_schema", "json_schema": schema}
    said = chat(served, stream, temperature=1, seed=3, max_tokens=200, response_format=wanted)
    assert json.loads(said.text).keys() == {"city", "days"}
    some = chat(
        served, stream, max_tokens=60, response_format={"type": "json_object"}, logit_bias={}
    )
    assert some.text.startswith("{")


@pytest.mark.parametrize(
    "how",
    [
        {"guided_regex": "[xy]{4}"},
        {"structured_outputs": {"regex": "[xy]{4}"}},
        {"guided_choice": ["xxyy", "yyxx"]},
    ],
)
def test_regular_expressions_and_choices(served: Served, stream: bool, how: dict[str, Any]) -> None:
    said = chat(served, stream, temperature=1, extra_body=how)
    assert re.fullmatch("[xy]{4}", said.text)
    assert said.finish_reason == "stop"


def test_a_named_tool_gets_arguments_of_its_schema(served: Served, stream: bool) -> None:
    choice = {"type": "function", "function": {"name": "weather"}}
    said = chat(
        served, stream, temperature=1, seed=1, tools=TOOLS, tool_choice=choice, max_tokens=200
    )
    assert (said.finish_reason, said.text) == ("tool_calls", "")
    assert said.calls[0]["name"] == "weather"
    assert said.calls[0]["id"].startswith("call_")
    assert json.loads(said.calls[0]["text"]).keys() == {"city", "days"}
    if stream:
        assert said.pieces > 10  # the arguments came as they were written


def test_a_required_tool_is_called_whatever_the_model_likes(served: Served, stream: bool) -> None:
    for seed in range(3):
        said = chat(
            served,
            stream,
            temperature=1,
            seed=seed,
            tools=TOOLS[:1],
            tool_choice="required",
            parallel_tool_calls=False,
            max_tokens=400,
        )
        assert said.finish_reason == "tool_calls"
        assert [call["name"] for call in said.calls.values()] == ["weather"]
        assert json.loads(said.calls[0]["text"]).keys() == {"city", "days"}


def test_tools_that_the_model_does_not_call_leave_its_text_alone(
    served: Served, stream: bool
) -> None:
    for choice in ("auto", "none"):
        said = chat(served, stream, tools=TOOLS, tool_choice=choice)
        assert said.calls == {}
        assert said.text
        assert said.finish_reason == "length"


def test_a_conversation_with_calls_and_their_results_is_understood(served: Served) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "now", "arguments": '{"a": 1}'}}
    messages = [
        *CHAT,
        {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None},
        {"role": "tool", "tool_call_id": "1", "content": "noon"},
    ]
    assert chat(served, False, messages=messages, tools=TOOLS).text
    call["function"] = {"name": "now", "arguments": "[1"}
    with pytest.raises(openai.BadRequestError):
        chat(served, False, messages=messages, tools=TOOLS)


def test_tools_are_refused_where_the_template_has_no_place_for_them(
    checkpoint: MakeCheckpoint,
) -> None:
    with serving(checkpoint()) as served, pytest.raises(openai.BadRequestError, match="no place"):
        chat(served, False, tools=TOOLS)


def test_embeddings_as_numbers_and_packed(served: Served) -> None:
    create = served.client.embeddings.create
    packed = create(model="tiny", input=["hello", "world"])
    plain = create(model="tiny", input="hello", encoding_format="float")
    assert packed.data[0].embedding == pytest.approx(plain.data[0].embedding, abs=1e-5)
    assert sum(x * x for x in plain.data[0].embedding) == pytest.approx(1, abs=1e-4)
    assert len(plain.data[0].embedding) == 64
    assert packed.usage.prompt_tokens == 10
    mean = create(model="tiny", input=tokens(served, "hello"), extra_body={"pooling": "mean"})
    assert mean.data[0].embedding != pytest.approx(plain.data[0].embedding, abs=1e-3)


def test_models_and_their_errors(served: Served) -> None:
    assert [one.id for one in served.client.models.list()] == ["tiny", "alias"]
    with pytest.raises(openai.NotFoundError):
        chat(served, False, model="nobody")


def tokens(served: Served, text: str) -> list[int]:
    made = httpx.post(f"{served.url}/tokenize", json={"prompt": text}).json()
    ids: list[int] = made["tokens"]
    return ids


def test_tokenize_and_back(served: Served) -> None:
    text = "héllo ☃"
    ids = tokens(served, text)
    assert served.post("/detokenize", tokens=ids).json() == {"prompt": text}
    said = served.post("/tokenize", messages=CHAT, return_token_strs=True).json()
    assert said["count"] == len(said["tokens"]) == len(said["token_strs"])
    assert "".join(said["token_strs"]) == "user: hiassistant: "
    assert served.post("/detokenize", tokens=[9999]).status_code == 400
    assert served.post("/tokenize").status_code == 400


def test_split_characters_are_whole_in_every_chunk(served: Served) -> None:
    """Each token of the tiny model is one byte: "☃" is three."""
    said = "".join(
        chunk.choices[0].text
        for chunk in served.client.completions.create(
            model="tiny",
            prompt="x",
            stream=True,
            max_tokens=12,
            extra_body={"guided_choice": ["☃é☃"]},
        )
        if "\ufffd" not in chunk.choices[0].text
    )
    assert said == "☃é☃"
