"""`up`, as a procedure: plan, lock, bring images, make nodes, see them form, check, remember."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from clusterctl import (
    clusters,
    deployments,
    drift,
    execution,
    formation,
    gpumemory,
    hoststate,
    images,
    lock,
    release,
    sanity,
)
from clusterctl.config import spec_to_dict
from clusterctl.containers import LABEL_CLUSTER
from clusterctl.doctor.image import Held, ImageContents, judge_images
from clusterctl.doctor.ray import ports_in_use
from clusterctl.errors import ClusterctlError, NotReady
from clusterctl.events import Event, Report
from clusterctl.facts.types import HostFacts
from clusterctl.fanout import Done
from clusterctl.gpumemory import Nodes
from clusterctl.images import PullPolicy
from clusterctl.journal import Journal, Made
from clusterctl.launch import RAY_TOKEN, LaunchPlan, NodePlan
from clusterctl.links import HostLink, Opener
from clusterctl.members import members
from clusterctl.observe import Versions, look, read_back
from clusterctl.planning import SPEC_FILE, Prospect, left_behind, prospect
from clusterctl.preflight import refuse
from clusterctl.raycluster import ExpectedNode, Formation
from clusterctl.release import Released
from clusterctl.runtime import SeenContainer
from clusterctl.secret import Secret
from clusterctl.serving.records import Deployment
from clusterctl.session import Session
from clusterctl.spec import ClusterSpec

NODES_FILE = "nodes.json"

Approve = Callable[[LaunchPlan, Sequence[Deployment]], None]
"""Raises when the user does not want the plan, which would end these running deployments."""


@dataclass(frozen=True)
class Up:
    """What `up` arrived at. `sanity` None: the check was skipped."""

    plan: LaunchPlan
    formation: Formation
    sanity: str | None


def plan_up(session: Session, report: Report, *, pull: PullPolicy = "missing") -> LaunchPlan:
    """What `up` would do now. Nothing is changed, on any host."""
    with left_behind(session, report) as leaving:
        found = prospect(session, report, leaving)
    images.check_policy(found.plan, session.spec.image, pull)
    _say_warnings(found, report)
    return found.plan


def up(
    session: Session,
    *,
    report: Report,
    approve: Approve,
    check_sanity: bool = True,
    pull: PullPolicy = "missing",
    opener: Opener | None = None,
) -> Up:
    """Bring the cluster to what its spec asks for. On any failure what this run made is undone.

    `opener` reaches hosts that left the cluster (tests).
    """
    spec = session.spec
    with (
        lock.held(session.head, spec.name, report, wait=spec.limits.lock_wait) as fresh,
        left_behind(session, report, opener) as leaving,
    ):
        if pull == "always":
            images.pull(session, spec.image, [node.name for node in spec.nodes], report)
        found = prospect(session, report, leaving)
        images.check_policy(found.plan, spec.image, pull)
        _say_warnings(found, report)
        if found.plan.changes:
            approve(found.plan, _running_deployments(session, found))
        done = _carry_out(session, found, fresh, report, check_sanity=check_sanity)
        _remember(session, found)
    return done


def _carry_out(
    session: Session, found: Prospect, fresh: bool, report: Report, *, check_sanity: bool
) -> Up:
    spec, journal = session.spec, Journal()
    try:
        _bring_images(session, found, journal, report)
        if found.plan.changes:
            hoststate.remove(session.head.transport, spec.name, sanity.FILE)
            execution.execute(spec, found, _token(session, found), journal, report)
        formed = formation.wait(
            session,
            found.expected,
            ray_port=spec.ray.port,
            report=report,
            timeout=spec.limits.formation_timeout,
        )
        _verify(session, found, report)
        passed = _sanity(session, report) if check_sanity else None
    except BaseException:
        execution.undo(spec, found, journal, fresh, report)
        _prove_undone(session, found, journal, report)
        raise
    return Up(found.plan, formed, passed)


def _prove_undone(session: Session, found: Prospect, journal: Journal, report: Report) -> None:
    """Looked at, not believed: no container of this run, its ports free, its GPUs' memory back."""
    made = {one.host: one for one in journal.made}
    outcomes = session.each(lambda link: _look_after(session, link), list(made))
    seen = {host: out.value for host, out in outcomes.items() if isinstance(out, Done)}
    after = {host: facts for host, (_, facts) in seen.items()}
    before = {host: found.places[host].facts for host in after}
    nodes = {plan.host: _gpus_of(plan, before) for plan in found.plan.nodes if plan.host in after}
    released = release.watch(session, nodes, before, after, report)
    for host, one in made.items():
        if host in seen:
            left = list(_left(session.spec, one, *seen[host], released))
        else:
            left = ["the host could not be looked at"]
        report(Event("warn", "undo", _proof(left, host, released), host))


