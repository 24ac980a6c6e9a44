"""A deployment as the head's supervisor leads it: out of what all nodes see, what all are to do."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from inspect import signature
from pathlib import Path
from typing import Any, Literal, TypeVar

from . import crash, liveness
from .files import Json, read_json, write_json
from .local import Order
from .motion import Motion
from .node import Report
from .policy import Death, Kind, Restart, Verdict, judge
from .processes import say
from .progress import STOPPED, Progress, look
from .raynodes import RayNodes

State = Literal["waiting", "starting", "running", "restarting", "stopped", "failed"]
Life = tuple[int, int]
Reports = Mapping[str, Report]
T = TypeVar("T")

OVER: frozenset[State] = frozenset({"stopped", "failed"})
# A process ends within a second of a node that it needed. Of that node's end we hear by then, or it
# has fallen silent.
SETTLE_S = 3.0


@dataclass(frozen=True)
class Wanted:
    """spec.json of the head. `group`: other nodes that run a process of it."""

    generation: int
    stop: bool = False
    owner: str = ""
    group: tuple[str, ...] = ()
    nodes: tuple[Mapping[str, Any], ...] = ()
    ray_address: str = ""
    liveness: liveness.Wanted | None = None
    restart: Restart | None = None


@dataclass(frozen=True)
class Record:
    """What outlives this supervisor: state.json, less what is seen anew."""

    generation: int | None = None
    epoch: int = 0
    state: State = "stopped"
    since: float = 0.0
    started_at: float | None = None
    ready_at: float | None = None
    was_ready: bool = False
    in_a_row: int = 0
    cause: str = ""
    kind: Kind | None = None  # of the last death
    exit_code: int | None = None
    waiting_for: str = ""
    closed: bool = False  # by a supervisor that was asked to end

    @property
    def life(self) -> Life:
        return self.generation or 0, self.epoch


@dataclass
class Epoch:
    """One life of the group, while it lasts. `boots`: the lives of the nodes that it began with."""

    boots: Mapping[str, str]
    pulse: liveness.Liveness | None = None
    progress: Progress = field(default_factory=Progress)
    motion: Motion = field(default_factory=Motion)
    exited_at: float | None = None  # a process, first; by time.monotonic()
    led: bool = False  # the others run: ours may begin
    verdict: Verdict | None = None  # it ends, and what comes after
    orderly: bool = False  # it ends because that is wanted
    ending: bool = False  # in order, and something still runs


@dataclass
class Deployment:
    """Stepped several times a second. `order` is what all nodes are to do, `own_order` the head."""

    directory: Path
    head: str
    crashes: Path
    ray: RayNodes
    record: Record = field(default_factory=Record)
    _epoch: Epoch | None = None
    _not_before: float = 0.0
    _owner: str = ""
    _written: Json = field(default_factory=dict)
    _inherited: bool = False
    _heard: set[str] = field(default_factory=set)  # nodes, ever

    def __post_init__(self) -> None:
        known = read_json(self.directory / "state.json")
        if known is not None:
            names = Record.__dataclass_fields__
            self.record = Record(**{name: known[name] for name in names if name in known})
            self._inherited = self.record.state not in OVER

    @property
    def name(self) -> str:
        return self.directory.name

    @property
    def order(self) -> Order:
        generation, epoch = self.record.life
        return Order(generation, epoch, self._act(), self._owner)

    @property
    def own_order(self) -> Order:
        """Ours starts last."""
        order = self.order
        hold = order.act == "run" and self._epoch is not None and not self._epoch.led
        return replace(order, act="end") if hold else order

    def step(self, reports: Reports) -> None:
        wanted = self._wanted()
        if wanted is None:
            return
        self._owner = wanted.owner
        self._heard.update(reports)
        if self._inherited:
            self._take_over(wanted, reports)
        elif self._epoch is None:
            self._rest(wanted, reports)
        elif self._epoch.verdict is not None or self._epoch.orderly:
            self._end(self._epoch, wanted, reports)
        else:
            self._live(self._epoch, wanted, reports)
        self._publish(reports)

    def close(self, cause: str, *, asked: bool) -> None:
        """This supervisor ends; the next one goes on from here."""
        if self._epoch is not None and self._epoch.pulse is not None:
            self._epoch.pulse.stop()
        if self.record.state not in OVER:
            self._now("restarting", cause=cause, closed=asked)
            self._publish({})

    # --- no epoch: ended, or waiting for the next one ---------------------------------------------

    def _rest(self, wanted: Wanted, reports: Reports) -> None:
        if wanted.generation != self.record.generation:
            state: State = "stopped" if wanted.stop else "waiting"
            self.record = Record(wanted.generation, state=state, since=time.time())
        elif self.record.state in OVER:
            return
        elif wanted.stop:
            self._now("stopped", waiting_for="")
        elif time.monotonic() >= self._not_before:
            self._start_or_wait(wanted, reports)

    def _start_or_wait(self, wanted: Wanted, reports: Reports) -> None:
        missing = self._missing(wanted, reports)
        if missing:
            self._now("waiting", waiting_for=missing)
            return
        self.ray.stop()
        self.record = replace(self.record, epoch=self.record.epoch + 1, closed=False)
        self._now("starting", waiting_for="", started_at=time.time(), ready_at=None, exit_code=None)
        needed = self._needed(wanted)
        boots = {node: report["boot"] for node, report in reports.items() if node in needed}
        self._epoch = Epoch(boots)

    def _needed(self, wanted: Wanted) -> set[str]:
        return {self.head, *wanted.group, *(node["name"] for node in wanted.nodes)}

    def _missing(self, wanted: Wanted, reports: Reports) -> str:
        """Who has to be there first, and is not."""
        for node in wanted.group:
            if node not in reports:
                return f"{node}: its supervisor was not heard"
            if _seen(reports, node, self.name).get("spec") != wanted.generation:
                return f"{node}: it was not told what to run"
        for node in sorted(self._needed(wanted) & self._heard):
            if node not in reports:
                return f"{node}: its supervisor is not heard any more"
            if not self._is_clear(reports, node):
                return f"{node}: the end of what ran there before"
        if self.record.epoch and wanted.nodes and wanted.ray_address:
            boots = {node: report["boot"] for node, report in reports.items()}
            return self.ray.missing(wanted.ray_address, wanted.nodes, boots)
        return ""

    # --- an epoch ---------------------------------------------------------------------------------

    def _live(self, epoch: Epoch, wanted: Wanted, reports: Reports) -> None:
        own = _seen(reports, self.head, self.name)
        if wanted.stop or wanted.generation != self.record.generation:
            epoch.orderly = epoch.ending = True
        elif (death := self._death(epoch, wanted, reports)) is not None:
            self._die(epoch, wanted, death, reports)
        elif not epoch.led:
            epoch.led = all(self._runs(reports, node) for node in wanted.group)
        elif own.get("running"):
            self._lives(epoch, wanted, reports)

    def _lives(self, epoch: Epoch, wanted: Wanted, reports: Reports) -> None:
        if wanted.liveness is None:
            if self.record.state != "running":
                self._now("running", ready_at=time.time(), was_ready=True)
            return
        if epoch.pulse is None:
            epoch.pulse = liveness.Liveness(wanted.liveness)
        pulse, seen = epoch.pulse.pulse, look(reports, self.name, self._owner)
        deadline_s = wanted.liveness.deadline_s
        epoch.pulse.computing = epoch.motion.computes(seen, pulse.alive_at, deadline_s)
        ready_at = pulse.ready_at
        if ready_at is not None and self.record.state != "running":
            self._now("running", ready_at=ready_at, was_ready=True)

    def _death(self, epoch: Epoch, wanted: Wanted, reports: Reports) -> Death | None:
        for node in (self.head, *wanted.group):
            if (death := self._death_on(epoch, node, reports)) is not None:
                return self._explained(epoch, death, reports)
        if epoch.pulse is not None and epoch.pulse.pulse.hangs:
            return Death("hung", epoch.pulse.pulse.hangs + self._suspects(wanted, reports))
        return self._stall(epoch, wanted, reports)

    def _stall(self, epoch: Epoch, wanted: Wanted, reports: Reports) -> Death | None:
        """Of a start; what has given a token before is asked for the next."""
        if wanted.liveness is None or self.record.state != "starting":
            return None
        patience_s = wanted.liveness.stall_s
        seen = look(reports, self.name, self._owner)
        still_s = epoch.progress.still_s(seen, patience_s)
        if still_s < patience_s:
            return None
        refusal = epoch.pulse.pulse.refusal if epoch.pulse else ""
        no_token = f"; no token: {refusal}" if refusal else ""
        told = epoch.progress.told(still_s)
        return Death("hung", told + no_token + self._suspects(wanted, reports))

    def _explained(self, epoch: Epoch, death: Death, reports: Reports) -> Death | None:
        """An exit that a lost node led to is that node's. None: it cannot be told yet."""
        if death.kind != "exit":
            return death
        epoch.exited_at = epoch.exited_at or time.monotonic()
        for node in epoch.boots:
            if lost := _lost(epoch, node, reports):
                return replace(death, kind="lost", cause=f"{lost}; {death.cause}")
        heard = min(reports[node]["heard"] for node in epoch.boots)
        return death if heard >= epoch.exited_at + SETTLE_S or len(epoch.boots) == 1 else None

    def _death_on(self, epoch: Epoch, node: str, reports: Reports) -> Death | None:
        if lost := _lost(epoch, node, reports):
            return Death("lost", lost)
        seen = _seen(reports, node, self.name)
        if seen.get("running") or tuple(seen.get("life") or ()) != self.record.life:
            return None
        code = seen["exit_code"]
        words = [f"{node}: {_ended(code)}", *first_words(seen["errors"])]
        return Death("exit", "; ".join(words), code)

    def _suspects(self, wanted: Wanted, reports: Reports) -> str:
        """Who may be why no token comes: ranks that stand still, nodes that are not heard."""
        stopped = [
            f"{rank['node']}: process {rank['pid']} ({rank['title']}) is stopped"
            for rank in self._ranks(reports)
            if rank["state"] in STOPPED
        ]
        heard = set(reports)
        unheard = [
            f"{node['name']} is not heard" for node in wanted.nodes if node["name"] not in heard
        ]
        return "".join(f"; {text}" for text in (*stopped, *unheard))

    def _die(self, epoch: Epoch, wanted: Wanted, death: Death, reports: Reports) -> None:
        ready_at = self.record.ready_at
        stable_s = wanted.restart.stable_s if wanted.restart else 0.0
        stable = ready_at is not None and time.time() - ready_at >= stable_s
        errors = self._errors(wanted, reports)
        printed = crash.tail(self.directory / "log").decode(errors="replace")
        epoch.verdict = judge(
            wanted.restart,
            death,
            was_ready=self.record.was_ready,
            in_a_row=0 if stable else self.record.in_a_row,
            printed=printed + "\n".join(error["line"] for error in errors),
        )
        say(f"[{self.name}] supervisor: {epoch.verdict.cause}".encode())
        self._now(
            "restarting", cause=epoch.verdict.cause, kind=death.kind, exit_code=death.exit_code
        )
        if death.kind != "asked":
            found = {**self._document(reports), "kind": death.kind, "errors": errors}
            crash.keep(self.crashes, self.directory, self._spec(), found)

    def _end(self, epoch: Epoch, wanted: Wanted, reports: Reports) -> None:
        """Until nothing of it is left on any node that is heard."""
        if epoch.pulse is not None:
            epoch.pulse.stop()
        running = [node for node in reports if _seen(reports, node, self.name).get("running")]
        epoch.ending = epoch.orderly and bool(running)
        if all(self._is_clear(reports, node) for node in reports):
            self._epoch = None
            self._after(epoch, wanted, reports)

    def _after(self, epoch: Epoch, wanted: Wanted, reports: Reports) -> None:
        verdict = epoch.verdict
        if verdict is None or wanted.stop:
            own = _seen(reports, self.head, self.name)
            self._now("stopped", exit_code=own.get("exit_code"))
        elif verdict.then == "waiting":
            self._not_before = time.monotonic() + verdict.backoff_s
            self.record = replace(self.record, in_a_row=verdict.in_a_row)
        else:
            self._now(verdict.then)

    def _take_over(self, wanted: Wanted, reports: Reports) -> None:
        """What an earlier supervisor led ended with it."""
        self._inherited = False
        asked = self.record.closed
        cause = self.record.cause if self.record.state == "restarting" else ""
        death = Death(
            "asked" if asked else "container",
            cause or f"{self.head}'s container began anew",
        )
        self._epoch = Epoch({})
        self._die(self._epoch, wanted, death, reports)

    # --- what is seen -----------------------------------------------------------------------------

    def _act(self) -> Literal["run", "end", "clear"]:
        epoch = self._epoch
        if epoch is None:
            return "clear"  # on nodes, too, that were not heard when the last one ended
        if epoch.verdict is None and not epoch.orderly:
            return "run"
        return "end" if epoch.ending else "clear"

    def _runs(self, reports: Reports, node: str) -> bool:
        seen = _seen(reports, node, self.name)
        return bool(seen.get("running")) and tuple(seen.get("life") or ()) == self.record.life

    def _is_clear(self, reports: Reports, node: str) -> bool:
        seen = _seen(reports, node, self.name)
        return not seen.get("running") and tuple(seen.get("cleared") or ()) == self.record.life

    def _ranks(self, reports: Reports) -> list[dict[str, Any]]:
        return [
            {"node": node, **rank}
            for node, report in reports.items()
            for rank in report["ranks"].get(self._owner, [])
        ]

    def _errors(self, wanted: Wanted, reports: Reports) -> list[dict[str, Any]]:
        """The first error of every rank, the earliest first."""
        found = [
            {"node": node, **error}
            for node in (self.head, *wanted.group)
            for error in _seen(reports, node, self.name).get("errors", [])
        ]
        return sorted(found, key=lambda error: float(error["at"]))

    # --- files ------------------------------------------------------------------------------------

    def _spec(self) -> Json:
        return read_json(self.directory / "spec.json") or {"argv": []}

    def _wanted(self) -> Wanted | None:
        spec = read_json(self.directory / "spec.json")
        if spec is None:
            return None
        asked, restart = spec.get("liveness"), spec.get("restart")
        return Wanted(
            generation=spec["generation"],
            stop=spec.get("stop", False),
            owner=spec.get("owner", ""),
            group=tuple(node for node in spec.get("group", ()) if node != self.head),
            nodes=tuple(spec.get("nodes", ())),
            ray_address=spec.get("env", {}).get("RAY_ADDRESS", ""),
            liveness=None if asked is None else _read(liveness.Wanted, asked),
            restart=None if restart is None else _read(Restart, restart),
        )

    def _now(self, state: State, **changes: Any) -> None:
        since = self.record.since if state == self.record.state else time.time()
        self.record = replace(self.record, state=state, since=since, **changes)

    def _document(self, reports: Reports) -> Json:
        pulse = self._epoch.pulse.pulse if self._epoch and self._epoch.pulse else liveness.Pulse()
        return {
            "name": self.name,
            **asdict(self.record),
            "restarts": max(0, self.record.epoch - 1),
            "pid": _seen(reports, self.head, self.name).get("pid"),
            "alive_at": pulse.alive_at,
            "tokens_per_s": pulse.tokens_per_s,
            "kv_usage": pulse.kv_usage,
            "ranks": self._ranks(reports),
        }

    def _publish(self, reports: Reports) -> None:
        document = self._document(reports)
        if document != self._written and write_json(self.directory / "state.json", document):
            self._written = document


def _read(kind: Callable[..., T], said: Mapping[str, Any]) -> T:
    """What a client of another version says, as far as it is known here: this supervisor is as old
    as its container."""
    return kind(**{name: said[name] for name in signature(kind).parameters if name in said})


def _seen(reports: Reports, node: str, name: str) -> dict[str, Any]:
    report = reports.get(node)
    seen: dict[str, Any] = report["deployments"].get(name, {}) if report else {}
    return seen


def _lost(epoch: Epoch, node: str, reports: Reports) -> str:
    """In words, whether this node is not what it was when the epoch began; empty: it is."""
    if node not in reports:
        return f"{node} is not heard any more"
    boot = reports[node]["boot"]
    return f"{node}'s container began anew" if epoch.boots.get(node, boot) != boot else ""


def _ended(code: int | None) -> str:
    if code is not None and code > 128 and code - 128 in set(signal.Signals):
        return f"its process ended by {signal.Signals(code - 128).name}"
    return f"its process ended with exit code {code}"


def first_words(errors: Sequence[Mapping[str, Any]]) -> list[str]:
    """The earliest error line, for people."""
    return [str(error["line"]) for error in sorted(errors, key=lambda one: float(one["at"]))[:1]]
