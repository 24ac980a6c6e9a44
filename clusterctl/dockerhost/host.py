"""One host's Docker Engine. Contract: runtime.Runtime."""

from __future__ import annotations

import io
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from docker.errors import APIError, ImageNotFound, NotFound

from clusterctl.containers import (
    HOME,
    ContainerFile,
    ContainerSpec,
    HelperSpec,
    helper_arguments,
    sdk_arguments,
)
from clusterctl.dockerhost import archive
from clusterctl.dockerhost.dial import Dialer
from clusterctl.dockerhost.failures import explain, translated
from clusterctl.dockerhost.frames import Demultiplexer
from clusterctl.dockerhost.helper import HelperStream
from clusterctl.dockerhost.pullmeter import PullMeter
from clusterctl.dockerhost.registry import host_login
from clusterctl.dockerhost.wire import api_client
from clusterctl.errors import ClusterctlError, CommandFailed, NotReady
from clusterctl.runtime import PullProgress, SeenContainer
from clusterctl.spec import LimitsSpec
from clusterctl.trace import Trace, untraced
from clusterctl.transport.base import DEFAULT_TIMEOUT_S, ByteStream, Result, Transport, shell_line
from clusterctl.transport.lines import LineSplitter
from clusterctl.transport.terminal import attach, terminal_type

CHUNK = 32768
GONE_S = 20
BUILD_LINES = 12  # that an error shows
NOT_FOUND = 127
NO_SUCH_PROGRAM = "executable file not found"

# Ends a process of the host and all below it: as ourselves, else as root, in the end by force.
KILL = """\
tree() { echo "$1"; for p in $(cat "/proc/$1"/task/*/children 2>/dev/null); do tree "$p"; done; }
end() { kill -"$@" 2>/dev/null || sudo -n kill -"$@" 2>/dev/null; }
all=$(tree "$1")
end TERM $all
for _ in 1 2 3 4 5 6 7 8 9 10; do [ -d "/proc/$1" ] || exit 0; sleep 0.2; done
end KILL $all
"""


