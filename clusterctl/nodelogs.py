"""The logs of all nodes as one stream of lines."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from clusterctl.containers import LABEL_CLUSTER, LABEL_NODE
from clusterctl.errors import ClusterctlError
from clusterctl.links import HostLink
from clusterctl.session import Session, results


@dataclass(frozen=True)
class LogLine:
    host: str
    text: str


def merged(
    session: Session, *, follow: bool, tail: int | None, deployment: str | None
) -> Iterator[LogLine]:
    """Followed: lines as they come. Else node by node, in the spec's order.

    Of a deployment: the lines it printed, without the mark that the supervisor put before them.
    """
    lines = _followed(session, tail) if follow else _printed(session, tail)
    for line in lines:
        if deployment is None:
            yield line
        elif line.text.startswith(mark := f"[{deployment}] "):
            yield LogLine(line.host, line.text.removeprefix(mark))


def _printed(session: Session, tail: int | None) -> Iterator[LogLine]:
    by_host = results(session.each(lambda link: list(_of_host(session, link, tail, follow=False))))
    for lines in by_host.values():
        yield from lines


def _followed(session: Session, tail: int | None) -> Iterator[LogLine]:
    """Until every node's log has ended. A node that fails ends with what went wrong."""
    arriving: queue.SimpleQueue[LogLine | None] = queue.SimpleQueue()

    def follow(link: HostLink) -> None:
        try:
            for line in _of_host(session, link, tail, follow=True):
                arriving.put(line)
        except ClusterctlError as error:
            arriving.put(LogLine(link.name, f"clusterctl: {error.message}"))
        finally:
            arriving.put(None)

    for link in session.links.values():
        threading.Thread(target=follow, args=(link,), daemon=True).start()
    open_streams = len(session.links)
    while open_streams:
        line = arriving.get()
        if line is None:
            open_streams -= 1
        else:
            yield line


def _of_host(
    session: Session, link: HostLink, tail: int | None, *, follow: bool
) -> Iterator[LogLine]:
    labels = {LABEL_CLUSTER: session.spec.name, LABEL_NODE: link.name}
    for container in link.runtime.containers(labels):
        for text in link.runtime.logs(container.id, tail=tail, follow=follow):
            yield LogLine(link.name, text)
