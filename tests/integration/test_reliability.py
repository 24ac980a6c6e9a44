"""What happens to a served model when something breaks under it, and how long it takes to come back
without a human. The run writes docs/reliability.json, from which `make docs` makes the table of
docs/reliability.md.

After each fault: a token comes back, the request that was in flight has ended, and no process,
container, port or lock is left over.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import pytest

from .bed import Cluster
from .conftest import RunningTestbed

pytestmark = [pytest.mark.full, pytest.mark.timeout(1500)]

ROWS = Path(__file__).parents[2] / "docs/reliability.json"
KEPT = "INFERCLUSTER_RELIABILITY_KEEP"  # 1: the cluster stays, for the next part of the matrix
KEY = "sk-reliability"
NAME = "smol"
PATIENCE_S = 600
PORT = 8000


@dataclass(frozen=True)
class Service:
    """A model over two hosts, a rank on each."""

    cluster: Cluster
    model: str

    @property
    def head(self) -> str:
        return self.cluster.hosts[0]

    @property
    def worker(self) -> str:
        return self.cluster.hosts[1]

    def on(self, host: str, command: str) -> str:
        return self.cluster.testbed.ssh(host, command)

    def inside(self, host: str, command: str) -> str:
        return self.on(
            host, f"docker exec {self.cluster.container(host)} sh -c {shlex.quote(command)}"
        )

    def kill(self, host: str, pattern: str, number: str = "KILL") -> None:
        """Every process in the host's container whose command line holds the pattern, which is
        written so that this line is none."""
        look = f"tr '\\0' ' ' < $p/cmdline 2>/dev/null | grep -q '{pattern}'"
        loop = f"for p in /proc/[0-9]*; do {look} && kill -{number} ${{p#/proc/}}; done; true"
        self.inside(host, loop)

    def kill_on_host(self, host: str, name: str) -> None:
        """The oldest of that name: a login's sshd is not the one that listens."""
        self.on(host, f"kill -9 $(pgrep -o -x {name})")

    def kill_container(self, host: str) -> None:
        """Its first process, as the kernel does it when memory is out: Docker restarts that."""
        pid = self.cluster.inspect(host)["State"]["Pid"]
        self.on(host, f"kill -9 {pid}")

    def cut(self, host: str, seconds: float) -> None:
        with self.cluster.testbed.fault(host, "link-down"):
            time.sleep(seconds)

    def fault(self, host: str, kind: str, seconds: float = 0.0) -> None:
        self.cluster.testbed.command("fault", host, kind)
        if seconds:
            time.sleep(seconds)
            self.cluster.testbed.command("heal", host)

    def deployment(self) -> dict[str, Any] | None:
        """None while the head cannot be asked."""
        done = self.cluster.run("ps", "--json")
        found = json.loads(done.stdout).get("deployments", []) if done.returncode == 0 else []
        return next((one for one in found if one["name"] == NAME), None)

    def until(self, seen: Callable[[dict[str, Any]], Any], what: str) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            found = self.deployment()
            if found is not None and seen(found):
                return found
            time.sleep(1)
        raise AssertionError(f"not seen: {what}; now {self.deployment()}")

    def serve(self) -> None:
        sizes = ["--pp", "2", "--dtype", "float32", "--engine", "native", "--executor", "ray"]
        done = self.cluster.run(
            "serve", self.model, *sizes, "--name", NAME, INFERCLUSTER_API_KEY=KEY
        )
        assert done.returncode == 0, done.stdout + done.stderr
        self.allow(100)

    def allow(self, in_a_row: int) -> None:
        """So many deaths in a row: a matrix is not what the default bound is for."""
        path = f"/opt/clusterctl/deployments/{NAME}/spec.json"
        edit = (
            f"import json, os; spec = json.load(open('{path}'));"
            f" spec['restart']['in_a_row'] = {in_a_row};"
            f" json.dump(spec, open('{path}.new', 'w')); os.replace('{path}.new', '{path}')"
        )
        self.inside(self.head, f'python3 -c "{edit}"')

    def client(self) -> openai.OpenAI:
        url = f"http://{self.cluster.testbed.addresses[self.head]}:{PORT}/v1"
        return openai.OpenAI(base_url=url, api_key=KEY, max_retries=0, timeout=300)

    def complete(self) -> str:
        asked = self.client().completions.create(
            model=self.model, prompt="The capital of France is", max_tokens=4, temperature=0
        )
        return asked.choices[0].text