def _look_after(session: Session, link: HostLink) -> tuple[list[SeenContainer], HostFacts]:
    return link.runtime.containers({LABEL_CLUSTER: session.spec.name}), session.facts_of(link)


def _gpus_of(plan: NodePlan, before: Mapping[str, HostFacts]) -> Nodes:
    labels = plan.container.labels if plan.container else {}
    return Nodes(gpumemory.gpus_of(labels, before[plan.host]))


def _left(
    spec: ClusterSpec,
    made: Made,
    containers: Sequence[SeenContainer],
    facts: HostFacts,
    released: Released,
) -> Iterator[str]:
    """What is still there of one container that was taken away, in words."""
    ours = [one for one in containers if one.id == made.container_id]
    if any(made.what == "created" or one.state == "running" for one in ours):
        yield f"container {made.name} is still there"
    if ports := ports_in_use(spec, spec.node(made.host), facts):
        yield f"ports in use: {', '.join(ports)}"
    yield from (str(gpu) for gpu in released.gpus if gpu.host == made.host and not gpu.back)


def _proof(left: Sequence[str], host: str, released: Released) -> str:
    if left:
        return f"not proven undone: {'; '.join(left)}"
    gpus = ", GPU memory back" if any(gpu.host == host for gpu in released.gpus) else ""
    return f"seen: nothing of it runs, its ports are free{gpus}"


def _say_warnings(found: Prospect, report: Report) -> None:
    for finding in found.findings:
        if finding.verdict in ("warn", "unknown"):
            fix = f" ({finding.fix})" if finding.fix else ""
            report(Event("warn", "preflight", finding.message + fix, finding.host))


def _running_deployments(session: Session, found: Prospect) -> tuple[Deployment, ...]:
    """Those that would end. They live on the head: without its container there are none."""
    if not found.plan.disturbed:
        return ()
    head = next(node for node in found.plan.nodes if node.expected.role == "head")
    seen = look(session).containers.get(head.host)
    if seen is None or seen.state != "running":
        return ()
    return tuple(one for one in deployments.seen(session, probe=0) if not one.ended)


def _bring_images(session: Session, found: Prospect, journal: Journal, report: Report) -> None:
    """Pull where it is absent, then look into it: before any container is made or taken away."""
    spec, plan = session.spec, found.plan
    images.pull(session, spec.image, [node.host for node in plan.made if node.pull], report)
    if plan.made:
        images.check_same(session, spec.image, [node.name for node in spec.nodes])
        report(Event("begin", "image", spec.image))
        hosts = [node.host for node in plan.made]
        contents = images.contents(session, spec.image, hosts, journal)
        refuse(judge_images([_held(spec, found, node, contents[node.host]) for node in plan.made]))
        one = next(iter(contents.values()))  # refuse() has seen that they are equal
        versions = f"python {one.python}, ray {one.ray}, torch {one.torch} on every host"
        report(Event("done", "image", versions))


def _held(spec: ClusterSpec, found: Prospect, node: NodePlan, contents: ImageContents) -> Held:
    on_gpus = node.expected.device_kind == "gpu"
    gpu = found.places[node.host].facts.gpu if on_gpus else None
    return Held(node.host, spec.image, contents, gpu, spec.ray.insecure)


def _token(session: Session, found: Prospect) -> Secret:
    """One token for the life of the cluster, so that a node which joins later has the same. Our
    supervisors know each other by it also where Ray does without."""
    spec, transport = session.spec, session.head.transport
    text = hoststate.read(transport, spec.name, hoststate.TOKEN_FILE) or _kept_token(
        session, found.plan
    )
    token = text.strip() if text else secrets.token_hex(32)
    hoststate.write(transport, spec.name, hoststate.TOKEN_FILE, token.encode())
    return Secret(token)


def _kept_token(session: Session, plan: LaunchPlan) -> str | None:
    """From a node that stays, where the head's directory was lost."""
    for node in plan.nodes:
        if node.action == "keep" and node.existing_id is not None:
            runtime = session.link(node.host).runtime
            data = runtime.read_file(node.existing_id, f"{runtime.home}/{RAY_TOKEN}")
            if data is not None:
                return data.decode()
    return None


def _verify(session: Session, found: Prospect, report: Report) -> None:
    """What Ray's processes really run with is what was asked for, and the same everywhere."""
    planned = {node.host: node for node in found.plan.nodes if node.container is not None}
    names = sorted({name for node in planned.values() for name in _environment(node)})
    seen = read_back(session, look(session), names)
    for host, node in planned.items():
        if host not in seen:
            raise NotReady("its container does not answer", host=host, hint=_hint(host))
        _verify_environment(host, _environment(node), seen[host], report)
    _verify_versions(seen)


def _environment(node: NodePlan) -> Mapping[str, str]:
    return node.container.env if node.container else {}


def _verify_environment(
    host: str, wanted: Mapping[str, str], seen: Versions, report: Report
) -> None:
    if seen.environment is None:
        report(Event("warn", "verify", "the environment of its Ray could not be read back", host))
        return
    wrong = [name for name, value in wanted.items() if seen.environment.get(name) != value]
    if wrong:
        said = ", ".join(f"{name}={seen.environment.get(name)}" for name in wrong)
        raise NotReady(f"its Ray runs with {said}", host=host, hint=_hint(host))


def _verify_versions(seen: Mapping[str, Versions]) -> None:
    found = {host: f"Ray {one.ray} on Python {one.python}" for host, one in seen.items()}
    if len(set(found.values())) > 1:
        said = "; ".join(f"{host}: {versions}" for host, versions in found.items())
        raise NotReady(f"the nodes run different versions: {said}", hint="one image for all hosts")


def _hint(host: str) -> str:
    return f"clusterctl logs --hosts {host}"


def _sanity(session: Session, report: Report) -> str:
    """Not again where it passed on exactly these containers."""
    nodes = members(session)
    record = sanity.recorded(session)
    if record is not None and record.covers(nodes):
        report(Event("note", "sanity", f"passed before on these containers: {record.summary}"))
        return record.summary
    return sanity.check(session, nodes, report=report).summary()


def _remember(session: Session, found: Prospect) -> None:
    """On the head for whoever adopts the cluster, here for the next command."""
    _write_json(session, SPEC_FILE, spec_to_dict(session.spec))
    _write_json(session, NODES_FILE, [asdict(node) for node in found.expected])
    _write_json(session, drift.BASELINE_FILE, drift.baseline(found.places))
    clusters.save_current(session.spec)


def _write_json(session: Session, name: str, content: object) -> None:
    data = json.dumps(content, indent=2).encode()
    hoststate.write(session.head.transport, session.spec.name, name, data)


def remembered_nodes(session: Session) -> tuple[ExpectedNode, ...] | None:
    """The nodes as the last `up` formed them; None when there was none."""
    text = hoststate.read(session.head.transport, session.spec.name, NODES_FILE)
    return None if text is None else tuple(ExpectedNode(**node) for node in json.loads(text))


def refusal(plan: LaunchPlan, running: Sequence[Deployment]) -> ClusterctlError:
    names = ", ".join(one.name for one in running)
    nodes = ", ".join(f"{node.expected.name} ({node.reason})" for node in plan.disturbed)
    return ClusterctlError(
        f"this would end deployment {names}: {nodes}",
        hint="clusterctl up --yes to do it all the same",
    )
