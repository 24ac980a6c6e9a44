"""The bodies of requests: what is accepted, and what is refused by name."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from engine.sampling_params import Grammar, Pooling, SamplingParams

# Known, not supported, and harmless at these values: any other value would change the answer.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (None, 1),
    "functions": (None, []),
    "function_call": (None, "none"),
    "modalities": (None, ["text"]),
    "suffix": (None, ""),
}
# These say something about the request, nothing about its answer.
NOTES = frozenset(
    {"metadata", "prompt_cache_key", "safety_identifier", "service_tier", "store", "user"}
)
MAX_PROMPTS = 2048  # of one request, as OpenAI's

Ids = list[int]
Prompts = (
    str
    | Ids
    | Annotated[list[str], Field(max_length=MAX_PROMPTS)]
    | Annotated[list[Ids], Field(max_length=MAX_PROMPTS)]
)


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Body(BaseModel):
    """Names as OpenAI's, then vLLM's; null means the default. What we do not know is refused."""

    model_config = ConfigDict(extra="allow")

    model: str | None = None

    @model_validator(mode="after")
    def _refuse_what_we_cannot_do(self) -> Body:
        for name, value in (self.model_extra or {}).items():
            if name not in NOTES and not _is_neutral(name, value):
                raise _unsupported(name)
        return self


class StreamOptions(Strict):
    include_usage: bool = False
    include_obfuscation: Literal[False] | None = None


class JsonSchema(BaseModel):
    """`strict` makes no difference: a schema is always followed."""

    name: str = ""
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Strict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _has_its_schema(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema is needed when, and only when, type is json_schema")
        return self


class StructuredOutputs(Strict):
    """vLLM's own way to say it: one of these."""

    json_: dict[str, Any] | str | None = Field(default=None, alias="json")
    regex: str | None = None
    choice: list[str] | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _is_one(self) -> StructuredOutputs:
        if sum(one is not None for one in (self.json_, self.regex, self.choice)) != 1:
            raise ValueError("exactly one of json, regex and choice is needed")
        return self

    def grammar(self) -> Grammar:
        if self.regex is not None:
            return Grammar("regex", self.regex)
        if self.choice is not None:
            return Grammar("regex", "|".join(re.escape(one) for one in self.choice))
        given = self.json_
        return Grammar("json_schema", given if isinstance(given, str) else json.dumps(given))


