"""What `doctor --deep` says of the NVIDIA GPUs of this machine: nodes as directories, the check and
NCCL for real."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from clusterctl import collectives
from clusterctl.containers import LABEL_CLUSTER
from clusterctl.doctor.check import Finding, run_checks, troubles
from clusterctl.doctor.collectives import COLLECTIVE_CHECKS, Collectives
from clusterctl.doctor.devicespeed import SPEED_CHECKS
from clusterctl.doctor.subject import Plan
from clusterctl.events import silent
from clusterctl.facts.types import DockerContainer, HostFacts
from clusterctl.session import Session
from tests.clusterctl.localcluster import LocalCluster

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
]


@contextmanager
def nodes(root: Path, *devices: int) -> Iterator[LocalCluster]:
    made = LocalCluster(root, devices, "gpu")
    try:
        yield made
    finally:
        made.close()


def with_node(facts: HostFacts) -> HostFacts:
    box = DockerContainer("1", "node", "image", "running", {LABEL_CLUSTER: "c"})
    return replace(facts, docker=replace(facts.docker, containers=(box,)))


def collect(session: Session, plan: Plan) -> Collectives:
    facts = {name: with_node(one) for name, one in session.facts().items()}
    return collectives.collect(session, facts, {}, silent, plan)


def judged(seen: Collectives) -> Mapping[str, Finding]:
    found = {str(one.check): one for one in run_checks((*COLLECTIVE_CHECKS, *SPEED_CHECKS), [seen])}
    print("\n".join(f"{id}: {one.verdict}: {one.message}" for id, one in found.items()))  # noqa: T201
    return found


def test_two_healthy_gpus_of_one_host_give_no_finding(tmp_path: Path) -> None:
    with nodes(tmp_path, 2) as cluster, cluster.session() as session:
        found = judged(collect(session, Plan(2, 1, "as asked")))
    assert troubles(found.values()) == []
    assert {one.verdict for id, one in found.items() if id.startswith("gpu.")} == {"ok"}
    assert found["collective.transport"].verdict == "ok"
