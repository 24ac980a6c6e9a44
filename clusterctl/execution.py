"""Carry out a LaunchPlan on all hosts at once, writing down what is made; and undo exactly that."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.resources import files

from clusterctl import hoststate
from clusterctl.containers import LABEL_CLUSTER, ContainerFile
from clusterctl.events import Event, Report
from clusterctl.fanout import Failed, fan_out
from clusterctl.journal import Journal, Made
from clusterctl.launch import (
    NODE_PROBE,
    RAY_PROBE,
    RAY_TOKEN,
    NodePlan,
    own_directories,
    supervisor_files,
)
from clusterctl.links import HostLink
from clusterctl.planning import Prospect
from clusterctl.secret import Secret
from clusterctl.session import results
from clusterctl.spec import ClusterSpec

STOP_S = 15.0


def execute(
    spec: ClusterSpec, prospect: Prospect, token: Secret, journal: Journal, report: Report
) -> None:
    """Remove what left, make every container, start the head and then all workers."""

    def on_hosts(act: Callable[[NodePlan], None], plans: Iterable[NodePlan]) -> None:
        chosen = {_key(plan): plan for plan in plans}
        results(fan_out(chosen, lambda key: act(chosen[key]), limit=spec.limits.parallel_hosts))

    def remove(plan: NodePlan) -> None:
        with journal.acting(plan.host):
            _take_away(prospect.links[plan.host], plan, report)

    def prepare(plan: NodePlan) -> None:
        _prepare(spec, prospect, plan, token, journal, report)

    def start(plan: NodePlan) -> None:
        _start(prospect.links[plan.host], plan, journal, report)

    plans = prospect.plan.nodes
    on_hosts(remove, (plan for plan in plans if plan.action == "remove"))
    begun = [plan for plan in plans if plan.action in ("start", "create", "replace")]
    on_hosts(prepare, begun)
    on_hosts(start, (plan for plan in begun if plan.expected.role == "head"))
    on_hosts(start, (plan for plan in begun if plan.expected.role == "worker"))


def _key(plan: NodePlan) -> str:
    """A host may hold containers of several names that left the cluster."""
    return plan.host if plan.host == plan.expected.name else f"{plan.host}: {plan.expected.name}"


def _prepare(
    spec: ClusterSpec,
    prospect: Prospect,
    plan: NodePlan,
    token: Secret,
    journal: Journal,
    report: Report,
) -> None:
    link = prospect.links[plan.host]
    place = prospect.places[plan.host]
    with journal.acting(plan.host):
        hoststate.ensure_directories(link.transport, spec.name, own_directories(spec, place))
        if plan.action == "start":
            container_id = plan.existing_id or ""
        else:
            container_id = _create(link, plan, journal, report)
        link.runtime.put_files(container_id, container_files(link.runtime.home, token))


def _create(link: HostLink, plan: NodePlan, journal: Journal, report: Report) -> str:
    assert plan.container is not None
    if plan.existing_id is not None:
        _take_away(link, plan, report)
        journal.replaced.append(plan.host)
    report(Event("begin", "create", plan.container.name, plan.host))
    container_id = link.runtime.create(plan.container)
    journal.write(Made("created", plan.host, container_id, plan.container.name))
    return container_id


def _start(link: HostLink, plan: NodePlan, journal: Journal, report: Report) -> None:
    assert plan.container is not None
    with journal.acting(plan.host):
        container_id = _made_id(journal, plan) or plan.existing_id or ""
        if plan.action == "start":
            journal.write(Made("started", plan.host, container_id, plan.container.name))
        link.runtime.start(container_id)
        report(Event("done", "create", f"{plan.container.name} started", plan.host))


def _made_id(journal: Journal, plan: NodePlan) -> str | None:
    return next((made.container_id for made in journal.made if made.host == plan.host), None)


def _take_away(link: HostLink, plan: NodePlan, report: Report) -> None:
    assert plan.existing_id is not None
    report(Event("note", "remove", f"{plan.expected.name}: {plan.reason}", plan.host))
    take_down(link, plan.existing_id)


def take_down(link: HostLink, container_id: str) -> None:
    """Asked to end first, so that deployments and Ray end in order."""
    link.runtime.stop(container_id, timeout=STOP_S)
    link.runtime.remove(container_id)


def container_files(home: str, token: Secret) -> list[ContainerFile]:
    """What a container needs it carries: it must come back after a reboot without us."""
    remote = files("clusterctl.remote")
    scripts = [
        ContainerFile(f"{home}/{name}", remote.joinpath(name).read_bytes())
        for name in (RAY_PROBE, NODE_PROBE)
    ]
    scripts += [ContainerFile(f"{home}/{name}", data) for name, data in supervisor_files().items()]
    return [*scripts, ContainerFile(f"{home}/{RAY_TOKEN}", token.reveal().encode(), 0o600)]


def undo(
    spec: ClusterSpec, prospect: Prospect, journal: Journal, fresh_head: bool, report: Report
) -> None:
    """Take away what this run made, and say so. What was kept is not touched."""
    settled = journal.close()
    if not settled:
        report(Event("warn", "undo", "some hosts did not answer; they may still make containers"))
    outcomes = fan_out(
        [made.host for made in journal.made],
        lambda host: _undo_one(prospect.links[host], _made_on(journal, host)),
        limit=spec.limits.parallel_hosts,
    )
    for host, outcome in outcomes.items():
        report(Event("warn", "undo", _undone(outcome, _made_on(journal, host)), host))
    for host in journal.replaced:
        report(Event("warn", "undo", "its former container was already replaced and is gone", host))
    _forget_hosts(spec, prospect, fresh_head)


def _made_on(journal: Journal, host: str) -> Made:
    return next(made for made in journal.made if made.host == host)


def _undo_one(link: HostLink, made: Made) -> None:
    if made.what == "started":
        link.runtime.stop(made.container_id, timeout=STOP_S)
    else:
        take_down(link, made.container_id)


def _undone(outcome: object, made: Made) -> str:
    if isinstance(outcome, Failed):
        return (
            f"container {made.name} could not be removed and may still run: {outcome.error.message}"
        )
    return f"container {made.name} was {'stopped' if made.what == 'started' else 'removed'} again"


def _forget_hosts(spec: ClusterSpec, prospect: Prospect, fresh_head: bool) -> None:
    """Directories that this run made, where nothing of the cluster is left on the host."""
    fresh = set(prospect.fresh) | ({spec.head} if fresh_head else set())

    def forget(host: str) -> None:
        link = prospect.links[host]
        if not link.runtime.containers({LABEL_CLUSTER: spec.name}):
            hoststate.purge(link.transport, spec.name)

    fan_out(sorted(fresh), forget, limit=spec.limits.parallel_hosts)
