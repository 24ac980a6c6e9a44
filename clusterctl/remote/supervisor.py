"""The first process of a node's container. Standard library only; runs on Python 3.10 and later.

    python3 supervisor.py [--wait-for HOST:PORT] -- ray start ... --block

Keeps `ray start` and ends with its exit code, so that Docker's restart policy does its part.
"{boot}" in that command becomes a new word at every start, which also stands in the file `boot`
next to this one: what Ray says of a node can then be told from what it said of an earlier life.
Beside it, everything under deployments/ next to this file:

    deployments/NAME/spec.json   written from outside: {"name", "argv", "env", "env_files",
                                 "generation", "stop"}; env_files: variables and the files that hold
                                 their values
    deployments/NAME/state.json  written here: {"name", "state", "pid", "started_at", "exit_code",
                                 "generation"}, state starting|running|stopped|failed
    deployments/NAME/log         what it printed, also on our own stdout behind "[NAME] "

Each deployment is a process group of its own. A higher generation replaces the running one.
`--wait-for` holds Ray back until a TCP connection to the head is answered: a worker which boots
before its head waits instead of failing.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

POLL_S = 0.2
SHUTDOWN_GRACE_S = 5.0  # Docker kills ten seconds after it asked
LOG_MAX_BYTES = 64 * 1024 * 1024

stopping = threading.Event()
print_lock = threading.Lock()


def say(line: bytes) -> None:
    """One whole line on stdout, whichever thread has it."""
    with print_lock:
        sys.stdout.buffer.write(line.rstrip(b"\n") + b"\n")
        sys.stdout.buffer.flush()


class Group:
    """A command as a process group: started, asked to end, then made to end."""

    def __init__(self, argv: list[str], **options: Any) -> None:
        self.process = subprocess.Popen(argv, start_new_session=True, **options)
        self.kill_at: float | None = None

    @property
    def exit_code(self) -> int | None:
        code = self.process.poll()
        return None if code is None else code if code >= 0 else 128 - code

    def alive(self) -> bool:
        """Whether any process of the group is left. Reaps the leader: a zombie counts as alive."""
        self.process.poll()
        return self._signal(0)

    def ask_to_end(self, grace: float) -> None:
        if self.kill_at is None:
            self.kill_at = time.monotonic() + grace
            self._signal(signal.SIGTERM)

    def end_if_due(self) -> None:
        if self.kill_at is not None and time.monotonic() >= self.kill_at:
            self._signal(signal.SIGKILL)

    def end(self, grace: float) -> None:
        self.ask_to_end(grace)
        while self.alive():
            self.end_if_due()
            time.sleep(0.05)

    def _signal(self, number: int) -> bool:
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            return False
        except PermissionError:  # macOS, for a group of zombies
            return False
        return True


class Log:
    """A file that keeps the newest output: at the limit it moves to `log.1` and starts anew."""

    def __init__(self, path: Path, max_bytes: int = LOG_MAX_BYTES) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self.file = path.open("ab")

    def write(self, line: bytes) -> None:
        if self.file.tell() + len(line) > self.max_bytes:
            self.file.close()
            self.path.replace(self.path.with_suffix(".1"))
            self.file = self.path.open("wb")
        self.file.write(line)
        self.file.flush()


@dataclass(frozen=True)
class Wanted:
    """What spec.json asks for."""

    argv: list[str]
    env: dict[str, str]
    env_files: dict[str, str]
    generation: int
    stop: bool


class Deployment:
    """One directory under deployments/, brought to what its spec.json asks for, step by step."""

    def __init__(self, directory: Path, stop_grace: float) -> None:
        self.directory = directory
        self.stop_grace = stop_grace
        self.group: Group | None = None
        self.started_at: float | None = None
        self.generation: int | None = None  # the newest one that was dealt with
        self._take_over()

    def step(self) -> None:
        wanted = self._wanted()
        if self.group is not None:
            self._watch(self.group, wanted)
        elif wanted is not None and wanted.generation != self.generation:
            self._begin(wanted)

    def end(self, grace: float) -> None:
        if self.group is not None:
            self.group.end(grace)
            self._ended("stopped", self.group.exit_code)

    def _take_over(self) -> None:
        """A state.json that was here before us: its processes went with the last supervisor."""
        last = read_json(self.directory / "state.json")
        if last is None:
            return
        self.generation, self.started_at = last["generation"], last["started_at"]
        if last["state"] in ("starting", "running"):
            self._ended("failed", None)

    def _begin(self, wanted: Wanted) -> None:
        self.generation = wanted.generation
        self.started_at = time.time()
        if wanted.stop:
            self._ended("stopped", None)
            return
        try:
            self.group = self._start(wanted)
        except OSError as error:
            self._print(
                f"{error.filename or wanted.argv[0]}: {error.strerror}\n".encode(), self._log()
            )
            self._ended("failed", 127)
            return
        self._write("running", pid=self.group.process.pid)
        threading.Thread(target=self._copy_output, args=(self.group.process,), daemon=True).start()

    def _start(self, wanted: Wanted) -> Group:
        return Group(
            wanted.argv,
            env={**os.environ, **wanted.env, **read_files(wanted.env_files)},
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def _watch(self, group: Group, wanted: Wanted | None) -> None:
        asked = wanted is None or wanted.stop or wanted.generation != self.generation
        if asked:
            group.ask_to_end(self.stop_grace)
        elif group.exit_code is not None:
            group.ask_to_end(0)  # the leader is gone: what it left behind goes too
        group.end_if_due()
        if not group.alive():
            ended_well = asked or group.exit_code == 0
            self._ended("stopped" if ended_well else "failed", group.exit_code)

    def _ended(self, state: str, exit_code: int | None) -> None:
        self.group = None
        self._write(state, exit_code=exit_code)

    def _copy_output(self, process: subprocess.Popen[bytes]) -> None:
        log = self._log()
        for line in process.stdout or ():
            self._print(line, log)

    def _log(self) -> Log:
        return Log(self.directory / "log")

    def _print(self, line: bytes, log: Log) -> None:
        log.write(line)
        say(b"[" + self.directory.name.encode() + b"] " + line)

    def _wanted(self) -> Wanted | None:
        spec = read_json(self.directory / "spec.json")
        if spec is None:
            return None
        env, stop = spec.get("env", {}), spec.get("stop", False)
        return Wanted(spec["argv"], env, spec.get("env_files", {}), spec["generation"], stop)

    def _write(self, state: str, *, pid: int | None = None, exit_code: int | None = None) -> None:
        content = {
            "name": self.directory.name,
            "state": state,
            "pid": pid,
            "started_at": self.started_at,
            "exit_code": exit_code,
            "generation": self.generation,
        }
        draft = self.directory / ".state.json"
        draft.write_text(json.dumps(content))
        draft.replace(self.directory / "state.json")


def read_json(path: Path) -> dict[str, Any] | None:
    """None while the file is absent or only partly written: it is looked at again soon."""
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return content


def read_files(files: dict[str, str]) -> dict[str, str]:
    return {name: Path(file).read_text().strip() for name, file in files.items()}


def wait_for(address: str) -> None:
    """Until something answers there, saying so at first and then every ten seconds."""
    host, port = address.rsplit(":", 1)
    said_at = 0.0
    while not stopping.is_set():
        try:
            socket.create_connection((host, int(port)), timeout=3).close()
        except OSError as error:
            if time.monotonic() - said_at > 10 or not said_at:
                said_at = time.monotonic()
                say(f"waiting for the head at {address}: {error}".encode())
            stopping.wait(0.5)
        else:
            return


def watch(ray: Group, root: Path, stop_grace: float) -> None:
    """Until Ray ends or we are asked to end."""
    known: dict[Path, Deployment] = {}
    while ray.exit_code is None and not stopping.is_set():
        for directory in sorted(spec.parent for spec in root.glob("*/spec.json")):
            if directory not in known:
                known[directory] = Deployment(directory, stop_grace)
        for deployment in known.values():
            deployment.step()
        stopping.wait(POLL_S)
    for deployment in known.values():
        deployment.end(SHUTDOWN_GRACE_S)


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--wait-for", metavar="HOST:PORT")
    parser.add_argument("--stop-grace", type=float, default=10.0, metavar="SECONDS")
    parser.add_argument("command", nargs="+", help="what to keep running, after --")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    options = parse(argv)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    home = Path(__file__).parent
    boot = secrets.token_hex(4)
    (home / "boot").write_text(boot)
    if options.wait_for:
        wait_for(options.wait_for)
    if stopping.is_set():
        return 128 + signal.SIGTERM
    try:
        ray = Group([word.replace("{boot}", boot) for word in options.command])
    except OSError as error:
        say(f"{options.command[0]}: {error.strerror}".encode())
        return 127
    watch(ray, home / "deployments", options.stop_grace)
    ended_by_itself = ray.exit_code
    ray.end(SHUTDOWN_GRACE_S)
    return ended_by_itself if ended_by_itself is not None else 128 + signal.SIGTERM


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
