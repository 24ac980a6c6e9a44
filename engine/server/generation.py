"""Requests for text, from their bodies to samples and the answer that they will be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engine import grammar
from engine.outputs import Sample, make_samples
from engine.sampling_params import SamplingParams
from engine.server.answers import Answer, Kind
from engine.server.choices import ChatChoice, Choice, TextChoice
from engine.server.errors import ApiError
from engine.server.flags import ToolFormat
from engine.server.protocol import (
    ChatBody,
    CompletionBody,
    EmbeddingBody,
    GenerationBody,
    NamedTool,
    as_list,
)
from engine.server.tools import (
    JsonReader,
    NamedReader,
    Reader,
    named_grammar,
    reader_of,
    required_grammar,
)
from engine.tokenizer import Tokenizer


@dataclass(frozen=True)
class Job:
    """What is to be computed, and what it will be said as."""

    answer: Answer
    samples: list[Sample]


class Preparation:
    """Bodies -> Jobs. Slow for long texts: not for the event loop. Raises ApiError and ValueError
    for what the client has to change."""

    def __init__(self, tokenizer: Tokenizer, tool_format: ToolFormat | None) -> None:
        self._tokenizer = tokenizer
        self._tool_format = tool_format

    def completion(self, body: CompletionBody, model: str) -> Job:
        prompts = [self._ids(prompt) for prompt in as_list(body.prompt)]
        sampling = checked(body)
        decode = self._tokenizer.decode
        choices: list[Choice] = []
        for prompt in prompts:
            echo = decode(prompt) if body.echo else None
            for _ in range(sampling.n):
                index = len(choices)
                choices.append(TextChoice(index, self._tokenizer.token_text, echo, prompt))
        return self._job("text", model, choices, prompts, sampling, body.priority)

    def chat(self, body: ChatBody, model: str) -> Job:
        prompt = self._conversation(body)
        more = self._calls(body)
        sampling = checked(body, **more)
        parallel = body.parallel_tool_calls is not False
        choices = [
            ChatChoice(index, self._tokenizer.token_text, self._reader(body), parallel)
            for index in range(sampling.n)
        ]
        return self._job("chat", model, choices, [prompt], sampling, body.priority)

    def embeddings(self, body: EmbeddingBody, name: str) -> list[Sample]:
        sampling = SamplingParams(max_tokens=1, temperature=0, pooling=body.pooling or "last")
        return [
            sample
            for number, prompt in enumerate(as_list(body.input))
            for sample in self._samples(f"{name}-{number}", self._ids(prompt), sampling)
        ]

    def _ids(self, prompt: str | list[int]) -> list[int]:
        return self._tokenizer.encode(prompt) if isinstance(prompt, str) else prompt

    def _conversation(self, body: ChatBody) -> list[int]:
        offered = [tool.model_dump(exclude_none=True) for tool in _offered(body)]
        if offered and self._tool_format is None:
            raise ApiError(400, "this model's chat template has no place for tools", param="tools")
        try:
            messages = [message.for_template() for message in body.messages]
            return self._tokenizer.encode_chat(messages, offered, body.chat_template_kwargs)
        except ValueError as error:
            raise ApiError(400, str(error), param="messages") from error

    def _calls(self, body: ChatBody) -> dict[str, Any]:
        """What the choice of tools makes of the sampling."""
        functions = [tool.function for tool in _offered(body)]
        if not functions:
            return {}
        if body.tool_choice in (None, "auto"):
            return {"skip_special_tokens": False}  # some write their calls with them
        if body.grammar() is not None:
            raise ApiError(400, "a grammar and a forced tool exclude each other", param="tools")
        if isinstance(body.tool_choice, NamedTool):
            return {"grammar": named_grammar(functions[0])}
        return {"grammar": required_grammar(functions, body.parallel_tool_calls is not False)}

    def _reader(self, body: ChatBody) -> Reader | None:
        names = [tool.function.name for tool in _offered(body)]
        if not names or self._tool_format is None:
            return None
        if isinstance(body.tool_choice, NamedTool):
            return NamedReader(names[0])
        if body.tool_choice == "required":
            return JsonReader(names, "arguments")
        return reader_of(self._tool_format, names)

    def _job(
        self,
        kind: Kind,
        model: str,
        choices: Sequence[Choice],
        prompts: Sequence[Sequence[int]],
        sampling: SamplingParams,
        priority: int | None,
    ) -> Job:
        answer = Answer(kind, model, choices)
        samples = [
            sample
            for number, prompt in enumerate(prompts)
            for sample in self._samples(f"{answer.name}-{number}", prompt, sampling)
        ]
        for sample in samples:
            sample.request.priority = priority or 0
        return Job(answer, samples)

    def _samples(self, name: str, prompt: Sequence[int], sampling: SamplingParams) -> list[Sample]:
        return make_samples(name, prompt, sampling, self._tokenizer)


def checked(body: GenerationBody, **more: Any) -> SamplingParams:
    """Raises ApiError for a value out of its range, or a grammar that cannot be followed."""
    try:
        sampling = body.sampling(**more)
        if sampling.grammar is not None:
            grammar.check(sampling.grammar)
    except ValueError as error:
        name = str(error).partition(" ")[0]
        known = name in type(body).model_fields
        raise ApiError(400, str(error), param=name if known else None) from error
    return sampling


def _offered(body: ChatBody) -> list[Any]:
    """The tools that may be called: the named one first, none of them for "none"."""
    tools = body.tools or []
    if body.tool_choice == "none":
        return []
    if isinstance(body.tool_choice, NamedTool):
        name = body.tool_choice.function.name
        return [tool for tool in tools if tool.function.name == name]
    return tools
