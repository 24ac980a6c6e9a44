"""One rank of the collective check. Started by engine.sanity, which tells it what to do in one JSON
object and reads its verdicts.

    start -> rendezvous -> gloo all_reduce [-> matmul -> NCCL all_reduce] -> bandwidth

Ranks meet before every step in a small TCP store on rank 0, apart from the network under test: so
"rank 2 did not come" and "all came, and the transfer hangs" are told apart, and the rank is named.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from statistics import median
from typing import NoReturn

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from engine.device_speed import measure
from engine.sanity import BEGIN, LAST_STEP, START, VERDICT, Verdict

ELEMENTS = 128
MIB = 1024 * 1024
TIMED_ROUNDS = 3
SMALL_ROUNDS = 10
SHARE_OF_DEADLINE = 1 / 4  # what timing large messages may take of a step's
OWN_ERROR_S = 2.0  # torch has the same timeout and explains itself better, where it keeps it
LAST_WORDS_S = 5.0  # how long a rank that gives up waits to learn who else is still talking


@dataclass(frozen=True)
class Finding:
    """What a step has to say when it went well: fields of Verdict."""

    detail: str = ""
    busbw_gb_s: float | None = None
    latency_us: float | None = None
    device: str = ""
    tflops: float | None = None
    memory_gb_s: float | None = None


class StepFailed(Exception):
    def __init__(self, detail: str, missing: tuple[int, ...] = ()) -> None:
        super().__init__(detail)
        self.missing = missing


def say(line: str) -> None:
    """One write, so that lines of C libraries on the same pipe cannot split it."""
    os.write(sys.stdout.fileno(), (line + "\n").encode())


def bus_bandwidth(world_size: int, num_bytes: int, seconds: float) -> float:
    """GB/s every link carries in a ring all_reduce: each byte crosses it 2(n-1)/n times."""
    return 2 * (world_size - 1) / world_size * num_bytes / seconds / 1e9


class Meeting:
    """Where ranks tell each other how far they are."""

    def __init__(self, rank: int, world_size: int, address: str, port: int, timeout: float) -> None:
        self.rank = rank
        self.world_size = world_size
        self._timeout = timeout
        self.store = TCPStore(
            address,
            port,
            world_size,
            is_master=rank == 0,
            timeout=timedelta(seconds=timeout),
            wait_for_workers=False,
        )

    def arrive(self, step: str) -> None:
        """Wait until every rank is here. Raises StepFailed naming those that did not come."""
        if missing := self._wait(step, range(self.world_size), self._timeout):
            names = ", ".join(map(str, missing))
            raise StepFailed(f"rank {names} did not come within {self._timeout:.0f} s", missing)

    def silent(self) -> tuple[int, ...]:
        """Who does not say, like this rank, that the step failed."""
        try:
            return self._wait("failed", range(self.world_size), LAST_WORDS_S)
        except dist.DistError:  # the store is gone, and rank 0 was the one who kept it
            return (0,)

    def stay(self) -> None:
        """Wait until nobody needs this rank any more. Over a network NCCL's own threads go on
        sending from here when this rank's sum is done: leaving then would stop the others."""
        with contextlib.suppress(dist.DistError):  # who is gone says, or is said, why by itself
            self._wait("done", range(self.world_size), self._timeout)

    def leave(self, missing: Sequence[int]) -> None:
        """Say goodbye. Rank 0 keeps the store, so it stays until the others have done so."""
        if self.rank == 0:
            present = [rank for rank in range(self.world_size) if rank not in missing]
            self._wait("leave", present, self._timeout)
        elif 0 not in missing:
            self.store.set(f"leave/{self.rank}", "here")

    def _wait(self, step: str, ranks: Iterable[int], timeout: float) -> tuple[int, ...]:
        self.store.set(f"{step}/{self.rank}", "here")
        keys = {f"{step}/{rank}": rank for rank in ranks}
        try:
            self.store.wait(list(keys), timedelta(seconds=timeout))
        except dist.DistStoreError:  # the wait timed out; a lost store is another error
            return tuple(rank for key, rank in keys.items() if not self.store.check([key]))
        return ()


