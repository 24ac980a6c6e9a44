"""Directories as containers have them, each with a real supervisor."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clusterctl.remote import supervision
from clusterctl.remote.supervision.files import read_json


def eventually(
    seen: Callable[[], Any], what: str, now: Callable[[], Any] = lambda: "", seconds: float = 60
) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = seen()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"not seen: {what}; {now()}")


class Home:
    """A directory as a container has it, with a running supervisor."""

    def __init__(self, path: Path) -> None:
        self.path = path
        remote = Path(supervision.__file__).parents[1]
        path.mkdir(exist_ok=True)
        shutil.copy(remote / "supervisor.py", path)
        shutil.copytree(remote / "supervision", path / "supervision")
        self.process: subprocess.Popen[bytes] | None = None

    def run(self, *words: str) -> subprocess.Popen[bytes]:
        argv = [sys.executable, self.path / "supervisor.py", "--stop-grace", "1", *words]
        with (self.path / "out").open("ab") as out:
            own = {**os.environ, "RAY_TMPDIR": str(self.path)}  # as a local cluster's nodes have it
            self.process = subprocess.Popen(argv, stdout=out, env=own)
        return self.process

    def end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(20)

    def ask(self, name: str, argv: list[str], generation: int = 1, **more: object) -> None:
        directory = self.path / "deployments" / name
        directory.mkdir(parents=True, exist_ok=True)
        spec = {"name": name, "argv": argv, "env": {}, "generation": generation, "stop": False}
        draft = directory / "draft"
        draft.write_text(json.dumps(spec | more))
        draft.replace(directory / "spec.json")

    def state(self, name: str) -> dict[str, Any]:
        return read_json(self.path / "deployments" / name / "state.json") or {}

    def becomes(self, name: str, state: str, generation: int = 1, epoch: int = 1) -> dict[str, Any]:
        def there() -> dict[str, Any] | None:
            seen = self.state(name)
            now = (seen.get("state"), seen.get("generation"), seen.get("epoch"))
            return seen if now == (state, generation, epoch) else None

        found: dict[str, Any] = eventually(there, f"{name} {state}", lambda: self.state(name))
        return found

    def log(self, name: str) -> str:
        return (self.path / "deployments" / name / "log").read_text()

    def crashes(self, name: str) -> list[dict[str, Any]]:
        found = sorted((self.path / "crashes" / name).glob("*/crash.json"))
        return [json.loads(path.read_text()) for path in found]

    @property
    def output(self) -> str:
        return (self.path / "out").read_text()


def pid_of(home: Home, name: str) -> int:
    home_state = eventually(lambda: home.state(name).get("pid"), f"{name}'s process")
    return int(home_state)


def group_is_gone(pid: int) -> bool:
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        return True
    return False
