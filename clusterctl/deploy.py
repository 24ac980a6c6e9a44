"""Serve a model: check all that can be checked, start the engine on the head, and call it ready
when a real token has come back."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clusterctl import autopsy, deployments, enginepackage, keys, modelcheck
from clusterctl.deployments import POLL_S, PROBE_S, ask, on_head, root
from clusterctl.doctor.logs.reading import Source
from clusterctl.doctor.logs.suspicion import earliest_errors
from clusterctl.enginepackage import EnginePackage
from clusterctl.errors import ClusterctlError, NotReady, PreflightFailed
from clusterctl.events import Event, Report, silent
from clusterctl.fanout import fan_out
from clusterctl.keys import ApiKey
from clusterctl.members import Member, members
from clusterctl.raycluster import ExpectedNode
from clusterctl.secret import Secret
from clusterctl.serving import modelfiles, native
from clusterctl.serving.phases import kv_cache_tokens, phase_of
from clusterctl.serving.placement import Devices, Placement, place
from clusterctl.serving.records import Deployment
from clusterctl.session import Session, results
from clusterctl.spec import ServeSpec
from clusterctl.supervised import Liveness, Process, spec_document

START_S = 15.0  # the supervisor looks several times a second
KEPT_LINES = 20_000
EVERYWHERE = ("0.0.0.0", "::")


@dataclass(frozen=True)
class Served:
    """What `serve` made. `generated` is the key, where none was given."""

    deployment: Deployment
    generated: ApiKey | None


@dataclass(frozen=True)
class _Start:
    """A deployment that may start: all checks have passed."""

    serve: ServeSpec
    head: Member
    placement: Placement
    package_directory: str
    generation: int
    owner: str
    nodes: tuple[ExpectedNode, ...]

    @property
    def host(self) -> str:
        """What the API binds: the head's private address unless asked otherwise."""
        return self.serve.host or self.head.node.address

    @property
    def url(self) -> str:
        reached_at = self.head.node.address if self.host in EVERYWHERE else self.host
        return f"http://{reached_at}:{self.serve.port}/v1"

    @property
    def key_file(self) -> str:
        return f"{self.head.link.runtime.home}/secrets/{self.serve.name}.key"


def serve(
    session: Session,
    spec: ServeSpec,
    *,
    detach: bool = False,
    report: Report = silent,
    env: Mapping[str, str] = os.environ,
    package: EnginePackage | None = None,
) -> Served:
    """Start a deployment and, unless `detach`, wait until it has answered with a token.

    Raises PreflightFailed or ConfigError before anything is started, ClusterctlError with the
    earliest error of its log when the engine fails, NotReady after `spec.timeout` seconds; the
    engine then goes on.
    """
    began = time.monotonic()
    report(Event("begin", "check", spec.model))
    start = _check(session, spec, package or enginepackage.load())
    report(Event("done", "check", f"{start.placement.executor}: {start.placement.reason}"))
    generated, key = None, spec.api_key
    if key is None:
        generated = keys.generate(session.spec.name, spec.name, env)
        key = generated.secret
    log_offset = _tail(start.head, spec.name, None)["offset"]
    _write(start, key)
    _await_start(start)
    report(Event("begin", "serve", "started"))
    if not detach:
        _Following(session, start, log_offset, began + spec.timeout, report).until_ready()
    return Served(on_head(start.head, spec.name, probe=PROBE_S if not detach else 0)[0], generated)


# --- before anything starts ----------------------------------------------------------------------


