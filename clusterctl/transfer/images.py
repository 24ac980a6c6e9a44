"""An image from this machine's Docker, or a host's, into the Docker of every host that lacks it.

saved and unpacked where it is -> passed along the chain, layer by layer -> loaded -> removed again
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from clusterctl.errors import ClusterctlError, ConfigError, PreflightFailed
from clusterctl.events import Event, Report
from clusterctl.facts.types import HostFacts
from clusterctl.fanout import Failed, fan_out
from clusterctl.links import HostLink
from clusterctl.session import Session, results
from clusterctl.spec import MountSpec
from clusterctl.transfer.crew import Crew, assembled
from clusterctl.transfer.depot import Depot
from clusterctl.transfer.depots import THIS_MACHINE
from clusterctl.transfer.models import Options, Pushed, known_facts, send
from clusterctl.transfer.places import Place, image_place
from clusterctl.transfer.push import Arrival, Origin

_RMDIR = 'rmdir "$1" 2>/dev/null || sudo -n rmdir "$1" 2>/dev/null || :'
LOCAL_SOCKET = "/var/run/docker.sock"


def push(
    session: Session, image: str, options: Options, report: Report, *, source: str | None = None
) -> Pushed:
    """`source`: the node that has it; None: this machine. Hosts that have this very image are left
    alone. Raises where nothing could be begun."""
    facts = known_facts(session, report)
    wanted = _origin_id(session, image, source)
    ids = image_ids(session, image)
    lacking = [node for node, found in ids.items() if found != wanted]
    place = image_place(_roots(facts), wanted)
    kept = {node: Arrival(node, "kept") for node in ids if node not in lacking}
    if not lacking:
        return Pushed(place, 0, kept)
    crew_names = [*lacking, *([source] if source and source not in lacking else [])]
    mounts = {node: _mounts(session, place.parents[node]) for node in crew_names}
    place = replace(place, parents={node: place.parents[node] for node in crew_names})
    with assembled(session, facts, mounts, image=options.image, report=report) as crew:
        done = _through_chain(crew, place, image, source, options, report)
        loaded = _load(crew, done, image, lacking, report)
    _remove_directories(session, place)
    arrivals = {**kept, **{node: loaded[node] for node in loaded if node not in kept}}
    return Pushed(place, done.size, {node: arrivals[node] for node in _order(session, arrivals)})


def _order(session: Session, arrivals: Mapping[str, Arrival]) -> list[str]:
    return [node.name for node in session.spec.nodes if node.name in arrivals]


def image_ids(session: Session, image: str) -> dict[str, str | None]:
    return results(session.each(lambda link: link.runtime.image_id(image)))


def _origin_id(session: Session, image: str, source: str | None) -> str:
    if source is None:
        return _local_id(image)
    if source not in {*session.links, *session.failures}:
        raise ConfigError(f"{source} is no node of {session.spec.name}", hint="clusterctl status")
    found = session.link(source).runtime.image_id(image)
    if found is None:
        raise ConfigError(f"{source} has no image {image}", hint="--from a node that has it")
    return found


def _local_id(image: str) -> str:
    from clusterctl.dockerhost import DockerHost
    from clusterctl.transport.local import LocalTransport

    docker = DockerHost(LocalTransport(THIS_MACHINE), LOCAL_SOCKET)
    try:
        found = docker.image_id(image)
    finally:
        docker.close()
    if found is None:
        raise ConfigError(
            f"this machine has no image {image}",
            hint=f"docker pull {image}, or --from a node that has it, or clusterctl image pull",
        )
    return found


def _roots(facts: Mapping[str, HostFacts]) -> dict[str, str]:
    roots = {node: one.docker.root_dir for node, one in facts.items()}
    known = {node: root for node, root in roots.items() if root is not None}
    if silent := [node for node in roots if node not in known]:
        raise PreflightFailed(
            "Docker does not say where it keeps its images",
            host=", ".join(silent),
            hint="clusterctl doctor",
        )
    return known


def _mounts(session: Session, directory: str) -> list[MountSpec]:
    socket = session.spec.docker_socket
    return [MountSpec(directory, directory), MountSpec(socket, socket)]


def _through_chain(
    crew: Crew, place: Place, image: str, source: str | None, options: Options, report: Report
) -> Pushed:
    if source is not None:
        report(Event("begin", "save", image, source))
        engine = crew.spec.docker_socket
        path = place.path(source)
        crew.depots[source].call("save_image", engine_socket=engine, image=image, directory=path)
        return send(crew, place, Origin(path, source), options, report)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "clusterctl/images"
    unpacked = cache / place.name
    report(Event("begin", "save", image, THIS_MACHINE))
    crew.opener.here().call(
        "save_image", engine_socket=LOCAL_SOCKET, image=image, directory=str(unpacked)
    )
    try:
        return send(crew, place, Origin(str(unpacked)), options, report)
    finally:
        shutil.rmtree(unpacked)


def _load(
    crew: Crew, done: Pushed, image: str, lacking: Sequence[str], report: Report
) -> dict[str, Arrival]:
    """Into the Docker of every host that the bytes reached; the unpacked ones go."""

    def load(link: HostLink) -> None:
        depot, path = crew.depots[link.name], done.place.path(link.name)
        if link.name in lacking:
            _load_on(link, depot, path, image, crew.spec.docker_socket, report)
        depot.call("remove", path=path)

    there = [node for node in crew.depots if done.arrivals[node].error is None]
    outcomes = fan_out(there, lambda node: load(crew.session.links[node]), limit=len(there))
    failed = {
        node: Arrival(node, "failed", error=out.error)
        for node, out in outcomes.items()
        if isinstance(out, Failed)
    }
    return {**done.arrivals, **failed}


def _load_on(
    link: HostLink, depot: Depot, path: str, image: str, engine: str, report: Report
) -> None:
    report(Event("begin", "load", image, link.name))
    depot.call("load_image", engine_socket=engine, directory=path)
    if link.runtime.image_id(image) is None:
        raise ClusterctlError(f"Docker took the image, but has no {image}", host=link.name)
    report(Event("done", "load", image, link.name))


def _remove_directories(session: Session, place: Place) -> None:
    """They were made for this. One that is not empty holds what a later run goes on with."""

    def remove(link: HostLink) -> None:
        link.transport.run(["sh", "-c", _RMDIR, "sh", place.parents[link.name]])

    session.each(remove, [*place.parents])