@dataclass
class InFlight:
    """A request that is being answered when the fault strikes."""

    service: Service
    began: threading.Event = field(default_factory=threading.Event)
    outcome: str = "hung"

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._ask, daemon=True)
        self.thread.start()
        assert self.began.wait(120), "no first token"

    def _ask(self) -> None:
        try:
            stream = self.service.client().completions.create(
                model=self.service.model,
                prompt="Once upon a time",
                max_tokens=48,
                stream=True,
                extra_body={"ignore_eos": True},
            )
            for _ in stream:
                self.began.set()
            self.outcome = "answer"
        except (openai.OpenAIError, OSError) as error:
            self.outcome = "error"
            self.error = error
        except Exception as error:  # noqa: BLE001 - httpx's own, of a broken stream
            self.outcome = "error"
            self.error = error


@dataclass(frozen=True)
class Case:
    """`restarts`: whether the ranks must begin anew."""

    fault: str
    inflict: Callable[[Service], None]
    restarts: bool = True


RANK = "ray:[:]RankActor"

CASES = (
    Case("kill -9 of rank 0", lambda s: s.kill(s.head, RANK)),
    Case("kill -9 of rank 1", lambda s: s.kill(s.worker, RANK)),
    Case("kill -9 of the engine's driver", lambda s: s.kill(s.head, "engine[ ]serve")),
    Case("SIGSTOP of rank 1", lambda s: s.kill(s.worker, RANK, "STOP")),
    Case("kill -9 of the worker's raylet", lambda s: s.kill(s.worker, "raylet/[r]aylet ")),
    Case("kill -9 of the GCS", lambda s: s.kill(s.head, "[g]cs_server")),
    Case("kill -9 of the worker's container", lambda s: s.kill_container(s.worker)),
    Case("kill -9 of the head's container", lambda s: s.kill_container(s.head)),
    Case("kill -9 of the head's sshd", lambda s: s.kill_on_host(s.head, "sshd"), restarts=False),
    Case("worker's link cut 10 s", lambda s: s.cut(s.worker, 10), restarts=False),
    Case("worker's link cut 90 s", lambda s: s.cut(s.worker, 90)),
    Case("worker rebooted", lambda s: s.fault(s.worker, "reboot")),
    Case("head rebooted", lambda s: s.fault(s.head, "reboot")),
    Case("worker's Docker disk full 60 s", lambda s: s.fault(s.worker, "docker-disk-full", 60)),
)


@pytest.fixture(scope="module")
def service(
    testbed: RunningTestbed, smollm2: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    directory = tmp_path_factory.mktemp("reliability")
    made = Service(Cluster(testbed, directory, "rel", testbed.hosts[:2]), smollm2)
    made.cluster.write()
    made.cluster.ok("up", "--no-sanity")
    if (seen := made.deployment()) is None or seen["state"] in ("failed", "stopped"):
        made.serve()
    made.until(lambda seen: seen["state"] == "ready", "ready")
    yield made
    if os.environ.get(KEPT) != "1":
        made.cluster.ok("down", "--purge")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.fault)
def test_the_service_comes_back(service: Service, case: Case) -> None:
    before = service.until(lambda seen: seen["state"] == "ready", "ready")
    in_flight = InFlight(service)
    began = time.monotonic()
    case.inflict(service)
    inflicted = time.monotonic() - began

    def back(seen: dict[str, Any]) -> bool:
        again = seen["restarts"] > before["restarts"]
        return seen["state"] == "ready" and (again or not case.restarts)

    seen = service.until(back, "ready again")
    assert service.complete()
    seconds = time.monotonic() - began
    in_flight.thread.join(60)
    assert in_flight.outcome != "hung"
    nothing_is_left_over(service)
    restarts = seen["restarts"] - before["restarts"]
    cause = seen["cause"] if restarts else ""
    record(case.fault, seconds, inflicted, in_flight.outcome, restarts, cause)


