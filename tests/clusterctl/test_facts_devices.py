"""Parsers of NVIDIA's, AMD's and RDMA's tools. Outputs of an H200 and of two H100s are recorded;
the others are written after published outputs of such machines."""

from __future__ import annotations

from pathlib import Path

from clusterctl.doctor.checks import judge
from clusterctl.facts.amd import parse_ecc, parse_rocm_smi
from clusterctl.facts.gather import parse_facts
from clusterctl.facts.kernel import parse_firewall, parse_log, parse_numa
from clusterctl.facts.model import parse_model
from clusterctl.facts.nvidia import parse_health, parse_nvlink, parse_services, parse_topo
from clusterctl.facts.rdma import parse_devinfo, parse_ibdev2netdev, parse_ports, parse_show_gids
from clusterctl.facts.sections import Section
from clusterctl.facts.types import (
    Firewall,
    Gid,
    GpuPath,
    GpuProcess,
    ModelFacts,
    ModelFile,
    NvLinks,
    RdmaPort,
)
from tests.clusterctl.hosts import spec_of

H200 = Path(__file__).parents[1] / "data/facts/h200.txt"


def said(text: str) -> Section:
    return Section(text, "", 0)


def test_the_h200_is_in_health() -> None:
    facts = parse_facts("h200", H200.read_text(), sent=0.0, received=0.0).nvidia
    assert facts.health is not None
    [gpu] = facts.health
    assert (gpu.persistence, gpu.mig, gpu.uncorrected_errors) == (True, False, 0)
    assert (gpu.remap_pending, gpu.remap_failed, gpu.recovery) == (False, False, None)
    assert (gpu.pcie_width, gpu.pcie_width_max, gpu.slowed, gpu.processes) == (16, 16, (), ())
    assert facts.open_module is True
    assert facts.numa == ((0, "0"),)
    assert (facts.links, facts.paths) == ((), ())


def test_two_h100s_are_in_health_and_joined_by_nvlink() -> None:
    text = H200.with_name("h100x2.txt").read_text()
    facts = parse_facts("h100x2", text, sent=0.0, received=0.0)
    assert [gpu.name for gpu in facts.gpu.gpus] == ["NVIDIA H100 80GB HBM3"] * 2
    assert facts.nvidia.links == (NvLinks(0, 18, 0), NvLinks(1, 18, 0))
    assert facts.nvidia.paths == (GpuPath("GPU0", "GPU1", "NV18"),)
    found = {one.check: one for one in judge(spec_of("h100x2"), {"h100x2": facts})}
    assert {f"{id}: {one.message}" for id, one in found.items() if one.verdict == "fail"} == {
        "docker.answers: Docker does not answer: no Docker socket at /var/run/docker.sock: "
        "Docker is not installed"
    }
    healthy = ("driver", "ecc", "remap", "recovery", "fabric", "slowed", "pcie", "mig", "xid")
    for id in (*healthy, "persistence", "nvlink", "paths"):
        assert found[f"gpu.{id}"].verdict == "ok"


SICK = """\
<?xml version="1.0" ?>
<nvidia_smi_log><gpu id="00000000:1B:00.0">
  <uuid>GPU-1</uuid><persistence_mode>Disabled</persistence_mode>
  <fabric><state>In Progress</state></fabric>
  <gpu_recovery_action>Reset</gpu_recovery_action>
  <ecc_errors><volatile>
    <dram_uncorrectable>2</dram_uncorrectable><sram_uncorrectable_parity>1</sram_uncorrectable_parity>
    <dram_correctable>9</dram_correctable>
  </volatile></ecc_errors>
  <remapped_rows><remapped_row_pending>Yes</remapped_row_pending></remapped_rows>
  <clocks_event_reasons>
    <clocks_event_reason_hw_thermal_slowdown>Active</clocks_event_reason_hw_thermal_slowdown>
    <clocks_event_reason_gpu_idle>Active</clocks_event_reason_gpu_idle>
  </clocks_event_reasons>
  <processes><process_info>
    <pid>4711</pid><process_name>VLLM::Worker_TP0</process_name><used_memory>71000 MiB</used_memory>
  </process_info></processes>
</gpu></nvidia_smi_log>
4711\troot\t0::/system.slice/docker-{id}.scope
"""


def test_a_sick_gpu_and_who_holds_its_memory() -> None:
    [gpu] = parse_health(SICK.replace("{id}", "ab" * 32))
    assert (gpu.persistence, gpu.fabric, gpu.recovery) == (False, "In Progress", "Reset")
    assert (gpu.uncorrected_errors, gpu.remap_pending, gpu.remap_failed) == (3, True, None)
    assert gpu.slowed == ("hardware thermal slowdown",)
    assert gpu.processes == (GpuProcess(4711, "VLLM::Worker_TP0", 71000, "root", "ab" * 32),)


def test_nvlinks_that_are_inactive_are_counted() -> None:
    text = (
        "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1)\n\t Link 0: 26.562 GB/s\n"
        "\t Link 1: <inactive>\n"
        "GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-2)\n\t Link 0: 26.562 GB/s\n"
        "GPU 2: NVIDIA L40S (UUID: GPU-3)\n"
    )
    assert parse_nvlink(text) == (NvLinks(0, 1, 1), NvLinks(1, 1, 0))


