"""The OpenAI protocol: a real uvicorn on a free port, real clients, a real (small, random) model;
a scripted one where the engine has to fail, or to wait."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import uvicorn

from engine.config import EngineConfig
from engine.core import EngineCore
from engine.executor.base import RUNNER
from engine.llm import LLM
from engine.sampling_params import SamplingParams
from engine.server import bridge
from engine.server.app import AppConfig, create_app
from engine.server.bridge import AsyncEngine
from engine.server.metrics import Metrics
from engine.server.replicas import Replicas, start_replicas
from engine.server.version import version
from engine.tokenizer import Tokenizer
from tests.engine.conftest import MakeCheckpoint
from tests.engine.scripted_runner import RAISE, SCRIPTED, ScriptedRunner

CHAT = [{"role": "user", "content": "hi"}]


@dataclass
class Served:
    url: str
    cores: list[EngineCore]
    engine: Replicas

    @property
    def core(self) -> EngineCore:
        """The only one."""
        (core,) = self.cores
        return core

    @property
    def thread(self) -> AsyncEngine:
        """The only one's."""
        (engine,) = self.engine._engines
        return engine

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def post(self, path: str, **body: Any) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", json=body, timeout=60)

    def wait(self, condition: Callable[[], bool]) -> None:
        """pytest's timeout ends it when it never comes true."""
        while not condition():
            time.sleep(0.01)


@contextlib.contextmanager
def serving(
    model: Path, runner: str = RUNNER, options: dict[str, Any] | None = None, **app: Any
) -> Iterator[Served]:
    """`options` are the engine's, `app` those of AppConfig."""
    given: dict[str, Any] = {"kv_cache_memory_bytes": 8 << 20, **(options or {})}
    config = EngineConfig(model=str(model), dtype="float32", device="cpu", **given)
    cores = start_replicas(config, runner)
    metrics = Metrics(cores, "tiny")
    engine = Replicas(cores, watches=metrics.watches)
    settings = AppConfig(**{"model_names": ["tiny", "alias"], **app})
    app = create_app(engine, Tokenizer(model), settings, metrics)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=5))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        yield Served(f"http://127.0.0.1:{listener.getsockname()[1]}", cores, engine)
        server.should_exit = True
        thread.join()
    for core in cores:
        core.shutdown()


@pytest.fixture(scope="module")
def model(checkpoint: MakeCheckpoint) -> Path:
    return checkpoint()


@pytest.fixture(scope="module")
def served(model: Path) -> Iterator[Served]:
    with serving(model) as served:
        yield served


@pytest.fixture
def scripted(model: Path) -> Iterator[Served]:
    with serving(model, SCRIPTED) as served:
        yield served
        ScriptedRunner.gate.set()


@pytest.fixture
def closed_gate() -> Iterator[threading.Event]:
    ScriptedRunner.gate.clear()
    yield ScriptedRunner.gate
    ScriptedRunner.gate.set()


def greedy(model: Path, prompt: Any, max_tokens: int) -> str:
    with LLM(str(model), dtype="float32", device="cpu", kv_cache_memory_bytes=8 << 20) as llm:
        params = SamplingParams(temperature=0, max_tokens=max_tokens)
        made = (
            llm.chat(prompt, params) if isinstance(prompt, list) else llm.generate(prompt, params)
        )
        return made[0].outputs[0].text


# Answers.


def test_models(served: Served) -> None:
    models = served.client.models.list().data
    assert [model.id for model in models] == ["tiny", "alias"]
    assert models[0].max_model_len == 512  # type: ignore[attr-defined]


def test_completion_says_what_offline_use_says(served: Served, model: Path) -> None:
    made = served.client.completions.create(
        model="tiny", prompt="hello", max_tokens=12, temperature=0
    )
    (choice,) = made.choices
    assert (choice.text, choice.finish_reason) == (greedy(model, "hello", 12), "length")
    assert made.usage is not None
    assert made.usage.model_dump(exclude_none=True) == {
        "prompt_tokens": 5,
        "completion_tokens": 12,
        "total_tokens": 17,
    }


