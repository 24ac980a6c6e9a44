"""The first cluster.yaml: complete, commented, and read back as what was asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from clusterctl.config import Flags, load_flags, load_spec
from clusterctl.errors import Unreachable
from clusterctl.facts.types import Address, Gpu, GpuFacts, HostFacts
from clusterctl.spec import ClusterSpec, DevicesSpec
from clusterctl.starter import starter
from tests.clusterctl.test_facts_gather import recorded


def asked(*hosts: str, ssh_config: str | None = None) -> ClusterSpec:
    flags = Flags(head=hosts[0], workers=hosts[1:], ssh_config=ssh_config)
    return load_flags(flags, {}, Path("/")).spec


def at(name: str, ip: str, gpus: int = 0) -> HostFacts:
    """The recorded Docker host, under another name and address."""
    facts = recorded("debian-docker20")
    lo, eth0 = facts.interfaces
    cards = tuple(Gpu(i, "nvidia", "NVIDIA H200", f"GPU-{i}", 143771, 0) for i in range(gpus))
    return replace(
        facts,
        name=name,
        interfaces=(lo, replace(eth0, addresses=(Address(ip, 24),))),
        gpu=GpuFacts(cards),
    )


def read_back(text: str, directory: Path) -> ClusterSpec:
    (directory / "cluster.yaml").write_text(text)
    return load_spec(Flags(), {}, directory).spec


def test_names_alone(tmp_path: Path) -> None:
    spec = asked("alice@gpu01:2222", "gpu02", ssh_config="/home/alice/ssh: config")
    assert read_back(starter(spec, {}, {}), tmp_path) == spec


def test_what_the_hosts_said_stands_beside_them(tmp_path: Path) -> None:
    spec = asked("gpu01", "gpu02")
    facts = {"gpu01": at("gpu01", "10.3.0.1", 8), "gpu02": at("gpu02", "10.3.0.2", 8)}
    text = starter(spec, facts, {})
    lines = text.splitlines()
    assert (
        "  - gpu01  # 8 x NVIDIA H200, 24 GiB, Debian GNU/Linux 12 (bookworm), Docker "
        "20.10.24+dfsg1"
    ) in lines
    assert "devices: auto" in lines
    assert (
        "# How the nodes reach each other. Chosen now: 10.3.0.0/24 is the only subnet that all "
        "nodes share."
    ) in lines
    assert "#   subnet: 10.3.0.0/24" in lines
    assert read_back(text, tmp_path) == spec


def test_hosts_without_gpus_are_asked_for_processes(tmp_path: Path) -> None:
    text = starter(asked("gpu01"), {"gpu01": at("gpu01", "10.3.0.1")}, {})
    assert read_back(text, tmp_path).devices == DevicesSpec("cpu", 1)


def test_a_host_that_did_not_answer_says_why(tmp_path: Path) -> None:
    spec = asked("gpu01", "gpu02")
    failures = {"gpu02": Unreachable("no route to host\nmore", host="gpu02")}
    text = starter(spec, {"gpu01": at("gpu01", "10.3.0.1", 1)}, failures)
    assert "  - gpu02  # not reached: no route to host" in text.splitlines()
    assert read_back(text, tmp_path) == spec


def test_hosts_that_share_no_subnet_are_told_so_at_once() -> None:
    facts = {"a": at("a", "10.3.0.1", 1), "b": at("b", "10.4.0.1", 1)}
    text = starter(asked("a", "b"), facts, {})
    assert "Needed here: the hosts share no private subnet." in text
