"""Deployments as the head's container holds them: asked for, written, stopped.

Everything lies in files under HOME/deployments of the head's container, and its supervisor acts on
them: so the engine goes on when this client is gone, and any other client sees the same.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from clusterctl.containers import ContainerFile
from clusterctl.errors import ClusterctlError, NotReady
from clusterctl.events import Event, Report, silent
from clusterctl.fanout import fan_out
from clusterctl.members import Member, head_of, members
from clusterctl.serving import native
from clusterctl.serving.placement import devices_in_use
from clusterctl.serving.records import Deployment, deployment_of
from clusterctl.session import Session, results

PROBE_S = 10.0  # a token of a busy engine may take a while; a dead one never comes
STOP_S = 60.0
POLL_S = 0.5


def ask(member: Member, verb: str, *args: str, timeout: float = 60.0) -> Any:
    """What remote/deployments.py says in this node's container."""
    script = files("clusterctl.remote").joinpath("deployments.py").read_bytes()
    result = member.link.runtime.exec(
        member.container.id, ["python3", "-", verb, *args], stdin=script, timeout=timeout
    )
    return json.loads(result.stdout)


def root(head: Member) -> str:
    return f"{head.link.runtime.home}/deployments"


def put(head: Member, path: str, data: bytes, *, mode: int = 0o644) -> None:
    head.link.runtime.put_files(head.container.id, [ContainerFile(path, data, mode)])


def put_json(head: Member, name: str, file: str, content: Mapping[str, Any]) -> None:
    put(head, f"{root(head)}/{name}/{file}", json.dumps(content, indent=2).encode())


def read_json(head: Member, name: str, file: str) -> dict[str, Any]:
    data = head.link.runtime.read_file(head.container.id, f"{root(head)}/{name}/{file}")
    content: dict[str, Any] = json.loads(data or b"{}")
    return content


def seen(session: Session, *, probe: float = PROBE_S) -> tuple[Deployment, ...]:
    """Every deployment; one is "ready" only when a token came back within `probe` seconds now.

    With `probe` 0 nothing is asked for a token, and nothing is called ready.
    """
    return on_head(head_of(session), probe=probe)


def on_head(head: Member, *names: str, probe: float) -> tuple[Deployment, ...]:
    # Two requests a probe, each with its own deadline.
    timeout = 2 * probe + 30.0
    records = ask(head, "list", root(head), f"{probe:g}", *names, timeout=timeout)
    return tuple(deployment_of(record) for record in records if record["info"] is not None)


def stop(
    session: Session, name: str | None = None, *, report: Report = silent, timeout: float = STOP_S
) -> Deployment:
    """End a deployment (the only one, by default) and prove that it is gone.

    Gone: its state says so, no process of it is left on any node, its port can be bound, and Ray
    has its devices back. Raises NotReady naming what is left after `timeout` seconds.
    """
    nodes = members(session)
    head = nodes[0]
    every = on_head(head, probe=0)
    target = choose(every, name)
    report(Event("begin", "stop", target.name))
    ask_to_stop(session, nodes, target.name)
    deadline = time.monotonic() + timeout
    while left := _left(session, nodes, target, every):
        report(Event("progress", "stop", left))
        if time.monotonic() > deadline:
            raise NotReady(
                f"deployment {target.name} is not gone after {timeout:.0f} s: {left}",
                host=head.name,
                hint="`clusterctl up` replaces the containers of a node that does not let go",
            )
        time.sleep(POLL_S)
    report(Event("done", "stop", f"{target.name}: no process, port {target.port} free"))
    return on_head(head, target.name, probe=0)[0]


def ask_to_stop(session: Session, nodes: Sequence[Member], name: str) -> None:
    """Every node that keeps a process of the deployment is told to end it."""
    by_name = {member.name: member for member in nodes}

    def tell(node: str) -> None:
        if spec := read_json(by_name[node], name, "spec.json"):
            put_json(by_name[node], name, "spec.json", {**spec, "stop": True})

    results(fan_out(by_name, tell, limit=session.spec.limits.parallel_hosts))


def choose(every: Sequence[Deployment], name: str | None) -> Deployment:
    """The deployment of that name, or the only one that runs. Raises ClusterctlError."""
    if name is not None:
        found = [one for one in every if one.name == name]
    else:
        found = [one for one in every if not one.ended]
    if len(found) == 1:
        return found[0]
    known = ", ".join(one.name for one in every) or "none"
    if name is None and found:
        raise ClusterctlError(f"there are several deployments: {known}", hint="name one of them")
    wanted = f"no deployment {name}" if name else "nothing is being served"
    raise ClusterctlError(f"{wanted} (known: {known})", hint="clusterctl ps")


def _left(
    session: Session, nodes: Sequence[Member], target: Deployment, every: Sequence[Deployment]
) -> str:
    """The first thing that is still there, in words; empty when all is gone."""
    head = nodes[0]
    (now,) = on_head(head, target.name, probe=0)
    if not now.ended:
        return f"its process on {head.name} has not ended"
    if pids := _ranks(session, nodes, target):
        return "processes left: " + "; ".join(f"{name}: {ids}" for name, ids in pids.items())
    if not ask(head, "port", target.address, str(target.port)):
        return f"{target.address}:{target.port} is still in use"
    if target.executor == "ray":
        return _devices_left(head, [one for one in every if one.name != target.name])
    return ""


def _ranks(session: Session, nodes: Sequence[Member], target: Deployment) -> dict[str, list[int]]:
    by_name = {member.name: member for member in nodes}
    owner = native.owner(session.spec.name, target.name)
    found = results(
        fan_out(
            by_name,
            lambda name: ask(by_name[name], "ranks", owner),
            limit=session.spec.limits.parallel_hosts,
        )
    )
    return {name: ids for name, ids in found.items() if ids}


def _devices_left(head: Member, others: Sequence[Deployment]) -> str:
    """Ray's own account: what is in use beyond the other deployments' share."""
    said = head.link.runtime.exec(head.container.id, ["ray", "status"]).stdout
    used = devices_in_use(said)
    expected = sum(one.devices for one in others if one.executor == "ray" and not one.ended)
    return f"Ray still has {used - expected:g} devices in use" if used > expected else ""
