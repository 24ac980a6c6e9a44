"""Serve a model: choose the engine, check all that can be checked, start it, and call it ready when
a real token has come back."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from clusterctl import deployments, enginepackage, forecast, keys, modelcheck, software
from clusterctl.deployments import POLL_S, PROBE_S, ask, on_head
from clusterctl.enginepackage import EnginePackage
from clusterctl.errors import NotReady, PreflightFailed
from clusterctl.events import Event, Report, silent
from clusterctl.fanout import fan_out
from clusterctl.following import Following, OverTcp, PortTaken, tail
from clusterctl.forecast import Forecast
from clusterctl.keys import ApiKey
from clusterctl.members import Member, members
from clusterctl.secret import Secret
from clusterctl.serving import door, gpushare, modelfiles, native, transports, vllm
from clusterctl.serving.door import TlsFiles
from clusterctl.serving.placement import Contents, Devices, Placement, choose_engine, place
from clusterctl.serving.plan import ServePlan, Site, plan
from clusterctl.serving.records import Deployment
from clusterctl.session import Session, results
from clusterctl.spec import ServeSpec
from clusterctl.supervised import Liveness, Restart, spec_document

START_S = 15.0  # the supervisor looks several times a second
GROUP_STARTS = 3  # of a group whose port was taken by somebody else meanwhile
PORTS_TRIED = 64


@dataclass(frozen=True)
class Served:
    """What `serve` made. `generated` is the key, where none was given."""

    deployment: Deployment
    plan: ServePlan
    generated: ApiKey | None


@dataclass(frozen=True)
class _Start:
    """A deployment that may start: all checks have passed. `nodes`: the members on which processes
    are started, the head first; `ranks`: those that may hold a rank."""

    serve: ServeSpec
    nodes: tuple[Member, ...]
    ranks: tuple[Member, ...]
    placement: Placement
    forecast: Forecast
    site: Site
    generation: int
    tensor_spans_nodes: bool = False
    weights: str | None = None  # ModelFiles.fingerprint, of a model that is a path
    gpus: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # gpushare.share

    @property
    def head(self) -> Member:
        return self.nodes[0]

    @property
    def plan(self) -> ServePlan:
        return plan(self.serve, self.placement, self.site)

    @property
    def url(self) -> str:
        host = self.site.host
        reached_at = self.head.node.address if host in door.EVERYWHERE else host
        return f"{'https' if self.site.tls else 'http'}://{reached_at}:{self.serve.port}/v1"

    @property
    def certificate(self) -> str:
        return self.serve.tls.own_certificate if self.serve.tls else ""

    def again(self) -> _Start:
        """The same once more, with another port for the group."""
        port = _free_port(self.head, self.site.master_port + 1)
        site = replace(self.site, master_port=port)
        return replace(self, site=site, generation=self.generation + 1)


def plan_serve(session: Session, spec: ServeSpec, *, report: Report = silent) -> ServePlan:
    """What `serve` would do now. Nothing is started or changed, on any host."""
    return _check(session, spec, enginepackage.load(), report).plan


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
    earliest error of its log when the engine fails, NotReady when nothing has moved for
    `spec.stall_timeout` seconds, or after `spec.timeout` where one is given; the supervisor then
    goes on.
    """
    began = time.monotonic()
    package = package or enginepackage.load()
    report(Event("begin", "check", spec.model))
    start = _check(session, spec, package, report)
    if start.placement.engine == native.ENGINE:
        _deliver(session, start, package)
    report(Event("done", "check", str(start.placement)))
    if warning := door.in_the_clear(spec):
        report(Event("warn", "serve", warning))
    generated, key = None, spec.api_key
    if key is None:
        generated = keys.generate(session.spec.name, spec.name, env)
        key = generated.secret
    _write_secrets(start, key)
    if detach:
        _begin(session, start, report)
    else:
        deadline = None if spec.timeout is None else began + spec.timeout
        start = _until_ready(session, start, deadline, report)
    found = on_head(start.head, spec.name, probe=0 if detach else PROBE_S)[0]
    return Served(found, start.plan, generated)


# --- before anything starts ----------------------------------------------------------------------


