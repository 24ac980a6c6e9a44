"""What runs a node's container on a host. Docker over SSH (dockerhost) or processes on this
machine (processhost): the rest of clusterctl does not know which."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from clusterctl.containers import ContainerFile, ContainerSpec, HelperSpec
from clusterctl.transport.base import DEFAULT_TIMEOUT_S, ByteStream, Result

State = Literal["created", "running", "restarting", "paused", "exited", "dead", "removing"]


@dataclass(frozen=True)
class SeenContainer:
    """A container as the host reports it. `started_at` is the engine's own ISO 8601 text."""

    id: str
    name: str
    image: str
    image_id: str
    labels: Mapping[str, str]
    state: State
    started_at: str
    exit_code: int | None = None


@dataclass(frozen=True)
class PullProgress:
    """Bytes over all layers known so far."""

    done: int
    total: int
    status: str


class Runtime(Protocol):
    """One host's container engine. Errors are errors.ClusterctlError and name `host`."""

    host: str
    home: str  # where our files lie inside its containers: containers.HOME, or a node's directory

    def containers(self, labels: Mapping[str, str]) -> list[SeenContainer]:
        """Every container, running or not, that carries all these labels ("" matches any value)."""
        ...

    def image_id(self, reference: str) -> str | None:
        """The image's id on this host, None when it is not there."""
        ...

    def pull(self, reference: str, on_progress: Callable[[PullProgress], None]) -> str: ...

    def build(
        self,
        tag: str,
        dockerfile: bytes,
        arguments: Mapping[str, str],
        on_line: Callable[[str], None],
    ) -> None:
        """Make an image of a Dockerfile without context, over the host's own network. Raises
        ClusterctlError with what the failing step said last."""
        ...

    def create(self, spec: ContainerSpec) -> str: ...

    def put_files(self, container_id: str, files: Iterable[ContainerFile]) -> None: ...

    def read_file(self, container_id: str, path: str) -> bytes | None:
        """The file's bytes, None when there is no such file."""
        ...

    def start(self, container_id: str) -> None: ...

    def stop(self, container_id: str, *, timeout: float = 10.0) -> None: ...

    def remove(self, container_id: str) -> None: ...

    def exec(
        self,
        container_id: str,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        timeout: float = DEFAULT_TIMEOUT_S,
        check: bool = True,
    ) -> Result: ...

    def exec_stream(
        self,
        container_id: str,
        argv: Sequence[str],
        on_line: Callable[[str], None],
        *,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> int: ...

    def interact(self, container_id: str, argv: Sequence[str]) -> int:
        """This terminal, in the container; the exit code."""
        ...

    def run_once(
        self, image: str, argv: Sequence[str], *, timeout: float = DEFAULT_TIMEOUT_S
    ) -> Result:
        """One short container (network none, removed afterwards): what does this image hold?"""
        ...

    def open_helper(self, spec: HelperSpec, files: Iterable[ContainerFile]) -> ByteStream:
        """Start a helper with these files in it; its stdin and stdout. Closing the stream removes
        the helper. `recv` raises ClusterctlError with its last words where it crashed."""
        ...

    def logs(
        self, container_id: str, *, tail: int | None = None, follow: bool = False
    ) -> Iterator[str]: ...

    def inspect(self, container_id: str) -> Mapping[str, object]: ...

    def close(self) -> None: ...