def test_a_dockerd_that_was_killed_leaves_the_container_to_us(service: Service) -> None:
    """Docker 20.10 ends what it finds running when it comes back, and takes that for a stop by
    hand: it does not start it."""
    before = service.until(lambda seen: seen["state"] == "ready", "ready")
    in_flight = InFlight(service)
    began = time.monotonic()
    service.kill_on_host(service.worker, "dockerd")
    waiting = service.until(lambda seen: service.worker in seen["waiting_for"], "who is missing")
    assert service.cluster.run("status").returncode == 5
    service.cluster.ok("up", "--no-sanity", "--yes")
    seen = service.until(lambda seen: seen["state"] == "ready", "ready again")
    assert service.complete()
    seconds = time.monotonic() - began
    in_flight.thread.join(60)
    assert in_flight.outcome != "hung"
    nothing_is_left_over(service)
    restarts = seen["restarts"] - before["restarts"]
    ends = f"waits, {waiting['waiting_for']}; `status` exits 5; back by `clusterctl up`"
    fault = "kill -9 of the worker's dockerd"
    record(fault, seconds, 0, in_flight.outcome, restarts, seen["cause"], ends=ends)


def nothing_is_left_over(service: Service) -> None:
    wanted = {service.head: 2, service.worker: 1}  # the driver and a rank; a rank

    def ranks(seen: dict[str, Any]) -> dict[str, int]:
        nodes = [rank["node"] for rank in seen["ranks"]]
        return {node: nodes.count(node) for node in wanted}

    service.until(lambda seen: ranks(seen) == wanted, "one set of ranks")
    for host in wanted:
        running = service.on(host, "docker ps -q --filter label=clusterctl.cluster=rel").split()
        assert len(running) == 1
        assert not service.on(host, "ls -d /var/lib/clusterctl/rel/lock 2>/dev/null || true")
    listeners = service.on(service.head, f"ss -Hltn 'sport = :{PORT}'").strip().splitlines()
    assert len(listeners) == 1


def test_restarts_end_in_failed_with_the_cause(service: Service) -> None:
    before = service.until(lambda seen: seen["state"] == "ready", "ready")
    began = time.monotonic()
    service.allow(0)
    service.kill(service.worker, RANK)
    seen = service.until(lambda seen: seen["state"] == "failed", "failed")
    seconds = time.monotonic() - began
    assert "given up after" in seen["cause"]
    assert "rank 1" in seen["cause"]
    assert service.cluster.run("status").returncode == 5
    assert not seen["ranks"]
    fault = "a rank that dies once more than is allowed"
    record(fault, seconds, 0, "-", 0, seen["cause"], ends="failed, exit code 5")
    assert before["restarts"] == seen["restarts"]


# --- vLLM without Ray ----------------------------------------------------------------------------

BUILD_S = 2400
QUICK = ("--", "--compilation-config", '{"mode": 2, "backend": "eager"}')  # see test_vllm


@pytest.fixture
def vllm(testbed: RunningTestbed, smollm2: str, tmp_path: Path) -> Iterator[Service]:
    """vLLM's own multi-node over two hosts, where nothing else runs."""
    image = testbed.command("vllm-image", timeout=BUILD_S).split()[-1]
    cluster = Cluster(testbed, tmp_path, "relvllm", testbed.hosts[:2], {"image": image})
    cluster.write()
    cluster.ok("up", "--no-sanity")
    sizes = ["--engine", "vllm", "--executor", "mp", "--pp", "2", "--dtype", "float32"]
    more = ["--name", NAME, "--max-model-len", "1024", "--timeout", "800", *QUICK]
    cluster.ok("serve", smollm2, *sizes, *more, INFERCLUSTER_API_KEY=KEY)
    yield Service(cluster, smollm2)
    cluster.ok("down", "--purge")


def test_a_headless_rank_of_vllm_that_dies_in_silence(vllm: Service) -> None:
    """/health answers 200 for ever after, and no completion comes."""
    before = vllm.until(lambda seen: seen["state"] == "ready", "ready")
    remote = [
        rank
        for rank in before["ranks"]
        if rank["node"] == vllm.worker and "vllm serve" not in rank["title"]
    ]
    rank = max(remote, key=lambda rank: float(rank["cpu_s"]))
    began = time.monotonic()
    vllm.inside(vllm.worker, f"kill -9 {rank['pid']}")
    seen = vllm.until(lambda seen: seen["state"] != "ready", "said to be not ready")
    noticed = time.monotonic() - began
    assert noticed < 30
    assert seen["state"] in ("degraded", "restarting")
    seen = vllm.until(lambda seen: seen["restarts"] and seen["state"] == "ready", "ready again")
    assert vllm.complete()
    seconds = time.monotonic() - began
    ends = f"back; `ps` said so after {noticed:.0f} s"
    record("kill -9 of vLLM's headless worker (mp)", seconds, 0, "-", 1, seen["cause"], ends=ends)


