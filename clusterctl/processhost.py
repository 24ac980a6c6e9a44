"""A node as processes on this machine (`up --local`): the same ContainerSpec, carried out without
Docker. A "container" is a directory, STATE/NODE, which holds what a container's layer would hold:

    container.json   the spec, and what became of it
    output.log       what its processes printed
    exit_code        written when they ended

Every process of the node carries the node's own RAY_TMPDIR in its environment, and is found by it.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from clusterctl.containers import ContainerFile, ContainerSpec, HelperSpec
from clusterctl.errors import ClusterctlError, CommandFailed, NotReady
from clusterctl.runtime import PullProgress, SeenContainer, State
from clusterctl.spec import NodeSpec
from clusterctl.transport.base import DEFAULT_TIMEOUT_S, ByteStream, Result, shell_line
from clusterctl.transport.local import LocalTransport

MARK = "RAY_TMPDIR"  # Ray's sockets need a short path; ours is unique to the node
POLL_S = 0.1

# The exit code outlives whoever started the node. The trap lets `sh` see the end of its child.
_KEEP_EXIT_CODE = 'trap : TERM INT; "$@"; echo $? > exit_code'


@dataclass(frozen=True)
class Record:
    """container.json. `started_at` is ISO 8601; empty before the first start."""

    id: str
    name: str
    image: str
    command: tuple[str, ...]
    env: Mapping[str, str]
    labels: Mapping[str, str]
    scratch: str
    pid: int | None = None
    started_at: str = ""


class ProcessHost:
    """One node of this machine. `home` is its directory."""

    def __init__(self, node: NodeSpec, state: Path) -> None:
        self.host = node.name
        self.root = state / node.name
        self.home = str(self.root)

    def containers(self, labels: Mapping[str, str]) -> list[SeenContainer]:
        record = self._read()
        if record is None or any(
            name not in record.labels or value not in ("", record.labels[name])
            for name, value in labels.items()
        ):
            return []
        return [self._seen(record)]

    def image_id(self, reference: str) -> str | None:
        """Whatever is asked for, a process runs in this Python."""
        return f"python-{platform.python_version()}"

    def pull(self, reference: str, on_progress: Callable[[PullProgress], None]) -> str:
        return f"python-{platform.python_version()}"

    def build(
        self,
        tag: str,
        dockerfile: bytes,
        arguments: Mapping[str, str],
        on_line: Callable[[str], None],
    ) -> None:
        raise ClusterctlError(
            "a cluster of processes has no image: it runs in this Python", host=self.host
        )

    def create(self, spec: ContainerSpec) -> str:
        if self._read() is not None:
            raise ClusterctlError(f"{self.root} holds a node already", host=self.host)
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        scratch = tempfile.mkdtemp(prefix="cc-", dir="/tmp")
        record = Record(
            id=Path(scratch).name.removeprefix("cc-"),
            name=spec.name,
            image=spec.image,
            command=spec.command,
            env=spec.env,
            labels=spec.labels,
            scratch=scratch,
        )
        self._write(record)
        return record.id

    def put_files(self, container_id: str, files: Iterable[ContainerFile]) -> None:
        for file in files:
            path = Path(file.path)
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            draft = path.with_name(f".{path.name}.new")
            draft.touch(mode=file.mode)
            draft.write_bytes(file.data)
            draft.chmod(file.mode)
            draft.replace(path)

    def read_file(self, container_id: str, path: str) -> bytes | None:
        try:
            return Path(path).read_bytes()
        except FileNotFoundError:
            return None

    def start(self, container_id: str) -> None:
        record = self._record(container_id)
        (self.root / "exit_code").unlink(missing_ok=True)
        with (self.root / "output.log").open("ab") as output:
            process = subprocess.Popen(
                ["sh", "-c", _KEEP_EXIT_CODE, "sh", *record.command],
                cwd=self.root,
                env=environment(record.env, record.scratch),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        threading.Thread(target=process.wait, daemon=True).start()  # no zombie, if we outlive it
        started_at = datetime.now(timezone.utc).isoformat()
        self._write(replace(record, pid=process.pid, started_at=started_at))

    def stop(self, container_id: str, *, timeout: float = 10.0) -> None:
        record = self._record(container_id)
        if record.pid is not None and self._runs(record):
            os.killpg(record.pid, signal.SIGTERM)
            deadline = time.monotonic() + timeout
            while self._runs(record) and time.monotonic() < deadline:
                time.sleep(POLL_S)
        self._end_all(record)

    def remove(self, container_id: str) -> None:
        record = self._record(container_id)
        self._end_all(record)
        shutil.rmtree(record.scratch, ignore_errors=True)
        shutil.rmtree(self.root)

    def exec(
        self,
        container_id: str,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        timeout: float = DEFAULT_TIMEOUT_S,
        check: bool = True,
    ) -> Result:
        record = self._running(container_id)
        result = self._run(
            argv, environment({**record.env, **(env or {})}, record.scratch), stdin, timeout
        )
        if check and not result.ok:
            raise CommandFailed(result, host=self.host)
        return result

    def exec_stream(
        self,
        container_id: str,
        argv: Sequence[str],
        on_line: Callable[[str], None],
        *,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> int:
        """`timeout` is the command's own affair here: its output is read to the end."""
        record = self._running(container_id)
        process = subprocess.Popen(
            list(argv),
            cwd=self.root,
            env=environment({**record.env, **(env or {})}, record.scratch),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        assert process.stdout is not None
        with process:
            for line in process.stdout:
                on_line(line.rstrip("\n"))
        return process.returncode

    def interact(self, container_id: str, argv: Sequence[str]) -> int:
        record = self._running(container_id)
        return subprocess.call(
            list(argv), cwd=self.root, env=environment(record.env, record.scratch)
        )

    def open_helper(self, spec: HelperSpec, files: Iterable[ContainerFile]) -> ByteStream:
        self.put_files("", files)
        variables = [f"{name}={value}" for name, value in spec.env.items()]
        return LocalTransport(self.host).open_command(["env", *variables, *spec.command])

    def run_once(
        self, image: str, argv: Sequence[str], *, timeout: float = DEFAULT_TIMEOUT_S
    ) -> Result:
        return self._run(argv, environment({}, None), b"", timeout)

    def logs(
        self, container_id: str, *, tail: int | None = None, follow: bool = False
    ) -> Iterator[str]:
        record = self._record(container_id)
        path = self.root / "output.log"
        if not path.exists():
            return
        with path.open(encoding="utf-8", errors="replace") as log:
            lines = log.read().splitlines()
            yield from lines if tail is None else lines[max(0, len(lines) - tail) :]
            runs = follow
            while runs:
                time.sleep(POLL_S)
                runs = self._runs(record)  # asked before the last look, which must come after
                yield from log.read().splitlines()

    def inspect(self, container_id: str) -> Mapping[str, object]:
        """The part of `docker inspect` that says how it was made."""
        record = self._record(container_id)
        entrypoint, *command = record.command
        return {
            "Id": record.id,
            "Name": f"/{record.name}",
            "Config": {
                "Image": record.image,
                "Entrypoint": [entrypoint],
                "Cmd": command,
                "Env": [f"{name}={value}" for name, value in record.env.items()],
                "Labels": dict(record.labels),
            },
            "State": {"Status": self._seen(record).state},
        }

    def close(self) -> None:
        """The node goes on without us."""

    def _run(
        self, argv: Sequence[str], env: Mapping[str, str], stdin: bytes, timeout: float
    ) -> Result:
        started = time.monotonic()
        try:
            done = subprocess.run(
                list(argv), env=env, input=stdin, capture_output=True, timeout=timeout, check=False
            )
        except FileNotFoundError as error:
            return Result(tuple(argv), 127, "", f"{argv[0]}: {error.strerror}")
        except subprocess.TimeoutExpired as error:
            raise NotReady(f"{argv[0]} did not end within {timeout:g} s", host=self.host) from error
        return Result(
            tuple(argv),
            done.returncode if done.returncode >= 0 else 128 - done.returncode,
            done.stdout.decode(errors="replace"),
            done.stderr.decode(errors="replace"),
            time.monotonic() - started,
        )

    def _record(self, container_id: str) -> Record:
        record = self._read()
        if record is None or record.id != container_id:
            raise ClusterctlError(f"no such node: {container_id}", host=self.host)
        return record

    def _running(self, container_id: str) -> Record:
        record = self._record(container_id)
        if not self._runs(record):
            raise ClusterctlError(f"{record.name} is not running", host=self.host)
        return record

    def _seen(self, record: Record) -> SeenContainer:
        state: State = "created"
        if record.pid is not None:
            state = "running" if self._runs(record) else "exited"
        return SeenContainer(
            id=record.id,
            name=record.name,
            image=record.image,
            image_id=f"python-{platform.python_version()}",
            labels=record.labels,
            state=state,
            started_at=record.started_at,
            exit_code=self._exit_code() if state == "exited" else None,
        )

    def _exit_code(self) -> int | None:
        """None when it was ended before it could say."""
        try:
            return int((self.root / "exit_code").read_text())
        except (FileNotFoundError, ValueError):
            return None

    def _runs(self, record: Record) -> bool:
        return record.pid is not None and is_marked(record.pid, record.scratch)

    def _end_all(self, record: Record) -> None:
        """Whatever still carries the node's mark, by process id."""
        while left := marked(record.scratch):
            for pid in left:
                _kill(pid)
            time.sleep(POLL_S)

    def _read(self) -> Record | None:
        try:
            content: dict[str, Any] = json.loads((self.root / "container.json").read_bytes())
        except FileNotFoundError:
            return None
        return Record(**{**content, "command": tuple(content["command"])})

    def _write(self, record: Record) -> None:
        draft = self.root / ".container.json"
        draft.write_text(json.dumps(asdict(record), indent=2), encoding="utf-8")
        draft.replace(self.root / "container.json")


def process_line(spec: ContainerSpec) -> str:
    """What is run in place of a container, for people."""
    settings = [f"{name}={value}" for name, value in spec.env.items()]
    return shell_line(["env", *settings, *spec.command])


def environment(own: Mapping[str, str], scratch: str | None) -> dict[str, str]:
    """Ours, without what the operator's shell says of some other Ray; this Python comes first."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{inherited.get('PATH', os.defpath)}"
    mark = {} if scratch is None else {MARK: scratch}
    return {**inherited, "PATH": path, **own, **mark}


def marked(scratch: str) -> list[int]:
    """Every live process that carries the mark. Without /proc (macOS) none can be found so."""
    pids = (int(path.name) for path in Path("/proc").glob("[0-9]*"))
    return [pid for pid in pids if is_marked(pid, scratch)]


def is_marked(pid: int, scratch: str) -> bool:
    if not Path("/proc/self").exists():
        return _exists(pid)
    try:
        environ = Path(f"/proc/{pid}/environ").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return False
    return f"{MARK}={scratch}".encode() in environ.split(b"\0")


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
