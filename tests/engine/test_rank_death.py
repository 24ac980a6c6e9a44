"""A rank killed or stopped under load, on every executor: what clients see, what is left behind,
whether it serves again. Each run writes its rows into docs/rank-death.md."""

from __future__ import annotations

import datetime
import json
import os
import platform
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.engine.conftest import MakeCheckpoint
from tests.engine.test_cli import running
from tests.engine.test_executors import gone, ray_cluster  # noqa: F401 - a fixture

PAGE = Path(__file__).parents[2] / "docs" / "rank-death.md"
OWNER = "ENGINE_DEPLOYMENT"  # in the environment of the server and of all its ranks
DEADLINE_S = 15
CLIENTS = 8

Running = AbstractContextManager[tuple["subprocess.Popen[str]", str]]


@dataclass(frozen=True)
class Case:
    executor: str
    tp: int
    pp: int
    replicas: int
    rank: int
    signal: signal.Signals

    def __str__(self) -> str:
        cut = f"tp{self.tp}-pp{self.pp}-dp{self.replicas}"
        return f"{self.executor}-{cut}-rank{self.rank}-{self.signal.name}"

    @property
    def options(self) -> list[str]:
        return [
            *("-tp", str(self.tp), "-pp", str(self.pp), "-dp", str(self.replicas)),
            *("--distributed-executor-backend", self.executor),
            *("--step-timeout-s", str(DEADLINE_S)),
        ]


CASES = [
    Case(executor, tp, pp, 1, rank, how)
    for executor in ("mp", "ray")
    for tp, pp in ((2, 1), (1, 2))
    for rank in (0, 1)
    for how in (signal.SIGKILL, signal.SIGSTOP)
] + [
    Case(executor, 1, 1, 2, 0, how)
    for executor in ("mp", "ray")
    for how in (signal.SIGKILL, signal.SIGSTOP)
]


Rows = dict[str, str]  # by the name of the case


@pytest.fixture(scope="module")
def rows() -> Iterator[Rows]:
    found: Rows = {}
    yield found
    if found:
        PAGE.write_text(page({**written(), **found}))


def serve(case: Case, model: Path, request: pytest.FixtureRequest, owner: str) -> Running:
    environment = {OWNER: owner}
    if case.executor == "ray":
        environment["RAY_ADDRESS"] = request.getfixturevalue("ray_cluster")
    return running(model, *case.options, **environment)


def ranks_of(owner: str, server: int) -> list[int]:
    """The processes that run its ranks, in the order in which they were started."""
    mark = f"{OWNER}={owner}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            marked = mark in (path / "environ").read_bytes().split(b"\0")
            program = (path / "cmdline").read_bytes()
        except OSError:
            continue
        rank = b"engine.executor.worker" in program or program.startswith(b"ray::RankActor")
        if marked and rank and int(path.name) != server:
            found.append(int(path.name))
    return sorted(found)


