"""Models on the hosts of a cluster: pushed, verified, listed, removed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from clusterctl.errors import ClusterctlError, ConfigError
from clusterctl.events import Event, Report
from clusterctl.facts.types import HostFacts
from clusterctl.secret import Secret
from clusterctl.serving.modelfiles import kind_of
from clusterctl.session import Session
from clusterctl.spec import MountSpec
from clusterctl.transfer import crew as crews
from clusterctl.transfer import places
from clusterctl.transfer.crew import Crew, assembled
from clusterctl.transfer.depot import Depot
from clusterctl.transfer.places import Place
from clusterctl.transfer.push import Arrival, Origin, Push, progress_of
from clusterctl.transfer.trees import Fault, Seen, Tree, faults


@dataclass(frozen=True)
class Options:
    """`image`: what runs the helpers. `port`: where hosts serve each other, 0: any that is free.
    `fresh`: see Push."""

    image: str
    port: int = 0
    fresh: bool = False


@dataclass(frozen=True)
class Pushed:
    """`size`: bytes of the model. `arrivals` by node, also those that could not be reached."""

    place: Place
    size: int
    arrivals: Mapping[str, Arrival]

    @property
    def failures(self) -> dict[str, ClusterctlError]:
        return {node: one.error for node, one in self.arrivals.items() if one.error is not None}


@dataclass(frozen=True)
class Verified:
    """`files` and `size` of the model on the first node that has it."""

    place: Place
    files: int
    size: int
    faults: tuple[Fault, ...]
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Listed:
    """A model on one node; `state` is "complete", "incomplete" or "partial" (depot/inventory)."""

    node: str
    name: str
    path: str
    size: int
    state: str


def push(
    session: Session,
    model: str,
    options: Options,
    report: Report,
    *,
    source: str | None = None,
    to: str | None = None,
) -> Pushed:
    """`source`: the node that has it; None: this machine. A host that fails is told of in the
    outcome; raises where nothing could be begun."""
    if source is not None:
        return _push_from_node(session, model, options, report, source, to)
    path = str(places.local_path(model, os.environ))
    with at_place(session, path, options, report, to=to) as (crew, place):
        return send(crew, place, Origin(path), options, report)


def _push_from_node(
    session: Session, model: str, options: Options, report: Report, source: str, to: str | None
) -> Pushed:
    """A model that a node has lies at the same path on all."""
    if source not in {*session.links, *session.failures}:
        raise ConfigError(f"{source} is no node of {session.spec.name}", hint="clusterctl status")
    if to is not None and to != model:
        raise ConfigError(
            f"{model} of {source} cannot come to {to}: a path is the same on every node",
            hint="leave out --to",
        )
    session.link(source)  # raises why it could not be reached
    path = model if model.startswith("/") else None
    with at_place(session, model, options, report, to=path) as (crew, place):
        return send(crew, place, Origin(place.path(source), source), options, report)


@contextmanager
def at_place(
    session: Session, model: str, options: Options, report: Report, *, to: str | None = None
) -> Iterator[tuple[Crew, Place]]:
    """Depots that can write where the model is to lie."""
    facts = known_facts(session, report)
    place = places.place_of(session.spec, crews.homes(facts), model, to=to)
    mounts = {node: [MountSpec(top, top)] for node, top in place.parents.items()}
    with assembled(session, facts, mounts, image=options.image, report=report) as crew:
        yield crew, place


@dataclass(frozen=True)
class Wanted:
    """What of a Hub. `include`, `exclude`: globs over file names, none of either means all.
    `endpoint` None: huggingface.co."""

    model: str
    revision: str = "main"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    endpoint: str | None = None
    token: Secret | None = None


def pull(session: Session, wanted: Wanted, options: Options, report: Report, *, on: str) -> Pushed:
    """Download it on one node, `on`, into its Hugging Face cache, and from there to the others.
    The token travels in the depot's stdin, and from there in the stdin of who downloads."""
    if kind_of(wanted.model) != "hub":
        raise ConfigError(f"{wanted.model} is no Hub id", hint="ORGANISATION/NAME")
    session.link(on)  # raises why it could not be reached
    with at_place(session, wanted.model, options, report) as (crew, place):
        report(Event("begin", "download", wanted.model, on))
        said = crew.depots[on].call(
            "hub",
            progress_of(on, report),
            path=place.path(on),
            model=wanted.model,
            revision=wanted.revision,
            include=wanted.include,
            exclude=wanted.exclude,
            endpoint=wanted.endpoint,
            token=wanted.token.reveal() if wanted.token else None,
        )
        report(Event("done", "download", f"{wanted.model} at {said['revision']}", on))
        return send(crew, place, Origin(said["tree"], on), options, report)


def known_facts(session: Session, report: Report) -> dict[str, HostFacts]:
    crews.present(session)  # raises where there is nobody to ask
    report(Event("begin", "facts"))
    facts = session.facts()
    report(Event("done", "facts", f"{len(facts)} hosts"))
    return facts