class Rank:
    """Runs steps one after the other, each under a deadline that a hanging C call cannot miss."""

    def __init__(self, rank: int, timeout: float) -> None:
        self.rank = rank
        self._timeout = timeout
        self._meeting: Meeting | None = None

    def step(self, name: str, action: Callable[[], Finding]) -> None:
        say(BEGIN + name)
        began = time.monotonic()
        try:
            if self._meeting is not None:
                self._meeting.arrive(name)
            began = time.monotonic()
            finding = self._before_deadline(name, action)
        except StepFailed as failure:
            self._give_up(name, began, str(failure), failure.missing)
        except (RuntimeError, OSError, ValueError) as error:  # torch.distributed raises these
            self._give_up_together(name, began, str(error).splitlines()[0])
        seconds = round(time.monotonic() - began, 3)
        say(VERDICT + Verdict(self.rank, name, True, seconds, **asdict(finding)).to_json())

    def finish(self) -> NoReturn:
        if self._meeting is not None:
            self._meeting.stay()
            self._meeting.leave(())
        os._exit(0)  # destroying process groups may wait for peers; there is nothing left to save

    def _before_deadline(self, name: str, action: Callable[[], Finding]) -> Finding:
        deadline = self._timeout + OWN_ERROR_S
        watchdog = threading.Timer(deadline, self._expired, (name, time.monotonic()))
        watchdog.daemon = True
        watchdog.start()
        try:
            return action()
        finally:
            watchdog.cancel()

    def _expired(self, name: str, began: float) -> None:
        self._give_up_together(name, began, f"no end after {self._timeout:.0f} s")

    def _give_up_together(self, name: str, began: float, detail: str) -> NoReturn:
        """All were there when the step began: whoever says nothing now is the one to look at."""
        silent = self._meeting.silent() if self._meeting is not None else ()
        who = f"; rank {', '.join(map(str, silent))} is silent" if silent else ""
        self._give_up(name, began, detail + who, silent)

    def _give_up(
        self, name: str, began: float, detail: str, missing: tuple[int, ...] = ()
    ) -> NoReturn:
        seconds = round(time.monotonic() - began, 3)
        verdict = Verdict(self.rank, name, False, seconds, detail=detail, missing=missing)
        say(VERDICT + verdict.to_json())
        if self._meeting is not None:
            self._meeting.leave(missing)
        os._exit(1)


