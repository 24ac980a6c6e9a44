"""What is refused before anything is made, and what the refusal says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from clusterctl.containers import LABEL_CLUSTER
from clusterctl.doctor.check import Finding, troubles
from clusterctl.errors import PreflightFailed
from clusterctl.facts.types import (
    Disk,
    DockerContainer,
    DockerFacts,
    Gpu,
    GpuFacts,
    HostFacts,
    Listener,
)
from clusterctl.preflight import preflight, refuse
from clusterctl.spec import DevicesSpec
from tests.clusterctl.hosts import host_facts, spec_of

SPEC = spec_of("gpu01", "gpu02")
HEALTHY = host_facts()


def found(
    facts: HostFacts = HEALTHY,
    spec: object = SPEC,
    name: str = "gpu01",
) -> dict[str, Finding]:
    """Findings other than ok, by check."""
    assert isinstance(spec, type(SPEC))
    return {one.check or "": one for one in troubles(preflight(spec, {name: facts}))}


def with_gpus(count: int) -> HostFacts:
    gpus = tuple(Gpu(i, "nvidia", "X", f"u{i}", 1, 0) for i in range(count))
    return replace(HEALTHY, gpu=GpuFacts(gpus, "580"))


def test_a_healthy_host_passes() -> None:
    assert found() == {}


@pytest.mark.parametrize(
    ("error", "fix"),
    [
        ("Cannot connect to the Docker daemon", "sudo systemctl start docker on the host"),
        (
            "permission denied while trying to connect",
            "sudo usermod -aG docker $USER on the host, then log in anew",
        ),
    ],
)
def test_docker_that_does_not_answer(error: str, fix: str) -> None:
    finding = found(replace(HEALTHY, docker=DockerFacts(error=error)))["docker.answers"]
    assert finding.verdict == "fail"
    assert finding.message == f"Docker does not answer: {error}"
    assert finding.fix == fix


def test_gpus() -> None:
    spec = replace(SPEC, devices=DevicesSpec())
    assert found(HEALTHY, spec)["gpu.count"].message == "no GPU on this host"
    assert "--devices cpu:1" in (found(HEALTHY, spec)["gpu.count"].fix or "")
    assert "gpu.count" not in found(with_gpus(8), spec)
    nine = replace(SPEC, devices=DevicesSpec("gpu", 9))
    assert found(with_gpus(8), nine)["gpu.count"].message == "8 GPUs on this host, 9 asked for"
    assert found(with_gpus(8), spec)["docker.gpu-runtime"].verdict == "warn"


def test_a_port_that_is_taken_is_named_with_its_owner() -> None:
    facts = replace(HEALTHY, listeners=(Listener("0.0.0.0", 6379, "redis-server"),))
    assert found(facts)["ray.ports"].message == (
        "ports that Ray needs are in use: 6379 (GCS, used by redis-server)"
    )
    assert found(facts, name="gpu02") == {}  # a worker needs no GCS port
    ours = DockerContainer("c1", "clusterctl-test-gpu01", "i", "running", {LABEL_CLUSTER: "test"})
    assert found(replace(facts, docker=replace(facts.docker, containers=(ours,)))) == {}
    ended = replace(ours, state="exited")
    assert found(replace(facts, docker=replace(facts.docker, containers=(ended,)))) != {}


def test_the_head_of_another_ray_on_a_worker_is_named_though_its_node_runs() -> None:
    node = DockerContainer("c1", "clusterctl-test-gpu02", "i", "running", {LABEL_CLUSTER: "test"})
    docker = replace(HEALTHY.docker, containers=(node,))
    facts = replace(HEALTHY, docker=docker, listeners=(Listener("::", 6379, "gcs_server"),))
    finding = found(facts, name="gpu02")["ray.ports"]
    assert (finding.verdict, finding.cause) == ("fail", "port-in-use-stray-ray")
    assert finding.message == "another Ray has its head on this host: gcs_server listens on 6379"
    hidden = replace(facts, listeners=(Listener("::", 6379),))
    assert found(hidden, name="gpu02")["ray.ports"].verdict == "unknown"


def test_unknown_is_its_own_answer() -> None:
    assert found(replace(HEALTHY, listeners=None))["ray.ports"].verdict == "unknown"


def test_disk_clock_and_shm() -> None:
    small = (Disk("/var/lib/docker", 10**12, 10**9), Disk("/dev/shm", 64 << 20, 64 << 20))
    host = replace(HEALTHY.host, disks=small, clock_offset_s=-20.0)
    findings = found(replace(HEALTHY, host=host))
    assert {check: finding.verdict for check, finding in findings.items()} == {
        "docker.disk": "fail",
        "host.clock": "warn",
        "host.shm": "warn",
    }
    assert findings["host.clock"].message == "its clock is -20 s off ours"


def test_directories_to_mount() -> None:
    finding = found(replace(HEALTHY, missing_directories=("/models",)))["host.directories"]
    assert (finding.verdict, finding.message) == ("fail", "not on this host: /models")


def test_one_machine_under_two_names() -> None:
    nodes = tuple(replace(node, address="10.0.0.11") for node in SPEC.nodes)
    spec = replace(SPEC, nodes=nodes)
    findings = preflight(spec, {node.name: HEALTHY for node in spec.nodes})
    failed = [one for one in findings if one.verdict == "fail"]
    assert [(one.host, one.message) for one in failed] == [
        ("gpu02", "is the same machine as gpu01")
    ]


def test_all_problems_of_all_hosts_are_one_error() -> None:
    stopped = replace(HEALTHY, docker=DockerFacts(error="no answer"))
    findings = preflight(
        SPEC,
        {
            "gpu01": stopped,
            "gpu02": replace(host_facts("gpu02", "10.0.0.12"), missing_directories=("/models",)),
        },
    )
    with pytest.raises(PreflightFailed) as raised:
        refuse(findings)
    assert raised.value.message == (
        "2 problems, nothing was changed\n"
        "  gpu01: Docker does not answer: no answer\n"
        "  gpu02: not on this host: /models"
    )
    assert raised.value.host == "gpu01, gpu02"
    assert raised.value.exit_code == 4