class DockerHost:
    """Connects at its first call. Safe to use from several threads."""

    home = HOME

    def __init__(
        self,
        transport: Transport,
        socket_path: str = "/var/run/docker.sock",
        *,
        trace: Trace = untraced,
        pull_timeout: float = LimitsSpec.pull_timeout,
    ) -> None:
        self.host = transport.host
        self._transport = transport
        self._dial = Dialer(transport, socket_path)
        self._trace = trace
        self._pull_timeout = pull_timeout
        self._connecting = threading.Lock()
        self._client: Any = None

    @property
    def _docker(self) -> Any:
        """The SDK's APIClient."""
        with self._connecting:
            if self._client is None:
                with translated(self.host, "connecting to Docker"):
                    self._client = api_client(
                        self._dial, lambda line: self._trace(f"{self.host}\tdocker {line}")
                    )
        return self._client

    # --- what is there

    def containers(self, labels: Mapping[str, str]) -> list[SeenContainer]:
        wanted = [f"{name}={value}" if value else name for name, value in labels.items()]
        with translated(self.host, "listing containers"):
            listed = self._docker.containers(all=True, filters={"label": wanted})
            seen = [self._seen(entry["Id"]) for entry in listed]
        return [container for container in seen if container is not None]

    def _seen(self, container_id: str) -> SeenContainer | None:
        """None: it was removed since it was listed."""
        try:
            return seen_container(self._docker.inspect_container(container_id))
        except NotFound:
            return None

    def inspect(self, container_id: str) -> Mapping[str, object]:
        with translated(self.host, f"inspecting {container_id[:12]}"):
            found: Mapping[str, object] = self._docker.inspect_container(container_id)
        return found

    def image_id(self, reference: str) -> str | None:
        with translated(self.host, f"looking for image {reference}"):
            try:
                return str(self._docker.inspect_image(reference)["Id"])
            except ImageNotFound:
                return None

    # --- making and ending containers

    def pull(self, reference: str, on_progress: Callable[[PullProgress], None]) -> str:
        deadline = time.monotonic() + self._pull_timeout
        login = dict(host_login(self._transport, reference))
        meter = PullMeter()
        with translated(self.host, f"pulling {reference}"):
            for event in self._docker.pull(reference, stream=True, decode=True, auth_config=login):
                if "error" in event:
                    raise explain(event["error"], self.host, f"pulling {reference}")
                on_progress(meter.feed(event))
                self._left(deadline, f"pulling {reference}")
            return str(self._docker.inspect_image(reference)["Id"])

    def build(
        self,
        tag: str,
        dockerfile: bytes,
        arguments: Mapping[str, str],
        on_line: Callable[[str], None],
    ) -> None:
        deadline = time.monotonic() + self._pull_timeout
        doing = f"building {tag}"
        said: deque[str] = deque(maxlen=BUILD_LINES)
        context = archive.pack([ContainerFile("Dockerfile", dockerfile)])
        with translated(self.host, doing):
            for event in self._docker.build(
                fileobj=io.BytesIO(context),
                custom_context=True,
                tag=tag,
                buildargs=dict(arguments),
                network_mode="host",
                rm=True,
                forcerm=True,
                decode=True,
            ):
                for line in str(event.get("stream", "")).splitlines():
                    said.append(line)
                    on_line(line)
                if "error" in event:
                    raise ClusterctlError("\n  ".join([f"{doing} failed", *said]), host=self.host)
                self._left(deadline, doing)

    def create(self, spec: ContainerSpec) -> str:
        with translated(self.host, f"creating {spec.name}"):
            made = self._docker.create_container_from_config(sdk_arguments(spec), spec.name)
        return str(made["Id"])

    def start(self, container_id: str) -> None:
        with translated(self.host, f"starting {container_id[:12]}"):
            self._docker.start(container_id)

    def stop(self, container_id: str, *, timeout: float = 10.0) -> None:
        with translated(self.host, f"stopping {container_id[:12]}"):
            self._docker.stop(container_id, timeout=round(timeout))

    def remove(self, container_id: str) -> None:
        """With its anonymous volumes, running or not. One that is gone already is no error."""
        with translated(self.host, f"removing {container_id[:12]}"):
            try:
                self._docker.remove_container(container_id, v=True, force=True)
            except NotFound:
                return

    def run_once(
        self, image: str, argv: Sequence[str], *, timeout: float = DEFAULT_TIMEOUT_S
    ) -> Result:
        body = {
            "Image": image,
            "Entrypoint": [argv[0]],
            "Cmd": list(argv[1:]),
            "HostConfig": {"NetworkMode": "none"},
        }
        with translated(self.host, f"running {argv[0]} in {image}"):
            made = self._docker.create_container_from_config(body)["Id"]
            try:
                return self._run_to_end(made, argv, timeout)
            finally:
                self._docker.remove_container(made, v=True, force=True)

    def _run_to_end(self, container_id: str, argv: Sequence[str], timeout: float) -> Result:
        begun = time.monotonic()
        try:
            self._docker.start(container_id)
        except APIError as error:
            if NO_SUCH_PROGRAM not in str(error.explanation):
                raise
            return Result(tuple(argv), NOT_FOUND, "", str(error.explanation))
        code = self._docker.wait(container_id, timeout=timeout)["StatusCode"]
        out = self._docker.logs(container_id, stdout=True, stderr=False)
        err = self._docker.logs(container_id, stdout=False, stderr=True)
        return _result(argv, code, out, err, begun)

    # --- files

    def put_files(self, container_id: str, files: Iterable[ContainerFile]) -> None:
        with translated(self.host, f"putting files into {container_id[:12]}"):
            self._docker.put_archive(container_id, "/", archive.pack(files))

    def read_file(self, container_id: str, path: str) -> bytes | None:
        with translated(self.host, f"reading {path} of {container_id[:12]}"):
            try:
                chunks, _ = self._docker.get_archive(container_id, path)
            except NotFound as error:
                if "no such container" in str(error.explanation).lower():
                    raise
                return None
            return archive.only_file(b"".join(chunks))

    # --- commands in containers

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
        begun = time.monotonic()
        out, err = bytearray(), bytearray()
        frames = Demultiplexer(out.extend, err.extend)
        code = self._exec(container_id, argv, frames, stdin, env, timeout)
        result = _said_as_a_shell_would(_result(argv, code, out, err, begun))
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
        out, err = LineSplitter(on_line), LineSplitter(on_line)
        code = self._exec(container_id, argv, Demultiplexer(out.feed, err.feed), b"", env, timeout)
        out.end()
        err.end()
        return code

    def _exec(
        self,
        container_id: str,
        argv: Sequence[str],
        frames: Demultiplexer,
        stdin: bytes,
        env: Mapping[str, str] | None,
        timeout: float | None,
    ) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        doing = f"exec {shell_line(argv)[:200]}"
        with translated(self.host, doing):
            exec_id = self._docker.exec_create(
                container_id, list(argv), stdin=bool(stdin), environment=dict(env or {})
            )["Id"]
            stream: ByteStream = self._docker.exec_start(exec_id, socket=True)
            try:
                if stdin:
                    threading.Thread(target=_send_all, args=(stream, stdin), daemon=True).start()
                self._read_to_end(stream, frames, deadline, doing)
            except NotReady:
                self._end_exec(exec_id)
                raise
            finally:
                stream.close()
            return self._exit_code(exec_id)

    def _read_to_end(
        self, stream: ByteStream, frames: Demultiplexer, deadline: float | None, doing: str
    ) -> None:
        while True:
            stream.settimeout(self._left(deadline, doing))
            try:
                data = stream.recv(CHUNK)
            except TimeoutError:
                continue
            if not data:
                return
            frames.feed(data)

    def _left(self, deadline: float | None, doing: str) -> float | None:
        if deadline is None:
            return None
        left = deadline - time.monotonic()
        if left <= 0:
            raise NotReady(f"{doing} did not end in time", host=self.host)
        return left

    def _end_exec(self, exec_id: str) -> None:
        """The Engine has no call for this; the host can, where we may."""
        state = self._docker.exec_inspect(exec_id)
        if state["Running"]:
            self._transport.run(("sh", "-c", KILL, "kill", str(state["Pid"])), check=False)

    def _exit_code(self, exec_id: str) -> int:
        return int(self._docker.exec_inspect(exec_id)["ExitCode"])

    def interact(self, container_id: str, argv: Sequence[str]) -> int:
        def resize(columns: int, rows: int) -> None:
            self._docker.exec_resize(exec_id, height=rows, width=columns)

        with translated(self.host, f"exec {shell_line(argv)[:200]}"):
            exec_id = self._docker.exec_create(
                container_id,
                list(argv),
                stdin=True,
                tty=True,
                environment={"TERM": terminal_type()},
            )["Id"]
            stream: ByteStream = self._docker.exec_start(exec_id, tty=True, socket=True)
            try:
                stream.settimeout(None)
                attach(stream, resize)
            finally:
                stream.close()
            return self._exit_code(exec_id)

    def open_helper(self, spec: HelperSpec, files: Iterable[ContainerFile]) -> ByteStream:
        with translated(self.host, f"starting {spec.name}"):
            made = self._docker.create_container_from_config(helper_arguments(spec), spec.name)[
                "Id"
            ]
            try:
                self._docker.put_archive(made, "/", archive.pack(files))
                ends = {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1}
                stream: ByteStream = self._docker.attach_socket(made, ends)
                stream.settimeout(None)
                self._docker.start(made)
            except BaseException:
                self.remove(made)
                raise
        return HelperStream(self, made, stream)

    def end_helper(self, container_id: str) -> None:
        """Docker removes it when it ends, which it may have done by itself; see it gone."""
        with translated(self.host, f"removing {container_id[:12]}"):
            try:
                with suppress(APIError):
                    self._docker.kill(container_id)
                self._docker.wait(container_id, timeout=GONE_S, condition="removed")
            except NotFound:
                return

    # --- logs

    def logs(
        self, container_id: str, *, tail: int | None = None, follow: bool = False
    ) -> Iterator[str]:
        lines: list[str] = []
        splitter = LineSplitter(lines.append)
        with translated(self.host, f"reading the log of {container_id[:12]}"):
            chunks = self._docker.logs(
                container_id, stream=True, follow=follow, tail="all" if tail is None else tail
            )
            for chunk in chunks:
                splitter.feed(chunk)
                yield from lines
                lines.clear()
        splitter.end()
        yield from lines

    def close(self) -> None:
        if self._client is not None:
            self._client.close()