class GenerationBody(Body):
    """What both endpoints share."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    n: int | None = Field(default=None, le=128)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    stop_token_ids: list[int] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    bad_words: list[str] | None = None
    priority: int | None = Field(default=None, ge=-(2**31), lt=2**31)
    prompt_logprobs: int | None = None
    skip_special_tokens: bool | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None

    @property
    def token_limit(self) -> int | None:
        return self.max_tokens

    @property
    def alternatives(self) -> int | None:
        """To each token, with their log-probabilities; None: no log-probabilities."""
        raise NotImplementedError

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def grammar(self) -> Grammar | None:
        """Raises ValueError when several are given."""
        given = [*self._structured(), *filter(None, [_format_grammar(self.response_format)])]
        if len(given) > 1:
            raise ValueError("response_format and structured_outputs exclude each other")
        return given[0] if given else None

    def sampling(self, **more: Any) -> SamplingParams:
        """Raises ValueError when a value is out of its range. `more` overrides the body."""
        given = {name: getattr(self, name) for name in _SAMPLED} | {
            "top_k": None if self.top_k == -1 else self.top_k,  # vLLM's other word for all
            "logprobs": self.alternatives,
            "grammar": self.grammar(),
            **more,
        }
        chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        return SamplingParams(**{**chosen, "max_tokens": self.token_limit})  # None: all the room

    def _structured(self) -> list[Grammar]:
        older = {
            "json": self.guided_json,
            "regex": self.guided_regex,
            "choice": self.guided_choice,
        }
        wanted = [self.structured_outputs] if self.structured_outputs is not None else []
        if any(one is not None for one in older.values()):
            wanted.append(StructuredOutputs.model_validate(older))
        return [one.grammar() for one in wanted]


# What the bodies and SamplingParams call by the same name.
_SAMPLED = GenerationBody.model_fields.keys() & SamplingParams.__dataclass_fields__.keys()


class CompletionBody(GenerationBody):
    prompt: Prompts
    max_tokens: int | None = 16
    logprobs: int | None = None
    echo: bool | None = None

    @property
    def alternatives(self) -> int | None:
        return self.logprobs

    def sampling(self, **more: Any) -> SamplingParams:
        if self.echo and self.logprobs is not None and self.prompt_logprobs is None:
            more = {"prompt_logprobs": self.logprobs, **more}
        return super().sampling(**more)


class TextPart(Strict):
    type: Literal["text"]
    text: str


class CalledFunction(Strict):
    name: str
    arguments: str


class ToolCall(Strict):
    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(BaseModel):
    model_config = ConfigDict(extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None

    @model_validator(mode="after")
    def _says_something_we_understand(self) -> Message:
        for name, value in (self.model_extra or {}).items():
            if value is not None and value != []:  # clients send back what they were answered
                raise ValueError(f"{name} is not supported")
        if self.content is None and not self.tool_calls:
            raise ValueError("content: a text is needed")
        return self

    def for_template(self) -> dict[str, Any]:
        """As chat templates expect it: arguments of calls are objects. Raises ValueError where
        they are no JSON object."""
        said: dict[str, Any] = {"role": self.role, "content": _text(self.content)}
        if self.tool_calls:
            said["tool_calls"] = [_for_template(call) for call in self.tool_calls]
        others = {"name": self.name, "tool_call_id": self.tool_call_id}
        return said | {name: value for name, value in others.items() if value is not None}


class Function(BaseModel):
    name: str = Field(min_length=1, max_length=64)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @property
    def schema_of_arguments(self) -> dict[str, Any]:
        return self.parameters or {"type": "object", "properties": {}}


class Tool(Strict):
    type: Literal["function"]
    function: Function


class FunctionName(Strict):
    name: str


class NamedTool(Strict):
    type: Literal["function"]
    function: FunctionName


class ChatBody(GenerationBody):
    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def token_limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def alternatives(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @model_validator(mode="after")
    def _asks_for_what_there_is(self) -> ChatBody:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        wanted = self.tool_choice
        if wanted not in (None, "none", "auto") and not self.tools:
            raise ValueError("tool_choice needs tools")
        names = [tool.function.name for tool in self.tools or ()]
        if isinstance(wanted, NamedTool) and wanted.function.name not in names:
            raise ValueError(f"tool_choice names {wanted.function.name!r}, which is not in tools")
        return self


class EmbeddingBody(Body):
    input: Prompts
    encoding_format: Literal["float", "base64"] | None = None
    pooling: Pooling | None = None


class TokenizeBody(Body):
    """A text, or a conversation."""

    prompt: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None

    @model_validator(mode="after")
    def _is_one(self) -> TokenizeBody:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("either prompt or messages is needed")
        return self


class DetokenizeBody(Body):
    tokens: list[int]


def as_list(prompts: Prompts) -> list[str | Ids]:
    """One prompt or several, as several. Raises ValueError for none."""
    if prompts == []:
        raise ValueError("the prompt is empty: at least one token is needed")
    single = isinstance(prompts, str) or (prompts and isinstance(prompts[0], int))
    return cast("list[str | Ids]", [prompts] if single else prompts)


def _format_grammar(wanted: ResponseFormat | None) -> Grammar | None:
    if wanted is None or wanted.type == "text":
        return None
    schema = {"type": "object"} if wanted.json_schema is None else wanted.json_schema.schema_
    return Grammar("json_schema", json.dumps(schema))


def _for_template(call: ToolCall) -> dict[str, Any]:
    arguments = json.loads(call.function.arguments or "{}")
    if not isinstance(arguments, dict):
        raise ValueError(f"the arguments of {call.function.name} are no JSON object")
    function = {"name": call.function.name, "arguments": arguments}
    return {"id": call.id, "type": "function", "function": function}


def _text(content: str | list[TextPart] | None) -> str | None:
    if isinstance(content, list):
        return "".join(part.text for part in content)
    return content


def _is_neutral(name: str, value: Any) -> bool:
    """`best_of: true` asks for something, though 1 == True."""
    return any(
        value == neutral and isinstance(value, bool) == isinstance(neutral, bool)
        for neutral in NEUTRAL.get(name, ())
    )


def _unsupported(name: str) -> PydanticCustomError:
    what = f"this value of {name}" if name in NEUTRAL else f"the parameter {name}"
    return PydanticCustomError(
        "unsupported", "{what} is not supported", {"what": what, "param": name}
    )
