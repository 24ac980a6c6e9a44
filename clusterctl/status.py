"""A cluster as it is now: nodes, deployments, and whether all of it is verified."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clusterctl import deployments, formation, observe, sanity
from clusterctl.cluster import remembered_nodes
from clusterctl.errors import ClusterctlError, NotReady, Unreachable
from clusterctl.launch import expected_role
from clusterctl.raycluster import ExpectedNode, Formation
from clusterctl.runtime import SeenContainer
from clusterctl.serving.records import Deployment
from clusterctl.session import Session
from clusterctl.spec import ClusterSpec, NodeSpec

SCHEMA_VERSION = 1
TOKEN_PROBE_S = 10.0


@dataclass(frozen=True)
class Status:
    """`verified` None: formation was seen, and the collective check was not made on these
    containers: skipped at `up`, or made before one of them began anew."""

    cluster: str
    verified: bool | None
    formation: Formation
    deployments: tuple[Deployment, ...]
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 only when every node and every deployment that is meant to run is ready."""
        if any(node.state == "unreachable" for node in self.formation.nodes):
            return Unreachable.exit_code
        running = all(one.state in ("ready", "stopped") for one in self.deployments)
        return (
            0
            if self.formation.complete and self.verified is not False and running
            else (NotReady.exit_code)
        )

    def document(self) -> dict[str, Any]:
        """What `status --json` prints."""
        return {
            "schema_version": SCHEMA_VERSION,
            "cluster": self.cluster,
            "verified": self.verified,
            "nodes": [
                {
                    "name": node.name,
                    "address": node.address,
                    "role": node.role,
                    "state": node.state,
                    "devices_expected": node.devices_expected,
                    "devices_seen": node.devices_seen,
                    "detail": node.detail,
                }
                for node in self.formation.nodes
            ],
            "deployments": [one.document() for one in self.deployments],
        }


def expected_nodes(session: Session) -> tuple[ExpectedNode, ...]:
    """The cluster's nodes; addresses and devices as the head remembers them, where it can be
    asked."""
    return _expected(session.spec, _recorded(session)[0])


def status(session: Session) -> Status:
    """Hosts that cannot be reached are rows of the table, not errors."""
    spec = session.spec
    remembered, record, problem = _recorded(session)
    expected = _expected(spec, remembered)
    formed = formation.once(session, expected, spec.ray.port)
    containers = observe.look(session).containers
    return Status(
        spec.name,
        verdict(formed, record, containers),
        formed,
        _deployments(session, containers.get(spec.head)),
        (*problem, *(["Ray runs without authentication"] if spec.ray.insecure else [])),
    )


def _recorded(
    session: Session,
) -> tuple[Sequence[ExpectedNode] | None, sanity.Record | None, list[str]]:
    """What the head remembers, or why it cannot be asked."""
    try:
        return remembered_nodes(session), sanity.recorded(session), []
    except ClusterctlError as error:
        return None, None, [f"{session.spec.head}: {error.message}"]


def verdict(
    formed: Formation, record: sanity.Record | None, containers: Mapping[str, SeenContainer]
) -> bool | None:
    """True: formed, and the collective check passed on exactly these containers."""
    if not formed.complete:
        return False
    if record is None:
        return None
    now = {name: (one.id, one.started_at) for name, one in containers.items()}
    return True if dict(record.containers) == now else None


def _expected(
    spec: ClusterSpec, remembered: Sequence[ExpectedNode] | None
) -> tuple[ExpectedNode, ...]:
    """The spec's nodes; addresses and devices as `up` found them out, where it is known."""
    known = {node.name: node for node in remembered or ()}
    return tuple(known.get(node.name) or _unknown(spec, node) for node in spec.nodes)


def _unknown(spec: ClusterSpec, node: NodeSpec) -> ExpectedNode:
    devices = spec.devices_of(node)
    return ExpectedNode(
        node.name,
        node.cluster_address or "",
        expected_role(spec, node),
        "cpu" if devices.kind == "cpu" else "gpu",
        devices.count or (1 if devices.kind == "cpu" else 0),
    )


def _deployments(session: Session, head: SeenContainer | None) -> tuple[Deployment, ...]:
    """They live in the head's container: none can be seen without it."""
    if head is None or head.state != "running":
        return ()
    return deployments.seen(session, probe=TOKEN_PROBE_S)