def _check(session: Session, spec: ServeSpec, package: EnginePackage) -> _Start:
    nodes = members(session)
    head = nodes[0]
    every = on_head(head, probe=0)
    before = _same_name(every, spec)
    devices = Devices(
        {member.name: member.node.devices for member in nodes},
        head.name,
        sum(one.devices for one in every if not one.ended),
    )
    placement = place(spec, devices)
    _not_on_the_same_gpus(head, placement, [one for one in every if not one.ended])
    used = nodes if placement.executor == "ray" else nodes[:1]
    directory = _deliver(session, used, package, ray=placement.executor == "ray")
    if modelfiles.kind_of(spec.model) == "path":
        modelcheck.check_files(session, used, spec.model)
        modelcheck.check_split(head, spec, directory)
    owner = native.owner(session.spec.name, spec.name)
    generation = before.generation + 1 if before else 1
    expected = tuple(member.node for member in nodes)
    start = _Start(spec, head, placement, directory, generation, owner, expected)
    _check_port(start)
    return start


def _not_on_the_same_gpus(
    head: Member, placement: Placement, running: Sequence[Deployment]
) -> None:
    """Ray gives each deployment GPUs of its own; without it every one begins at the first."""
    carriers = {placement.executor, *(one.executor for one in running)}
    if head.node.device_kind == "gpu" and running and carriers != {"ray"}:
        names = ", ".join(one.name for one in running)
        raise PreflightFailed(
            f"{names} may hold the same GPUs: only Ray tells the deployments of a host apart",
            host=head.name,
            hint=f"clusterctl stop {running[0].name}, or serve each with --executor ray",
        )


def _same_name(every: Sequence[Deployment], spec: ServeSpec) -> Deployment | None:
    """The deployment of this name that has ended. Raises PreflightFailed for one that has not."""
    before = next((one for one in every if one.name == spec.name), None)
    if before is not None and not before.ended:
        raise PreflightFailed(
            f"deployment {spec.name} exists already: {before.model} ({before.url})",
            hint=f"clusterctl stop {spec.name}, or choose another --name",
        )
    return before


def _deliver(
    session: Session, nodes: Sequence[Member], package: EnginePackage, *, ray: bool
) -> str:
    """The engine on every node that may hold a rank; its directory on the head."""
    wanted = enginepackage.requirements(ray=ray)
    by_name = {member.name: member for member in nodes}

    def deliver(name: str) -> str:
        runtime, container = by_name[name].link.runtime, by_name[name].container
        enginepackage.check(runtime, container.id, wanted, image=container.image)
        return enginepackage.deliver(runtime, container.id, package)

    found = results(fan_out(by_name, deliver, limit=session.spec.limits.parallel_hosts))
    return found[nodes[0].name]


def _check_port(start: _Start) -> None:
    port = start.serve.port
    if not ask(start.head, "port", start.host, str(port)):
        raise PreflightFailed(
            f"{start.host}:{port} cannot be bound: the port is in use, or the address is not here",
            host=start.head.name,
            hint=f"choose another one: --port {port + 1}",
        )


# --- starting ------------------------------------------------------------------------------------


def _write(start: _Start, key: Secret) -> None:
    deployments.put(start.head, start.key_file, key.reveal().encode() + b"\n", mode=0o600)
    deployments.put_json(start.head, start.serve.name, "info.json", _info(start))
    deployments.put_json(start.head, start.serve.name, "spec.json", _spec(start))


def _info(start: _Start) -> dict[str, Any]:
    """What the supervisor need not know and `ps` must."""
    serve = start.serve
    return {
        "model": serve.model,
        "engine": native.ENGINE,
        "executor": start.placement.executor,
        "tp": serve.tp,
        "pp": serve.pp,
        "url": start.url,
        "address": start.host,
        "port": serve.port,
        "api_key_file": start.key_file,
        "kv_cache_tokens": None,
        "ready_generation": None,
    }


def _spec(start: _Start) -> dict[str, Any]:
    argv = native.argv(
        start.serve,
        executor=start.placement.executor,
        host=start.host,
        api_key_file=start.key_file,
    )
    env = native.env(
        start.owner,
        package_directory=start.package_directory,
        ray_address=start.head.ray_address,
    )
    return spec_document(
        start.serve.name,
        start.generation,
        Process(argv, env),
        owner=start.owner,
        nodes=start.nodes if start.placement.executor == "ray" else (),
        liveness=Liveness(start.url, start.key_file),
    )