def _check(session: Session, spec: ServeSpec, package: EnginePackage, report: Report) -> _Start:
    nodes = members(session)
    head = nodes[0]
    every = on_head(head, probe=0)
    before = _same_name(every, spec)
    running = [one for one in every if not one.ended]
    devices = Devices(
        {member.name: member.node.devices for member in nodes},
        head.name,
        sum(one.devices for one in running),
        head.node.device_kind,
    )
    contents = software.contents(session, nodes, spec, report)
    foreseen = _foresee(session, nodes, spec, devices, contents, report)
    spec = replace(spec, tp=foreseen.tp, pp=foreseen.pp)
    placement = place(spec, devices, contents)
    gpus = gpushare.share(spec, placement, devices, running)
    _check_sizes_known(spec, placement, contents, head)
    started = tuple(member for member in nodes if member.name in placement.nodes)
    ranks = nodes if placement.executor == "ray" else started
    weights = None
    if modelfiles.kind_of(spec.model) == "path":
        weights = modelcheck.check_files(session, ranks, spec.model).fingerprint
    site = replace(
        _site(session, spec, started, package),
        node_env={node: gpushare.environment(node, gpus, devices) for node in gpus},
    )
    generation = before.generation + 1 if before else 1
    across = transports.spans_nodes(spec, devices)
    start = _Start(
        spec, started, ranks, placement, foreseen, site, generation, across, weights, gpus
    )
    _check_port(start)
    return start


def _foresee(
    session: Session,
    nodes: Sequence[Member],
    spec: ServeSpec,
    devices: Devices,
    contents: Contents,
    report: Report,
) -> Forecast:
    """The sizes to serve with. What is too large for the cluster is refused before."""
    place(spec, devices, contents)
    engine, _ = choose_engine(spec, contents, devices.kind)
    head_alone = spec.executor == "inproc" or (spec.executor == "mp" and engine == native.ENGINE)
    found = forecast.foresee(session, nodes[:1] if head_alone else nodes, spec, devices, engine)
    report(Event("done", "plan", found.said))
    if found.warning is not None:
        report(Event("warn", "plan", found.warning))
    return found


def _site(
    session: Session, spec: ServeSpec, nodes: Sequence[Member], package: EnginePackage
) -> Site:
    head = nodes[0]
    home = head.link.runtime.home
    first = vllm.MASTER_PORT if spec.dp == 1 else vllm.REPLICAS_PORT
    return Site(
        addresses={member.name: member.node.address for member in nodes},
        home=home,
        package_directory=f"{home}/{package.name}",
        key_file=f"{home}/secrets/{spec.name}.key",
        ray_address=head.ray_address,
        host=door.listens_on(spec, head.node.address),
        owner=native.owner(session.spec.name, spec.name),
        env=_nccl_tells(session, spec, head),
        master_port=_free_port(head, first) if len(nodes) > 1 else first,
        tls=_tls_files(f"{home}/secrets/{spec.name}") if spec.tls else None,
    )


def _tls_files(path: str) -> TlsFiles:
    return TlsFiles(f"{path}.crt", f"{path}.tls-key")


def _nccl_tells(session: Session, spec: ServeSpec, head: Member) -> Mapping[str, str]:
    """NCCL says how ranks reach each other when it is asked to; what the user set stays."""
    asked = session.spec.env.keys() | session.spec.node(head.name).env.keys()
    if head.node.device_kind == "cpu" or spec.ranks == 1 or "NCCL_DEBUG" in asked:
        return {}
    return transports.VARIABLES


def _free_port(head: Member, first: int) -> int:
    for port in range(first, first + PORTS_TRIED):
        if ask(head, "port", head.node.address, str(port)):
            return port
    raise PreflightFailed(
        f"no port of {first}-{first + PORTS_TRIED - 1} is free for the ranks to meet at",
        host=head.name,
        hint=f"ss -ltnp on {head.name} shows who holds them",
    )


