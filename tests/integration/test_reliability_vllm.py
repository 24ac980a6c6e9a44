"""vLLM without Ray, over two hosts: a rank of the headless node that dies in silence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .bed import Cluster
from .conftest import RunningTestbed
from .keeping import KEY, NAME, Clock, Service, record

pytestmark = [pytest.mark.full, pytest.mark.timeout(3600)]

BUILD_S = 2400
QUICK = ("--", "--compilation-config", '{"mode": 2, "backend": "eager"}')  # see test_vllm


@pytest.fixture
def vllm(testbed: RunningTestbed, smollm2: str, tmp_path: Path) -> Iterator[Service]:
    image = testbed.command("vllm-image", timeout=BUILD_S).split()[-1]
    cluster = Cluster(testbed, tmp_path, "relvllm", testbed.hosts[:2], {"image": image})
    cluster.write()
    before = cluster.snapshots()
    cluster.ok("up", "--no-sanity")
    sizes = ["--engine", "vllm", "--executor", "mp", "--pp", "2", "--dtype", "float32"]
    more = ["--name", NAME, "--max-model-len", "1024", "--timeout", "800", *QUICK]
    cluster.ok("serve", smollm2, *sizes, *more, INFERCLUSTER_API_KEY=KEY)
    yield Service(cluster, smollm2)
    cluster.ok("down", "--purge")
    assert cluster.snapshots() == before


def test_a_headless_rank_of_vllm_that_dies_in_silence(vllm: Service) -> None:
    """/health answers 200 for ever after, and no completion comes."""
    before = vllm.until_ready()
    remote = [
        rank
        for rank in before["ranks"]
        if rank["node"] == vllm.worker and "vllm serve" not in rank["title"]
    ]
    rank = max(remote, key=lambda rank: float(rank["cpu_s"]))
    clock = Clock()
    vllm.inside(vllm.worker, f"kill -9 {rank['pid']}")
    seen = vllm.until_told(lambda now: now["state"] != "ready", "said to be not ready")
    clock.stop()
    noticed = clock.seconds
    assert noticed < 30
    assert seen["state"] in ("degraded", "restarting")
    seen = vllm.until_ready(2)
    assert vllm.complete()
    clock.stop()
    record(
        "kill -9 of vLLM's headless worker (mp)",
        clock,
        ends=f"back; `ps` said so after {noticed:.0f} s",
        restarts=seen["restarts"],
        cause=seen["cause"],
    )
