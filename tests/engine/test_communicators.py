"""One contract, two carriers: threads of this process, and processes joined by gloo.

A scenario runs on every rank of a tp=2 x pp=2 world; the tests look at all ranks' answers.
"""

from __future__ import annotations

import multiprocessing
import socket
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any, Protocol, cast

import pytest
import torch
import torch.distributed as dist

from engine.communicators import (
    PeerFailed,
    Solo,
    ThreadWorld,
    build_torch_parallel,
    close_torch_parallel,
    rank_device,
    thread_world,
)
from engine.executor.worker import Rank, RankSpec
from engine.parallel import ParallelContext

TP, PP = 2, 2
CPU = torch.device("cpu")
Scenario = Callable[[ParallelContext], Any]


def places(context: ParallelContext) -> list[Any]:
    return [
        context.rank,
        (context.tp.rank, context.tp.size, context.pp.rank, context.pp.size),
        (context.is_first_stage, context.is_last_stage),
    ]


def sums(context: ParallelContext) -> list[float]:
    return context.tp.all_reduce(torch.tensor([1.0, 10.0]) * (context.rank + 1)).tolist()


def bfloat16_sums(context: ParallelContext) -> list[float]:
    ones = torch.ones(3, dtype=torch.bfloat16) * (context.rank + 1)
    summed = context.tp.all_reduce(ones)
    assert summed.dtype == torch.bfloat16
    return summed.tolist()


def gathered(context: ParallelContext) -> list[Any]:
    mine = torch.tensor([[context.rank, 10 * context.rank]])
    return [context.tp.all_gather(mine, dim).tolist() for dim in (0, 1, -1)]


def gathered_view(context: ParallelContext) -> list[Any]:
    """Not contiguous, as a slice of logits is."""
    mine = torch.arange(6).view(2, 3).t() + 100 * context.rank
    return context.tp.all_gather(mine, 0).tolist()


def down_the_pipeline(context: ParallelContext) -> list[float]:
    if context.is_first_stage:
        context.pp.send(torch.full((2, 3), 0.5 + context.rank).t(), context.pp.rank + 1)
        return []
    return context.pp.receive((3, 2), torch.float32, context.pp.rank - 1).flatten().tolist()


def overwritten_after_use(context: ParallelContext) -> list[float]:
    """Steps reuse buffers: what was sent or summed before must not change with them."""
    seen = []
    buffer = torch.zeros(1)
    for step in range(50):
        buffer.fill_(float(step))
        summed = context.tp.all_reduce(buffer.clone())
        if context.is_first_stage:
            context.pp.send(buffer, 1)
        buffer.fill_(-1.0)
        seen.append(summed.item())
        if context.is_last_stage:
            seen.append(context.pp.receive((1,), torch.float32, 0).item())
    return seen


class Carrier(Protocol):
    def run(self, scenario: Scenario) -> list[Any]: ...


class Threads:
    def run(self, scenario: Scenario) -> list[Any]:
        with ThreadPoolExecutor(TP * PP) as pool:
            return list(pool.map(scenario, thread_world(TP, PP, CPU).contexts))


class Processes:
    """Started once: each runs the scenarios that it is sent."""

    def __init__(self) -> None:
        spawn = multiprocessing.get_context("spawn")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        pipes = [spawn.Pipe() for _ in range(TP * PP)]
        self.ours = [ours for ours, _ in pipes]
        self.ranks = [
            spawn.Process(target=_serve, args=(rank, port, theirs), daemon=True)
            for rank, (_, theirs) in enumerate(pipes)
        ]
        for rank in self.ranks:
            rank.start()

    def run(self, scenario: Scenario) -> list[Any]:
        for pipe in self.ours:
            pipe.send(scenario)
        return [pipe.recv() for pipe in self.ours]

    def close(self) -> None:
        for pipe in self.ours:
            pipe.send(None)
        for rank in self.ranks:
            rank.join()


def _serve(rank: int, port: int, pipe: Connection) -> None:
    torch.set_num_threads(1)
    context = build_torch_parallel(rank, TP, PP, "127.0.0.1", port, CPU, timeout_s=60)
    while (scenario := pipe.recv()) is not None:
        pipe.send(scenario(context))
    close_torch_parallel()


@pytest.fixture(scope="module", params=["threads", "gloo"])
def carrier(request: pytest.FixtureRequest) -> Iterator[Carrier]:
    if request.param == "threads":
        yield Threads()
        return
    processes = Processes()
    yield processes
    processes.close()


def test_rank_is_stage_times_tp_plus_tp_rank(carrier: Carrier) -> None:
    assert carrier.run(places) == [
        [0, (0, 2, 0, 2), (True, False)],
        [1, (1, 2, 0, 2), (True, False)],
        [2, (0, 2, 1, 2), (False, True)],
        [3, (1, 2, 1, 2), (False, True)],
    ]


