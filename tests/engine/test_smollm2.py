"""OpenAI's client and a real model: what no random weights can show."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.llm import LLM
from engine.sampling_params import SamplingParams
from tests.engine.conftest import SCRIPTS
from tests.engine.test_conformance import chat, complete
from tests.engine.test_server import Served, serving

pytestmark = pytest.mark.full

CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def smollm2() -> Path:
    made = subprocess.run(
        [sys.executable, SCRIPTS / "smollm2"], capture_output=True, text=True, check=True
    )
    return Path(made.stdout.strip())


@pytest.fixture(scope="module")
def served(smollm2: Path) -> Iterator[Served]:
    options = {"max_model_len": 1024, "kv_cache_memory_bytes": 256 << 20}
    with serving(smollm2, options=options) as served:
        yield served


@pytest.mark.parametrize("stream", [False, True])
def test_it_knows_paris(served: Served, stream: bool) -> None:
    said = chat(served, stream, messages=CAPITAL, max_tokens=24, logprobs=True, top_logprobs=2)
    assert "Paris" in said.text
    assert said.finish_reason == "stop"
    assert "".join(token.token for token in said.logprobs).startswith(said.text)
    assert all(one.logprob > -2 for one in said.logprobs[:3])


@pytest.mark.parametrize("stream", [False, True])
def test_it_fills_a_schema(served: Served, stream: bool) -> None:
    properties = {"city": {"type": "string"}, "country": {"enum": ["France", "Spain"]}}
    schema = {"type": "object", "properties": properties, "required": ["city", "country"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    said = chat(served, stream, messages=CAPITAL, max_tokens=60, response_format=wanted)
    assert json.loads(said.text)["country"] == "France"


def test_a_choice_is_the_likelier_one(served: Served) -> None:
    prompt = {"prompt": "The capital of France is the city of"}
    choice: dict[str, Any] = {"guided_choice": [" Madrid", " Paris"]}
    assert complete(served, False, **prompt, extra_body=choice) == (" Paris", "stop")
    forbidden = {"guided_regex": " (Madrid|Paris)", "bad_words": ["Paris"]}
    assert complete(served, False, **prompt, extra_body=forbidden)[0] == " Madrid"


def test_characters_of_several_tokens_come_whole(served: Served) -> None:
    text = "日本語 🤗 naïve"
    asked = {"prompt": "x", "max_tokens": 60, "extra_body": {"guided_choice": [text]}}
    assert complete(served, True, **asked) == (text, "stop")


def test_like_texts_have_like_embeddings(served: Served) -> None:
    texts = ["The cat sat on the mat.", "A cat is sitting on a mat.", "Interest rates rose by 2%."]
    for pooling in ("mean", "last"):
        made = served.client.embeddings.create(
            model="tiny", input=texts, extra_body={"pooling": pooling}
        )
        cat, other_cat, money = (one.embedding for one in made.data)
        assert dot(cat, other_cat) > dot(cat, money)


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def test_the_server_says_what_offline_use_says(served: Served, smollm2: Path) -> None:
    with LLM(str(smollm2), dtype="float32", device="cpu", max_model_len=1024) as llm:
        params = SamplingParams(temperature=0, max_tokens=24)
        (made,) = llm.chat(CAPITAL, params)
    assert chat(served, True, messages=CAPITAL, max_tokens=24).text == made.outputs[0].text
