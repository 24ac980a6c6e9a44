"""A first cluster.yaml, with comments, from what the hosts said about themselves. PURE."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_interface

from clusterctl.config.document import dump_document
from clusterctl.errors import ClusterctlError, PreflightFailed
from clusterctl.facts.types import HostFacts
from clusterctl.network import choose_addresses
from clusterctl.spec import DEFAULT_IMAGE, ClusterSpec, NodeSpec

_TEMPLATE = """\
# cluster.yaml: read by `clusterctl up` and every other command in this directory.
# `clusterctl config show --origin` says what holds; `clusterctl config schema` lists every key.
# ${{VARIABLE}} and ${{VARIABLE:-default}} are replaced from the environment.

name: {name}

# The host that runs Ray's head and serves the models.
head: {head}

# [USER@]HOST[:PORT], ranges such as gpu[01-16], or a mapping with name, address, user, port,
# identity, cluster_address, labels, env and devices.
hosts:
{hosts}

# The same image on every host; it must hold Ray, torch and python3.
# image: {image}

# auto (every GPU), gpu:4 (four a host) or cpu:2 (two processes a host, without GPUs).
devices: {devices}

# Set in every container. Not for secrets: `docker inspect` shows it.
# env:
#   NCCL_DEBUG: INFO

# Directories with models, at the same path on every host.
# model_dirs: [/models]

# Other directories: SOURCE:TARGET or SOURCE:TARGET:ro.
# mounts: []

# How the nodes reach each other. {network}
# network:
#   subnet: {subnet}
{ssh}"""

_SSH = """
# Files on this machine, for reaching the hosts.
{section}"""


def starter(
    spec: ClusterSpec,
    facts: Mapping[str, HostFacts],
    failures: Mapping[str, ClusterctlError],
) -> str:
    """The text. Hosts in neither `facts` nor `failures` were not asked."""
    subnet, network = _network(spec, facts)
    return _TEMPLATE.format(
        name=spec.name,
        head=spec.head,
        hosts="\n".join(_host(node, _known(node, facts, failures)) for node in spec.nodes),
        image=DEFAULT_IMAGE,
        devices=_devices(facts.values()),
        network=network,
        subnet=subnet,
        ssh=_ssh(spec),
    )


def _ssh(spec: ClusterSpec) -> str:
    if spec.ssh.config is None:
        return ""
    return _SSH.format(section=dump_document({"ssh": {"config": spec.ssh.config}}))


def _host(node: NodeSpec, known: str) -> str:
    entry = {
        "name": node.name,
        "address": node.address,
        "user": node.user,
        "port": node.port,
    }
    given = {key: value for key, value in entry.items() if value is not None}
    plain = node.name if given == {"name": node.name, "address": node.name} else _flow(given)
    return f"  - {plain}{f'  # {known}' if known else ''}"


def _flow(entry: Mapping[str, object]) -> str:
    """{name: gpu01, port: 2222}"""
    lines = dump_document(entry).splitlines()
    return "{" + ", ".join(lines) + "}"


def _known(
    node: NodeSpec, facts: Mapping[str, HostFacts], failures: Mapping[str, ClusterctlError]
) -> str:
    if node.name in facts:
        return ", ".join(_described(facts[node.name]))
    if node.name in failures:
        return f"not reached: {failures[node.name].message.splitlines()[0]}"
    return ""


def _described(facts: HostFacts) -> Iterator[str]:
    names = [gpu.name for gpu in facts.gpu.gpus]
    for name in dict.fromkeys(names):
        yield f"{names.count(name)} x {name}"
    if not names:
        yield f"no GPU, {facts.host.cpus} CPUs"
    yield f"{facts.host.memory_bytes / 1024**3:.0f} GiB"
    yield facts.host.os
    yield f"Docker {facts.docker.version}" if facts.docker.version else "Docker not seen"


def _devices(facts: Iterable[HostFacts]) -> str:
    """CPU slots only where every host that answered has no GPU."""
    counts = [len(host.gpu.gpus) for host in facts]
    return "cpu:1" if counts and not any(counts) else "auto"


def _network(spec: ClusterSpec, facts: Mapping[str, HostFacts]) -> tuple[str, str]:
    """An example subnet and what the hosts' interfaces say."""
    if len(facts) < len(spec.nodes):
        return "10.0.0.0/24", "Chosen by `up` from the subnets that all hosts share."
    try:
        chosen = choose_addresses(spec, facts)[spec.head]
    except PreflightFailed as error:
        return "10.0.0.0/24", f"Needed here: {error.message.splitlines()[0].rstrip(':')}."
    return _subnet_of(chosen.address, facts[spec.head]), f"Chosen now: {chosen.reason}."


def _subnet_of(ip: str, facts: HostFacts) -> str:
    bound = (address for interface in facts.interfaces for address in interface.addresses)
    prefix = next(address.prefix for address in bound if address.ip == ip)
    return str(ip_interface(f"{ip}/{prefix}").network)