def test_all_reduce_sums_over_the_stage_alone(carrier: Carrier) -> None:
    assert carrier.run(sums) == [[3.0, 30.0], [3.0, 30.0], [7.0, 70.0], [7.0, 70.0]]


def test_all_reduce_keeps_bfloat16(carrier: Carrier) -> None:
    assert carrier.run(bfloat16_sums) == [[3.0] * 3, [3.0] * 3, [7.0] * 3, [7.0] * 3]


def test_all_gather_joins_in_rank_order_along_any_dim(carrier: Carrier) -> None:
    first = [[[0, 0], [1, 10]], [[0, 0, 1, 10]], [[0, 0, 1, 10]]]
    last = [[[2, 20], [3, 30]], [[2, 20, 3, 30]], [[2, 20, 3, 30]]]
    assert carrier.run(gathered) == [first, first, last, last]


def test_all_gather_takes_a_view(carrier: Carrier) -> None:
    view = [[0, 3], [1, 4], [2, 5]]
    expected = [[[a + 100 * r, b + 100 * r] for r in pair for a, b in view] for pair in
                ((0, 1), (0, 1), (2, 3), (2, 3))]  # fmt: skip
    assert carrier.run(gathered_view) == expected


def test_a_stage_receives_what_the_one_before_sent_in_its_own_column(carrier: Carrier) -> None:
    assert carrier.run(down_the_pipeline) == [[], [], [0.5] * 6, [1.5] * 6]


def test_buffers_may_be_overwritten_as_soon_as_a_call_returns(carrier: Carrier) -> None:
    sums = [2.0 * step for step in range(50)]
    both = [value for step in range(50) for value in (2.0 * step, float(step))]
    assert carrier.run(overwritten_after_use) == [sums, sums, both, both]


def test_threads_hold_bit_identical_sums() -> None:
    """Else greedy ranks could part ways: float addition depends on its order."""
    noise = torch.randn(3, 1000, generator=torch.Generator().manual_seed(0))
    contexts = thread_world(3, 1, CPU).contexts
    with ThreadPoolExecutor(3) as pool:
        summed = list(pool.map(lambda c: c.tp.all_reduce(noise[c.rank]), contexts))
    assert torch.equal(summed[0], summed[1])
    assert torch.equal(summed[0], summed[2])


@pytest.mark.parametrize("call", ["all_reduce", "all_gather", "receive"])
def test_abort_wakes_threads_that_wait_and_those_that_come_later(call: str) -> None:
    world = thread_world(2, 2, CPU)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(_blocking, world, call)
        world.abort()
        with pytest.raises(PeerFailed):
            waiting.result(timeout=30)
    for _ in range(2):
        with pytest.raises(PeerFailed):
            _blocking(world, call)


def _blocking(world: ThreadWorld, call: str) -> object:
    last = world.contexts[2]
    if call == "receive":
        return last.pp.receive((1,), torch.float32, 0)
    if call == "all_reduce":
        return last.tp.all_reduce(torch.ones(1))
    return last.tp.all_gather(torch.ones(1), 0)


def test_a_group_of_one_gives_back_what_it_is_given() -> None:
    solo, tensor = Solo(), torch.ones(2)
    assert solo.all_reduce(tensor) is tensor
    assert solo.all_gather(tensor, 0) is tensor
    with pytest.raises(ValueError, match="no rank 1 to send to"):
        solo.send(tensor, 1)
    with pytest.raises(ValueError, match="no rank 1 to receive from"):
        solo.receive((2,), torch.float32, 1)


def test_a_world_of_one_joins_nothing() -> None:
    context = build_torch_parallel(0, 1, 1, "no-such-host", 1, CPU)
    assert (context.tp.size, context.pp.size, context.rank) == (1, 1, 0)


def test_bug_graphs_outlive_their_process_group() -> None:
    """They hold its collectives: a rank lets go of all that its Runner has before it leaves."""

    class Holder:
        """As a Runner with graphs."""

    held = Holder()
    left_in_a_group: list[bool] = []
    weakref.finalize(held, lambda: left_in_a_group.append(dist.is_initialized()))
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    rank = Rank(cast("RankSpec", None))
    rank._runner = held
    del held
    rank.close()
    assert left_in_a_group == [True]
    assert not dist.is_initialized()


def test_replicas_do_not_share_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [rank_device("cuda", rank).index for rank in range(4)] == [0, 1, 0, 1]
    assert rank_device("cuda", 1, replicas=2).index == 1
    with pytest.raises(ValueError, match="local rank 2 has no GPU: torch sees 2, and 3 replicas"):
        rank_device("cuda", 2, replicas=3)
