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