def _check_sizes_known(
    spec: ServeSpec, placement: Placement, contents: Contents, head: Member
) -> None:
    if placement.engine != vllm.ENGINE or contents.vllm is None:
        return
    if unknown := vllm.unknown_sizes(spec, contents.vllm):
        raise PreflightFailed(
            f"vLLM {contents.version('vllm')} in image {head.container.image} does not know "
            f"{', '.join(unknown)}",
            hint="use an image with a newer vLLM",
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


def _deliver(session: Session, start: _Start, package: EnginePackage) -> None:
    """The engine on every node that may hold a rank."""
    wanted = enginepackage.requirements(ray=start.placement.executor == "ray")
    by_name = {member.name: member for member in start.ranks}

    def deliver(name: str) -> None:
        runtime, container = by_name[name].link.runtime, by_name[name].container
        enginepackage.check(runtime, container.id, wanted, image=container.image)
        enginepackage.deliver(runtime, container.id, package)

    results(fan_out(by_name, deliver, limit=session.spec.limits.parallel_hosts))


def _check_port(start: _Start) -> None:
    host, port = start.site.host, start.serve.port
    if not ask(start.head, "port", host, str(port)):
        raise PreflightFailed(
            f"{host}:{port} cannot be bound: the port is in use, or the address is not here",
            host=start.head.name,
            hint=f"choose another one: --port {port + 1}",
        )


# --- starting ------------------------------------------------------------------------------------


def _write_secrets(start: _Start, key: Secret) -> None:
    deployments.put(start.head, start.site.key_file, key.reveal().encode() + b"\n", mode=0o600)
    tls, files = start.serve.tls, start.site.tls
    if tls is not None and files is not None:
        deployments.put(start.head, files.certificate, tls.certificate.encode())
        deployments.put(start.head, files.key, tls.key.reveal().encode(), mode=0o600)


def _until_ready(session: Session, start: _Start, deadline: float | None, report: Report) -> _Start:
    """Starts it, as often as somebody takes the group's port first; what it was that got ready."""
    for attempt in range(1, GROUP_STARTS + 1):
        following = _begin(session, start, report)
        try:
            following.until_ready(deadline, start.serve)
        except PortTaken as taken:
            if attempt == GROUP_STARTS:
                raise
            report(Event("warn", "serve", f"{taken.message}; once more with another"))
            start = start.again()
        except OverTcp:
            deployments.ask_to_stop(session, start.nodes, start.serve.name)
            raise
        else:
            break
    _put_info(start, following, _revisions(session, start, report))
    return start


def _revisions(session: Session, start: _Start, report: Report) -> Mapping[str, str | None]:
    """Of a Hub id, what every node that may hold a rank has now; a start may have downloaded it."""
    model = start.serve.model
    if modelfiles.kind_of(model) != "hub":
        return {}
    wanted = modelfiles.asked_revision(start.serve.extra)
    found = modelcheck.revisions(session, start.ranks, model, wanted)
    if len(set(found.values()) - {None}) > 1:
        said = ", ".join(f"{node} {commit}" for node, commit in found.items())
        report(Event("warn", "serve", f"the nodes have different revisions of {model}: {said}"))
    return found


def _begin(session: Session, start: _Start, report: Report) -> Following:
    """Every node's supervisor is told its process; the head, which leads, comes last."""
    by_name = {member.name: member for member in start.nodes}
    name = start.serve.name
    offsets = {node: tail(member, name, None)["offset"] for node, member in by_name.items()}
    _put_info(start, None)
    for path, content in start.plan.files.items():
        deployments.put(start.head, path, content.encode())
    for node in start.plan.processes:
        deployments.put_json(by_name[node], name, "spec.json", _spec(start, node))
    for member in start.nodes:
        _await_start(member, name, start.generation)
    report(Event("note", "serve", "started"))
    refuse = start.tensor_spans_nodes and not start.serve.allow_tcp
    return Following(session, start.nodes, name, offsets, report, refuse_tcp=refuse)


def _put_info(
    start: _Start, ready: Following | None, revisions: Mapping[str, str | None] = {}
) -> None:
    """What the supervisor need not know and `ps` must. The record is the head's: any client reads
    the same."""
    serve, tokens = start.serve, ready.kv_cache_tokens if ready else None
    info = {
        "model": serve.model,
        "engine": start.placement.engine,
        "executor": start.placement.executor,
        "tp": serve.tp,
        "pp": serve.pp,
        "dp": serve.dp,
        "nodes": list(start.placement.nodes),
        "gpus": start.gpus,
        "url": start.url,
        "address": start.site.host,
        "port": serve.port,
        "api_key_file": start.site.key_file,
        "certificate": start.certificate,
        "kv_cache_tokens": tokens,
        "weights": start.weights,
        "revision": modelfiles.asked_revision(serve.extra),
        "revisions": dict(revisions),
        "prediction": start.forecast.document(tokens),
        "transports": list(ready.transports) if ready else [],
        "ready_generation": start.generation if ready else None,
    }
    deployments.put_json(start.head, serve.name, "info.json", info)


def _spec(start: _Start, node: str) -> dict[str, Any]:
    """What this node's supervisor is told."""
    over_ray = start.placement.executor == "ray"
    return spec_document(
        start.serve.name,
        start.generation,
        start.plan.processes[node],
        owner=start.site.owner,
        group=start.placement.nodes if start.plan.is_group else (),
        nodes=[member.node for member in start.ranks] if over_ray else (),
        liveness=_liveness(start) if node == start.head.name else None,
        restart=Restart() if node == start.head.name else None,
    )


def _liveness(start: _Start) -> Liveness:
    return Liveness(
        start.url,
        start.site.key_file,
        deadline_s=start.serve.liveness_deadline,
        stall_s=start.serve.stall_timeout,
        certificate=start.certificate,
    )


def _await_start(member: Member, name: str, generation: int) -> None:
    deadline = time.monotonic() + START_S
    while not _is_ours(tail(member, name, None)["state"], generation):
        if time.monotonic() > deadline:
            raise NotReady(
                f"the supervisor did not take up {name} within {START_S:.0f} s",
                host=member.name,
                hint=f"clusterctl logs --hosts {member.name}",
            )
        time.sleep(POLL_S)


def _is_ours(state: Mapping[str, Any] | None, generation: int) -> bool:
    return state is not None and state["generation"] == generation
