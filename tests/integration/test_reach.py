"""What keeps hosts from each other is found before anything is made on them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import RunningTestbed

PREFLIGHT_FAILED = 4


def plan(
    testbed: RunningTestbed, tmp_path: Path, head: str, worker: str
) -> subprocess.CompletedProcess[str]:
    """`up --dry-run` of two hosts as a cluster of their own."""
    config = tmp_path / "cluster.yaml"
    config.write_text(
        f"name: reach\nhead: {head}\nimage: {testbed.image}\n"
        f"devices: {{kind: cpu, count: 1}}\nssh: {{config: {testbed.ssh_config}}}\n"
        f"hosts: [{head}, {worker}]\n"
    )
    argv = [sys.executable, "-m", "clusterctl", "up", "--dry-run", "--config", str(config)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=120)


def test_hosts_that_reach_each_other_are_planned(testbed: RunningTestbed, tmp_path: Path) -> None:
    *_, head, worker = testbed.hosts
    done = plan(testbed, tmp_path, head, worker)
    assert done.returncode == 0, done.stderr
    for host in (head, worker):
        assert f"VLLM_HOST_IP={testbed.addresses[host]}" in done.stdout


@pytest.mark.parametrize("on_the_head", [True, False])
def test_a_firewall_on_rays_port_is_named(
    testbed: RunningTestbed, tmp_path: Path, on_the_head: bool
) -> None:
    *_, other, broken = testbed.hosts
    head, worker = (broken, other) if on_the_head else (other, broken)
    before = testbed.snapshot(worker)
    with testbed.fault(broken, "port-blocked:6379"):
        done = plan(testbed, tmp_path, head, worker)
    assert done.returncode == PREFLIGHT_FAILED, done.stderr
    assert (
        f"error: {worker}: cannot reach Ray's port 6379 on the head, {testbed.addresses[head]} "
        f"({head}): no answer within 4 s\n"
        f"fix: let TCP 6379 pass the firewalls of {head} and {worker}, "
    ) in done.stderr
    assert testbed.snapshot(worker) == before