def test_chat_says_what_offline_use_says(served: Served, model: Path) -> None:
    made = served.client.chat.completions.create(
        model="alias", messages=CHAT, max_completion_tokens=12, temperature=0
    )
    assert made.model == "alias"
    assert made.choices[0].message.role == "assistant"
    assert made.choices[0].message.content == greedy(model, CHAT, 12)


def test_streams_join_to_the_whole_answer(served: Served) -> None:
    client = served.client
    asked: dict[str, Any] = {"model": "tiny", "max_tokens": 20, "temperature": 0}
    whole = client.completions.create(prompt="hello", **asked).choices[0].text
    chunks = list(client.completions.create(prompt="hello", stream=True, **asked))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "length"
    said = client.chat.completions.create(messages=CHAT, **asked).choices[0].message.content
    parts = list(client.chat.completions.create(messages=CHAT, stream=True, **asked))
    assert parts[0].choices[0].delta.role == "assistant"
    assert "".join(part.choices[0].delta.content or "" for part in parts) == said


def test_a_stream_ends_with_usage_when_it_is_asked_for(served: Served) -> None:
    asked: dict[str, Any] = {"model": "tiny", "prompt": "hello", "max_tokens": 3, "n": 2}
    *_, last = served.client.completions.create(
        stream=True, stream_options={"include_usage": True}, **asked
    )
    assert last.choices == []
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (5, 6)


def test_prompts_are_text_or_ids_and_several_of_them(served: Served) -> None:
    asked: dict[str, Any] = {"model": "tiny", "max_tokens": 6, "temperature": 0}
    ids = Tokenizer(Path(served.core.config.model)).encode("hello")
    create = served.client.completions.create
    by_text = create(prompt="hello", **asked).choices[0].text
    assert create(prompt=ids, **asked).choices[0].text == by_text
    both = create(prompt=["x", "hello"], n=2, **asked)
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in both.choices[2:]] == [by_text, by_text]
    assert both.usage is not None
    assert (both.usage.prompt_tokens, both.usage.completion_tokens) == (6, 24)


def test_n_streams_are_told_apart_by_index(served: Served) -> None:
    asked: dict[str, Any] = {"model": "tiny", "messages": CHAT, "max_tokens": 9, "seed": 3, "n": 2}
    whole = served.client.chat.completions.create(**asked)
    texts = ["", ""]
    for chunk in served.client.chat.completions.create(stream=True, **asked):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]
    assert texts[0] != texts[1]


