"""What checks look at: a host as a node of the cluster, and the cluster as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from clusterctl.containers import LABEL_CLUSTER
from clusterctl.facts.types import Gpu, HostFacts
from clusterctl.launch import devices_of
from clusterctl.spec import ClusterSpec, NodeSpec

ENDED = ("created", "exited", "dead")  # states in which a container holds neither ports nor GPUs

_OCCUPIED = {
    True: "its own node runs, which may be what uses them",
    False: None,
    None: "whether its own node runs, which may be what uses them, is not known",
}


@dataclass(frozen=True)
class Host:
    """A host that is, or is to become, a node. `runs`: whether its node of a local cluster does,
    None where nobody asked."""

    spec: ClusterSpec
    node: NodeSpec
    facts: HostFacts
    runs: bool | None = None

    @property
    def name(self) -> str:
        return self.node.name

    @property
    def nvidia(self) -> tuple[Gpu, ...]:
        return tuple(gpu for gpu in self.facts.gpu.gpus if gpu.vendor == "nvidia")

    @property
    def gives_gpus(self) -> bool:
        return devices_of(self.spec, self.node, self.facts)[0] == "gpu"

    @property
    def occupied(self) -> str | None:
        """Why what is in use (ports, memory) may be our own node's; None where it cannot. A Docker
        that is stopped, or does not list its containers, hides it."""
        if self.spec.runtime == "process":
            return _OCCUPIED[self.runs]
        seen = self.facts.docker.containers
        if self.facts.docker.error is not None or seen is None:
            return "Docker does not say whether its own node runs, which may be what uses them"
        ours = (one for one in seen if one.labels.get(LABEL_CLUSTER) == self.spec.name)
        return _OCCUPIED[any(one.state not in ENDED for one in ours)]


@dataclass(frozen=True)
class Plan:
    """How a model is split: over `tp` devices, `pp` times. `whence`: who says so."""

    tp: int
    pp: int
    whence: str


@dataclass(frozen=True)
class Cluster:
    """All hosts that answered, by node name. `plan`: of the model that is to be served."""

    spec: ClusterSpec
    hosts: Mapping[str, Host]
    plan: Plan | None = None
    name: None = None