def test_the_topology_matrix() -> None:
    text = (
        "\t\x1b[4mGPU0\tGPU1\tNIC0\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\x1b[0m\n"
        "GPU0\t X \tNV18\tPIX\t0-55\t0\t\tN/A\n"
        "GPU1\tNV18\t X \tSYS\t56-111\t1\t\tN/A\n"
        "NIC0\tPIX\tSYS\t X \t\t\t\t\n\nLegend:\n\n  X    = Self\n"
    )
    paths, numa = parse_topo(text)
    assert paths == (
        GpuPath("GPU0", "GPU1", "NV18"),
        GpuPath("GPU0", "NIC0", "PIX"),
        GpuPath("GPU1", "NIC0", "SYS"),
    )
    assert numa == ((0, "0"), (1, "1"))


def test_services() -> None:
    assert parse_services(said("nvidia-fabricmanager failed\n")) == (
        ("nvidia-fabricmanager", "failed"),
    )


DEVINFO = """\
hca_id:\tmlx5_0
\ttransport:\t\t\tInfiniBand (0)
\tphys_port_cnt:\t\t\t1
\t\tport:\t1
\t\t\tstate:\t\t\tPORT_ACTIVE (4)
\t\t\tmax_mtu:\t\t4096 (5)
\t\t\tactive_mtu:\t\t1024 (3)
\t\t\tlink_layer:\t\tEthernet
"""
GIDS = """\
DEV\tPORT\tINDEX\tGID\t\t\t\t\tIPv4  \t\tVER\tDEV
---\t----\t-----\t---\t\t\t\t\t------------  \t---\t---
mlx5_0\t1\t0\tfe80:0000:0000:0000:0e42:a1ff:fe5d:4db8\t\t\tv1\tens1f0
mlx5_0\t1\t5\t0000:0000:0000:0000:0000:ffff:ac13:003c\t172.19.0.60  \tv2\tens1f0
n_gids_found=2
"""


def test_rdma_ports_with_the_mtu_of_verbs_and_the_gids_of_show_gids() -> None:
    sections = {
        "rdma_ports": said("port\tmlx5_0\t1\t4: ACTIVE\t100 Gb/sec (4X EDR)\tEthernet\n"),
        "ibv_devinfo": said(DEVINFO),
        "show_gids": said(GIDS),
    }
    v1 = Gid(0, "fe80:0000:0000:0000:0e42:a1ff:fe5d:4db8", "IB/RoCE v1", "ens1f0")
    v2 = Gid(5, "0000:0000:0000:0000:0000:ffff:ac13:003c", "RoCE v2", "ens1f0")
    assert parse_show_gids(GIDS) == {("mlx5_0", 1): (v1, v2)}
    assert parse_devinfo(DEVINFO)["mlx5_0", 1].mtu == 1024
    assert parse_ports(sections) == (
        RdmaPort("mlx5_0", 1, "ACTIVE", "Ethernet", 100.0, 1024, (v1, v2)),
    )
    assert parse_ports({**sections, "rdma_ports": Section()}) is None


def test_ibdev2netdev() -> None:
    assert parse_ibdev2netdev("mlx5_0 port 1 ==> ib0 (Up)\n") == {"ib0": "mlx5_0"}


def test_amd() -> None:
    series = said('WARNING: x\n{"card0": {"Card Series": "AMD Instinct MI300X"}}\n')
    assert list(parse_rocm_smi(series)) == [(0, "AMD Instinct MI300X")]
    ecc = '[{"gpu": 0, "ecc": {"total_uncorrectable_count": 4}}, {"gpu": 1, "ecc": "N/A"}]'
    assert list(parse_ecc(said(ecc))) == [(0, 4)]
    assert list(parse_ecc(said('{"gpu_data": []}'))) == []


def test_the_kernels_log_may_be_closed_to_us() -> None:
    assert parse_log(Section("", "", 1)) is None
    assert parse_log(said("NVRM: Xid (PCI:0000:1b:00): 79, GPU has fallen off the bus.\n")) == (
        "NVRM: Xid (PCI:0000:1b:00): 79, GPU has fallen off the bus.",
    )


def test_firewalls() -> None:
    drop = "-A INPUT -p tcp -m tcp --dport 6379 -j DROP"
    text = f"ufw yes\nfirewalld inactive\nread\n:INPUT DROP [0:0]\n{drop}\n"
    assert parse_firewall(said(text)) == Firewall("DROP", (drop,), ufw=True)
    assert parse_firewall(said("ufw \nfirewalld \n")) == Firewall(None)


def test_numa() -> None:
    assert parse_numa(said("0-1\n1\n")) == (2, True)
    assert parse_numa(said("0\n0\n")) == (1, False)


def test_a_model_with_a_shard_cut_off_and_one_missing() -> None:
    text = (
        "path\t/m\nexists\nfile\tconfig.json\t10\t\nfile\ta.safetensors\t90\t100\n"
        'digest\tconfig.json\tabc\nconfig\t{"a": 1}\nmissing\tb.safetensors\n'
    )
    assert parse_model(said(text)) == ModelFacts(
        "/m",
        True,
        (ModelFile("config.json", 10), ModelFile("a.safetensors", 90, 100)),
        (("config.json", "abc"),),
        ("b.safetensors",),
        '{"a": 1}',
    )
    assert parse_model(Section("", "", 3)) is None
