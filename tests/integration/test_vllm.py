"""Real vLLM on three hosts of the testbed: over Ray, and over two nodes by itself; its greedy
float32 text is held against transformers', and so is the native engine's from the same image.

vLLM is unmodified, on CPUs over gloo. Over Ray it runs with a platform plugin for tests, which
names our CPU slots to its Ray executor (templates/vllm-testbed).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import openai
import pytest

from .bed import COMMAND_S, Cluster, brought_down
from .conftest import RunningTestbed
from .keeping import Clock, record
from .reference import greedy

REPOSITORY = Path(__file__).parents[2]
MODEL = "SmolLM2-135M-Instruct"
KEY = "sk-vllm"
PROMPTS = ("The capital of France is", "Water boils when")
MAX_TOKENS = 16
BUILD_S = 2400

# Traced as ever, and then run as it is: to compile it to C++ takes minutes on two cores.
QUICK = ("--", "--compilation-config", '{"mode": 2, "backend": "eager"}')

GROUP = ("--engine", "vllm", "--executor", "mp", "--pp", "2")  # over two nodes, without Ray
TOLD_S = 30

pytestmark = [pytest.mark.full, pytest.mark.timeout(2400)]


@pytest.fixture(scope="module")
def cluster(testbed: RunningTestbed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    smollm2 = [sys.executable, str(REPOSITORY / "scripts/smollm2"), str(testbed.models / MODEL)]
    subprocess.run(smollm2, check=True, capture_output=True, timeout=COMMAND_S)
    image = testbed.command("vllm-image", timeout=BUILD_S).split()[-1]
    settings = {"image": image}
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
        (("--engine", "vllm", "--pp", "3", *QUICK), "ray", 1),
        ((*GROUP, *QUICK), "mp", 2),
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
    if flags[1] == "vllm":  # whose image says how much memory a rank may take
        assert abs(deployment["prediction"]["difference"]) < 0.05
    assert answers(deployment) == expected
    cluster.ok("stop")
    assert KEY not in "".join(cluster.testbed.ssh(host, "ps -ef") for host in cluster.hosts)


def test_a_pipeline_without_compilation_is_not_ready_and_the_assertion_is_why(
    cluster: Cluster,
) -> None:
    """vLLM on CPUs starts so, answers /health, and dies of its first request."""
    done = cluster.run(*serve_line(*GROUP), "--", "--enforce-eager", INFERCLUSTER_API_KEY=KEY)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "intermediate_tensors is not None" in done.stderr
    nothing_runs(cluster)


def test_a_rank_that_stands_still_while_it_loads_is_why_serve_gives_up(cluster: Cluster) -> None:
    line = serve_line(*GROUP, "--stall-timeout", "20", *QUICK)
    process = cluster.start(*line, INFERCLUSTER_API_KEY=KEY)
    pid = until(cluster, lambda now: worker_on(cluster.hosts[1], now))
    inside(cluster, cluster.hosts[1], f"kill -STOP {pid}")
    _, said = process.communicate(timeout=COMMAND_S)
    assert process.returncode == 5, said
    assert re.search(
        rf"no new line, bytes or CPU time for \d+ s, since ..:..:.. UTC; last line: .*; "
        rf"{cluster.hosts[1]}: process {pid} \(.*\) is stopped; the supervisor starts it again",
        said,
    )
    cluster.ok("stop")
    nothing_runs(cluster)


def test_a_killed_remote_rank_is_told_of_and_the_group_begins_anew(
    cluster: Cluster, expected: dict[str, str]
) -> None:
    deployment = serve(cluster, *GROUP, *QUICK)
    worker = worker_on(cluster.hosts[1], seen(cluster))
    comes_back(cluster, deployment, f"kill -9 {worker}", "kill -9 of vLLM's headless worker (mp)")
    assert answers(deployment) == expected
    cluster.ok("stop")


def test_a_remote_rank_that_dies_in_silence_is_told_of_all_the_same(cluster: Cluster) -> None:
    """Its parent, which would have ended, is stopped before: as when a host takes no more part.
    vLLM answers /health with 200, and no completion comes."""
    deployment = serve(cluster, *GROUP, *QUICK)
    ranks = seen(cluster)
    worker = worker_on(cluster.hosts[1], ranks)
    parent = process_on(cluster.hosts[1], ranks, "vllm serve")
    silence = f"sh -c 'kill -STOP {parent}; kill -9 {worker}'"
    fault = "kill -9 of vLLM's headless worker (mp), its parent stopped: `/health` stays 200"
    comes_back(cluster, deployment, silence, fault)
    cluster.ok("stop")


def comes_back(cluster: Cluster, deployment: dict[str, Any], strike: str, fault: str) -> None:
    """`status` says within TOLD_S that it is not ready; it gets ready again by itself."""
    clock = Clock()
    inside(cluster, cluster.hosts[1], strike)
    told = until(cluster, lambda now: now["state"] != "ready" and now["state"])
    clock.stop()
    told_s = clock.seconds
    assert told_s < TOLD_S
    assert told in ("degraded", "restarting")
    if "/health" in fault:
        assert health(deployment) == 200
    again = until(cluster, lambda now: now["state"] == "ready" and now)
    clock.stop()
    assert again["restarts"] == 1
    ends = f"back; `status` said {told} after {told_s:.0f} s"
    record(fault, clock, ends=ends, restarts=again["restarts"], cause=again["cause"])


def health(deployment: dict[str, Any]) -> int:
    url = deployment["url"].removesuffix("/v1") + "/health"
    with urllib.request.urlopen(url, timeout=5) as said:
        status: int = said.status
    return status


def seen(cluster: Cluster) -> dict[str, Any]:
    deployment: dict[str, Any] = cluster.status()["deployments"][0]
    return deployment


Found = TypeVar("Found")


def until(cluster: Cluster, find: Callable[[dict[str, Any]], Found]) -> Found:
    """What `find` finds in the deployment that `status` shows."""
    deadline = time.monotonic() + COMMAND_S
    while time.monotonic() < deadline:
        shown = cluster.status()["deployments"]
        if shown and (found := find(shown[0])):
            return found
        time.sleep(1)
    raise AssertionError(f"waited in vain; now {shown}")


def worker_on(host: str, deployment: dict[str, Any]) -> int | None:
    """The rank there, which the headless `vllm serve` has started."""
    return process_on(host, deployment, "Worker")


def process_on(host: str, deployment: dict[str, Any], title: str) -> int | None:
    pids = [
        int(rank["pid"])
        for rank in deployment["ranks"]
        if rank["node"] == host and title in rank["title"]
    ]
    return pids[0] if pids else None


def inside(cluster: Cluster, host: str, command: str) -> None:
    cluster.testbed.ssh(host, f"docker exec {cluster.container(host)} {command}")


def nothing_runs(cluster: Cluster) -> None:
    """In a moment: serve tells of the first rank that failed, while the others are being ended."""
    gone = "for i in $(seq 60); do pgrep -f '[v]llm serve|VLLM:[:]' >/dev/null || exit 0; sleep 1"
    for host in cluster.hosts[:2]:
        cluster.testbed.ssh(host, f"{gone}; done; exit 1")


def test_the_native_engine_stays_on_one_node_with_mp(cluster: Cluster) -> None:
    flags = ("--engine", "native", "--executor", "mp", "--pp", "2")
    code, error, _ = cluster.refused(*serve_line(*flags))
    assert (code, error["code"]) == (2, "config")
    assert "--engine vllm, whose mp runs over several nodes" in error["hint"]
