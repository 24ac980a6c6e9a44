"""The collective check of one node: start its ranks, watch each of them, say what each could reach.

    python3 -m engine.sanity --node-rank I --nnodes N --nproc-per-node K \
        --master-addr HEAD --master-port PORT --json

Run it on every node at the same time. It ends by itself, whatever hangs: every step of a rank has
a deadline (engine.sanity_rank), and a rank that says nothing beyond it is killed here and named.
Torch is only in the ranks, so a node whose torch is broken is reported like any other failure.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO, Any

from engine.nccl_log import links, transports

BEGIN = "@sanity-begin "
VERDICT = "@sanity-verdict "
START = "start"  # from the process being created to torch being usable
LAST_STEP = "bandwidth"
NCCL_WARNINGS = 3  # of a rank that failed, shown with it
GRACE_S = 15.0  # what a rank may need, beyond its own deadlines, to say so


@dataclass(frozen=True)
class Verdict:
    """What one rank found in one step.

    `busbw_gb_s` is NCCL's bus bandwidth, 2(n-1)/n * bytes / seconds, in 1e9 bytes a second;
    `latency_us` what one all_reduce of a few hundred bytes takes. `missing` are the ranks that
    this one waited for in vain. `tflops` and `memory_gb_s` are those of engine.device_speed, of the
    device named `device`. `links`: NCCL's channels of this rank, as (from rank, to rank,
    transport).
    """

    rank: int
    step: str
    ok: bool
    seconds: float
    busbw_gb_s: float | None = None
    detail: str = ""
    missing: tuple[int, ...] = ()
    transports: tuple[str, ...] = ()
    device: str = ""
    tflops: float | None = None
    memory_gb_s: float | None = None
    links: tuple[tuple[int, int, str], ...] = ()
    latency_us: float | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Verdict:
        values: dict[str, Any] = json.loads(text)
        for name in ("missing", "transports"):
            values[name] = tuple(values[name])
        values["links"] = tuple((start, end, via) for start, end, via in values["links"])
        return cls(**values)

    def to_text(self) -> str:
        speed = f", {self.busbw_gb_s:.2f} GB/s" if self.busbw_gb_s is not None else ""
        detail = f": {self.detail}" if self.detail else ""
        outcome = "ok" if self.ok else "FAILED"
        return f"rank {self.rank}  {self.step}  {outcome} ({self.seconds:.2f} s{speed}){detail}"


class RankProcess:
    """One child. Its lines arrive in `inbox` as (self, line); (self, None) when it has ended."""

    def __init__(self, rank: int, argv: Sequence[str], env: dict[str, str], nccl_log: Path) -> None:
        self.rank = rank
        self.step = START
        self.step_began = time.monotonic()
        self.answered = False  # a failing verdict, or the last step's
        self.tail: deque[str] = deque(maxlen=5)
        self._nccl_log = nccl_log
        self._process = subprocess.Popen(
            argv,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def read_into(self, inbox: SimpleQueue[tuple[RankProcess, str | None]]) -> None:
        output = self._process.stdout
        assert output is not None
        threading.Thread(target=self._read, args=(output, inbox), daemon=True).start()

    def _read(self, output: IO[bytes], inbox: SimpleQueue[tuple[RankProcess, str | None]]) -> None:
        with output:
            for line in output:
                inbox.put((self, line.decode(errors="replace").rstrip()))
        inbox.put((self, None))

    def heard(self, line: str) -> Verdict | None:
        """Take one line of the child; the verdict in it, if it is one."""
        if line.startswith(BEGIN):
            self.step, self.step_began = line[len(BEGIN) :], time.monotonic()
        elif line.startswith(VERDICT):
            verdict = Verdict.from_json(line[len(VERDICT) :])
            self.answered = not verdict.ok or verdict.step == LAST_STEP
            return self._with_transports(verdict) if self.answered else verdict
        elif line:
            self.tail.append(line)
        return None

    def ended(self) -> Verdict | None:
        """The child has closed its output: its verdict if it never gave one."""
        code = self._process.wait()
        if self.answered:
            return None
        words = self.tail[-1] if self.tail else "no output"
        return self._failed(f"the process ended with code {code}: {words}")

    def kill(self) -> Verdict:
        self._process.kill()
        self._process.wait()
        self.answered = True
        words = f"; its last line: {self.tail[-1]}" if self.tail else ""
        return self._failed(f"did not answer and was killed{words}")

    def _failed(self, detail: str) -> Verdict:
        seconds = round(time.monotonic() - self.step_began, 3)
        return Verdict(self.rank, self.step, ok=False, seconds=seconds, detail=detail)

    def _with_transports(self, verdict: Verdict) -> Verdict:
        log = self._nccl_log.read_text(errors="replace") if self._nccl_log.exists() else ""
        words = [] if verdict.ok else _last_words(log)
        detail = " | NCCL: ".join([verdict.detail, *words])
        return replace(verdict, transports=transports(log), links=links(log), detail=detail)


def _last_words(nccl_log: str) -> list[str]:
    """What NCCL warned of, first warnings first; where it did not, its last line."""
    lines = nccl_log.splitlines()
    return [line for line in lines if "NCCL WARN" in line][:NCCL_WARNINGS] or lines[-1:]


def spawn(args: argparse.Namespace, scratch: Path) -> list[RankProcess]:
    return [_spawn_rank(args, local_rank, scratch) for local_rank in range(args.nproc_per_node)]


def _spawn_rank(args: argparse.Namespace, local_rank: int, scratch: Path) -> RankProcess:
    rank = args.first_rank + local_rank
    log = scratch / f"nccl-{rank}.log"
    told = json.dumps({**vars(args), "rank": rank, "local_rank": local_rank})
    argv = [sys.executable, "-m", "engine.sanity_rank", told]
    env = dict(os.environ) | {"NCCL_DEBUG": "INFO", "NCCL_DEBUG_FILE": str(log)}
    env.setdefault("OMP_NUM_THREADS", "1")  # as the engine's own ranks; n ranks share the cores
    return RankProcess(rank, argv, env, log)


def supervise(
    ranks: Sequence[RankProcess], on_verdict: Callable[[Verdict], None], *, patience: float
) -> bool:
    """Hand over every verdict until each rank has ended; True when all were ok."""
    inbox: SimpleQueue[tuple[RankProcess, str | None]] = SimpleQueue()
    for rank in ranks:
        rank.read_into(inbox)
    running, passed = set(ranks), True

    def give(verdict: Verdict | None) -> None:
        nonlocal passed
        if verdict is not None:
            passed = passed and verdict.ok
            on_verdict(verdict)

    while running:
        try:
            rank, line = inbox.get(timeout=1.0)
        except Empty:
            for silent in [r for r in running if time.monotonic() - r.step_began > patience]:
                give(silent.kill())
                running.discard(silent)
            continue
        if line is not None:
            give(rank.heard(line))
        elif rank in running:
            running.discard(rank)
            give(rank.ended())
    return passed


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3 -m engine.sanity", description=__doc__)
    parser.add_argument("--node-rank", type=int, default=0)
    parser.add_argument("--nnodes", type=int, default=1)
    parser.add_argument("--nproc-per-node", type=int, default=1)
    parser.add_argument("--first-rank", type=int, help="of this node, where nodes differ in size")
    parser.add_argument("--world-size", type=int, help="of all nodes, where they differ in size")
    parser.add_argument("--master-addr", default="127.0.0.1")
    parser.add_argument("--master-port", type=int, default=29500)
    parser.add_argument(
        "--backend",
        choices=["auto", "nccl", "gloo"],
        default="auto",
        help="auto: NCCL and gloo where CUDA is usable, gloo alone elsewhere",
    )
    parser.add_argument("--bytes", type=int, help="of the bandwidth step (256 MiB; 16 MiB on CPU)")
    parser.add_argument("--speed", action="store_true", help="time each device by itself too")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds, of every step")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    args = parser.parse_args(argv)
    if args.first_rank is None:
        args.first_rank = args.node_rank * args.nproc_per_node
    if args.world_size is None:
        args.world_size = args.nnodes * args.nproc_per_node
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)

    def show(verdict: Verdict) -> None:
        sys.stdout.write((verdict.to_json() if args.json else verdict.to_text()) + "\n")
        sys.stdout.flush()

    with tempfile.TemporaryDirectory(prefix="engine-sanity-") as scratch:
        # Twice: a rank waits for the others to arrive at a step, then for the step itself.
        passed = supervise(spawn(args, Path(scratch)), show, patience=2 * args.timeout + GRACE_S)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