def send(crew: Crew, place: Place, origin: Origin, options: Options, report: Report) -> Pushed:
    """Scan it where it is, and run the chain."""
    tree = _scan_origin(crew, origin, report)
    chosen = crews.addresses(crew.session, crew.facts, report)
    pushed = Push(
        place=place,
        origin=origin,
        tree=tree,
        depots=crew.depots,
        addresses={node: one.address for node, one in chosen.items()},
        speeds=crews.speeds(crew.facts, chosen),
        report=report,
        port=options.port,
        fresh=options.fresh,
    ).run()
    lost = {node: Arrival(node, "failed", error=error) for node, error in crew.lost.items()}
    return Pushed(place, tree.size, {**pushed, **lost})


def _scan_origin(crew: Crew, origin: Origin, report: Report) -> Tree:
    if origin.node is not None:
        depot = crew.depots[origin.node]
        return scan(depot, origin.path, report)
    return scan(crew.opener.here(), origin.path, report, record=_record_here(origin.path))


def _record_here(path: str) -> str:
    """Digests of this user's own files are kept in the cache: nothing is written beside them."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "clusterctl/digests"
    cache.mkdir(parents=True, exist_ok=True)
    return str(cache / f"{hashlib.sha256(path.encode()).hexdigest()[:16]}.json")


def scan(depot: Depot, path: str, report: Report, *, record: str = "", fresh: bool = False) -> Tree:
    report(Event("begin", "hash", path, depot.host))
    said = depot.call(
        "scan", progress_of(depot.host, report), path=path, record=record, fresh=fresh
    )
    tree = Tree.of(said)
    report(Event("done", "hash", f"{len(tree.files)} files", depot.host))
    if not tree.files:
        raise ClusterctlError(f"{path} holds no file", host=depot.host)
    return tree


def verify(
    session: Session, model: str, options: Options, report: Report, *, to: str | None = None
) -> Verified:
    """Read every byte on every node, and hold them against each other and what was written."""
    facts = known_facts(session, report)
    place = places.place_of(session.spec, crews.homes(facts), model, to=to)
    there = crews.existing(session, {node: [place.path(node)] for node in place.parents})
    mounts = {node: [MountSpec(top, top, read_only=True)] for node in there for top in there[node]}
    with assembled(session, facts, mounts, image=options.image, report=report) as crew:
        seen = crew.each(lambda node, depot: _see(depot, place.path(node), report))
    absent = {node: Seen(None, {}) for node in (*there, *crew.lost) if node not in seen}
    trees = [one.tree for one in seen.values() if one.tree is not None]
    if not trees:
        raise ClusterctlError(
            f"{' and '.join(place.paths)} is on no node", hint=f"clusterctl model push {model}"
        )
    found = faults({node: {**seen, **absent}[node] for node in sorted({**seen, **absent})})
    return Verified(place, len(trees[0].files), trees[0].size, found, tuple({**seen, **absent}))


def _see(depot: Depot, path: str, report: Report) -> Seen:
    recorded = depot.call("recorded", path=path)["digests"]
    missing = depot.call("shards", path=path)["missing"]
    return Seen(scan(depot, path, report, fresh=True), recorded, tuple(missing))


def listed(session: Session, options: Options, report: Report) -> list[Listed]:
    """Every model in the cluster's model directories and Hugging Face caches."""
    facts = known_facts(session, report)
    caches = places.hub_caches(session.spec, crews.homes(facts))
    wanted = {node: [*session.spec.model_dirs, cache] for node, cache in caches.items()}
    there = {node: tops for node, tops in crews.existing(session, wanted).items() if tops}
    mounts = {node: [MountSpec(top, top, read_only=True) for top in there[node]] for node in there}
    with assembled(session, facts, mounts, image=options.image, report=report) as crew:
        said = crew.each(lambda node, depot: depot.call("models", directories=there[node]))
    return [Listed(node, **one) for node, found in said.items() for one in found["models"]]


def remove(
    session: Session, model: str, options: Options, report: Report, *, to: str | None = None
) -> tuple[Place, dict[str, bool]]:
    """Whether it was there, by node."""
    facts = known_facts(session, report)
    place = places.place_of(session.spec, crews.homes(facts), model, to=to)
    there = crews.existing(session, {node: [top] for node, top in place.parents.items()})
    mounts = {node: [MountSpec(top, top)] for node in there for top in there[node]}
    with assembled(session, facts, mounts, image=options.image, report=report) as crew:
        said = crew.each(lambda node, depot: depot.call("remove", path=place.path(node)))
    return place, {node: node in said and bool(said[node]["removed"]) for node in there}


def nodes_of(found: Sequence[Listed]) -> dict[str, list[Listed]]:
    """By the model's path and name, as a table shows them."""
    by_name: dict[str, list[Listed]] = {}
    for one in found:
        by_name.setdefault(one.name, []).append(one)
    return by_name
