"""Check of Ray's own list of nodes, where a cluster stands. PURE."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from clusterctl.doctor.check import Answer, Check, check, fail, ok, skip
from clusterctl.raycluster import Formation, NodeState, SeenNode


@dataclass(frozen=True)
class Formed:
    """`formation` None: no node of the cluster runs."""

    formation: Formation | None = None
    name: str | None = None


_CAUSES: Mapping[NodeState, str] = {
    "starting": "ray-gcs-unreachable",
    "missing": "ray-node-died",
    "failed": "ray-node-died",
    "unexpected": "port-in-use-stray-ray",
}


@check(
    "ray.formed",
    "Ray has every node, as planned and no other",
    scope="cluster",
    tags=["ray"],
)
def formed(seen: Formed) -> Iterator[Answer]:
    """A cluster is what Ray's list says: a node that is missing, has joined under another address,
    shows fewer devices or an earlier life of itself leaves a deployment waiting."""
    if seen.formation is None:
        yield skip("no node of the cluster runs")
        return
    # A host that cannot be reached is a finding already.
    odd = [n for n in seen.formation.nodes if n.state not in ("ready", "unreachable")]
    yield from map(_odd, odd)
    if seen.formation.complete:
        yield ok(f"{seen.formation.ready} nodes")


def _odd(node: SeenNode) -> Answer:
    devices = "planned" in node.detail
    return fail(
        f"{node.name} ({node.address or 'no address'}): {node.detail}",
        "ray stop on that machine, or name it in cluster.yaml"
        if node.state == "unexpected"
        else f"clusterctl up; clusterctl logs --hosts {node.name}",
        host=None if node.state == "unexpected" else node.name,
        cause="ray-gpu-not-detected" if devices else _CAUSES[node.state],
        values={
            "address": node.address,
            "planned": str(node.devices_expected),
            "seen": str(node.devices_seen),
        },
    )


FORMED_CHECKS: tuple[Check[Formed], ...] = (formed,)
