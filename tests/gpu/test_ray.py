"""Ranks as Ray actors with a GPU each; experts shared out and replicas over two GPUs."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch
from transformers import AutoTokenizer

from engine.config import Backend
from tests.engine.test_cli import running
from tests.engine.test_models import TOKENS, prompts, transformers_greedy
from tests.engine.test_rank_death import DEADLINE_S, OWNER, ranks_of
from tests.gpu.conftest import generate, make_checkpoint
from tests.gpu.test_two_devices import lose, start

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
]


@pytest.fixture(scope="module", autouse=True)
def ray_cluster() -> Iterator[str]:
    """Its address; it offers this machine's GPUs."""
    ray = pytest.importorskip("ray")
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])
    ray.init(address="local", include_dashboard=False)
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()
    del os.environ["PYTHONPATH"]


@pytest.mark.parametrize("kind", ["llama", "gemma2", "qwen3_moe"])
@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (1, 2)])
def test_tokens_are_transformers_own(tmp_path: Path, kind: str, tp: int, pp: int) -> None:
    model = make_checkpoint(kind, tmp_path)
    cut = {"tensor_parallel_size": tp, "pipeline_parallel_size": pp}
    assert generate(model, **cut, distributed_executor_backend="ray") == transformers_greedy(model)


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
@pytest.mark.parametrize("executor", ["mp", "ray"])
def test_experts_shared_out_change_nothing(tmp_path: Path, kind: str, executor: Backend) -> None:
    model = make_checkpoint(kind, tmp_path)
    cut = {"tensor_parallel_size": 2, "enable_expert_parallel": True}
    tokens = generate(model, **cut, distributed_executor_backend=executor)
    assert tokens == transformers_greedy(model)


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize(("tp", "pp"), [(2, 1), (1, 2)])
def test_a_lost_rank_ends_the_requests_and_the_ranks(
    tmp_path: Path, tp: int, pp: int, sent: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = uuid.uuid4().hex
    monkeypatch.setenv(OWNER, owner)
    core = start(make_checkpoint("llama", tmp_path), tp, pp, "ray")
    ranks = ranks_of(owner, os.getpid())
    assert len(ranks) == 2
    lose(core, ranks[1], sent)
    deadline = time.monotonic() + DEADLINE_S  # Ray gives a stopped process some seconds
    while ranks_of(owner, os.getpid()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not ranks_of(owner, os.getpid())


@pytest.mark.parametrize("executor", ["inproc", "mp", "ray"])
def test_two_replicas_answer_as_one_does(tmp_path: Path, executor: str, ray_cluster: str) -> None:
    model = make_checkpoint("llama", tmp_path)
    decode = AutoTokenizer.from_pretrained(model).decode
    expected = [decode(tokens, skip_special_tokens=True) for tokens in transformers_greedy(model)]
    options = ["-dp", "2", "--device", "cuda", "--distributed-executor-backend", executor]
    asked = {"max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
    with running(model, *options, RAY_ADDRESS=ray_cluster) as (_, url):
        for prompt, text in zip(prompts() * 2, expected * 2, strict=True):
            body = {"prompt": prompt, **asked}
            answer = httpx.post(f"{url}/v1/completions", json=body, timeout=60).json()
            assert answer["choices"][0]["text"] == text
