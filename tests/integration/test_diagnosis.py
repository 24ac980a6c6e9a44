"""An `up` or a `serve` that fails on real hosts ends with the right diagnosis, unasked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from .bed import Cluster, brought_down, hang_a_rank
from .conftest import MODEL, RunningTestbed

pytestmark = pytest.mark.full
NAME = "diagnosed"
COMMAND_S = 290
FORMATION_S = 240
SANITY_S = 60


@dataclass(frozen=True)
class Bed:
    testbed: RunningTestbed
    directory: Path

    def run(self, *args: str) -> subprocess.CompletedProcess[str]:
        env = os.environ | {"XDG_CONFIG_HOME": str(self.directory), "INFERCLUSTER_API_KEY": "sk"}
        return subprocess.run(
            [sys.executable, "-m", "clusterctl", *args],
            cwd=self.directory,
            env=env,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
        )

    def refused(self, *args: str) -> dict[str, Any]:
        done = self.run("serve", "--name", NAME, "--json", *args)
        assert done.returncode != 0, done.stdout
        error: dict[str, Any] = json.loads(done.stdout)["error"]
        return error

    def on(self, host: str, command: str) -> str:
        inside = f"docker exec clusterctl-{NAME}-{host} sh -c '{command}'"
        return self.testbed.ssh(host, inside)


@pytest.fixture(scope="module")
def bed(
    testbed: RunningTestbed, smollm2: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Bed]:
    made = Bed(testbed, tmp_path_factory.mktemp(NAME))
    head, worker = testbed.hosts[:2]
    (made.directory / "cluster.yaml").write_text(
        f"name: {NAME}\nhead: {head}\nimage: {testbed.image}\n"
        "devices: {kind: cpu, count: 1}\nmodel_dirs: [/models]\n"
        f"ssh: {{config: {testbed.ssh_config}}}\nhosts: [{head}, {worker}]\n"
    )
    up = made.run("up", "--no-sanity")
    assert up.returncode == 0, up.stderr
    yield made
    made.run("down", "--purge")


@pytest.fixture
def other(testbed: RunningTestbed, smollm2: str, tmp_path: Path) -> Iterator[Cluster]:
    """A cluster that is yet to come up: these tests stand before those of `bed`."""
    with brought_down(Cluster(testbed, tmp_path, "other", testbed.hosts[:2])) as cluster:
        cluster.write(limits={"formation_timeout": FORMATION_S, "sanity_timeout": SANITY_S})
        yield cluster


def test_an_image_that_the_registry_lacks(other: Cluster) -> None:
    other.write(image=f"{other.testbed.registry}/infercluster-node:absent")
    code, error, _ = other.refused("up")
    assert code == 4, error
    assert "(docker-image-not-found)" in error["message"]
    assert "infercluster-node:absent" in error["hint"]


def test_a_rank_that_hangs_in_the_check_of_an_up(other: Cluster) -> None:
    struck = other.hosts[1]
    with other.start("up", "--json") as process:
        hang_a_rank(other.testbed, struck)
        out, err = process.communicate(timeout=COMMAND_S)
    assert process.returncode == 5, err
    error = json.loads(out)["error"]
    assert error["host"] == struck, error
    assert f"rank 1 ({struck})" in error["message"]


def test_a_model_that_one_host_lacks(other: Cluster) -> None:
    struck = other.hosts[1]
    with other.testbed.fault(struck, f"model-missing:{MODEL}"):
        other.ok("up", "--no-sanity")
        code, error, _ = other.refused("serve", f"/models/{MODEL}", "--pp", "2")
    assert (code, error["host"]) == (4, struck), error
    assert f"/models/{MODEL}" in error["message"]
    assert error["hint"]


def test_too_little_memory_for_one_request(bed: Bed) -> None:
    few = ("--", "--kv-cache-memory-bytes", "200000")
    error = bed.refused(f"/models/{MODEL}", "--pp", "2", *few)
    assert "(kv-cache-max-len)" in error["message"]
    assert "--max-model-len" in error["hint"]


def test_a_request_longer_than_the_model_allows(bed: Bed) -> None:
    error = bed.refused(f"/models/{MODEL}", "--pp", "2", "--max-model-len", "100000")
    assert "(max-model-len-too-large)" in error["message"]
    assert "8192" in error["hint"]


def test_a_wrong_split_is_refused_with_the_legal_ones(bed: Bed) -> None:
    error = bed.refused(f"/models/{MODEL}", "--tp", "2")
    refusal = "9 attention heads cannot be split over tp=2 (legal for this model: 1, 3)"
    assert refusal in error["message"]


def test_a_port_that_is_taken(bed: Bed) -> None:
    error = bed.refused(f"/models/{MODEL}", "--pp", "2", "--port", "22")
    assert ":22 cannot be bound" in error["message"]
    assert "--port" in error["hint"]


def test_a_firewall_between_the_ranks(bed: Bed) -> None:
    with bed.testbed.fault(bed.testbed.hosts[0], "return-ports-blocked"):
        soon = ("--", "--start-timeout-s", "60")
        error = bed.refused(f"/models/{MODEL}", "--pp", "2", *soon)
    assert "(ray-gcs-unreachable)" in error["message"]
    assert f"{bed.testbed.addresses[bed.testbed.hosts[0]]}:6379" in error["message"]


def test_a_rank_killed_while_it_loads(bed: Bed) -> None:
    worker = bed.testbed.hosts[1]
    killed = threading.Thread(target=_kill_a_rank, args=(bed, worker))
    killed.start()
    error = bed.refused(f"/models/{MODEL}", "--pp", "2")
    killed.join()
    assert "(remote-rank-died)" in error["message"]


def _kill_a_rank(bed: Bed, host: str) -> None:
    """The first that Ray has given its actor: one that has not begun is only started again."""
    bed.on(
        host,
        "for i in $(seq 1500); do for f in $(grep -lz ^ray::RankActor /proc/[0-9]*/cmdline "
        "2>/dev/null); do p=${f#/proc/}; kill -9 ${p%/cmdline} && exit; done; sleep 0.1; done",
    )
