"""Two GPUs of one host, a process each over NCCL: transformers' tokens, cut either way, from CUDA
graphs that hold the collectives and without them; and what happens when one is lost."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

from engine.config import Backend, EngineConfig
from engine.core import EngineCore, EngineDead
from engine.request import Request
from engine.sampling_params import SamplingParams
from tests.engine.test_families import FAMILIES
from tests.engine.test_models import transformers_greedy
from tests.gpu.conftest import generate, make_checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
]


@pytest.mark.parametrize("eager", [False, True], ids=["graphs", "eager"])
@pytest.mark.parametrize(("tp", "pp"), [(2, 1), (1, 2)])
@pytest.mark.parametrize("kind", ["llama", *FAMILIES])
def test_tokens_are_transformers_own(
    tmp_path: Path, kind: str, tp: int, pp: int, eager: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    model = make_checkpoint(kind, tmp_path)
    cut = {"tensor_parallel_size": tp, "pipeline_parallel_size": pp}
    tokens = generate(model, **cut, distributed_executor_backend="mp", enforce_eager=eager)
    assert tokens == transformers_greedy(model)
    said = capfd.readouterr().err
    assert said.count("CUDA graphs") == (0 if eager else 2)  # one line a rank


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize(("tp", "pp"), [(2, 1), (1, 2)])
def test_a_lost_rank_ends_the_requests_and_the_ranks(
    tmp_path: Path, tp: int, pp: int, sent: signal.Signals
) -> None:
    core = start(make_checkpoint("llama", tmp_path), tp, pp, "mp")
    pids = core._executor._carrier.pids  # type: ignore[attr-defined]
    lose(core, pids[1], sent)
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def start(model: Path, tp: int, pp: int, executor: Backend) -> EngineCore:
    return EngineCore(
        EngineConfig(
            model=str(model),
            device="cuda",
            tensor_parallel_size=tp,
            pipeline_parallel_size=pp,
            distributed_executor_backend=executor,
            kv_cache_memory_bytes=1 << 26,
            step_timeout_s=5.0,
        )
    )


def lose(core: EngineCore, pid: int, sent: signal.Signals) -> None:
    """A rank in the middle of an answer; the other then waits inside a collective. Ends `core`."""
    try:
        core.add(Request("long", (5, 6, 7), SamplingParams(max_tokens=400, ignore_eos=True)))
        for _ in range(20):
            core.step()
        os.kill(pid, sent)
        with pytest.raises(EngineDead, match="rank"):
            finish(core)
    finally:
        core.shutdown()


def finish(core: EngineCore) -> None:
    while core.has_work:
        core.step()