class Clients:
    """Half of them stream. Each ends as "finished", or with the type of the error it was told."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.outcomes: list[str] = []
        self.began = threading.Barrier(CLIENTS // 2 + 1)
        asks = [self.stream, self.whole] * (CLIENTS // 2)
        self.threads = [threading.Thread(target=ask) for ask in asks]
        for thread in self.threads:
            thread.start()
        self.began.wait()

    def join(self) -> Counter[str]:
        for thread in self.threads:
            thread.join()
        return Counter(self.outcomes)

    def whole(self) -> None:
        answer = httpx.post(f"{self.url}/v1/completions", json=self.body(False), timeout=120)
        finished = answer.status_code == 200
        self.outcomes.append("finished" if finished else answer.json()["error"]["type"])

    def stream(self) -> None:
        body = self.body(True)
        with httpx.stream("POST", f"{self.url}/v1/completions", json=body, timeout=120) as stream:
            lines = (line for line in stream.iter_lines() if line)
            next(lines)
            self.began.wait()
            *_, last = lines
        last = last.removeprefix("data: ")
        self.outcomes.append("finished" if last == "[DONE]" else json.loads(last)["error"]["type"])

    @staticmethod
    def body(stream: bool) -> dict[str, object]:
        return {"prompt": "x", "max_tokens": 480, "ignore_eos": True, "stream": stream}


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_client_is_told_nothing_is_left_and_it_serves_again(
    case: Case,
    checkpoint: MakeCheckpoint,
    request: pytest.FixtureRequest,
    rows: Rows,
) -> None:
    model, owner = checkpoint(), f"test/{case}"
    with serve(case, model, request, owner) as (process, url):
        assert process.stderr is not None  # its log would fill the pipe
        threading.Thread(target=process.stderr.read, daemon=True).start()
        ranks = ranks_of(owner, process.pid)
        assert len(ranks) == case.tp * case.pp * case.replicas
        clients = Clients(url)
        os.kill(ranks[case.rank], case.signal)
        struck = time.monotonic()
        outcomes = clients.join()
        seconds = time.monotonic() - struck
        assert sum(outcomes.values()) == CLIENTS
        assert set(outcomes) <= {"finished", "service_unavailable"}
        assert outcomes["service_unavailable"]
        if case.replicas == 1:
            reason = first_line(httpx.get(f"{url}/ready", timeout=60).json()["error"]["message"])
            assert process.wait() == 1
        else:
            reason = the_others_go_on(url)
            process.send_signal(signal.SIGTERM)
            assert process.wait() == 0
        while not all(gone(pid) for pid in ranks):
            time.sleep(0.05)
    with serve(case, model, request, owner) as (process, url):
        answer = httpx.post(f"{url}/v1/completions", json={"prompt": "x"}, timeout=120)
        assert answer.status_code == 200, answer.text
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0
    told = ", ".join(f"{count} {kind}" for kind, count in sorted(outcomes.items()))
    rows[str(case)] = row(case, told, reason, f"{seconds:.1f}", "none", "yes", here())


def the_others_go_on(url: str) -> str:
    """What /ready says of the replica that was struck."""
    replicas = httpx.get(f"{url}/ready", timeout=60).json()["replicas"]
    (dead,) = [one for one in replicas if not one["ready"]]
    for _ in range(4):
        answer = httpx.post(f"{url}/v1/completions", json={"prompt": "x"}, timeout=60)
        assert answer.status_code == 200
    return f"{first_line(dead['reason'])} (the other replica goes on)"


def first_line(text: str) -> str:
    """Ray says the rest of what it knows of a dead actor below."""
    return text.partition("\n")[0]


@pytest.mark.full
def test_in_process_the_server_itself_is_the_rank(checkpoint: MakeCheckpoint, rows: Rows) -> None:
    """Killed, its connections break at once; stopped, nobody is there who could answer."""
    with running(checkpoint()) as (process, url):
        body = {"prompt": "x", "max_tokens": 480, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=120) as stream:
            lines = stream.iter_lines()
            next(lines)
            process.kill()
            with pytest.raises(httpx.RemoteProtocolError):
                list(lines)
        process.wait()
    with running(checkpoint()) as (process, url):
        answer = httpx.post(f"{url}/v1/completions", json={"prompt": "x"}, timeout=120)
        assert answer.status_code == 200
    told = ("1 connection broken", "no process is left to say it")
    rows[INPROC] = row(INPROC, *told, "0", "none", "yes", here())


INPROC = "inproc-tp1-pp1-dp1-rank0-SIGKILL"
HEADINGS = (
    *("executor, cut, rank, signal", "clients saw", "reason told at /ready", "seconds"),
    *("processes left", "serves again", "run on"),
)


def here() -> str:
    """The commit that last changed the engine, and the day."""
    git = ["git", "-C", str(PAGE.parents[1]), "log", "-1", "--format=%h", "--", "engine"]
    commit = subprocess.check_output(git, text=True).strip()
    return f"{commit}, {datetime.date.today()}"


def written() -> Rows:
    """The rows of the page as it stands."""
    lines = PAGE.read_text().splitlines() if PAGE.exists() else []
    return {line.split(" ")[1]: line for line in lines if line.startswith("| ")}


def row(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def page(found: Rows) -> str:
    names = [INPROC, *map(str, CASES)]
    left = [*["*not run*"] * (len(HEADINGS) - 2), ""]
    lines = [found.get(name) or row(name, *left) for name in names]
    table = "\n".join([row(*HEADINGS), row(*["---"] * len(HEADINGS)), *lines])
    return f"""\
# A rank dies or hangs under load

<!-- Written by `pytest -m full tests/engine/test_rank_death.py`. -->

Eight clients, four of them streaming, ask a tiny model for 480 tokens each; while all of them wait,
one rank gets the signal. Every client must get its answer or a typed error (503, or an error event
in the stream) within `--step-timeout-s` (here {DEADLINE_S} s; SIGSTOP is seen by nothing else), the
process must end with 1, or with other replicas go on, no process may be left, and the same command
must serve again. *seconds* is from the signal to the last client's answer.

{os.cpu_count()} cores shared with other work, Python {platform.python_version()}; Ray: one node on
this machine. In-process, SIGSTOP stops the server itself: nobody is there who could answer.

{table}
"""
