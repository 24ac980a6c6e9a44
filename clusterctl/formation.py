"""Watch the nodes come together: Ray's own list, asked once a second by one long-lived process in
the head's container, held against what was planned and against the containers themselves."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from clusterctl import autopsy
from clusterctl.errors import ClusterctlError, NotReady, Unreachable
from clusterctl.events import Event, Report
from clusterctl.launch import RAY_PROBE
from clusterctl.links import HostLink
from clusterctl.observe import WAITING, Seen, look, read_back, tail
from clusterctl.raycluster import (
    ExpectedNode,
    Formation,
    RayReport,
    SeenNode,
    form,
    parse_report,
    waiting_for,
    with_versions,
)
from clusterctl.session import Session

POLL_S = 1.0
LOG_LINES = 15
PROBE_TIMEOUT_S = 60.0
PROBE_PID = '{"pid"'  # its first line, with which it can be ended


def once(session: Session, expected: Sequence[ExpectedNode], ray_port: int) -> Formation:
    """As it is now, without waiting for anything."""
    seen = look(session)
    report = _ask_once(session, expected, seen, ray_port)
    return _form(expected, _versioned(session, expected, report, seen), seen)


def _versioned(
    session: Session, expected: Sequence[ExpectedNode], report: RayReport, seen: Seen
) -> RayReport:
    found = read_back(session, seen, [])
    by_address = {
        node.address: (found[node.name].ray, found[node.name].python)
        for node in expected
        if node.name in found
    }
    return with_versions(report, by_address)


def _ask_once(
    session: Session, expected: Sequence[ExpectedNode], seen: Seen, ray_port: int
) -> RayReport:
    head = next(node for node in expected if node.role == "head")
    container = seen.containers.get(head.name)
    if container is None or container.state != "running":
        return RayReport(None, f"{head.name} does not run")
    try:
        result = session.head.runtime.exec(
            container.id,
            [*_probe_argv(session.head, head, ray_port), "--once"],
            timeout=PROBE_TIMEOUT_S,
            check=False,
        )
    except ClusterctlError as error:
        return RayReport(None, error.message)
    lines = [line for line in result.stdout.splitlines() if not line.startswith(PROBE_PID)]
    return parse_report(lines[-1]) if lines else RayReport(None, result.stderr.strip()[-200:])


def _probe_argv(link: HostLink, head: ExpectedNode, ray_port: int) -> list[str]:
    script = f"{link.runtime.home}/{RAY_PROBE}"
    return ["python3", script, f"{head.address}:{ray_port}", head.address]


class Watch:
    """The probe as a process in the head's container; `newest` is its last line."""

    def __init__(self) -> None:
        self.newest = RayReport(None, "Ray is starting")
        self.pid: int | None = None
        self._news = threading.Event()

    def take(self, line: str) -> None:
        if self.pid is None and line.startswith(PROBE_PID):
            self.pid = json.loads(line)["pid"]
        elif line.startswith("{"):  # Ray's own warnings come on the same stream
            self.newest = parse_report(line)
            self._news.set()

    def wait_for_news(self) -> None:
        """Until the probe has said something again, for a second at most."""
        self._news.wait(POLL_S)
        self._news.clear()


@contextmanager
def watching(
    head: HostLink, container_id: str, argv: Sequence[str], timeout: float
) -> Iterator[Watch]:
    """The probe for as long as the block runs. It is ended by its process id."""
    watch = Watch()

    def follow() -> None:
        try:
            head.runtime.exec_stream(container_id, argv, watch.take, timeout=timeout)
        except ClusterctlError as error:
            watch.newest = RayReport(None, error.message)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        _end(head, container_id, watch)


def _end(head: HostLink, container_id: str, watch: Watch) -> None:
    """It ends by itself at its own timeout where it cannot be reached, or with its container."""
    if watch.pid is None:
        return
    try:
        head.runtime.exec(container_id, ["kill", str(watch.pid)], check=False)
    except ClusterctlError:
        return


def wait(
    session: Session,
    expected: Sequence[ExpectedNode],
    *,
    ray_port: int,
    report: Report,
    timeout: float,
) -> Formation:
    """Until every node is there as planned. Raises NotReady or Unreachable as soon as one cannot
    come any more, or at the timeout, naming what is missing with its last log lines."""
    head = next(node for node in expected if node.role == "head")
    container_id = look(session).containers[head.name].id
    argv = [*_probe_argv(session.head, head, ray_port), "--seconds", f"{timeout + 10:g}"]
    deadline = time.monotonic() + timeout
    said = ""
    ready: set[str] = set()
    report(Event("begin", "formation", f"{len(expected)} nodes", total=len(expected)))
    with watching(session.head, container_id, argv, timeout + 20) as watch:
        while True:
            seen = look(session)
            formation = _form(expected, watch.newest, seen)
            _tell_ready(formation, ready, report)
            if formation.complete:
                break
            text = waiting_for(formation)
            if text != said:
                said = text
                report(Event("note", "formation", text, done=formation.ready, total=len(expected)))
            if formation.failed or time.monotonic() >= deadline:
                raise _failure(session, formation, seen, timeout)
            watch.wait_for_news()
    report(Event("done", "formation", f"{formation.ready}/{len(expected)} nodes"))
    return formation


def _tell_ready(formation: Formation, told: set[str], report: Report) -> None:
    """Each node once, as soon as it is there."""
    for node in formation.nodes:
        if node.state == "ready" and node.name not in told:
            told.add(node.name)
            report(Event("done", "formation", "ready", node.name))


def _form(expected: Sequence[ExpectedNode], report: RayReport, seen: Seen) -> Formation:
    return form(expected, report, seen.containers, seen.boots, seen.unreachable, seen.last_lines)


def _failure(session: Session, formation: Formation, seen: Seen, timeout: float) -> ClusterctlError:
    blamed = formation.failed or tuple(n for n in formation.nodes if n.state != "ready")
    words = waiting_for(formation)
    if not formation.failed:
        words = f"not formed within {timeout:g} s: {words}"
    kind = Unreachable if any(n.state == "unreachable" for n in blamed) else NotReady
    hosts, hint = ", ".join(node.name for node in blamed), _hint(blamed[0])
    words += _last_lines(session, blamed, seen)
    if (found := autopsy.root_cause(session)) is not None:
        words += f"\n{autopsy.told(found)}"
        hint = found.fix or hint
    return kind(words, host=hosts, hint=hint)


def _last_lines(session: Session, blamed: Sequence[SeenNode], seen: Seen) -> str:
    """The end of the log of the first node that has one: the others mostly say the same."""
    for node in blamed:
        container = seen.containers.get(node.name)
        if container is None or node.name in seen.unreachable:
            continue
        lines = tail(session.link(node.name), container.id, LOG_LINES)
        if lines:
            shown = "\n".join(f"  {node.name} | {line}" for line in lines)
            return f"\nlast lines of {node.name}:\n{shown}"
    return ""


def _hint(node: SeenNode) -> str:
    if node.state == "unreachable":
        return f"check the host and its network: clusterctl status --hosts {node.name}"
    if WAITING in node.detail:
        return (
            "the nodes must reach each other on every TCP port of their private addresses: "
            f"look for a firewall between {node.name} ({node.address}) and the head"
        )
    return f"clusterctl logs --hosts {node.name} shows what its container printed"