def device_for(backend: str, local_rank: int) -> torch.device:
    """Raises StepFailed when NCCL was asked for, or GPUs are there, and this rank has none."""
    if backend == "gloo" or (backend == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise StepFailed(f"local rank {local_rank} has no GPU: torch sees {count}")
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def describe(device: torch.device) -> str:
    return f"{name_of(device)}, torch {torch.__version__}"


def measure_device(device: torch.device) -> Finding:
    name = name_of(device)
    return Finding(name, device=name, **asdict(measure(device)))


def check_all_reduce(group: dist.ProcessGroup | None, device: torch.device) -> Finding:
    """The sum of rank + 1 over all ranks: a rank counted twice or left out changes the value."""
    world_size = dist.get_world_size(group)
    tensor = torch.full((ELEMENTS,), float(dist.get_rank(group) + 1), device=device)
    dist.all_reduce(tensor, group=group)
    expected = world_size * (world_size + 1) / 2
    if not torch.all(tensor == expected):
        raise StepFailed(f"wrong sum: expected {expected}, got {tensor[0].item()}")
    return Finding(f"summed over {world_size}")


def check_matmul(device: torch.device) -> Finding:
    """Small integers: exact in every float format a GPU may use for it."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-4, 5, (512, 512), generator=generator).float() for _ in range(2))
    if not torch.equal((a.to(device) @ b.to(device)).cpu(), a @ b):
        raise StepFailed("a matrix product on the GPU differs from the CPU's")
    return Finding()


def measure_bandwidth(
    group: dist.ProcessGroup | None, device: torch.device, num_bytes: int, deadline: float
) -> Finding:
    """Small all_reduces, then a few large ones: of `num_bytes`, or of what a slow link carries in
    its share of `deadline` seconds. The first large one warms up, and its sum is checked."""
    world_size = dist.get_world_size(group)
    tensor = torch.ones(num_bytes // 4, dtype=torch.float32, device=device)

    def seconds(count: int) -> float:
        _synchronize(device)
        began = time.perf_counter()
        dist.all_reduce(tensor[:count], group=group)
        _synchronize(device)
        return time.perf_counter() - began

    latency = median(seconds(ELEMENTS) for _ in range(SMALL_ROUNDS))
    count = affordable(_slowest(seconds(MIB // 4), group, device), num_bytes, deadline) // 4
    tensor.fill_(1.0)
    seconds(count)
    if not torch.all(tensor[:count] == world_size):
        raise StepFailed("wrong sum in a large all_reduce")
    if world_size == 1:
        return Finding("one rank: nothing crosses a link")
    tensor.zero_()
    mean = sum(seconds(count) for _ in range(TIMED_ROUNDS)) / TIMED_ROUNDS
    return Finding(
        f"{4 * count // MIB} MiB all_reduce over {device.type}",
        round(bus_bandwidth(world_size, 4 * count, mean), 3),
        round(latency * 1e6, 1),
    )


def affordable(seconds_for_mib: float, num_bytes: int, deadline: float) -> int:
    """Bytes, in whole MiB, of which TIMED_ROUNDS and one to warm up end in time."""
    rounds = (TIMED_ROUNDS + 1) * seconds_for_mib
    return min(num_bytes, max(1, int(SHARE_OF_DEADLINE * deadline / rounds)) * MIB)


def _slowest(seconds: float, group: dist.ProcessGroup | None, device: torch.device) -> float:
    """Of all ranks, so that all of them go on alike."""
    tensor = torch.tensor([seconds], device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=group)
    return float(tensor.item())


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Check(Rank):
    """The steps, in order, and what one step leaves for the next."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args.rank, args.timeout)
        self._args = args
        self._device = torch.device("cpu")
        self._group: dist.ProcessGroup | None = None  # None: the default group, gloo

    def run(self) -> NoReturn:
        self.step(START, self._start)
        self.step("rendezvous", self._meet)
        self.step("gloo all_reduce", self._gloo_all_reduce)
        if self._device.type == "cuda":
            self.step("matmul", lambda: check_matmul(self._device))
        if self._args.speed:
            self.step("device speed", lambda: measure_device(self._device))
        if self._device.type == "cuda":
            self.step("NCCL all_reduce", self._nccl_all_reduce)
        self.step(LAST_STEP, self._bandwidth)
        self.finish()

    def _start(self) -> Finding:
        self._device = device_for(self._args.backend, self._args.local_rank)
        return Finding(describe(self._device))

    def _meet(self) -> Finding:
        args = self._args
        where = (args.master_addr, args.master_port)
        self._meeting = Meeting(args.rank, args.world_size, *where, args.timeout)
        return Finding()

    def _gloo_all_reduce(self) -> Finding:
        assert self._meeting is not None
        dist.init_process_group(
            "gloo",
            store=PrefixStore("gloo", self._meeting.store),
            rank=self._args.rank,
            world_size=self._args.world_size,
            timeout=timedelta(seconds=self._args.timeout),
        )
        return check_all_reduce(None, torch.device("cpu"))

    def _nccl_all_reduce(self) -> Finding:
        timeout = timedelta(seconds=self._args.timeout)
        self._group = dist.new_group(backend="nccl", timeout=timeout)
        return check_all_reduce(self._group, self._device)

    def _bandwidth(self) -> Finding:
        default = 256 * MIB if self._device.type == "cuda" else 16 * MIB
        size = self._args.bytes or default
        return measure_bandwidth(self._group, self._device, size, self._args.timeout)


if __name__ == "__main__":
    Check(argparse.Namespace(**json.loads(sys.argv[1]))).run()
