"""The running testbed, for tests that need real hosts.

None running: with INFERCLUSTER_TESTBED_AUTOSTART=1 one of three hosts is started, and taken down
when the tests are over; otherwise the tests are skipped. $INFERCLUSTER_TESTBED_NAME chooses one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
SCRIPT = HERE.parents[1] / "scripts" / "testbed"
MODEL = "SmolLM2-135M-Instruct"
HOSTS = 3
START_S = 1800  # the first time ever, with the images to build
COMMAND_S = 300


@dataclass(frozen=True)
class RunningTestbed:
    """What `scripts/testbed status --json` says, and its commands."""

    name: str
    cluster_yaml: Path
    ssh_config: Path
    models: Path  # on this machine; the hosts see it as /models
    registry: str
    image: str  # of a node; noray and empty are for preflight tests
    noray_image: str
    empty_image: str
    addresses: Mapping[str, str]  # host name -> address

    @property
    def hosts(self) -> list[str]:
        return sorted(self.addresses)

    def ssh(self, host: str, command: str, *, user: str = "root") -> str:
        """Standard output of a shell command on a host; AssertionError when it fails."""
        target = ["ssh", "-F", str(self.ssh_config), "-l", user, host]
        return _output([*target, command])

    def snapshot(self, host: str) -> dict[str, Any]:
        """All that is on the host: equal before and after a run that left nothing behind."""
        taken: dict[str, Any] = json.loads(self.command("snapshot", host))
        return taken

    def command(self, *words: str, timeout: float = COMMAND_S) -> str:
        """Standard output of `scripts/testbed WORDS` for this testbed."""
        argv = [str(SCRIPT), "--name", self.name, "--state", str(self.cluster_yaml.parent), *words]
        return _output(argv, timeout=timeout)

    @contextmanager
    def fault(self, host: str, kind: str) -> Iterator[None]:
        """Inflict a fault (`scripts/testbed fault HOST` lists them), and heal the host after."""
        self.command("fault", host, kind)
        try:
            yield
        finally:
            self.command("heal", host)


@pytest.fixture(scope="session")
def testbed() -> Iterator[RunningTestbed]:
    status = _status()
    if status["running"]:
        yield _running(status)
        return
    if os.environ.get("INFERCLUSTER_TESTBED_AUTOSTART") != "1":
        pytest.skip("no testbed runs: make testbed, or INFERCLUSTER_TESTBED_AUTOSTART=1")
    _output([str(SCRIPT), "up", "--hosts", str(HOSTS)], timeout=START_S)
    try:
        yield _running(_status())
    finally:
        _output([str(SCRIPT), "down"])


@pytest.fixture(scope="session")
def smollm2(testbed: RunningTestbed) -> str:
    """The path of a small real model on every host."""
    script = SCRIPT.with_name("smollm2")
    _output([sys.executable, str(script), str(testbed.models / MODEL)], timeout=START_S)
    return f"/models/{MODEL}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.testbed)


def _status() -> dict[str, Any]:
    done = subprocess.run([SCRIPT, "status", "--json"], capture_output=True, text=True)
    status: dict[str, Any] = json.loads(done.stdout)
    return status


def _running(status: dict[str, Any]) -> RunningTestbed:
    return RunningTestbed(
        name=status["name"],
        cluster_yaml=Path(status["cluster_yaml"]),
        ssh_config=Path(status["ssh_config"]),
        models=Path(status["models"]),
        registry=status["registry"],
        image=status["image"],
        noray_image=f"{status['registry']}/infercluster-noray:1",
        empty_image=f"{status['registry']}/infercluster-empty:1",
        addresses={host["name"]: host["address"] for host in status["hosts"]},
    )


def _output(argv: list[str], *, timeout: float = COMMAND_S) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout)
    if done.returncode:
        raise AssertionError(f"{argv}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout
