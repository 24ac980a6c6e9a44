"""What has changed since `up` made the cluster: on the hosts, and in what is asked for.

Gathered like a plan; judged by comparing values. A container is held against the one that the spec
of its `up` made on this host, so that every difference is named and not only that there is one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

from clusterctl import deployments, hoststate, modelcheck
from clusterctl.config import spec_from_dict
from clusterctl.containers import LABEL_SPEC_HASH, ContainerSpec, spec_hash
from clusterctl.deployments import on_head
from clusterctl.errors import NotReady
from clusterctl.events import Report
from clusterctl.facts.types import HostFacts
from clusterctl.launch import NodePlan, Place, container_for, container_of
from clusterctl.members import members
from clusterctl.planning import SPEC_FILE, Prospect, left_behind, prospect
from clusterctl.runtime import SeenContainer
from clusterctl.serving.modelfiles import ModelFiles
from clusterctl.serving.records import Deployment
from clusterctl.session import Session, results
from clusterctl.spec import ClusterSpec

BASELINE_FILE = "baseline.json"
HOST_SOFTWARE = ("driver", "kernel", "docker")
APPLY = "clusterctl up"


@dataclass(frozen=True)
class Drift:
    """One thing on one host that is no longer as it was made, or not as it is asked for now.
    `was` and `now` are None for what is not there."""

    host: str
    what: str
    was: str | None
    now: str | None
    fix: str


def baseline(places: Mapping[str, Place]) -> dict[str, dict[str, str | None]]:
    """What `up` notes of each host, to be held against later."""
    return {name: software(place.facts) for name, place in places.items()}


def software(facts: HostFacts) -> dict[str, str | None]:
    return {
        "driver": facts.gpu.driver,
        "kernel": facts.host.kernel,
        "docker": facts.docker.version,
    }


def look(session: Session, report: Report) -> list[Drift]:
    """Every difference, host by host. Raises NotReady where no `up` was ever finished."""
    spec, head = session.spec, session.head.transport
    said = hoststate.read(head, spec.name, SPEC_FILE)
    if said is None:
        raise NotReady(f"no `up` of {spec.name} is on record", host=session.head.name, hint=APPLY)
    noted = json.loads(hoststate.read(head, spec.name, BASELINE_FILE) or "{}")
    with left_behind(session, report) as leaving:
        found = prospect(session, report, leaving)
    tagged = results(session.each(lambda link: link.runtime.image_id(spec.image)))
    former = spec_from_dict(json.loads(said))
    return [*_of_nodes(former, found, tagged, noted), *_of_deployments(session, found)]


def _of_nodes(
    former: ClusterSpec,
    found: Prospect,
    tagged: Mapping[str, str | None],
    noted: Mapping[str, Mapping[str, str | None]],
) -> Iterator[Drift]:
    for plan in found.plan.nodes:
        host = plan.host
        if plan.action == "remove":
            yield Drift(host, f"node {plan.expected.name}", "in the cluster", None, APPLY)
            continue
        seen = container_of(found.places[host], host)
        drifts = [
            *of_container(former, plan, found.places),
            *(of_image(host, seen, tagged[host]) if seen else ()),
        ]
        if not drifts and plan.action != "keep":
            drifts = [Drift(host, "container", "as asked for", plan.reason, APPLY)]
        yield from drifts
        yield from of_software(host, noted.get(host, {}), software(found.places[host].facts))


def _of_deployments(session: Session, seen: Prospect) -> Iterator[Drift]:
    """The weights that each was started with, where all its nodes can be looked into."""
    if any(plan.action in ("create", "start") for plan in seen.plan.nodes):
        return
    nodes = members(session)
    for one in on_head(nodes[0], probe=0):
        info = deployments.read_json(nodes[0], one.name, "info.json")
        if one.ended:
            continue
        if info.get("weights") is not None:
            for host, files in modelcheck.look(session, nodes, one.model).items():
                yield from of_weights(host, one, info["weights"], files)
        if loaded := info.get("revisions"):  # of a Hub id, once it was ready
            found = modelcheck.revisions(session, nodes, one.model, info["revision"])
            for host, was in loaded.items():
                yield from of_revision(host, one, was, found.get(host))


def of_weights(host: str, deployment: Deployment, was: str, files: ModelFiles) -> Iterator[Drift]:
    now = files.fingerprint if files.exists else None
    if now != was:
        fix = f"clusterctl model verify {deployment.model}"
        yield Drift(host, f"weights of {deployment.name}", was, now, fix)


def of_revision(
    host: str, deployment: Deployment, was: str | None, now: str | None
) -> Iterator[Drift]:
    """What its next start would load in place of what it has loaded. None: not known."""
    if was is not None and now != was:
        fix = (
            f"serve {deployment.model} again to take the new one; with -- --revision {was} it stays"
        )
        yield Drift(host, f"revision of {deployment.name}", was[:12], now and now[:12], fix)


def of_container(
    former: ClusterSpec, plan: NodePlan, places: Mapping[str, Place]
) -> Iterator[Drift]:
    host = plan.host
    seen = container_of(places[host], host)
    if seen is None:
        yield Drift(host, "container", None, None, APPLY)
        return
    if seen.state != "running":
        yield Drift(host, "container", "running", seen.state, APPLY)
    if plan.action == "replace" and plan.container is not None:
        yield from _replaced(former, plan, seen, places)


def _replaced(
    former: ClusterSpec, plan: NodePlan, seen: SeenContainer, places: Mapping[str, Place]
) -> Iterator[Drift]:
    """The former container, made once more of the former spec: if that is not the one which runs,
    it is the host's own facts (addresses, devices) that have changed."""
    assert plan.container is not None
    made = _made_by(former, plan.host, places)
    if made is None or spec_hash(made) != seen.labels.get(LABEL_SPEC_HASH):
        yield Drift(plan.host, "addresses or devices", "as at up", plan.reason, APPLY)
        return
    for what, was, now in differences(made, plan.container):
        yield Drift(plan.host, what, was, now, APPLY)


def _made_by(former: ClusterSpec, host: str, places: Mapping[str, Place]) -> ContainerSpec | None:
    node = next((one for one in former.nodes if one.name == host), None)
    if node is None or former.head not in places:
        return None
    return container_for(former, node, places[host], places[former.head].address)


def differences(was: ContainerSpec, now: ContainerSpec) -> list[tuple[str, str | None, str | None]]:
    """(what, was, now) of each field; of the environment, of each variable."""
    found: list[tuple[str, str | None, str | None]] = []
    for name in sorted({*was.env, *now.env}):
        if was.env.get(name) != now.env.get(name):
            found.append((f"env {name}", was.env.get(name), now.env.get(name)))
    for field in fields(ContainerSpec):
        before, after = getattr(was, field.name), getattr(now, field.name)
        if field.name not in ("env", "labels") and before != after:
            found.append((field.name.replace("_", " "), *_changed(before, after)))
    return found


def _changed(before: object, after: object) -> tuple[str, str]:
    """Of a list, what went and what came; a command line is long and mostly the same."""
    if not (isinstance(before, tuple) and isinstance(after, tuple)):
        return str(before), str(after)
    gone = [str(one) for one in before if one not in after]
    come = [str(one) for one in after if one not in before]
    return " ".join(gone) or "-", " ".join(come) or "-"


def of_image(host: str, seen: SeenContainer, tagged: str | None) -> Iterator[Drift]:
    """The name may mean another image by now; the container goes on with the old one."""
    if tagged is not None and tagged != seen.image_id:
        yield Drift(host, "image", short(seen.image_id), short(tagged), APPLY)


def short(image_id: str) -> str:
    return image_id.removeprefix("sha256:")[:12]


def of_software(
    host: str, was: Mapping[str, str | None], now: Mapping[str, str | None]
) -> Iterator[Drift]:
    for what in HOST_SOFTWARE:
        if what in was and was[what] != now[what]:
            yield Drift(host, what, was[what], now[what], "clusterctl sanity: prove it once more")


def document(found: Sequence[Drift]) -> list[dict[str, str | None]]:
    return [
        {"host": one.host, "what": one.what, "was": one.was, "now": one.now, "fix": one.fix}
        for one in found
    ]
