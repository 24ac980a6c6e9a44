"""All facts of a host in one round trip: one shell script out, one text back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from clusterctl.facts import amd, docker, gpu, host, kernel, model, network, nvidia, rdma
from clusterctl.facts.sections import Section, require, script, split
from clusterctl.facts.types import HostFacts, HostInfo

# The clock is read at both ends, so that the probes' own time can be taken out.
PROBES: Mapping[str, str] = {
    "clock": host.CLOCK,
    "socket": f'echo "${docker.SOCKET}"',
    **host.PROBES,
    **network.PROBES,
    **rdma.PROBES,
    **gpu.PROBES,
    **nvidia.PROBES,
    **amd.PROBES,
    **docker.PROBES,
    **kernel.PROBES,
    **model.PROBES,
    "clock_after": host.CLOCK,
}


@dataclass(frozen=True)
class Question:
    """What the probes are to look at beside the host itself. `directories` must be there; `model`
    is an absolute path or a Hub id."""

    docker_socket: str
    image: str = ""
    directories: Sequence[str] = ()
    hf_home: str | None = None
    model: str | None = None

    @property
    def variables(self) -> dict[str, str]:
        return {
            docker.SOCKET: self.docker_socket,
            docker.IMAGE: self.image,
            model.DIRECTORIES: "\n".join(self.directories),
            model.HF_HOME: self.hf_home or "",
            model.MODEL: (self.model or "").rstrip("/"),
        }


def probe_script(question: Question) -> str:
    """POSIX sh, for the stdin of `sh -s`. Needs no root and no tool that may be missing."""
    return script(PROBES, question.variables)


def parse_facts(name: str, text: str, *, sent: float, received: float) -> HostFacts:
    """`text`: what the script wrote to stdout. `sent`, `received`: our clock around the round trip.

    Raises ClusterctlError when the answer is not whole, PreflightFailed when the host is no Linux.
    """
    sections = split(text)
    require(sections, PROBES, host=name)
    rdma_devices, rdma_behind = rdma.parse_rdma(sections["rdma"].stdout)
    rdma_behind = {**rdma.parse_ibdev2netdev(sections["ibdev2netdev"].stdout), **rdma_behind}
    on_pci = sections["gpus_on_pci"].stdout.split()
    docker_facts = docker.parse_docker(sections, sections["socket"].stdout.strip())
    names = {one.id: one.name for one in docker_facts.containers or ()}
    return HostFacts(
        name=name,
        host=_host(name, sections, sent, received),
        interfaces=network.parse_interfaces(sections, rdma_behind),
        gpu=gpu.parse_gpus(sections),
        docker=docker_facts,
        listeners=network.parse_listeners(sections),
        rdma_devices=rdma_devices,
        rdma_ports=rdma.parse_ports(sections),
        nvidia=nvidia.with_container_names(
            nvidia.parse_nvidia(sections, switches=on_pci.count("nvswitch")), names
        ),
        amd=amd.parse_amd(sections),
        kernel_log=kernel.parse_log(sections["kernel_log"]),
        firewall=kernel.parse_firewall(sections["firewall"]),
        missing_directories=model.parse_directories(sections["directories"]),
        model=model.parse_model(sections["model"]),
    )


def _host(name: str, sections: Mapping[str, Section], sent: float, received: float) -> HostInfo:
    clock, clock_after = sections["clock"], sections["clock_after"]
    *_, weights_disk = model.parse_hf_home(sections["hf_home"])
    return host.parse_host(
        name,
        sections,
        more_disks=(docker.root_disk(sections["docker_info"]), weights_disk),
        clock_offset_s=host.clock_offset(clock, clock_after, sent=sent, received=received),
    )
