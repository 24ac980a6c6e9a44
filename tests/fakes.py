"""Fakes at our own seams. They keep the contracts that the real ones are tested for."""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from clusterctl.containers import ContainerFile, ContainerSpec, HelperSpec
from clusterctl.errors import ClusterctlError, CommandFailed, NotReady, Unreachable
from clusterctl.links import HostLink
from clusterctl.runtime import PullProgress, SeenContainer
from clusterctl.session import Session
from clusterctl.spec import ClusterSpec, NodeSpec
from clusterctl.trace import Trace, untraced
from clusterctl.transport.base import (
    DEFAULT_TIMEOUT_S,
    ByteStream,
    Result,
    SocketRefused,
    trace_line,
)
from clusterctl.transport.local import LocalTransport, SocketStream


@dataclass(frozen=True)
class Says:
    """What a scripted command leaves behind. `hangs`: it never ends by itself."""

    stdout: str = ""
    stderr: str = ""
    exit_code: int = 0
    hangs: bool = False


# A reply: its stdout, all of it, an error to raise, or a function of the stdin it was given.
Reply = str | Says | ClusterctlError | Callable[[bytes], "str | Says"]


class Unscripted(AssertionError):
    """The code under test ran something that its test did not foresee."""


class Script:
    """argv -> reply. A key that is a str matches argv[0]; a tuple matches the whole argv."""

    def __init__(self, replies: Mapping[str | tuple[str, ...], Reply]) -> None:
        self.replies = dict(replies)

    def answer(self, argv: Sequence[str], stdin: bytes) -> Says:
        reply = self._find(tuple(argv))
        if isinstance(reply, ClusterctlError):
            raise reply
        if callable(reply):
            reply = reply(stdin)
        return Says(reply) if isinstance(reply, str) else reply

    def _find(self, argv: tuple[str, ...]) -> Reply:
        for key in (argv, argv[0]):
            if key in self.replies:
                return self.replies[key]
        raise Unscripted(f"no reply for {argv!r}; scripted: {sorted(map(str, self.replies))}")


def result_of(
    said: Says, argv: Sequence[str], *, host: str, timeout: float | None, check: bool
) -> Result:
    if said.hangs:
        raise NotReady(f"{argv[0]} did not end within {timeout} s", host=host)
    result = Result(tuple(argv), said.exit_code, said.stdout, said.stderr)
    if check and not result.ok:
        raise CommandFailed(result, host=host)
    return result


class ScriptedTransport:
    """A Transport that plays a script and remembers: `ran` holds argvs, `files` what was put."""

    def __init__(
        self,
        host: str = "gpu01",
        replies: Mapping[str | tuple[str, ...], Reply] | None = None,
        *,
        sockets: Mapping[str, Callable[[socket.socket], None]] | None = None,
        trace: Trace = untraced,
    ) -> None:
        self.host = host
        self.script = Script(replies or {})
        self.sockets = dict(sockets or {})
        self.ran: list[tuple[str, ...]] = []
        self.files: dict[str, tuple[bytes, int]] = {}
        self.closed = False
        self._trace = trace

    def _said(self, argv: Sequence[str], stdin: bytes) -> Says:
        if self.closed:
            raise Unreachable("the connection is closed", host=self.host)
        self._trace(trace_line(self.host, argv))
        self.ran.append(tuple(argv))
        return self.script.answer(argv, stdin)

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        timeout: float = DEFAULT_TIMEOUT_S,
        check: bool = True,
    ) -> Result:
        said = self._said(argv, stdin)
        return result_of(said, argv, host=self.host, timeout=timeout, check=check)

    def stream(
        self,
        argv: Sequence[str],
        on_line: Callable[[str], None],
        *,
        stdin: bytes = b"",
        timeout: float | None = None,
    ) -> int:
        said = self._said(argv, stdin)
        for line in (said.stdout + said.stderr).splitlines():
            on_line(line)
        return result_of(said, argv, host=self.host, timeout=timeout, check=False).exit_code

    def interact(self, argv: Sequence[str]) -> int:
        return self._said(argv, b"").exit_code

    def put(self, data: bytes, path: str, *, mode: int = 0o644) -> None:
        if self.closed:
            raise Unreachable("the connection is closed", host=self.host)
        self.files[path] = (data, mode)

    def open_socket(self, path: str) -> ByteStream:
        if path not in self.sockets:
            raise SocketRefused(f"cannot connect to {path}", host=self.host)
        return served_by(self.sockets[path])

    def open_address(self, address: str, port: int) -> ByteStream:
        return self.open_socket(f"{address}:{port}")

    def open_command(self, argv: Sequence[str]) -> ByteStream:
        said = self._said(argv, b"")
        if said.exit_code:
            result = result_of(said, argv, host=self.host, timeout=None, check=False)
            return FailedStream(result, host=self.host)
        return served_by(lambda peer: peer.sendall(said.stdout.encode()))

    def close(self) -> None:
        self.closed = True


