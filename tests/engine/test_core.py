"""EngineCore over real executors and a scripted Runner."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.config import EngineConfig
from engine.core import EngineCore, EngineDead
from engine.executor.base import RankFailed
from engine.request import Output, Request
from engine.sampling_params import SamplingParams
from engine.shapes import ShapeError
from tests.engine.scripted_runner import (
    MAX_POSITION,
    RAISE,
    SCRIPTED,
    UNLOADABLE,
    VOCAB,
    write_config,
)


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(write_config(tmp_path))


def config(model: str, **options: Any) -> EngineConfig:
    return EngineConfig(**{"model": model, "device": "cpu", **options})


@pytest.fixture
def core(model: str) -> Iterator[EngineCore]:
    core = EngineCore(config(model), SCRIPTED)
    yield core
    core.shutdown()


def request(name: str, prompt: tuple[int, ...] = (5, 6), max_tokens: int = 3) -> Request:
    return Request(name, prompt, SamplingParams(max_tokens=max_tokens))


def run(core: EngineCore) -> list[Output]:
    outputs: list[Output] = []
    while core.has_work:
        outputs += core.step()
    return outputs


def test_requests_come_in_tokens_go_out(core: EngineCore) -> None:
    core.add(request("a"))
    core.add(request("b", max_tokens=1))
    assert run(core) == [
        Output("a", 97),
        Output("b", 97, "length"),
        Output("a", 98),
        Output("a", 99, "length"),
    ]
    assert core.step() == []


def test_aborted_requests_are_over_at_once(core: EngineCore) -> None:
    core.add(request("a"))
    core.step()
    assert core.abort(["a", "unknown", "a"]) == [Output("a", None, "abort")]
    assert not core.has_work


def test_too_long_a_request_is_refused_and_the_engine_goes_on(core: EngineCore) -> None:
    with pytest.raises(ValueError, match="maximum context length, .* is 64 tokens"):
        core.add(request("a", max_tokens=63))
    core.add(request("b", max_tokens=62))
    assert len(run(core)) == 62


@pytest.mark.parametrize("foreign", [-1, VOCAB, 10**9])
def test_a_token_that_the_model_does_not_have_is_refused_and_the_engine_goes_on(
    core: EngineCore, foreign: int
) -> None:
    with pytest.raises(ValueError, match=f"the prompt: token id {foreign} is not in 0 to"):
        core.add(request("a", prompt=(5, foreign)))
    stopping = SamplingParams(max_tokens=1, stop_token_ids=(foreign,))
    with pytest.raises(ValueError, match=f"stop_token_ids: token id {foreign} is not in 0 to"):
        core.add(Request("b", (5,), stopping))
    core.add(request("c", max_tokens=1))
    assert run(core) == [Output("c", 97, "length")]


def test_an_interrupt_in_the_middle_of_a_step_ends_the_engine(
    core: EngineCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    core.add(request("a"))
    monkeypatch.setattr(core._executor, "submit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        core.step()
    with pytest.raises(EngineDead, match="interrupted in the middle of a step"):
        core.step()


def test_steps_ahead_give_the_same_tokens_and_are_over_with_the_last(model: str) -> None:
    core = EngineCore(config(model, async_scheduling=True), SCRIPTED)
    core.add(request("a"))
    core.add(request("b", max_tokens=1))
    assert core.step() == [Output("a", 97), Output("b", 97, "length")]
    assert run(core) == [Output("a", 98), Output("a", 99, "length")]
    core.shutdown()


def test_bug_ranks_compute_different_numbers_of_blocks(
    model: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Every rank is given the minimum; the capacity is said in the words that `serve` follows."""
    with caplog.at_level(logging.INFO, "engine.core"):
        core = EngineCore(
            config(model, tensor_parallel_size=2, distributed_executor_backend="inproc"), SCRIPTED
        )
    core.shutdown()
    assert caplog.messages[-3:] == [
        "# CPU blocks: 39",
        "CPU KV cache size: 624 tokens",
        "Maximum concurrency for 64 tokens per request: 9.75x",
    ]


@pytest.mark.parametrize("most", [1, 3, 31, 33, 100, 255, 257])
def test_bug_the_largest_batch_has_no_graph(most: int) -> None:
    sizes = EngineConfig(model="m", max_num_seqs=most).graph_sizes
    assert sizes == sorted(set(sizes))
    assert (sizes[0], sizes[-1]) == (1, most)


def test_the_sampling_rank_is_found_in_a_grid_of_ranks(model: str) -> None:
    grid = {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}
    core = EngineCore(config(model, distributed_executor_backend="inproc", **grid), SCRIPTED)
    core.add(request("a", max_tokens=1))
    assert run(core) == [Output("a", 97, "length")]
    core.shutdown()


def test_a_rank_that_fails_ends_the_engine_with_a_typed_error(core: EngineCore) -> None:
    core.add(request("innocent"))
    core.add(request("guilty", prompt=(RAISE,)))
    with pytest.raises(EngineDead, match="rank 0: ArithmeticError: told to"):
        core.step()
    for call in (core.step, core.check_health, lambda: core.add(request("late"))):
        with pytest.raises(EngineDead, match="told to"):
            call()


def test_a_rank_that_dies_while_idle_is_noticed(model: str) -> None:
    core = EngineCore(config(model, distributed_executor_backend="mp"), SCRIPTED)
    core.check_health()
    os.kill(core._executor._carrier.pids[0], 9)  # type: ignore[attr-defined]
    with pytest.raises(EngineDead, match="rank 0: its process was killed by SIGKILL"):
        check_until_dead(core)
    core.shutdown()


def check_until_dead(core: EngineCore) -> None:
    while True:
        core.check_health()


def test_a_failed_start_leaves_no_rank(model: str) -> None:
    with pytest.raises(RankFailed, match="rank 0: OSError: the disk is on fire"):
        EngineCore(config(model, distributed_executor_backend="mp"), UNLOADABLE)


def test_what_the_model_does_not_allow_is_refused_before_anything_starts(model: str) -> None:
    with pytest.raises(ShapeError, match="2 attention heads cannot be split over tp=3"):
        EngineCore(config(model, tensor_parallel_size=3), SCRIPTED)
    with pytest.raises(ShapeError, match=r"partition 1,2 must be 1 positive numbers that sum to 2"):
        EngineCore(config(model, pipeline_partition=(1, 2)), SCRIPTED)
    with pytest.raises(ValueError, match=r"max_model_len \(65\) is more than the 64 positions"):
        EngineCore(config(model, max_model_len=MAX_POSITION + 1), SCRIPTED)


def test_a_cache_too_small_for_one_request_is_refused(model: str) -> None:
    with pytest.raises(ValueError, match="KV cache holds 40 tokens, fewer than max_model_len"):
        EngineCore(config(model, block_size=1), SCRIPTED)