def seen_container(inspected: Mapping[str, Any]) -> SeenContainer:
    """PURE: what the rest of clusterctl knows of a container."""
    state = inspected["State"]
    return SeenContainer(
        id=inspected["Id"],
        name=inspected["Name"].removeprefix("/"),
        image=inspected["Config"]["Image"],
        image_id=inspected["Image"],
        labels=inspected["Config"]["Labels"] or {},
        state=state["Status"],
        started_at=state["StartedAt"],
        exit_code=state["ExitCode"] if state["Status"] in ("exited", "dead") else None,
    )


def _result(
    argv: Sequence[str], code: int, out: bytes | bytearray, err: bytes | bytearray, begun: float
) -> Result:
    stdout, stderr = out.decode(errors="replace"), err.decode(errors="replace")
    return Result(tuple(argv), code, stdout, stderr, time.monotonic() - begun)


def _said_as_a_shell_would(result: Result) -> Result:
    """A program that is not there: Docker says so on stdout, with 126 or 127 by its version."""
    if result.exit_code in (126, NOT_FOUND) and NO_SUCH_PROGRAM in result.stdout:
        return replace(result, exit_code=NOT_FOUND, stdout="", stderr=result.stdout)
    return result


def _send_all(stream: ByteStream, data: bytes) -> None:
    """A command that does not read its stdin to the end is free to; its exit code tells."""
    try:
        stream.sendall(data)
        stream.shutdown_write()
    except OSError:
        return