def test_messages_may_be_made_of_text_parts(served: Served) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": one} for one in "hi"]}]
    answers = [
        served.post("/v1/chat/completions", messages=messages, temperature=0, max_tokens=5).json()
        for messages in (CHAT, parts)
    ]
    assert answers[0]["choices"] == answers[1]["choices"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_the_answer_before_it(served: Served, stream: bool) -> None:
    asked: dict[str, Any] = {"prompt": "hello", "max_tokens": 20, "temperature": 0}
    whole = served.post("/v1/completions", **asked).json()["choices"][0]["text"]
    stop = whole[4:6]
    response = served.post("/v1/completions", **asked, stream=stream, stop=["never", stop])
    if stream:
        chunks = [json.loads(event[6:]) for event in response.text.split("\n\n")[:-2]]
        choices = [chunk["choices"][0] for chunk in chunks]
    else:
        choices = response.json()["choices"]
    assert "".join(choice["text"] for choice in choices) == whole[: whole.index(stop)]
    assert (choices[-1]["finish_reason"], choices[-1]["stop_reason"]) == ("stop", stop)
    served.wait(lambda: not served.core.has_work)


def test_many_clients_at_once_each_get_their_own_answer(served: Served) -> None:
    prompts = [f"prompt number {number}" for number in range(12)]
    asked: dict[str, Any] = {"max_tokens": 10, "temperature": 0}
    alone = [served.post("/v1/completions", prompt=p, **asked).json() for p in prompts]
    together: dict[str, Any] = {}

    def ask(prompt: str) -> None:
        together[prompt] = served.post("/v1/completions", prompt=prompt, **asked).json()

    threads = [threading.Thread(target=ask, args=(prompt,)) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[p]["choices"] for p in prompts] == [one["choices"] for one in alone]


# Refusals.


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"temprature": 1}, "temprature", "the parameter temprature is not supported"),
        ({"temperature": -1}, "temperature", "temperature must not be negative"),
        ({"stop": ""}, "stop", "stop must not hold an empty string"),
        ({"stop_token_ids": [10**9]}, None, "stop_token_ids: token id 1000000000 is not in 0 to"),
        ({"top_p": 0}, "top_p", "top_p must be in"),
        ({"n": 0}, "n", "n must be at least 1"),
        ({"n": 1000}, "n", "less than or equal to 128"),
        ({"max_tokens": 0}, "max_tokens", "max_tokens must be at least 1"),
        ({"max_tokens": "many"}, "max_tokens", "valid integer"),
        ({"max_tokens": 5000}, None, "and max_tokens is 5000: this model's maximum context length"),
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": [{"role": "user", "content": None}]}, "messages", "a text is needed"),
        ({"messages": [{"role": "boss", "content": "x"}]}, "messages", "'assistant' or 'tool'"),
        ({"best_of": 2}, "best_of", "this value of best_of is not supported"),
        ({"presence_penalty": 3}, "presence_penalty", "presence_penalty must be in [-2, 2], got 3"),
        ({"logit_bias": {"1": 101}}, "logit_bias", "logit_bias must be in [-100, 100]"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "valid integer"),
        ({"logit_bias": {"999": 1}}, None, "logit_bias: token id 999 is not in 0 to 260"),
        ({"top_logprobs": 2}, None, "top_logprobs needs logprobs: true"),
        ({"logprobs": True, "top_logprobs": 21}, "logprobs", "logprobs must be in [0, 20], got 21"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens", "min_tokens (5) must not be above"),
        ({"guided_regex": "(a"}, None, "the regular expression cannot be followed"),
        ({"guided_regex": "a", "guided_choice": ["b"]}, None, "exactly one of json, regex and"),
        (
            {"guided_regex": "a", "response_format": {"type": "json_object"}},
            "response_format",
            "response_format and structured_outputs exclude each other",
        ),
        (
            {"response_format": {"type": "json_schema"}},
            "response_format",
            "json_schema is needed when",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "x"}}}},
            None,
            "the JSON schema cannot be followed",
        ),
        ({"tools": [{}]}, "tools", "tools.0.type: Field required"),
        ({"tool_choice": "required"}, None, "tool_choice needs tools"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "text": ""}]}]},
            "messages",
            "",
        ),
        (
            {"messages": [{"role": "user", "content": "x" * 600}]},
            None,
            "the prompt has 618 tokens: this",
        ),
    ],
)
def test_a_bad_request_names_what_is_wrong(
    served: Served, body: dict[str, Any], param: str | None, message: str
) -> None:
    response = served.post("/v1/chat/completions", **{"messages": CHAT, **body})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert message in error["message"]


def test_parameters_at_their_neutral_values_and_mere_notes_are_accepted(served: Served) -> None:
    neutral = {
        "presence_penalty": 0,
        "frequency_penalty": 0.0,
        "logprobs": False,
        "logit_bias": None,
        "response_format": {"type": "text"},
        "tools": None,
        "user": "me",
        "metadata": {"a": "b"},
        "top_k": -1,
        "temperature": None,
        "max_tokens": 2,
    }
    assert served.post("/v1/chat/completions", messages=CHAT, **neutral).status_code == 200


def test_an_unknown_model_is_not_found(served: Served) -> None:
    with pytest.raises(openai.NotFoundError, match="'gpt' is not served here"):
        served.client.completions.create(model="gpt", prompt="x")


def test_what_is_no_json_is_a_bad_request(served: Served) -> None:
    headers = {"Content-Type": "application/json"}
    response = httpx.post(f"{served.url}/v1/completions", content="{nope", headers=headers)
    assert response.status_code == 400
    assert "the body is not JSON" in response.json()["error"]["message"]


@pytest.mark.parametrize("content", ["[]", "nope"])
def test_a_body_that_is_no_object_is_a_bad_request(served: Served, content: str) -> None:
    response = httpx.post(f"{served.url}/v1/completions", content=content)
    assert response.status_code == 400
    assert response.json()["error"]["message"] == (
        "the body is not a JSON object (Content-Type must be application/json)"
    )


