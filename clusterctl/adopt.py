"""A cluster that another machine brought up, learnt from its head: the containers' labels say which
clusters there are, `spec.json` in the state directory says what was asked for."""

from __future__ import annotations

import json
from dataclasses import replace

from clusterctl import hoststate
from clusterctl.config import spec_from_dict
from clusterctl.containers import LABEL_CLUSTER, LABEL_ROLE
from clusterctl.errors import ClusterctlError
from clusterctl.links import HostLink
from clusterctl.spec import ClusterSpec, NodeSpec, SshSpec

SPEC_FILE = "spec.json"


def adopt(link: HostLink, wanted: str | None, ssh: SshSpec) -> ClusterSpec:
    """The spec of the cluster whose head this host is, for use from this machine by `ssh`.

    Raises ClusterctlError when there is none, or several and none is `wanted`.
    """
    name = _cluster_of(link, wanted)
    asked = hoststate.read(link.transport, name, SPEC_FILE)
    if asked is None:
        raise ClusterctlError(
            f"the cluster {name} runs here, but nothing says what was asked for",
            host=link.name,
            hint=f"log in as the user who ran `up`, or write its hosts into a cluster.yaml with "
            f"name: {name}",
        )
    return from_here(spec_from_dict(json.loads(asked)), link.node, ssh)


def _cluster_of(link: HostLink, wanted: str | None) -> str:
    seen = link.runtime.containers({LABEL_CLUSTER: "", LABEL_ROLE: "head"})
    names = sorted({container.labels[LABEL_CLUSTER] for container in seen})
    if wanted in names:
        return wanted
    if wanted is None and len(names) == 1:
        return names[0]
    raise ClusterctlError(
        f"this host is the head of {', '.join(names) or 'no cluster'}",
        host=link.name,
        hint=f"clusterctl adopt --head {link.name} --cluster {names[0]}"
        if names
        else "name the host that `up` was given as --head",
    )


def from_here(spec: ClusterSpec, head: NodeSpec, ssh: SshSpec) -> ClusterSpec:
    """This machine's ssh files for the other one's; the head is reached as it was just now."""
    nodes = (replace(node, identity=None) for node in spec.nodes)
    return replace(
        spec,
        ssh=ssh,
        nodes=tuple(_as_reached(node, head) if node.name == spec.head else node for node in nodes),
    )


def _as_reached(node: NodeSpec, head: NodeSpec) -> NodeSpec:
    return replace(
        node, address=head.address, user=head.user, port=head.port, identity=head.identity
    )
