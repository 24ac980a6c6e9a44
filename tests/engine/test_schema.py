"""Whatever fits the OpenAPI document, and what does not: no 5xx (schemathesis)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error

from tests.engine.test_conformance import model  # noqa: F401 - a fixture
from tests.engine.test_server import Served, serving

PATHS = [
    "/detokenize",
    "/health",
    "/metrics",
    "/ready",
    "/tokenize",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/models",
    "/version",
]


@pytest.fixture(scope="module")
def short(model: Path) -> Iterator[Served]:  # noqa: F811
    with serving(model, options={"max_model_len": 64}) as served:
        yield served
        served.wait(lambda: not served.core.has_work)
        assert not served.engine.dead
        served.core._scheduler.kv_cache.check()


def call_all(served: Served, path: str, examples: int) -> None:
    """Any request that the document allows at `path`, and any that it does not."""
    schema = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    modes = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]
    for operation in schema[path].values():
        for mode in modes if operation.body else modes[:1]:  # without a body nothing is wrong

            @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
            @given(operation.as_strategy(generation_mode=mode))
            def check(case: Any) -> None:
                case.call_and_validate(checks=[not_a_server_error], timeout=60)

            check()


TORN = "\\ud800"
COMPLETION = '"prompt": "x", "max_tokens": 2'
CONVERSATION = '"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2'
# What a document cannot say, or would say once in a million tries. Each made some server fail.
ODD_COMPLETIONS = [
    f'{{"prompt": "{TORN}"}}',
    f'{{{COMPLETION}, "{TORN}": 1}}',
    f'{{{COMPLETION}, "model": "{TORN}"}}',
    f'{{{COMPLETION}, "stop": "{TORN}"}}',
    f'{{{COMPLETION}, "bad_words": ["{TORN}"]}}',
    f'{{{COMPLETION}, "guided_regex": "{TORN}"}}',
    f'{{{COMPLETION}, "guided_json": {{"const": "{TORN}"}}}}',
    f'{{{COMPLETION}, "guided_json": "nope"}}',
    f'{{{COMPLETION}, "guided_regex": "(a{{1,1000}}){{1,1000}}"}}',
    f'{{{COMPLETION}, "repetition_penalty": 1e-300}}',
    f'{{{COMPLETION}, "repetition_penalty": 0.01, "temperature": 1e-4}}',
    f'{{{COMPLETION}, "repetition_penalty": 100, "logit_bias": {{"5": -100}}}}',
    f'{{{COMPLETION}, "temperature": NaN}}',
    f'{{{COMPLETION}, "temperature": 1e-300}}',
    f'{{{COMPLETION}, "logit_bias": {{"5": NaN}}}}',
    f'{{{COMPLETION}, "top_k": {10**30}, "seed": {-(10**30)}}}',
    f'{{{COMPLETION}, "min_tokens": 2, "stop_token_ids": {list(range(261))}}}',
    f'{{"prompt": [{10**30}]}}',
    '{"prompt": [-3], "echo": true}',
    f'{{"prompt": [{10**30}], "echo": true}}',
    '{"prompt": []}',
    '{"prompt": [[]]}',
    "[" * 100_000,
]
ODD_CHATS = [
    f'{{"messages": [{{"role": "user", "content": "{TORN}"}}]}}',
    f'{{{CONVERSATION}, "chat_template_kwargs": {{"messages": 3}}}}',
    f'{{{CONVERSATION}, "chat_template_kwargs": {{"chat_template": "{{{{ 1/0 }}}}"}}}}',
    f'{{{CONVERSATION}, "chat_template_kwargs": {{"continue_final_message": true}}}}',
    f'{{{CONVERSATION}, "tools": [{{"type": "function", "function": {{"name": "{TORN}"}}}}]}}',
]


@pytest.mark.parametrize("body", [*ODD_COMPLETIONS, *ODD_CHATS], ids=lambda body: body[:60])
def test_odd_bodies_fail_alone(short: Served, body: str) -> None:
    path = "/v1/chat/completions" if body in ODD_CHATS else "/v1/completions"
    headers = {"Content-Type": "application/json"}
    response = httpx.post(f"{short.url}{path}", content=body.encode(), headers=headers, timeout=60)
    assert response.status_code < 500
    assert response.status_code == 200 or response.json()["error"]["message"]
    assert not short.engine.dead


@pytest.mark.parametrize("path", PATHS)
def test_nothing_makes_the_server_fail(short: Served, path: str) -> None:
    call_all(short, path, 20)


@pytest.mark.full
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("path", PATHS)
def test_nothing_makes_the_server_fail_in_many_tries(short: Served, path: str) -> None:
    call_all(short, path, 400)


def test_every_route_is_tried(short: Served) -> None:
    told = httpx.get(f"{short.url}/openapi.json").json()
    assert sorted(told["paths"]) == PATHS
