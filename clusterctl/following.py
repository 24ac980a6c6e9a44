"""From started to ready: the logs of all ranks are read until a token came back, one of them
failed, or nothing moves any more."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from clusterctl import autopsy
from clusterctl.deployments import POLL_S, PROBE_S, ask, on_head, read_json, root
from clusterctl.doctor.logs.reading import Source
from clusterctl.doctor.logs.suspicion import earliest_errors
from clusterctl.errors import ClusterctlError, NotReady
from clusterctl.events import Event, Report
from clusterctl.fanout import fan_out
from clusterctl.members import Member
from clusterctl.serving import transports
from clusterctl.serving.phases import kv_cache_tokens, phase_of
from clusterctl.session import Session, results
from clusterctl.spec import ServeSpec

KEPT_LINES = 20_000
START, FIRST_TOKEN = "start", "first token"

# torch's TCPStore, where somebody took the group's port before it could bind it: "... port: 29501,
# useIpv6: false, code: -98, name: EADDRINUSE, message: address already in use"
_PORT_TAKEN = re.compile(r"port: (\d+),.*EADDRINUSE")

_CLOCK = re.compile(r"\b\d\d-\d\d \d\d:\d\d:\d\d\b")


class PortTaken(ClusterctlError):
    """The group's port was free when it was looked at and is not now: another one will do."""


class OverTcp(ClusterctlError):
    """The ranks of one tensor group lie on several nodes and reach each other by TCP."""


class Following:
    """The start of one deployment, on the nodes where its processes were started (the head, which
    serves the API, first). `offsets`: where their logs begin; `refuse_tcp`: see OverTcp."""

    def __init__(
        self,
        session: Session,
        nodes: Sequence[Member],
        name: str,
        offsets: Mapping[str, int],
        report: Report,
        *,
        refuse_tcp: bool = False,
    ) -> None:
        self._session = session
        self._nodes = {member.name: member for member in nodes}
        self._head = nodes[0]
        self._name = name
        self._offsets = dict(offsets)
        self._report = report
        self._logs: dict[str, deque[str]] = {
            member.name: deque(maxlen=KEPT_LINES) for member in nodes
        }
        self._phase = "starting"
        self._step = START
        self._serving = False
        self._refuse_tcp = refuse_tcp
        self._waits: tuple[int, str, str] | None = None
        self._waits_since = 0.0

    def until_ready(self, deadline: float | None, asked: ServeSpec) -> None:
        """`deadline` by time.monotonic(), of `asked.timeout`; None: as long as it moves."""
        self._report(Event("begin", self._step))
        while not self._ready(asked.stall_timeout):
            if deadline is not None and time.monotonic() > deadline:
                raise self._late(f"was not ready within {asked.timeout:g} s; it goes on")
            time.sleep(POLL_S)
        self._report(Event("done", self._step, "a completion came back"))
        self._report(Event("note", "serve", "ready"))

    @property
    def lines(self) -> list[str]:
        return [line for log in self._logs.values() for line in log]

    @property
    def kv_cache_tokens(self) -> int | None:
        return kv_cache_tokens(self.lines)

    @property
    def transports(self) -> tuple[str, ...]:
        """What the serving ranks chose; empty where they do not say, as on CPU slots."""
        return transports.chosen(self.lines)

    def _ready(self, stall_timeout: float) -> bool:
        states = self._read()
        for node, state in reversed(states.items()):  # the head's follows from the others'
            stopped = state["state"] == "stopped" and node == self._head.name
            if state["state"] == "failed" or stopped:
                self._read()  # what it said last
                raise self._failure(node, state)
        self._refuse_standstill(states[self._head.name], stall_timeout)
        return self._serving and on_head(self._head, self._name, probe=PROBE_S)[0].state == "ready"

    def _read(self) -> dict[str, Mapping[str, Any]]:
        """New lines of every node; the states."""
        said = results(
            fan_out(
                self._nodes,
                lambda node: tail(self._nodes[node], self._name, self._offsets[node]),
                limit=self._session.spec.limits.parallel_hosts,
            )
        )
        for node, one in said.items():
            self._offsets[node] = one["offset"]
            self._take(node, one["text"].splitlines())
        return {node: one["state"] for node, one in said.items()}

    def _enter(self, step: str) -> None:
        """A phase lasts until the next one is heard of."""
        if step != self._step:
            self._report(Event("done", self._step))
            self._step = step

    def _take(self, node: str, lines: Sequence[str]) -> None:
        self._logs[node].extend(lines)
        for line in lines:
            if self._refuse_tcp and transports.over_tcp(line):
                raise _over_tcp(node, line)
            if phase := phase_of(line):
                self._phase = phase.detail
                self._serving = self._serving or phase.name == "serving"
                self._enter(FIRST_TOKEN if phase.name == "serving" else phase.name)
                done, total = phase.done, phase.total
                self._report(Event("progress", self._step, phase.detail, done=done, total=total))

    def _failure(self, node: str, state: Mapping[str, Any]) -> ClusterctlError:
        if state["state"] == "stopped" and self._was_asked_to_stop(node):
            return ClusterctlError(f"deployment {self._name} was stopped while it started")
        if any(_PORT_TAKEN.search(line) for line in self.lines):
            return PortTaken("the group's port was taken while it started", host=self._head.name)
        errors = first_errors(self._logs.values()) or self.lines[-3:] or ["it printed nothing"]
        lines = "\n".join(f"  {line}" for line in errors)
        message = f"deployment {self._name} failed (exit code {state['exit_code']}):\n{lines}"
        hint = None
        if (
            found := autopsy.root_cause(self._session, sources(self._name, self._logs))
        ) is not None:
            message += f"\n{autopsy.told(found)}"
            hint = found.fix
        return ClusterctlError(
            message, host=node, hint=hint or f"clusterctl logs --hosts {node} shows all of its log"
        )

    def _was_asked_to_stop(self, node: str) -> bool:
        """vLLM ends with exit code 0 when its engine has died under it."""
        return bool(read_json(self._nodes[node], self._name, "spec.json").get("stop"))

    def _refuse_standstill(self, state: Mapping[str, Any], stall_timeout: float) -> None:
        """What has been started the supervisor watches; it also waits, for whom is not there."""
        if state["kind"] == "hung":
            raise self._late(f"is not ready: {state['cause']}; the supervisor starts it again")
        seen = (state["epoch"], state["state"], state["waiting_for"])
        if seen != self._waits or state["state"] not in ("waiting", "restarting"):
            self._waits, self._waits_since = seen, time.monotonic()
        elif time.monotonic() - self._waits_since > stall_timeout:
            what = state["waiting_for"] or state["cause"] or "its supervisor has not begun"
            raise self._late(f"is not ready: it waits for {stall_timeout:g} s, {what}; it goes on")

    def _late(self, what: str) -> NotReady:
        name = self._name
        late = NotReady(
            f"deployment {name} {what}, last seen: {self._phase}",
            host=self._head.name,
            hint=f"clusterctl ps shows when it is ready; clusterctl stop {name} ends it",
        )
        return autopsy.diagnosed(late, sources(self._name, self._logs))