def _await_start(start: _Start) -> None:
    deadline = time.monotonic() + START_S
    while not _is_ours(_tail(start.head, start.serve.name, None)["state"], start.generation):
        if time.monotonic() > deadline:
            raise NotReady(
                f"the supervisor did not take up {start.serve.name} within {START_S:.0f} s",
                host=start.head.name,
                hint=f"clusterctl logs --hosts {start.head.name}",
            )
        time.sleep(POLL_S)


def _is_ours(state: Mapping[str, Any] | None, generation: int) -> bool:
    return state is not None and state["generation"] == generation


def _tail(head: Member, name: str, offset: int | None) -> dict[str, Any]:
    """State and new log lines; with offset None the end of the log, and no lines."""
    where = "end" if offset is None else str(offset)
    said: dict[str, Any] = ask(head, "tail", root(head), name, where)
    return said


# --- until it is ready ---------------------------------------------------------------------------


class _Following:
    """Reads the log of all ranks until a token came back, the engine failed, or time is up."""

    def __init__(
        self, session: Session, start: _Start, offset: int, deadline: float, report: Report
    ) -> None:
        self._session = session
        self._start = start
        self._offset = offset
        self._deadline = deadline
        self._report = report
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._phase = "starting"
        self._serving = False

    def until_ready(self) -> None:
        while not self._ready():
            if time.monotonic() > self._deadline:
                raise self._too_slow()
            time.sleep(POLL_S)
        self._record()
        self._report(Event("done", "serve", "a completion came back"))

    def _ready(self) -> bool:
        head, name = self._start.head, self._start.serve.name
        said = _tail(head, name, self._offset)
        self._offset = said["offset"]
        self._take(said["text"].splitlines())
        if said["state"]["state"] in ("failed", "stopped"):
            raise self._failure(said["state"])
        return self._serving and on_head(head, name, probe=PROBE_S)[0].state == "ready"

    def _take(self, lines: Sequence[str]) -> None:
        self._lines.extend(lines)
        for line in lines:
            if phase := phase_of(line):
                self._phase = phase.detail
                self._serving = self._serving or phase.name == "serving"
                done, total = phase.done, phase.total
                self._report(Event("progress", "serve", phase.detail, done=done, total=total))

    def _record(self) -> None:
        """The record is the head's: any other client reads the same."""
        info = _info(self._start) | {
            "kv_cache_tokens": kv_cache_tokens(self._lines),
            "ready_generation": self._start.generation,
        }
        deployments.put_json(self._start.head, self._start.serve.name, "info.json", info)

    def _failure(self, state: Mapping[str, Any]) -> ClusterctlError:
        name = self._start.serve.name
        if state["state"] == "stopped":
            return ClusterctlError(f"deployment {name} was stopped while it started")
        errors = earliest_errors(self._lines) or list(self._lines)[-3:] or ["it printed nothing"]
        lines = "\n".join(f"  {line}" for line in errors)
        message = f"deployment {name} failed (exit code {state['exit_code']}):\n{lines}"
        head, hint = self._start.head.name, None
        log = Source(f"log of {name}", "\n".join(self._lines).encode(), head)
        if (found := autopsy.root_cause(self._session, log)) is not None:
            message += f"\n{autopsy.told(found)}"
            hint = found.fix
        return ClusterctlError(
            message, host=head, hint=hint or f"clusterctl logs --hosts {head} shows all of its log"
        )

    def _too_slow(self) -> NotReady:
        name, timeout = self._start.serve.name, self._start.serve.timeout
        return NotReady(
            f"deployment {name} was not ready within {timeout:.0f} s; it goes on, last seen: "
            f"{self._phase}",
            host=self._start.head.name,
            hint=f"clusterctl ps shows when it is ready; clusterctl stop {name} ends it",
        )
