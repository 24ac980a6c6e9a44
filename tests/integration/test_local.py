"""`up --local`: a real Ray of two nodes on this machine, without SSH and Docker."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from clusterctl.links import local_state_dir

NAME = "localtest"
COMMAND_S = 280


class Local:
    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def run(self, *args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "clusterctl", *args],
            cwd=self.directory,
            env={**os.environ, "XDG_CONFIG_HOME": str(self.directory / "config")},
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
        )

    def ok(self, *args: str) -> str:
        done = self.run(*args)
        assert done.returncode == 0, f"{args}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Local]:
    made = Local(tmp_path_factory.mktemp("local"))
    made.ok("up", "--local", "--nodes", "2", "--name", NAME)
    yield made
    made.ok("down", "--purge", "--cluster", NAME)


def test_two_nodes_are_verified(local: Local) -> None:
    status = json.loads(local.ok("status", "--json"))
    assert status["verified"] is True
    assert [(node["name"], node["address"]) for node in status["nodes"]] == [
        ("node1", "127.0.0.2"),
        ("node2", "127.0.0.3"),
    ]


def test_a_second_up_keeps_both(local: Local) -> None:
    said = json.loads(local.ok("up", "--local", "--name", NAME, "--json"))
    assert [node["action"] for node in said["nodes"]] == ["keep", "keep"]


def test_exec_and_logs(local: Local) -> None:
    assert local.ok("exec", "node2", "--", "printenv", "VLLM_HOST_IP") == "127.0.0.3\n"
    assert "cpu_slot" in local.ok("exec", "head", "--", "ray", "status")
    assert "Ray runtime started" in local.ok("logs", "--hosts", "node2")


def test_down_leaves_no_process_and_no_directory(local: Local) -> None:
    state = local_state_dir(NAME)
    scratch = json.loads((state / "node1/container.json").read_text())["scratch"]
    local.ok("down", "--purge")
    assert not state.exists()
    assert not Path(scratch).exists()