# --- the laptop is killed ------------------------------------------------------------------------


@pytest.fixture
def lone(testbed: RunningTestbed, tmp_path: Path) -> Iterator[Cluster]:
    """A third host, with nothing on it."""
    made = Cluster(testbed, tmp_path, "lone", testbed.hosts[2:3])
    made.write()
    yield made
    made.ok("down", "--purge")


def killed_at(process: subprocess.Popen[str], stage: str) -> None:
    """As the lid is closed: no handler runs."""
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if stage in line:
            break
    else:
        raise AssertionError(f"{stage} was not seen:\n{''.join(lines)}")
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)


@pytest.mark.parametrize("stage", ["facts", "image", "create", "formation"])
def test_a_laptop_killed_during_up(lone: Cluster, stage: str) -> None:
    killed_at(lone.start("up", "--no-sanity"), f"{stage}: ")
    began = time.monotonic()
    lone.ok("up", "--no-sanity")
    assert lone.states() == {lone.hosts[0]: "ready"}
    seconds = time.monotonic() - began
    host = lone.hosts[0]
    assert not lone.testbed.ssh(host, "ls -d /var/lib/clusterctl/lone/lock 2>/dev/null || true")
    record(f"laptop killed in `up`, at {stage}", seconds, 0, "-", 0, "", ends="by the next `up`")


def test_two_ups_at_once(lone: Cluster) -> None:
    began = time.monotonic()
    both = [lone.start("up", "--no-sanity") for _ in range(2)]
    for process in both:
        process.communicate(timeout=PATIENCE_S)
    assert sorted(process.returncode for process in both) == [0, 6]
    assert lone.states() == {lone.hosts[0]: "ready"}
    seconds = time.monotonic() - began
    record("two `up`s at once", seconds, 0, "-", 0, "", ends="one done, one exit code 6")


@pytest.mark.parametrize("stage", ["check: started", "serve: started", "loading weights"])
def test_a_laptop_killed_during_serve(service: Service, stage: str) -> None:
    if (seen := service.deployment()) and seen["state"] not in ("failed", "stopped"):
        service.cluster.ok("stop", NAME)
    last = (service.deployment() or {}).get("since")
    sizes = ["--pp", "2", "--dtype", "float32", "--engine", "native", "--executor", "ray"]
    starting = service.cluster.start(
        "serve", service.model, *sizes, "--name", NAME, INFERCLUSTER_API_KEY=KEY
    )
    began = time.monotonic()
    killed_at(starting, stage.replace("check: started", "check: "))
    if stage == "check: started":
        assert (service.deployment() or {}).get("since") == last
        service.serve()
        ends = "by the next `serve`"
    else:
        service.until(lambda seen: seen["state"] == "ready", "ready without a laptop")
        ends = "ready all the same"
    assert service.complete()
    seconds = time.monotonic() - began
    service.allow(100)
    nothing_is_left_over(service)
    record(f"laptop killed in `serve`, at {stage}", seconds, 0, "-", 0, "", ends=ends)


def record(
    fault: str,
    seconds: float,
    inflicted: float,
    in_flight: str,
    restarts: int,
    cause: str,
    *,
    ends: str = "back",
) -> None:
    """Its row of the page's table; a part of the matrix renews its own rows alone."""
    rows = json.loads(ROWS.read_text()) if ROWS.exists() else {}
    rows[fault] = {
        "ends": ends,
        "seconds": round(seconds),
        "of_which_inflicted": round(inflicted),
        "in_flight": in_flight,
        "restarts": restarts,
        "cause": cause,
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, load {os.getloadavg()[0]:.0f}",
    }
    ROWS.write_text(json.dumps(rows, indent=1) + "\n")