class FailedStream(SocketStream):
    """A command's stream that ended at once with a non-zero code."""

    def __init__(self, result: Result, *, host: str) -> None:
        ours, theirs = socket.socketpair()
        theirs.close()
        super().__init__(ours)
        self._error = CommandFailed(result, host=host)

    def recv(self, size: int, /) -> bytes:
        raise self._error


def served_by(handler: Callable[[socket.socket], None]) -> SocketStream:
    ours, theirs = socket.socketpair()

    def serve() -> None:
        with theirs:
            handler(theirs)

    threading.Thread(target=serve, daemon=True).start()
    return SocketStream(ours)


@dataclass
class FakeContainer:
    """A container of FakeRuntime, open to tests: set `state`, `log`, `files` as the case needs."""

    spec: ContainerSpec
    seen: SeenContainer
    files: dict[str, ContainerFile] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)


class FakeRuntime:
    """A Runtime in memory. `calls` holds every verb used, writing ones as ("create", name) etc.

    `registry` are the images that a pull can bring; `fails` maps a verb to the error it raises;
    `replies` scripts exec, exec_stream, interact and run_once like ScriptedTransport does.
    """

    home = "/opt/clusterctl"

    def __init__(
        self,
        host: str = "gpu01",
        *,
        images: Iterable[str] = (),
        registry: Iterable[str] = (),
        replies: Mapping[str | tuple[str, ...], Reply] | None = None,
        fails: Mapping[str, ClusterctlError] | None = None,
    ) -> None:
        self.host = host
        self.images = {name: f"sha256:{name}" for name in images}
        self.registry = set(registry)
        self.script = Script(replies or {})
        self.fails = dict(fails or {})
        self.boxes: dict[str, FakeContainer] = {}
        self.calls: list[tuple[str, ...]] = []
        self._serial = itertools.count(1)

    def _call(self, verb: str, *details: str) -> None:
        self.calls.append((verb, *details))
        if verb in self.fails:
            raise self.fails[verb]

    def _box(self, container_id: str) -> FakeContainer:
        if container_id not in self.boxes:
            raise ClusterctlError(f"no such container: {container_id}", host=self.host)
        return self.boxes[container_id]

    def _running(self, container_id: str) -> FakeContainer:
        box = self._box(container_id)
        if box.seen.state != "running":
            raise ClusterctlError(f"container {box.seen.name} is not running", host=self.host)
        return box

    def containers(self, labels: Mapping[str, str]) -> list[SeenContainer]:
        self._call("containers")
        return [box.seen for box in self.boxes.values() if _labelled(box.seen, labels)]

    def image_id(self, reference: str) -> str | None:
        self._call("image_id", reference)
        return self.images.get(reference)

    def pull(self, reference: str, on_progress: Callable[[PullProgress], None]) -> str:
        self._call("pull", reference)
        if reference not in self.registry:
            raise ClusterctlError(f"no image {reference} in its registry", host=self.host)
        on_progress(PullProgress(0, 100, "Downloading"))
        on_progress(PullProgress(100, 100, "Pull complete"))
        self.images[reference] = f"sha256:{reference}"
        return self.images[reference]

    def build(
        self,
        tag: str,
        dockerfile: bytes,
        arguments: Mapping[str, str],
        on_line: Callable[[str], None],
    ) -> None:
        self._call("build", tag)
        if arguments.get("BASE") not in self.images:
            raise ClusterctlError(f"building {tag} failed", host=self.host)
        on_line("Step 1/2 : FROM ${BASE}")
        self.images[tag] = f"sha256:{tag}"

    def create(self, spec: ContainerSpec) -> str:
        self._call("create", spec.name)
        if spec.image not in self.images:
            raise ClusterctlError(f"no image {spec.image}", host=self.host)
        if any(box.seen.name == spec.name for box in self.boxes.values()):
            raise ClusterctlError(f"the name {spec.name} is taken", host=self.host)
        container_id = f"{self.host}-{next(self._serial):03}"
        seen = SeenContainer(
            id=container_id,
            name=spec.name,
            image=spec.image,
            image_id=self.images[spec.image],
            labels=spec.labels,
            state="created",
            started_at="",
        )
        self.boxes[container_id] = FakeContainer(spec, seen)
        return container_id

    def put_files(self, container_id: str, files: Iterable[ContainerFile]) -> None:
        self._call("put_files", container_id)
        self._box(container_id).files.update({file.path: file for file in files})

    def read_file(self, container_id: str, path: str) -> bytes | None:
        self._call("read_file", container_id, path)
        file = self._box(container_id).files.get(path)
        return file.data if file else None

    def open_helper(self, spec: HelperSpec, files: Iterable[ContainerFile]) -> ByteStream:
        """The helper's command, for real, on this machine."""
        self._call("open_helper", spec.name)
        if spec.image not in self.images:
            raise ClusterctlError(f"no image {spec.image}", host=self.host)
        return LocalTransport(self.host).open_command(spec.command)

    def start(self, container_id: str) -> None:
        self._call("start", container_id)
        box = self._box(container_id)
        started = f"2026-01-01T00:00:{next(self._serial):02}Z"
        box.seen = replace(box.seen, state="running", started_at=started, exit_code=None)

    def stop(self, container_id: str, *, timeout: float = 10.0) -> None:
        self._call("stop", container_id)
        box = self._box(container_id)
        box.seen = replace(box.seen, state="exited", exit_code=0)

    def remove(self, container_id: str) -> None:
        self._call("remove", container_id)
        self.boxes.pop(container_id, None)

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
        self._call("exec", container_id, *argv)
        self._running(container_id)
        said = self.script.answer(argv, stdin)
        return result_of(said, argv, host=self.host, timeout=timeout, check=check)

    def exec_stream(
        self,
        container_id: str,
        argv: Sequence[str],
        on_line: Callable[[str], None],
        *,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> int:
        self._call("exec_stream", container_id, *argv)
        self._running(container_id)
        said = self.script.answer(argv, b"")
        for line in (said.stdout + said.stderr).splitlines():
            on_line(line)
        return result_of(said, argv, host=self.host, timeout=timeout, check=False).exit_code

    def interact(self, container_id: str, argv: Sequence[str]) -> int:
        self._call("interact", container_id, *argv)
        self._running(container_id)
        return self.script.answer(argv, b"").exit_code

    def run_once(
        self, image: str, argv: Sequence[str], *, timeout: float = DEFAULT_TIMEOUT_S
    ) -> Result:
        self._call("run_once", image, *argv)
        if image not in self.images:
            raise ClusterctlError(f"no image {image}", host=self.host)
        said = self.script.answer(argv, b"")
        return result_of(said, argv, host=self.host, timeout=timeout, check=False)

    def logs(
        self, container_id: str, *, tail: int | None = None, follow: bool = False
    ) -> Iterator[str]:
        self._call("logs", container_id)
        lines = self._box(container_id).log
        return iter(lines if tail is None else lines[max(0, len(lines) - tail) :])

    def inspect(self, container_id: str) -> Mapping[str, object]:
        self._call("inspect", container_id)
        box = self._box(container_id)
        return {"Id": box.seen.id, "Name": f"/{box.seen.name}", "State": {"Status": box.seen.state}}

    def close(self) -> None:
        """Nothing is held."""


WRITING = frozenset({"pull", "create", "put_files", "start", "stop", "remove", "run_once"})


def writes(runtime: FakeRuntime) -> list[tuple[str, ...]]:
    """The calls that changed something on the host."""
    return [call for call in runtime.calls if call[0] in WRITING]


def _labelled(seen: SeenContainer, labels: Mapping[str, str]) -> bool:
    return all(
        name in seen.labels and value in ("", seen.labels[name]) for name, value in labels.items()
    )


class FakeOpener:
    """An Opener over fakes made beforehand; a name in `fails` cannot be reached."""

    def __init__(
        self,
        links: Mapping[str, HostLink],
        fails: Mapping[str, ClusterctlError] | None = None,
    ) -> None:
        self._links = links
        self._fails = dict(fails or {})
        self.closed = False

    def open(self, node: NodeSpec) -> HostLink:
        if node.name in self._fails:
            raise self._fails[node.name]
        return self._links[node.name]

    def close(self) -> None:
        self.closed = True


def fake_session(
    spec: ClusterSpec,
    *,
    transports: Mapping[str, ScriptedTransport] | None = None,
    runtimes: Mapping[str, FakeRuntime] | None = None,
    failures: Mapping[str, ClusterctlError] | None = None,
) -> Session:
    """A Session over fakes: by default a ScriptedTransport and a FakeRuntime for each host."""
    failures = dict(failures or {})
    links = {
        node.name: HostLink(
            node,
            (transports or {}).get(node.name) or ScriptedTransport(node.name),
            (runtimes or {}).get(node.name) or FakeRuntime(node.name, images=[spec.image]),
        )
        for node in spec.nodes
        if node.name not in failures
    }
    return Session(spec, links, failures)
