"""The supervisor as a process, on directories of its own."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from clusterctl.remote.supervision import __main__ as main
from clusterctl.remote.supervision.files import read_json
from clusterctl.remote.supervision.processes import Log
from tests.clusterctl.supervisorhome import Home, eventually, group_is_gone, pid_of

SLEEPER = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    home = Home(tmp_path)
    yield home
    home.end()


def test_ends_with_the_exit_code_of_what_it_keeps(home: Home) -> None:
    assert home.run("--", "sh", "-c", "exit 7").wait(20) == 7


@pytest.mark.parametrize("client", [True, False])
def test_a_port_for_rays_client_goes_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, client: bool
) -> None:
    monkeypatch.setattr(main, "find_spec", lambda name: (name == "grpc" and client) or None)
    command = ["ray", "start", "--ray-client-server-port=11001", "--node-name=a-{boot}"]
    port = ["--ray-client-server-port=11001"] if client else []
    assert main.completed(command, "7f") == ["ray", "start", *port, "--node-name=a-7f"]


def test_a_command_that_is_not_there_is_127_and_named(home: Home) -> None:
    assert home.run("--", "no-such-ray", "start").wait(20) == 127
    assert home.output == "no-such-ray: No such file or directory\n"


def test_a_deployment_runs_with_its_environment_and_is_heard(home: Home) -> None:
    home.ask("m", ["sh", "-c", "echo hello $WHO; exec sleep 600"], env={"WHO": "world"})
    home.run("--", "sleep", "600")
    assert home.becomes("m", "running")["exit_code"] is None
    eventually(lambda: home.output == "[m] hello world\n", "its output on stdout")
    assert (home.path / "deployments/m/log").read_text() == "hello world\n"


def test_stop_ends_the_whole_group_even_what_ignores_term(home: Home, tmp_path: Path) -> None:
    stubborn = "trap '' TERM; sleep 600 & echo $! > child; wait; sleep 600"
    home.ask("m", ["sh", "-c", stubborn])
    home.run("--", "sleep", "600")
    pid = pid_of(home, "m")
    eventually((tmp_path / "deployments/m/child").exists, "the child")
    home.ask("m", ["sh", "-c", stubborn], stop=True)
    assert home.becomes("m", "stopped")["exit_code"] == 128 + signal.SIGKILL
    assert group_is_gone(pid)


def test_a_deployment_that_dies_has_failed_and_leaves_nothing(home: Home) -> None:
    home.ask("m", ["sh", "-c", "sleep 600 & exit 3"])
    home.run("--", "sleep", "600")
    assert home.becomes("m", "failed")["exit_code"] == 3
    home.ask("ok", ["true"])
    assert home.becomes("ok", "stopped")["cause"] == "this node: its process ended with exit code 0"
    home.ask("none", ["no-such-engine"])
    assert home.becomes("none", "failed")["exit_code"] == 127


def test_a_higher_generation_replaces_the_running_one(home: Home) -> None:
    home.ask("m", SLEEPER)
    home.run("--", "sleep", "600")
    first = pid_of(home, "m")
    home.ask("m", SLEEPER, generation=2)
    home.becomes("m", "running", generation=2)
    second = pid_of(home, "m")
    assert second != first
    assert group_is_gone(first)


def test_term_ends_everything(home: Home) -> None:
    home.ask("m", SLEEPER)
    process = home.run("--", "sh", "-c", "exec sleep 600")
    pid = pid_of(home, "m")
    process.terminate()
    assert process.wait(20) == 128 + signal.SIGTERM
    assert home.state("m")["state"] == "restarting"
    assert group_is_gone(pid)


def test_half_a_spec_is_not_yet_a_spec(tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text('{"name": "m", "ar')
    assert read_json(tmp_path / "spec.json") is None


def test_the_log_keeps_the_newest_output(tmp_path: Path) -> None:
    log = Log(tmp_path / "log", max_bytes=8)
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
