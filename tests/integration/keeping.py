"""A served model that is struck by faults: what the tests of docs/reliability.md share. A run
writes its rows into docs/reliability.json, from which `make docs` makes the page's table."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai

from .bed import Cluster

ROOT = Path(__file__).parents[2]
ROWS = ROOT / "docs/reliability.json"
KEY = "sk-reliability"
NAME = "smol"
NATIVE = ("--pp", "2", "--dtype", "float32", "--engine", "native", "--executor", "ray")
HOME = f"/opt/clusterctl/deployments/{NAME}"
CRASHES = "/opt/clusterctl/crashes"
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

    # --- faults -----------------------------------------------------------------------------------

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

    @contextmanager
    def full_disk(self, host: str) -> Iterator[None]:
        """For what the supervisor writes down: its records, and what it keeps of a death. Docker's
        own disk cannot be filled under a container here: all hosts share one."""
        places = f"{HOME} {CRASHES}"
        fill = (
            f"set -e; mkdir -p /mnt/full; for at in {places}; do"
            " mount -t tmpfs -o size=64m tmpfs /mnt/full; cp -a $at/. /mnt/full/;"
            " cat /dev/zero > /mnt/full/zeros 2>/dev/null || true;"
            " mount --bind /mnt/full $at; umount /mnt/full; done"
        )
        self._in_mounts_of(host, fill)
        yield
        self._in_mounts_of(host, f"umount --lazy {places}")

    def _in_mounts_of(self, host: str, script: str) -> None:
        """As root of the host, who may mount, in the container's file systems."""
        pid = self.cluster.inspect(host)["State"]["Pid"]
        self.on(host, f"nsenter --target {pid} --mount --pid sh -c {shlex.quote(script)}")

    # --- what is seen -----------------------------------------------------------------------------

    def told(self) -> dict[str, Any] | None:
        """By `ps`; None while the head cannot be asked."""
        done = self.cluster.run("ps", "--json")
        found = json.loads(done.stdout).get("deployments", []) if done.returncode == 0 else []
        return next((one for one in found if one["name"] == NAME), None)

    def kept(self) -> dict[str, Any] | None:
        """By the head's supervisor, at no cost to a machine that starts an engine; None while it
        cannot be read."""
        try:
            kept: dict[str, Any] = json.loads(self.inside(self.head, f"cat {HOME}/state.json"))
        except (AssertionError, json.JSONDecodeError):
            return None
        return kept

    def until_kept(self, seen: Callable[[dict[str, Any]], Any], what: str) -> dict[str, Any]:
        return until(self.kept, seen, what)

    def until_told(self, seen: Callable[[dict[str, Any]], Any], what: str) -> dict[str, Any]:
        return until(self.told, seen, what)

    def until_ready(self, epoch: int = 1) -> dict[str, Any]:
        """As `ps` says it, in this epoch or a later one."""
        again = f"running in epoch {epoch} or later"
        self.until_kept(lambda now: now["state"] == "running" and now["epoch"] >= epoch, again)
        return self.until_told(lambda now: now["state"] == "ready", "ready")

    # --- serving ----------------------------------------------------------------------------------

    def serve(self, *more: str) -> None:
        argv = ["serve", self.model, *NATIVE, "--name", NAME, *more]
        self.cluster.ok(*argv, INFERCLUSTER_API_KEY=KEY)
        self.allow(100)

    def stop(self) -> None:
        if (now := self.kept()) and now["state"] not in ("failed", "stopped"):
            self.cluster.ok("stop", NAME)

    def allow(self, in_a_row: int) -> None:
        """So many deaths in a row: a matrix is not what the default bound is for."""
        path = f"{HOME}/spec.json"
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

    def answers(self) -> dict[str, Any] | None:
        """None: not now."""
        try:
            return {"text": self.complete()}
        except openai.OpenAIError:
            return None

    # --- what must not be left over ---------------------------------------------------------------

    def nothing_is_left_over(self) -> None:
        """One set of ranks, one container a host, one listener, no lock."""
        wanted = {self.head: 2, self.worker: 1}  # the driver and a rank; a rank

        def ranks(now: dict[str, Any]) -> dict[str, int]:
            nodes = [rank["node"] for rank in now["ranks"]]
            return {node: nodes.count(node) for node in wanted}

        self.until_kept(lambda now: ranks(now) == wanted, "one set of ranks")
        self.no_lock_and_one_container()
        assert self.listeners() == 1

    def no_lock_and_one_container(self) -> None:
        name = self.cluster.name
        for host in self.cluster.hosts:
            ours = self.on(host, f"docker ps -aq --filter label=clusterctl.cluster={name}").split()
            assert len(ours) == 1
            assert not self.on(host, f"ls -d /var/lib/clusterctl/{name}/lock 2>/dev/null || true")

    def listeners(self) -> int:
        """On the API's port."""
        return len(self.on(self.head, f"ss -Hltn 'sport = :{PORT}'").strip().splitlines())


def until(
    look: Callable[[], dict[str, Any] | None], seen: Callable[[dict[str, Any]], Any], what: str
) -> dict[str, Any]:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        found = look()
        if found is not None and seen(found):
            return found
        time.sleep(1)
    raise AssertionError(f"not seen: {what}; now {look()}")


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

    def ended(self) -> str:
        """`answer` or `error`."""
        self.thread.join(60)
        assert self.outcome != "hung"
        return self.outcome

    def _ask(self) -> None:
        try:
            stream = self.service.client().completions.create(
                model=self.service.model,
                prompt="Once upon a time",
                max_tokens=256,
                stream=True,
                extra_body={"ignore_eos": True},
            )
            for _ in stream:
                self.began.set()
            self.outcome = "answer"
        except Exception as error:  # noqa: BLE001 - openai's, or httpx's of a broken stream
            self.outcome = "error"
            self.error = error


@dataclass
class Clock:
    """From a fault to the end of it; `load` of this machine when it struck."""

    began: float = field(default_factory=time.monotonic)
    load: float = field(default_factory=lambda: os.getloadavg()[0])
    seconds: float = 0.0

    def stop(self) -> None:
        self.seconds = time.monotonic() - self.began


def record(
    fault: str,
    clock: Clock,
    *,
    ends: str = "back",
    inflicted: float = 0.0,
    in_flight: str = "-",
    restarts: int = 0,
    cause: str = "",
) -> None:
    """Its row of the page's table; a part of the matrix renews its own rows alone."""
    rows = json.loads(ROWS.read_text()) if ROWS.exists() else {}
    rows[fault] = {
        "ends": ends,
        "seconds": round(clock.seconds),
        "of_which_inflicted": round(inflicted),
        "in_flight": in_flight,
        "restarts": restarts,
        "cause": cause,
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, load {clock.load:.0f}",
    }
    ROWS.write_text(json.dumps(rows, indent=1) + "\n")


def commit() -> str:
    argv = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
