"""What was done to a cluster, by whom and how it ended: a line on every host it was done to.

The lines lie in audit.log of the directory that a host keeps for the cluster. The head's copy has
the seconds of all hosts, another host's its own. They go with the directory: `down --purge`.
"""

from __future__ import annotations

import getpass
import json
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Protocol

from clusterctl import hoststate
from clusterctl.errors import ClusterctlError
from clusterctl.events import Event, Stage
from clusterctl.fanout import Failed
from clusterctl.links import HostLink
from clusterctl.session import Session, results

FILE = "audit.log"
TIMED = ("up", "serve")


class Watcher(Protocol):
    """A Report that knows how long each step took."""

    @property
    def stages(self) -> list[Stage]: ...

    def __call__(self, event: Event, /) -> None: ...


@dataclass(frozen=True)
class Run:
    """`at`: Unix time of its begin. `result`: "ok", an error's code, or "interrupted". `what` says
    which things, in words; never an argument list, which may hold what is not to be kept."""

    at: float
    command: str
    who: str
    where: str
    what: str
    result: str
    seconds: float
    detail: str = ""
    stages: tuple[Stage, ...] = ()

    @property
    def line(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    def of_host(self, host: str) -> Run:
        own = [
            Stage(one.step, one.hosts[host], {host: one.hosts[host]})
            for one in self.stages
            if host in one.hosts
        ]
        return replace(self, stages=tuple(own))


@dataclass
class Recording:
    """To be filled in by the run: `what`, and the hosts that something was done to (None: all that
    are linked). Afterwards `before` is the last such run that ended well, if there is one."""

    what: str = ""
    hosts: Sequence[str] | None = None
    before: Run | None = None


@contextmanager
def recorded(session: Session, command: str, report: Watcher) -> Iterator[Recording]:
    """Write down the run inside, however it ends. A failure counts for every linked host."""
    recording, began = Recording(), time.time()

    def write(result: str, detail: str, hosts: Sequence[str] | None) -> None:
        run = Run(
            at=began,
            command=command,
            who=getpass.getuser(),
            where=socket.gethostname(),
            what=recording.what,
            result=result,
            seconds=round(time.time() - began, 3),
            detail=detail,
            stages=tuple(report.stages),
        )
        recording.before = _append(session, run, hosts, report)

    try:
        yield recording
    except ClusterctlError as error:
        write(error.code, error.message, None)
        raise
    except KeyboardInterrupt:
        write("interrupted", "", None)
        raise
    write("ok", "", recording.hosts)


def _append(session: Session, run: Run, hosts: Sequence[str] | None, report: Watcher) -> Run | None:
    """A host that cannot be written to is told of: the run itself ended as it did."""
    head, cluster = session.spec.head, session.spec.name
    if session.spec.runtime == "process":  # its nodes share one directory
        hosts = [head]

    def append(link: HostLink) -> str:
        own = run if link.name == head else run.of_host(link.name)
        return hoststate.append(link.transport, cluster, FILE, own.line)

    outcomes = session.each(append, hosts)
    for name, outcome in outcomes.items():
        if isinstance(outcome, Failed):
            report(Event("warn", "audit", f"not written: {outcome.error.message}", name))
    said = outcomes.get(head)
    if said is None or isinstance(said, Failed):
        return None
    return last(parse(said.value), run.command)


def parse(text: str) -> list[Run]:
    """The runs of an audit.log, oldest first. A line that was cut off is left out."""
    return [run for line in text.splitlines() if (run := _parsed(line)) is not None]


def _parsed(line: str) -> Run | None:
    try:
        said = json.loads(line)
    except json.JSONDecodeError:
        return None
    return Run(**{**said, "stages": tuple(Stage(**stage) for stage in said["stages"])})


def last(runs: Sequence[Run], command: str) -> Run | None:
    """The newest run of a command that ended well."""
    return next(
        (run for run in reversed(runs) if (run.command, run.result) == (command, "ok")), None
    )


def read(session: Session, names: Sequence[str] | None = None) -> dict[str, list[Run]]:
    """The runs that each linked host knows of, oldest first."""
    return results(session.each(_of_host(session.spec.name), names))


def _of_host(cluster: str) -> Callable[[HostLink], list[Run]]:
    return lambda link: parse(hoststate.read(link.transport, cluster, FILE) or "")
