"""One run at a time on a cluster: a directory on the head, made atomically, that says whose."""

from __future__ import annotations

import getpass
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from clusterctl import hoststate
from clusterctl.errors import ClusterctlError, LockHeld
from clusterctl.events import Event, Report, silent
from clusterctl.hoststate import LockAnswer
from clusterctl.links import HostLink

POLL_S = 1.0


@dataclass(frozen=True)
class Owner:
    """Who holds it: `host` and `pid` are where clusterctl runs, `time` is Unix time."""

    owner: str
    host: str
    pid: int
    time: float

    @property
    def is_gone(self) -> bool:
        """Whether it ran on this machine and does not any more."""
        return self.host == socket.gethostname() and not _runs(self.pid)

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self.time))
        return f"{self.owner} on {self.host}, process {self.pid}, since {since}"


def this_run() -> Owner:
    return Owner(getpass.getuser(), socket.gethostname(), os.getpid(), time.time())


@contextmanager
def held(
    head: HostLink, cluster: str, report: Report = silent, *, wait: float = 0.0
) -> Iterator[bool]:
    """Hold the cluster's lock. Gives whether the head had no directory for the cluster before.

    Raises LockHeld naming who has it, after `wait` seconds. A lock whose process ran on this
    machine and is gone is taken over.
    """
    deadline = time.monotonic() + wait
    told = False
    while (answer := _taken(head, cluster, report)).holder is not None:
        holder = parse_owner(answer.holder)
        if time.monotonic() >= deadline:
            raise _held(head, cluster, holder)
        if not told:
            report(Event("note", "lock", f"waiting up to {wait:g} s for {holder}"))
        told = True
        time.sleep(POLL_S)
    try:
        yield answer.fresh
    finally:
        _release(head, cluster, report)


def _taken(head: HostLink, cluster: str, report: Report) -> LockAnswer:
    answer = _take(head, cluster)
    if answer.holder is None or not (gone := parse_owner(answer.holder)).is_gone:
        return answer
    report(Event("warn", "lock", f"taken over from {gone}, which is gone"))
    hoststate.unlock(head.transport, cluster)
    return _take(head, cluster)


def _release(head: HostLink, cluster: str, report: Report) -> None:
    """A head that is lost must not hide why the run ended: the next run takes the lock over."""
    try:
        hoststate.unlock(head.transport, cluster)
    except ClusterctlError as error:
        said = f"not released: {error.message}; the next run from this machine takes it over"
        report(Event("warn", "lock", said, head.name))


def _take(head: HostLink, cluster: str) -> LockAnswer:
    signed = json.dumps(asdict(this_run())).encode()
    return hoststate.lock(head.transport, cluster, signed)


def parse_owner(written: str) -> Owner:
    """An owner that has made the directory and not yet signed it is somebody all the same."""
    return Owner(**json.loads(written)) if written.strip() else Owner("somebody", "?", 0, 0.0)


def _held(head: HostLink, cluster: str, holder: Owner) -> LockHeld:
    path = f"/var/lib/clusterctl/{cluster}/lock"
    return LockHeld(
        f"another run holds the lock of cluster {cluster}: {holder}",
        host=head.name,
        hint=f"wait for it (--lock-wait SECONDS); if it is gone, remove {path} (without root "
        f"~/.local/state/clusterctl/{cluster}/lock) on {head.name}",
    )


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
