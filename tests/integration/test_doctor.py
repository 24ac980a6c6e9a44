"""The doctor on real hosts: silent on healthy ones, and right about one that is not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .conftest import RunningTestbed

Finding = dict[str, Any]


@pytest.fixture
def config(testbed: RunningTestbed, tmp_path: Path) -> Path:
    file = tmp_path / "cluster.yaml"
    file.write_text(
        f"name: doctor\nhead: {testbed.hosts[0]}\nimage: {testbed.image}\n"
        f"devices: {{kind: cpu, count: 1}}\nssh: {{config: {testbed.ssh_config}}}\n"
        f"hosts: [{', '.join(testbed.hosts)}]\n"
    )
    return file


def doctor(*args: str | Path) -> tuple[int, list[Finding]]:
    argv = [sys.executable, "-m", "clusterctl", "doctor", "--json", *map(str, args)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120)
    document = json.loads(done.stdout)
    assert document["schema_version"] == 1
    return done.returncode, document["findings"]


def test_healthy_hosts_give_no_finding_and_a_snapshot_says_the_same(
    config: Path, tmp_path: Path
) -> None:
    saved = tmp_path / "facts.json"
    assert doctor("--config", config, "--strict", "--save", saved) == (0, [])
    assert doctor("--from", saved, "--strict") == (0, [])


@pytest.mark.parametrize(
    ("fault", "check", "cause"),
    [
        ("dockerd-stopped", "docker.answers", "docker-not-running"),
        ("sshd-stopped", "ssh.reach", "ssh-refused"),
        ("port-blocked:6379", "net.ray-port-blocked", "ray-gcs-unreachable"),
    ],
)
def test_a_fault_is_named_with_its_host(
    testbed: RunningTestbed, config: Path, fault: str, check: str, cause: str
) -> None:
    broken = testbed.hosts[-1]
    with testbed.fault(broken, fault):
        code, findings = doctor("--config", config)
    assert code == 1
    assert [(one["check"], one["cause"], one["host"]) for one in findings] == [
        (check, cause, broken)
    ]
    assert findings[0]["fix"]
