"""Checks of what Ray needs, and of what it shows to others."""

from __future__ import annotations

from clusterctl.doctor.check import Answer, Check, Said, check, fail, ok, skip, unknown, warn
from clusterctl.doctor.subject import Cluster, Host
from clusterctl.facts.types import HostFacts
from clusterctl.launch import expected_role, node_ray
from clusterctl.raycluster import pinned_ports
from clusterctl.spec import ClusterSpec, NodeSpec

_RAY_PROCESSES = ("raylet", "gcs_server", "ray")


@check(
    "ray.ports",
    "Ray's ports are free",
    cause="ray-port-taken",
    tags=["preflight", "ray"],
    needs=["listeners"],
)
def ports(one: Host) -> Said:
    """Ray's ports are pinned, so that firewalls can be described; what listens on one already keeps
    the node from starting. A head of another Ray on a worker takes none of them, yet gives its own
    workers the same GPUs, and is what `ray status` and ray.init() find there."""
    if found := _foreign_head(one):
        return found
    if reason := one.occupied:
        return skip(reason)
    if one.facts.listeners is None:
        return unknown("the ports in use cannot be listed (no ss on this host)")
    taken = ports_in_use(one.spec, one.node, one.facts)
    if not taken:
        return ok("Ray's ports are free")
    stray = any(process in text for text in taken for process in _RAY_PROCESSES)
    return fail(
        f"ports that Ray needs are in use: {', '.join(taken)}",
        "end what listens there (a stray Ray: ray stop), or choose other ports: "
        "--port-offset 1000, or under `ray:`",
        cause="port-in-use-stray-ray" if stray else None,
        values={"ports": ", ".join(taken)},
    )


def _foreign_head(one: Host) -> Answer | None:
    """On a worker. Nodes of a local cluster have their head on the same machine."""
    if one.spec.runtime == "process" or expected_role(one.spec, one.node) == "head":
        return None
    port = one.spec.ray.port
    there = [seen.process for seen in one.facts.listeners or () if seen.port == port]
    if any(process in _RAY_PROCESSES for process in there):
        return fail(
            f"another Ray has its head on this host: {there[0]} listens on {port}",
            "end it: docker ps shows the container that it runs in, if any (docker rm -f NAME); "
            "else ray stop",
            cause="port-in-use-stray-ray",
            values={"ports": str(port)},
        )
    if None in there:
        return unknown(f"whose port {port}, Ray's own, is on this worker does not show: not root")
    return None


def ports_in_use(spec: ClusterSpec, node: NodeSpec, facts: HostFacts) -> tuple[str, ...]:
    """Which of Ray's fixed ports something listens on: `6379 (GCS, used by redis-server)`."""
    pinned = pinned_ports(node_ray(spec, node), expected_role(spec, node))
    uses = {port: use for use, port in pinned.items()}
    taken = (
        f"{listener.port} ({uses[listener.port]}{_by(listener.process)})"
        for listener in facts.listeners or ()
        if listener.port in uses
    )
    return tuple(dict.fromkeys(taken))


def _by(process: str | None) -> str:
    return f", used by {process}" if process else ""


@check(
    "ray.dashboard",
    "Ray's dashboard is not open to the network",
    cause="ray-dashboard-exposed",
    tags=["ray"],
    needs=["listeners"],
)
def dashboard(one: Host) -> Said:
    """Whoever reaches the dashboard's job API without a token runs commands on the cluster."""
    if one.facts.listeners is None:
        return unknown("the ports in use cannot be listed (no ss on this host)")
    port = one.spec.ray.dashboard_port
    bound = {seen.address for seen in one.facts.listeners if seen.port == port}
    if not bound - {"127.0.0.1", "::1"}:
        return ok("bound to this host alone" if bound else "nothing listens there")
    return warn(
        f"something listens on {', '.join(sorted(bound))} port {port}, the dashboard's",
        "start Ray with --dashboard-host=127.0.0.1, and reach it through ssh -L",
    )


@check(
    "ray.port-range",
    "No pinned port lies among the workers'",
    cause="ray-port-in-worker-range",
    scope="cluster",
    tags=["preflight", "ray"],
)
def port_range(whole: Cluster) -> Said:
    """Ray gives its workers ports of a range; one that another component needs is lost now and
    then."""
    ray = whole.spec.ray
    pinned = pinned_ports(ray, "head")
    inside = [
        f"{use} {port}"
        for use, port in pinned.items()
        if ray.min_worker_port <= port <= ray.max_worker_port
    ]
    if not inside:
        return ok(f"workers use {ray.min_worker_port}-{ray.max_worker_port}")
    return fail(
        f"among the workers' {ray.min_worker_port}-{ray.max_worker_port}: {', '.join(inside)}",
        "move the range: ray: {min_worker_port: ..., max_worker_port: ...}",
    )


@check(
    "ray.token", "Ray asks for a token", cause="ray-unauthenticated", scope="cluster", tags=["ray"]
)
def token(whole: Cluster) -> Said:
    """Without token authentication anyone who reaches the head's ports owns the cluster."""
    if not whole.spec.ray.insecure:
        return ok("token authentication is on")
    return warn("Ray runs without authentication", "take `insecure` out of ray:, or --insecure-ray")


CHECKS: tuple[Check[Host], ...] = (ports, dashboard)
CLUSTER_CHECKS: tuple[Check[Cluster], ...] = (port_range, token)
