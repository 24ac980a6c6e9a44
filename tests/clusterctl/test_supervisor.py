"""The supervisor as a process, on directories of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from clusterctl.remote import supervisor

SLEEPER = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]


def eventually(seen: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        value = seen()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"not seen: {what}")


class Home:
    """A directory as a container has it, with a running supervisor."""

    def __init__(self, path: Path) -> None:
        self.path = path
        shutil.copy(supervisor.__file__, path / "supervisor.py")
        self.process: subprocess.Popen[bytes] | None = None

    def run(self, *words: str) -> subprocess.Popen[bytes]:
        argv = [sys.executable, self.path / "supervisor.py", "--stop-grace", "1", *words]
        with (self.path / "out").open("ab") as out:
            self.process = subprocess.Popen(argv, stdout=out)
        return self.process

    def ask(self, name: str, argv: list[str], generation: int = 1, **more: object) -> None:
        directory = self.path / "deployments" / name
        directory.mkdir(parents=True, exist_ok=True)
        spec = {"name": name, "argv": argv, "env": {}, "generation": generation, "stop": False}
        (directory / "spec.json").write_text(json.dumps(spec | more))

    def state(self, name: str) -> dict[str, Any]:
        return supervisor.read_json(self.path / "deployments" / name / "state.json") or {}

    def becomes(self, name: str, state: str, generation: int = 1) -> dict[str, Any]:
        def there() -> dict[str, Any] | None:
            seen = self.state(name)
            wanted = (state, generation)
            return seen if (seen.get("state"), seen.get("generation")) == wanted else None

        found: dict[str, Any] = eventually(there, f"{name} {state}: {self.state(name)}")
        return found

    @property
    def output(self) -> str:
        return (self.path / "out").read_text()


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    home = Home(tmp_path)
    yield home
    if home.process is not None and home.process.poll() is None:
        home.process.terminate()
        home.process.wait(20)


def group_is_gone(pid: int) -> bool:
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_ends_with_the_exit_code_of_what_it_keeps(home: Home) -> None:
    assert home.run("--", "sh", "-c", "exit 7").wait(20) == 7


def test_a_command_that_is_not_there_is_127_and_named(home: Home) -> None:
    assert home.run("--", "no-such-ray", "start").wait(20) == 127
    assert home.output == "no-such-ray: No such file or directory\n"


def test_a_deployment_runs_with_its_environment_and_is_heard(home: Home) -> None:
    home.ask("m", ["sh", "-c", "echo hello $WHO; exec sleep 600"], env={"WHO": "world"})
    home.run("--", "sleep", "600")
    state = home.becomes("m", "running")
    assert state == {
        "name": "m",
        "state": "running",
        "pid": state["pid"],
        "started_at": state["started_at"],
        "exit_code": None,
        "generation": 1,
    }
    eventually(lambda: home.output == "[m] hello world\n", "its output on stdout")
    assert (home.path / "deployments/m/log").read_text() == "hello world\n"


def test_stop_ends_the_whole_group_even_what_ignores_term(home: Home, tmp_path: Path) -> None:
    stubborn = "trap '' TERM; sleep 600 & echo $! > child; wait; sleep 600"
    home.ask("m", ["sh", "-c", stubborn])
    home.run("--", "sleep", "600")
    pid = home.becomes("m", "running")["pid"]
    eventually((tmp_path / "deployments/m/child").exists, "the child")
    home.ask("m", ["sh", "-c", stubborn], stop=True)
    assert home.becomes("m", "stopped")["exit_code"] == 128 + signal.SIGKILL
    assert group_is_gone(pid)


def test_a_deployment_that_dies_has_failed_and_leaves_nothing(home: Home) -> None:
    home.ask("m", ["sh", "-c", "sleep 600 & exit 3"])
    home.run("--", "sleep", "600")
    assert home.becomes("m", "failed")["exit_code"] == 3
    home.ask("ok", ["true"])
    assert home.becomes("ok", "stopped")["exit_code"] == 0
    home.ask("none", ["no-such-engine"])
    assert home.becomes("none", "failed")["exit_code"] == 127


def test_a_higher_generation_replaces_the_running_one(home: Home) -> None:
    home.ask("m", SLEEPER)
    home.run("--", "sleep", "600")
    first = home.becomes("m", "running")["pid"]
    home.ask("m", SLEEPER, generation=2)
    second = home.becomes("m", "running", generation=2)["pid"]
    assert second != first
    assert group_is_gone(first)


def test_term_ends_everything(home: Home) -> None:
    home.ask("m", SLEEPER)
    process = home.run("--", "sh", "-c", "exec sleep 600")
    pid = home.becomes("m", "running")["pid"]
    process.terminate()
    assert process.wait(20) == 128 + signal.SIGTERM
    assert home.state("m")["state"] == "stopped"
    assert group_is_gone(pid)


def test_what_ran_under_an_earlier_supervisor_has_failed(home: Home) -> None:
    home.ask("m", SLEEPER)
    state = {"name": "m", "state": "running", "pid": 1, "started_at": 5.0, "generation": 1}
    (home.path / "deployments/m/state.json").write_text(json.dumps(state))
    home.run("--", "sleep", "600")
    assert home.becomes("m", "failed")["started_at"] == 5.0


def test_half_a_spec_is_not_yet_a_spec(tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text('{"name": "m", "ar')
    assert supervisor.read_json(tmp_path / "spec.json") is None


def test_the_log_keeps_the_newest_output(tmp_path: Path) -> None:
    log = supervisor.Log(tmp_path / "log", max_bytes=8)
    for line in (b"one\n", b"two\n", b"three\n"):
        log.write(line)
    log.file.close()
    assert (tmp_path / "log").read_bytes() == b"three\n"
    assert (tmp_path / "log.1").read_bytes() == b"one\ntwo\n"


def test_a_worker_waits_for_its_head(home: Home) -> None:
    process = home.run("--wait-for", "127.0.0.1:1", "--", "true")
    eventually(lambda: home.output, "what it waits for")
    assert home.output == "waiting for the head at 127.0.0.1:1: [Errno 111] Connection refused\n"
    process.terminate()
    assert process.wait(20) == 128 + signal.SIGTERM


def test_every_start_has_a_word_of_its_own(home: Home) -> None:
    told = 'test "$0" = "$(cat "$1")"'
    words = []
    for _ in range(2):
        assert home.run("--", "sh", "-c", told, "{boot}", str(home.path / "boot")).wait(20) == 0
        words.append((home.path / "boot").read_text())
    assert words[0] != words[1]