def test_an_unknown_route_answers_in_openais_shape(served: Served) -> None:
    response = served.post("/v1/nothing")
    assert response.status_code == 404
    assert response.json()["error"]["type"] == "not_found_error"


def test_the_key_is_asked_for_everywhere_but_health(model: Path) -> None:
    with serving(model, SCRIPTED, api_key="sesame") as served:
        for path in ("/v1/models", "/docs", "/openapi.json", "/v1/nothing"):
            for headers in ({}, {"Authorization": "Bearer sesam"}, {"Authorization": "sesame"}):
                refused = httpx.get(f"{served.url}{path}", headers=headers)
                assert refused.status_code == 401
                assert refused.json()["error"]["code"] == "invalid_api_key"
                assert refused.headers["www-authenticate"] == "Bearer"
        assert httpx.get(f"{served.url}/health").status_code == 200
        good = openai.OpenAI(base_url=f"{served.url}/v1", api_key="sesame")
        assert len(good.models.list().data) == 2


# Clients that go, engines that die.


def test_a_stream_whose_client_goes_is_aborted(
    scripted: Served, closed_gate: threading.Event
) -> None:
    body = {"prompt": "x", "max_tokens": 400, "stream": True}
    with httpx.stream("POST", f"{scripted.url}/v1/completions", json=body):
        assert scripted.core.has_work
    assert_aborted(scripted, closed_gate)


def test_a_request_whose_client_goes_is_aborted(
    scripted: Served, closed_gate: threading.Event
) -> None:
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{scripted.url}/v1/completions", json={"prompt": "x", "max_tokens": 400}, timeout=0.5
        )
    assert_aborted(scripted, closed_gate)


def assert_aborted(scripted: Served, gate: threading.Event) -> None:
    """The step that the gate holds back ends, and is the last."""
    (request,) = scripted.core._scheduler._requests.values()
    scripted.wait(lambda: not scripted.thread._commands.empty())
    gate.set()
    scripted.wait(lambda: not scripted.core.has_work)
    assert request.finish_reason == "abort"


def test_a_dead_engine_fails_what_runs_and_what_comes(
    scripted: Served, closed_gate: threading.Event
) -> None:
    assert httpx.get(f"{scripted.url}/health").status_code == 200
    body = {"prompt": [5], "max_tokens": 400, "stream": True}
    with httpx.stream("POST", f"{scripted.url}/v1/completions", json=body, timeout=60) as running:
        later: list[httpx.Response] = []

        def poison() -> None:
            later.append(scripted.post("/v1/completions", prompt=[RAISE]))

        thread = threading.Thread(target=poison)
        thread.start()
        scripted.wait(lambda: not scripted.thread._commands.empty())
        closed_gate.set()
        events = [line for line in running.iter_lines() if line]
        thread.join()
    last = json.loads(events[-1].removeprefix("data: "))
    assert last["error"]["message"] == "rank 0: ArithmeticError: told to"
    assert later[0].status_code == 503
    assert later[0].json()["error"]["type"] == "service_unavailable"
    assert later[0].json()["error"]["code"] == "engine_dead"
    assert httpx.get(f"{scripted.url}/health").status_code == 503
    assert scripted.post("/v1/completions", prompt="x").status_code == 503


def test_stopping_ends_what_runs_and_refuses_what_comes(
    scripted: Served, closed_gate: threading.Event
) -> None:
    body = {"prompt": "x", "max_tokens": 400, "stream": True}
    with httpx.stream("POST", f"{scripted.url}/v1/completions", json=body, timeout=60) as running:
        scripted.engine.stop()
        closed_gate.set()
        assert "the server is shutting down" in list(running.iter_lines())[-2]
    late = scripted.post("/v1/completions", prompt="x")
    assert (late.status_code, late.json()["error"]["message"]) == (
        503,
        "the server is shutting down",
    )
    assert httpx.get(f"{scripted.url}/health").status_code == 200


# Limits and signs of life.


