"""All checks there are, and how they are chosen and run. PURE."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from clusterctl.doctor import (
    cluster,
    docker,
    gpu,
    gpuhealth,
    gpupaths,
    host,
    model,
    network,
    ray,
    rdma,
)
from clusterctl.doctor.check import Check, Finding, Tag, run_checks
from clusterctl.doctor.collectives import COLLECTIVE_CHECKS
from clusterctl.doctor.devicespeed import SPEED_CHECKS
from clusterctl.doctor.formed import FORMED_CHECKS
from clusterctl.doctor.image import ALL_IMAGES_CHECKS, IMAGE_CHECKS
from clusterctl.doctor.pairs import PAIR_CHECKS
from clusterctl.doctor.subject import Cluster, Host, Plan
from clusterctl.errors import ConfigError
from clusterctl.facts.types import HostFacts
from clusterctl.spec import ClusterSpec

HOST_CHECKS: tuple[Check[Host], ...] = (
    *docker.CHECKS,
    *gpu.CHECKS,
    *gpuhealth.CHECKS,
    *gpupaths.CHECKS,
    *ray.CHECKS,
    *host.CHECKS,
    *network.CHECKS,
    *rdma.CHECKS,
    *model.CHECKS,
)
# Of what `--deep` has the hosts and their devices do.
DEEP_CHECKS: tuple[Check[Any], ...] = (*PAIR_CHECKS, *COLLECTIVE_CHECKS, *SPEED_CHECKS)
# Of what a look into the image, and Ray itself, say.
ASKED_CHECKS: tuple[Check[Any], ...] = (*IMAGE_CHECKS, *ALL_IMAGES_CHECKS, *FORMED_CHECKS)
CLUSTER_CHECKS: tuple[Check[Cluster], ...] = (
    *cluster.CLUSTER_CHECKS,
    *gpu.CLUSTER_CHECKS,
    *network.CLUSTER_CHECKS,
    *rdma.CLUSTER_CHECKS,
    *ray.CLUSTER_CHECKS,
    *model.CLUSTER_CHECKS,
)
ALL: Mapping[str, Check[Any]] = {
    **{one.id: one for one in HOST_CHECKS},
    **{one.id: one for one in CLUSTER_CHECKS},
    **{one.id: one for one in (*ASKED_CHECKS, *DEEP_CHECKS)},
}


# Findings that no check judges: what stood in the way of looking, and of trying the hosts' ways
FROM_NO_CHECK = ("ssh.reach", "net.address", "net.passed-over", "net.reach", "net.ray-port-blocked")


@dataclass(frozen=True)
class Choice:
    """Which checks to run: by id, glob (`net.*`) or tag. Nothing named: all of them."""

    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()

    def takes(self, id: str) -> bool:
        wanted = not self.only or any(_fits(id, word) for word in self.only)
        return wanted and not any(_fits(id, word) for word in self.skip)

    def require_known(self) -> None:
        """Raises ConfigError for a word that fits no check."""
        known = [*ALL, *FROM_NO_CHECK]
        for word in (*self.only, *self.skip):
            if not any(_fits(id, word) for id in known):
                raise ConfigError(f"no check is called {word!r}", hint="clusterctl doctor --list")


def _fits(id: str, word: str) -> bool:
    tags = ALL[id].tags if id in ALL else frozenset()
    return fnmatchcase(id, word) or word in tags


def judge(
    spec: ClusterSpec,
    facts: Mapping[str, HostFacts],
    *,
    tag: Tag | None = None,
    runs: Mapping[str, bool] | None = None,
    plan: Plan | None = None,
) -> list[Finding]:
    """Every finding on the hosts that answered, by node name; only of checks with `tag`.
    `runs`: which nodes of a local cluster run. `plan`: the split of the model that was named."""
    hosts = {
        node.name: Host(spec, node, facts[node.name], (runs or {}).get(node.name))
        for node in spec.nodes
        if node.name in facts
    }
    each = [one for one in HOST_CHECKS if tag is None or tag in one.tags]
    whole = [one for one in CLUSTER_CHECKS if tag is None or tag in one.tags]
    return [
        *run_checks(each, hosts.values()),
        *(run_checks(whole, [Cluster(spec, hosts, plan)]) if hosts else ()),
    ]
