"""What joins the GPUs: lines and drawing, from recorded facts of real hosts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

from clusterctl.facts.types import (
    Address,
    Gpu,
    GpuFacts,
    GpuPath,
    HostFacts,
    Interface,
    NvidiaFacts,
)
from clusterctl.topology import Measured, lines, svg, topology
from tests.clusterctl.hosts import host_facts, spec_of

SPEC = spec_of("gpu01", "gpu<02>")
GPU = Gpu(0, "nvidia", "NVIDIA H200", "", 143771, 0)


def seen(name: str, last: int, *kinds: str) -> HostFacts:
    rail = Interface("ib0", True, (Address(f"10.1.0.{last}", 16),), 4096, 400000, "", "mlx5_0")
    eth = Interface("eth0", True, (Address(f"10.0.0.{last}", 24),), 1500, None, "")
    docker = Interface("docker0", True, (Address("172.17.0.1", 16),), 1500, None, "", None, True)
    paths = tuple(GpuPath("GPU0", f"GPU{i + 1}", kind) for i, kind in enumerate(kinds))
    return replace(
        host_facts(name),
        name=name,
        interfaces=(eth, rail, docker),
        gpu=GpuFacts((GPU,) * 4),
        nvidia=NvidiaFacts(paths=(*paths, GpuPath("GPU0", "NIC0", "PIX"))),
    )


FACTS = {"gpu01": seen("gpu01", 1, "NV18", "NV18"), "gpu<02>": seen("gpu<02>", 2, "NV12", "SYS")}


def test_lines() -> None:
    found = topology(SPEC, FACTS, Measured("8 ranks, 180.20 GB/s, NET/IB/GDRDMA", 0.0))
    assert list(lines(found)) == [
        "test: 2 hosts",
        "",
        "gpu01 (head)",
        "├─ 4 x NVIDIA H200, 140 GiB",
        "├─ joined by NV18 between all",
        "├─ eth0  10.0.0.1/24  speed unknown",
        "└─ ib0  10.1.0.1/16  400 Gbit/s  RDMA mlx5_0",
        "",
        "gpu<02> (worker)",
        "├─ 4 x NVIDIA H200, 140 GiB",
        "├─ joined by NV12 (pairs: 1), SYS (pairs: 1)",
        "├─ eth0  10.0.0.2/24  speed unknown",
        "└─ ib0  10.1.0.2/16  400 Gbit/s  RDMA mlx5_0",
        "",
        "10.0.0.0/24: gpu01 eth0 ── gpu<02> eth0",
        "10.1.0.0/16: gpu01 ib0 ── gpu<02> ib0",
        "all ranks together: 8 ranks, 180.20 GB/s, NET/IB/GDRDMA (1970-01-01 00:00 UTC)",
    ]


def test_what_was_not_learnt_is_not_drawn() -> None:
    bare = {name: replace(host_facts(name), name=name, interfaces=()) for name in FACTS}
    found = topology(SPEC, bare)
    assert [host.joined for host in found.hosts] == [None, None]
    assert found.networks == ()
    assert "└─ no GPU seen" in list(lines(found))
    assert "not measured" in list(lines(found))[-1]


def test_the_drawing_says_the_same(tmp_path: Path) -> None:
    root = ElementTree.fromstring(svg(topology(SPEC, FACTS)))
    texts = [one.text for one in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "gpu<02> (worker)" in texts
    assert "10.1.0.0/16, links of 400 Gbit/s" in texts
    taps = [
        one for one in root.iter("{http://www.w3.org/2000/svg}line") if one.get("class") == "tap"
    ]
    assert len(taps) == 4
