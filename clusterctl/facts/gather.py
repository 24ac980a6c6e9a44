"""All facts of a host in one round trip: one shell script out, one text back."""

from __future__ import annotations

from collections.abc import Mapping

from clusterctl.facts import docker, gpu, host, network, rdma
from clusterctl.facts.sections import require, script, split
from clusterctl.facts.types import HostFacts

# The clock is read at both ends, so that the probes' own time can be taken out.
PROBES: Mapping[str, str] = {
    "clock": host.CLOCK,
    "socket": f'echo "${docker.SOCKET}"',
    **host.PROBES,
    **network.PROBES,
    **rdma.PROBES,
    **gpu.PROBES,
    **docker.PROBES,
    "clock_after": host.CLOCK,
}


def probe_script(docker_socket: str) -> str:
    """POSIX sh, for the stdin of `sh -s`. Needs no root and no tool that may be missing."""
    return script(PROBES, {docker.SOCKET: docker_socket})


def parse_facts(name: str, text: str, *, sent: float, received: float) -> HostFacts:
    """`text`: what the script wrote to stdout. `sent`, `received`: our clock around the round trip.

    Raises ClusterctlError when the answer is not whole, PreflightFailed when the host is no Linux.
    """
    sections = split(text)
    require(sections, PROBES, host=name)
    rdma_devices, rdma_behind = rdma.parse_rdma(sections["rdma"].stdout)
    offset = host.clock_offset(
        sections["clock"], sections["clock_after"], sent=sent, received=received
    )
    return HostFacts(
        name=name,
        host=host.parse_host(
            name,
            sections,
            docker_disk=docker.root_disk(sections["docker_info"]),
            clock_offset_s=offset,
        ),
        interfaces=network.parse_interfaces(sections, rdma_behind),
        gpu=gpu.parse_gpus(sections),
        docker=docker.parse_docker(sections, sections["socket"].stdout.strip()),
        listeners=network.parse_listeners(sections),
        rdma_devices=rdma_devices,
    )
