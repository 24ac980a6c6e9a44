"""Three hosts, no cluster.yaml: SmolLM2 over them by pipeline and by tensor parallel, and the
answers of the openai client held against transformers' greedy float32 text."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest

from .conftest import RunningTestbed
from .reference import greedy

REPOSITORY = Path(__file__).parents[2]
MODEL = "SmolLM2-135M-Instruct"
KEY = "sk-answers"
COMMAND_S = 600
MAX_TOKENS = 48
PROMPTS = ("The capital of France is", "Water boils when", "def fibonacci(n):")


@dataclass(frozen=True)
class Laptop:
    """An empty directory, and the environment that a person would set once."""

    testbed: RunningTestbed
    directory: Path

    def start(self, *args: str) -> subprocess.Popen[str]:
        env = os.environ | {
            "XDG_CONFIG_HOME": str(self.directory / "config"),
            "INFERCLUSTER_SSH_CONFIG": str(self.testbed.ssh_config),
            "INFERCLUSTER_API_KEY": KEY,
        }
        argv = [sys.executable, "-m", "clusterctl", *args]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(argv, cwd=self.directory, env=env, **pipes)  # type: ignore[call-overload,no-any-return]

    def ok(self, *args: str) -> str:
        process = self.start(*args)
        output, _ = process.communicate(timeout=COMMAND_S)
        assert process.returncode == 0, f"{args}: exit {process.returncode}\n{output}"
        return output

    def client(self) -> openai.OpenAI:
        head = self.testbed.addresses[self.testbed.hosts[0]]
        url = f"http://{head}:8000/v1"
        return openai.OpenAI(base_url=url, api_key=KEY, max_retries=0, timeout=300)


@pytest.fixture(scope="module")
def laptop(testbed: RunningTestbed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laptop]:
    made = Laptop(testbed, tmp_path_factory.mktemp("laptop"))
    smollm2 = [sys.executable, str(REPOSITORY / "scripts/smollm2"), str(testbed.models / MODEL)]
    subprocess.run(smollm2, check=True, capture_output=True, timeout=COMMAND_S)
    head, first, second = testbed.hosts[:3]
    made.ok(
        *("up", "--head", head, "--worker", first, "--worker", second, "--name", "answers"),
        *("--image", testbed.image, "--devices", "cpu:1", "--model-dir", "/models"),
    )
    yield made
    made.ok("down", "--purge")


@pytest.fixture(scope="module")
def expected(testbed: RunningTestbed) -> dict[str, str]:
    return greedy(testbed.models / MODEL, PROMPTS, MAX_TOKENS)


def whole(client: openai.OpenAI, model: str, prompt: str) -> str:
    done = client.completions.create(
        model=model, prompt=prompt, max_tokens=MAX_TOKENS, temperature=0
    )
    return done.choices[0].text


def streamed(client: openai.OpenAI, model: str, prompt: str) -> str:
    chunks = client.completions.create(
        model=model, prompt=prompt, max_tokens=MAX_TOKENS, temperature=0, stream=True
    )
    return "".join(chunk.choices[0].text for chunk in chunks)


def until_ready(laptop: Laptop, name: str) -> None:
    """What `ps` says, asked again until it says so: nobody else is watching the engine."""
    deadline = time.monotonic() + COMMAND_S
    while True:
        listed = json.loads(laptop.ok("ps", "--json"))["deployments"]
        state = next(one["state"] for one in listed if one["name"] == name)
        if state == "ready":
            return
        assert state in ("starting", "degraded")
        assert time.monotonic() < deadline, f"{name} is still {state}"
        time.sleep(2)


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("tp", "pp"), [(1, 3), (3, 1)])
def test_three_hosts_answer_as_transformers_does(
    laptop: Laptop, expected: dict[str, str], tp: int, pp: int
) -> None:
    name = f"tp{tp}pp{pp}"
    laptop.ok(
        *("serve", f"/models/{MODEL}", "--tp", str(tp), "--pp", str(pp)),
        *("--dtype", "float32", "--max-model-len", "2048", "--name", name),
    )
    client = laptop.client()
    model = client.models.list().data[0].id
    assert {prompt: whole(client, model, prompt) for prompt in PROMPTS} == expected
    assert {prompt: streamed(client, model, prompt) for prompt in PROMPTS} == expected
    laptop.ok("stop", name)


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_the_engine_goes_on_when_the_laptop_is_gone(
    laptop: Laptop, expected: dict[str, str]
) -> None:
    with laptop.start(
        *("serve", f"/models/{MODEL}", "--pp", "3", "--dtype", "float32"),
        *("--max-model-len", "2048", "--name", "left"),
    ) as serving:
        assert serving.stdout is not None
        assert any("loading weights" in line for line in serving.stdout), "it never came so far"
        serving.send_signal(signal.SIGKILL)
    until_ready(laptop, "left")
    client = laptop.client()
    model = client.models.list().data[0].id
    assert whole(client, model, PROMPTS[0]) == expected[PROMPTS[0]]
    laptop.ok("stop", "left")
