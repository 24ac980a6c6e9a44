"""Several engines behind one server: where a request goes, and what the death of one means."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.config import EngineConfig
from engine.core import EngineCore
from engine.executor.base import RankFailed
from engine.llm import LLM
from engine.sampling_params import SamplingParams
from engine.server.replicas import start_replicas
from tests.engine.conftest import MakeCheckpoint
from tests.engine.scripted_runner import RAISE, SCRIPTED, UNLOADABLE, ScriptedRunner
from tests.engine.test_cli import running, wait_gone, worker_pids
from tests.engine.test_server import Served, serving

TWO = {"data_parallel_size": 2, "distributed_executor_backend": "inproc"}


@pytest.fixture(scope="module")
def model(checkpoint: MakeCheckpoint) -> Path:
    return checkpoint()


@contextmanager
def two(model: Path, **options: Any) -> Iterator[Served]:
    """Two scripted replicas; no step of theirs ends before `ScriptedRunner.gate` is set."""
    with serving(model, SCRIPTED, {**TWO, **options}) as served:
        ScriptedRunner.gate.clear()
        try:
            yield served
        finally:
            ScriptedRunner.gate.set()


def stream(served: Served, prompt: list[int]) -> AbstractContextManager[httpx.Response]:
    body = {"prompt": prompt, "max_tokens": 20, "stream": True, "ignore_eos": True}
    return httpx.stream("POST", f"{served.url}/v1/completions", json=body, timeout=60)


def taken(served: Served) -> list[int]:
    """How many requests each engine has been given and not ended."""
    return [len([g for g in engine._submitted if g.open]) for engine in served.engine._engines]


def test_requests_are_shared_out(model: Path) -> None:
    with two(model) as served, ExitStack() as streams:
        for _ in range(2):
            streams.enter_context(stream(served, [5]))
        assert taken(served) == [1, 1]


def test_a_prompt_that_is_not_read_yet_weighs_as_many_tokens_as_it_has(model: Path) -> None:
    """One long prompt on the first engine; three short ones all go to the second."""
    with two(model, max_num_batched_tokens=64) as served, ExitStack() as streams:
        streams.enter_context(stream(served, [5] * 300))
        streams.enter_context(stream(served, [5]))
        posts = [threading.Thread(target=served.post, args=("/v1/completions",), kwargs={
            "prompt": [5], "max_tokens": 2}) for _ in range(2)]  # fmt: skip
        for post in posts:
            post.start()
        served.wait(lambda: taken(served) == [1, 3])
        ScriptedRunner.gate.set()
        for post in posts:
            post.join()


def test_requests_that_come_at_once_are_shared_out_before_any_is_taken(model: Path) -> None:
    with two(model) as served:
        posts = [threading.Thread(target=served.post, args=("/v1/completions",), kwargs={
            "prompt": [5], "max_tokens": 2}) for _ in range(8)]  # fmt: skip
        for post in posts:
            post.start()
        served.wait(lambda: taken(served) == [4, 4])
        ScriptedRunner.gate.set()
        for post in posts:
            post.join()


def test_429_only_when_every_queue_is_full(model: Path) -> None:
    limits = {"max_num_seqs": 1, "max_queued_requests": 1}
    with serving(model, SCRIPTED, {**TWO, **limits}) as served:
        assert served.post("/v1/completions", prompt=[5], n=2, max_tokens=2).status_code == 429
        assert served.post("/v1/completions", prompt=[5], max_tokens=2).status_code == 200
        first, second = served.engine._engines
        first._core._scheduler._max_queued = 0  # whatever comes there is refused
        assert first.backlog() == second.backlog() == 0
        assert served.post("/v1/completions", prompt=[5], max_tokens=2).status_code == 200


def test_a_dead_replica_is_left_out_and_readiness_says_so(model: Path) -> None:
    with serving(model, SCRIPTED, TWO) as served:
        assert httpx.get(f"{served.url}/ready").json() == {"replicas": [{"ready": True}] * 2}
        failed = served.post("/v1/completions", prompt=[RAISE])
        assert (failed.status_code, failed.headers["retry-after"]) == (503, "1")
        for _ in range(4):
            assert served.post("/v1/completions", prompt=[5], max_tokens=2).status_code == 200
        ready = httpx.get(f"{served.url}/ready")
        assert ready.status_code == 200
        (dead,) = [one for one in ready.json()["replicas"] if not one["ready"]]
        assert dead["reason"] == "rank 0: ArithmeticError: told to"
        assert httpx.get(f"{served.url}/health").status_code == 200
        alive = [line[-3:] for line in httpx.get(f"{served.url}/metrics").text.splitlines()
                 if line.startswith("engine:alive")]  # fmt: skip
        assert sorted(alive) == ["0.0", "1.0"]
        assert served.post("/v1/completions", prompt=[RAISE]).status_code == 503
        assert served.post("/v1/completions", prompt=[5]).status_code == 503
        assert httpx.get(f"{served.url}/health").status_code == 503
        assert httpx.get(f"{served.url}/ready").status_code == 503


def test_one_that_cannot_start_leaves_none_behind(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[EngineCore] = []
    monkeypatch.setattr(EngineCore, "shutdown", ended.append)
    config = EngineConfig(model=str(model), device="cpu", **TWO)  # type: ignore[arg-type]
    with pytest.raises(RankFailed, match="the disk is on fire"):
        start_replicas(config, UNLOADABLE)
    assert not ended  # a core that failed to start has ended its ranks itself


def test_offline_use_has_no_replicas(model: Path) -> None:
    with pytest.raises(ValueError, match="data_parallel_size is the server's"):
        LLM(str(model), data_parallel_size=2)


def test_processes_one_replica_killed_then_the_other(model: Path) -> None:
    with LLM(str(model), dtype="float32", device="cpu", kv_cache_memory_bytes=8 << 20) as llm:
        params = SamplingParams(temperature=0, max_tokens=8)
        expected = llm.generate("hello", params)[0].outputs[0].text
    body = {"prompt": "hello", "max_tokens": 8, "temperature": 0}
    with running(model, "--data-parallel-size", "2") as (process, url):
        ranks = worker_pids(process.pid)
        assert len(ranks) == 2
        with httpx.Client(base_url=url, timeout=60) as client:
            os.kill(ranks[0], signal.SIGKILL)
            while all(one["ready"] for one in client.get("/ready").json()["replicas"]):
                time.sleep(0.05)
            for _ in range(4):
                answer = client.post("/v1/completions", json=body)
                assert answer.json()["choices"][0]["text"] == expected
            os.kill(ranks[1], signal.SIGKILL)
            while client.get("/health").status_code == 200:
                time.sleep(0.05)
            assert client.post("/v1/completions", json=body).status_code == 503
        assert process.wait() == 1
        wait_gone(ranks)
