"""Real vLLM on three hosts of the testbed: over Ray, and over two nodes by itself; its greedy
float32 text is held against transformers', and so is the native engine's from the same image.

vLLM is unmodified, on CPUs over gloo. Over Ray it runs with a platform plugin for tests, which
names our CPU slots to its Ray executor (templates/vllm-testbed).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from .bed import COMMAND_S, Cluster, brought_down
from .conftest import RunningTestbed
from .reference import greedy

REPOSITORY = Path(__file__).parents[2]
MODEL = "SmolLM2-135M-Instruct"
KEY = "sk-vllm"
PROMPTS = ("The capital of France is", "Water boils when")
MAX_TOKENS = 16
BUILD_S = 2400

# Traced as ever, and then run as it is: to compile it to C++ takes minutes on two cores.
QUICK = ("--", "--compilation-config", '{"mode": 2, "backend": "eager"}')

pytestmark = [pytest.mark.full, pytest.mark.timeout(2400)]


@pytest.fixture(scope="module")
def cluster(testbed: RunningTestbed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    smollm2 = [sys.executable, str(REPOSITORY / "scripts/smollm2"), str(testbed.models / MODEL)]
    subprocess.run(smollm2, check=True, capture_output=True, timeout=COMMAND_S)
    image = testbed.command("vllm-image", timeout=BUILD_S).split()[-1]
    settings = {"image": image, "env": {"VLLM_CPU_KVCACHE_SPACE": "1"}}
    made = Cluster(
        testbed, tmp_path_factory.mktemp("vllm"), "vllmtest", testbed.hosts[:3], settings
    )
    made.write()
    with brought_down(made):
        made.ok("up", "--no-sanity")
        yield made


@pytest.fixture(scope="module")
def expected(testbed: RunningTestbed) -> dict[str, str]:
    return greedy(testbed.models / MODEL, PROMPTS, MAX_TOKENS)


def serve(cluster: Cluster, *flags: str) -> dict[str, Any]:
    """What `serve --json` says of the deployment that got ready."""
    said = cluster.ok(*serve_line("--json", *flags), INFERCLUSTER_API_KEY=KEY)
    deployment: dict[str, Any] = json.loads(said)["deployment"]
    return deployment


def serve_line(*flags: str) -> tuple[str, ...]:
    return (
        *("serve", f"/models/{MODEL}", "--name", "smol", "--dtype", "float32"),
        *("--max-model-len", "1024", "--timeout", "800", *flags),
    )


def answers(deployment: dict[str, Any]) -> dict[str, str]:
    client = openai.OpenAI(base_url=deployment["url"], api_key=KEY, max_retries=0, timeout=300)
    model = client.models.list().data[0].id
    return {prompt: answer(client, model, prompt) for prompt in PROMPTS}


def answer(client: openai.OpenAI, model: str, prompt: str) -> str:
    done = client.completions.create(
        model=model, prompt=prompt, max_tokens=MAX_TOKENS, temperature=0
    )
    return done.choices[0].text


def nodes_of(deployment: dict[str, Any]) -> list[str]:
    return [process["node"] for process in deployment["processes"]]


@pytest.mark.parametrize(
    ("flags", "executor", "nodes"),
    [
        pytest.param(
            ("--engine", "vllm", "--pp", "3", *QUICK),
            "ray",
            1,
            marks=pytest.mark.xfail(
                reason="vLLM's Ray executor gives ranks of all hosts one VLLM_DIST_IDENT, and on "
                "CPUs they look for one another in /dev/shm"
            ),
        ),
        (("--engine", "vllm", "--executor", "mp", "--pp", "2", *QUICK), "mp", 2),
        (("--engine", "native", "--pp", "3"), "ray", 1),
    ],
)
def test_ready_by_a_token_and_equal_to_transformers(
    cluster: Cluster, expected: dict[str, str], flags: tuple[str, ...], executor: str, nodes: int
) -> None:
    deployment = serve(cluster, *flags)
    assert (deployment["state"], deployment["engine"]) == ("ready", flags[1])
    assert deployment["executor"] == executor
    assert nodes_of(deployment) == list(reversed(cluster.hosts[:nodes]))
    assert deployment["kv_cache_tokens"] > 1024
    assert answers(deployment) == expected
    cluster.ok("stop")
    assert KEY not in "".join(cluster.testbed.ssh(host, "ps -ef") for host in cluster.hosts)


def test_a_pipeline_without_compilation_is_not_ready_and_the_assertion_is_why(
    cluster: Cluster,
) -> None:
    """vLLM on CPUs starts so, answers /health, and dies of its first request."""
    flags = ("--engine", "vllm", "--executor", "mp", "--pp", "2")
    done = cluster.run(*serve_line(*flags), "--", "--enforce-eager", INFERCLUSTER_API_KEY=KEY)
    assert done.returncode not in (0, 2), done.stdout
    assert "intermediate_tensors is not None" in done.stderr
    for host in cluster.hosts[:2]:
        assert cluster.testbed.ssh(host, "pgrep -f 'vllm serve' || true") == ""


def test_the_native_engine_stays_on_one_node_with_mp(cluster: Cluster) -> None:
    flags = ("--engine", "native", "--executor", "mp", "--pp", "2")
    code, error, _ = cluster.refused(*serve_line(*flags))
    assert (code, error["code"]) == (2, "config")
    assert "--engine vllm, whose mp runs over several nodes" in error["hint"]