def first_errors(logs: Collection[Sequence[str]], limit: int = 3) -> list[str]:
    """Of all nodes' logs, the head's first among them, by the time that stands in their lines. In
    the same second the head's follow from the others'."""
    timed = [entry for log in reversed([*logs]) for entry in _timed(earliest_errors(log, limit))]
    return [line for _, line in sorted(timed, key=lambda entry: entry[0])][:limit]


def _timed(lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    """A line without a time has that of the one before it."""
    clock = ""
    for line in lines:
        match = _CLOCK.search(line)
        clock = match[0] if match else clock
        yield clock, line


def sources(name: str, logs: Mapping[str, Sequence[str]]) -> list[Source]:
    """The logs by node, the head's first, for a diagnosis; there the head's last, as above."""
    return [
        Source(f"log of {name}", "\n".join(lines).encode(), node)
        for node, lines in reversed([*logs.items()])
    ]


def _over_tcp(node: str, line: str) -> OverTcp:
    return OverTcp(
        f"tensor ranks of several nodes speak TCP, at which every layer waits:\n  {line.strip()}",
        host=node,
        hint="clusterctl doctor --only rdma says why RDMA is not used; tp within a node and pp "
        "across; or --allow-tcp",
    )


def tail(member: Member, name: str, offset: int | None) -> dict[str, Any]:
    """State and new log lines; with offset None the end of the log, and no lines."""
    where = "end" if offset is None else str(offset)
    said: dict[str, Any] = ask(member, "tail", root(member), name, where)
    return said