def test_a_full_queue_refuses_with_the_time_to_come_again(
    model: Path, closed_gate: threading.Event
) -> None:
    limits = {"max_num_seqs": 1, "max_queued_requests": 1}
    body = {"prompt": "x", "max_tokens": 400, "stream": True}
    with serving(model, SCRIPTED, limits) as served:
        with httpx.stream("POST", f"{served.url}/v1/completions", json=body, timeout=60):
            threading.Timer(0.3, closed_gate.set).start()
            refused = served.post("/v1/completions", prompt="x", n=3)
            assert refused.status_code == 429
            assert refused.headers["retry-after"] == "1"
            assert refused.json()["error"]["type"] == "rate_limit_error"
            assert "the queue is full" in refused.json()["error"]["message"]
        served.wait(lambda: not served.core.has_work)


def test_the_more_urgent_of_two_that_wait_is_answered_first(
    model: Path, closed_gate: threading.Event
) -> None:
    names: dict[int, str] = {}

    def ask(served: Served, priority: int) -> None:
        said = served.post("/v1/completions", prompt=[5], max_tokens=3, priority=priority)
        names[priority] = said.json()["id"]

    with serving(model, SCRIPTED, {"max_num_seqs": 1}) as served:
        threads = [threading.Thread(target=ask, args=(served, n)) for n in (0, 5, -1)]
        for number, thread in enumerate(threads):
            thread.start()
            served.wait(lambda number=number: len(served.thread._submitted) == number + 1)
        closed_gate.set()
        for thread in threads:
            thread.join()
    begun = [name for name in ScriptedRunner.begun if name.startswith(tuple(names.values()))]
    assert [name[: len(names[0])] for name in begun] == [names[n] for n in (0, -1, 5)]


@pytest.mark.parametrize("announced", [True, False])
def test_a_large_body_is_refused(model: Path, announced: bool) -> None:
    content = json.dumps({"prompt": "x" * 2000}).encode()
    with serving(model, SCRIPTED, max_body_bytes=1000) as served:
        sent: Any = content if announced else iter([content[:900], content[900:]])
        headers = {"Content-Type": "application/json"}
        response = httpx.post(f"{served.url}/v1/completions", content=sent, headers=headers)
        assert response.status_code == 413
        assert "larger than 1,000 bytes" in response.json()["error"]["message"]
        assert served.post("/v1/completions", prompt="x").status_code == 200


def test_web_pages_of_other_places_may_call_only_where_that_is_allowed(model: Path) -> None:
    origin = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    with serving(model, SCRIPTED) as served:
        refused = httpx.options(f"{served.url}/v1/completions", headers=origin)
        assert "access-control-allow-origin" not in refused.headers
    with serving(
        model, SCRIPTED, api_key="sesame", allowed_origins=["https://a.example"]
    ) as served:
        allowed = httpx.options(f"{served.url}/v1/completions", headers=origin)
        assert allowed.headers["access-control-allow-origin"] == "https://a.example"


def test_ready_asks_for_a_token_and_says_why_there_is_none(
    scripted: Served, closed_gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bridge, "PROBE_S", 0.3)
    slow = httpx.get(f"{scripted.url}/ready")
    assert (slow.status_code, slow.json()["error"]["message"]) == (
        503,
        "no token came within 0.3 s",
    )
    closed_gate.set()
    assert httpx.get(f"{scripted.url}/ready").status_code == 200
    scripted.wait(lambda: not scripted.core.has_work)


def test_metrics_count_what_was_done(model: Path) -> None:
    with serving(model, SCRIPTED) as served:
        served.post("/v1/completions", prompt="hello", max_tokens=4, n=2)
        told = httpx.get(f"{served.url}/metrics").text
    label = '{engine="0",model_name="tiny"}'
    for line in (
        f"vllm:prompt_tokens_total{label} 5.0",
        f"vllm:generation_tokens_total{label} 8.0",
        'vllm:request_success_total{engine="0",finished_reason="length",model_name="tiny"} 2.0',
        f"vllm:time_to_first_token_seconds_count{label} 2.0",
        f"vllm:inter_token_latency_seconds_count{label} 6.0",
        f"vllm:num_requests_running{label} 0.0",
        f"vllm:kv_cache_usage_perc{label} 0.0",
        f"engine:kv_blocks_free{label} 40.0",
        f"engine:alive{label} 1.0",
    ):
        assert line in told.splitlines()


def test_the_version_is_told(scripted: Served) -> None:
    assert httpx.get(f"{scripted.url}/version").json() == {"version": version()}
    assert httpx.get(f"{scripted.url}/docs").status_code == 404
