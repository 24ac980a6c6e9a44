"""Containers from what is declared alone: no host is asked. What is not declared is left out and
named; nothing is made up. Addresses alone have no stand-in: without them there is an error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from clusterctl.containers import HOME, LABEL_SPEC_HASH, ContainerSpec, spec_hash
from clusterctl.errors import ConfigError
from clusterctl.facts.types import DockerFacts, Gpu, GpuFacts, HostFacts, HostInfo
from clusterctl.hoststate import ROOTS_DIRECTORY
from clusterctl.launch import (
    CRASHES,
    HF_TARGET,
    Place,
    container_for,
    interface_variables,
    own_directories,
)
from clusterctl.render.document import Asked
from clusterctl.spec import ClusterSpec, NodeSpec

_INTERFACE_VARIABLES = tuple(interface_variables(""))


@dataclass(frozen=True)
class Containers:
    """By node name; and what could not be known, in words."""

    by_node: Mapping[str, ContainerSpec]
    places: Mapping[str, Place]
    left_out: tuple[str, ...]

    def directories_of(self, spec: ClusterSpec, name: str) -> tuple[str, ...]:
        """What has to be made on the host before it can be mounted."""
        mounted = {mount.source for mount in self.by_node[name].mounts}
        return tuple(path for path in own_directories(spec, self.places[name]) if path in mounted)

    def made_directories(self, spec: ClusterSpec) -> tuple[str, ...]:
        """The same, of all hosts."""
        every = (path for name in self.by_node for path in self.directories_of(spec, name))
        return tuple(dict.fromkeys(every))


def containers(asked: Asked, *, supervised: bool = True) -> Containers:
    """The containers that `up` would make, or, where the platform keeps what runs in them, the same
    without our supervisor's directory. Raises ConfigError naming every address that is not
    declared."""
    spec = asked.spec
    if spec.runtime != "docker":
        raise ConfigError(f"{spec.name} is a cluster of processes on this machine (up --local)")
    places = asked.places or _places(asked)
    head = places[spec.head].address
    full = {node.name: container_for(spec, node, places[node.name], head) for node in spec.nodes}
    if not supervised:
        full = {name: _unsupervised(container) for name, container in full.items()}
    if asked.places is not None:
        return Containers(full, places, ())
    left_out: dict[str, list[str]] = {}
    for node in spec.nodes:
        for what in _unknown(asked, node):
            left_out.setdefault(what, []).append(node.name)
    return Containers(
        {node.name: _without(asked, node, full[node.name]) for node in spec.nodes},
        places,
        tuple(_of_whom(what, names, spec) for what, names in left_out.items()),
    )


def _unsupervised(container: ContainerSpec) -> ContainerSpec:
    kept = [mount for mount in container.mounts if mount.target != f"{HOME}/{CRASHES}"]
    return replace(container, mounts=tuple(kept))


def _places(asked: Asked) -> dict[str, Place]:
    spec = asked.spec
    unaddressed = [node.name for node in spec.nodes if node.cluster_address is None]
    if unaddressed:
        raise ConfigError(
            f"the private address of {', '.join(unaddressed)} is not declared",
            hint="give each host its `cluster_address:` in cluster.yaml, or let --live ask the "
            "hosts",
        )
    return {node.name: _place(asked, node) for node in spec.nodes}


def _place(asked: Asked, node: NodeSpec) -> Place:
    return Place(
        facts=_facts(asked, node),
        address=node.cluster_address or "",
        interface=asked.spec.network.interface or "",
        home=HOME,
        state_dir=f"{ROOTS_DIRECTORY}/{asked.spec.name}",
    )


def _facts(asked: Asked, node: NodeSpec) -> HostFacts:
    """Only what a container's spec is made of; the rest is not looked at."""
    gpu = Gpu(0, "nvidia", "", "", None, None)
    return HostFacts(
        name=node.name,
        host=HostInfo(
            hostname=node.name,
            os="",
            kernel="",
            architecture="",
            user="",
            home="/",
            is_root=False,
            can_sudo=False,
            cpus=0,
            cpu_model=None,
            memory_bytes=0,
            memory_available_bytes=0,
            clock_offset_s=None,
            hostname_resolves_to=None,
            ulimits=(),
            disks=(),
        ),
        interfaces=(),
        gpu=GpuFacts((gpu,) * (asked.gpus_per_node or 0)),
        docker=DockerFacts(),
        listeners=None,
        rdma_devices=_declared_rdma(asked.spec, node),
    )


def _declared_rdma(spec: ClusterSpec, node: NodeSpec) -> tuple[str, ...]:
    named = {**spec.env, **node.env}.get("NCCL_IB_HCA")
    return (named,) if named else ()


def declares_rdma(spec: ClusterSpec) -> bool:
    """Who names the adapters that NCCL is to use has some."""
    return all(_declared_rdma(spec, node) for node in spec.nodes)


def counts_gpus(asked: Asked, node: NodeSpec) -> bool:
    devices = asked.spec.devices_of(node)
    return devices.kind == "cpu" or devices.count is not None or asked.gpus_per_node is not None


def _unknown(asked: Asked, node: NodeSpec) -> Iterator[str]:
    spec = asked.spec
    own = {**spec.env, **node.env}
    unset = [name for name in _INTERFACE_VARIABLES if name not in own]
    if spec.network.interface is None and unset:
        yield f"{', '.join(unset)}: declare network.interface"
    if not counts_gpus(asked, node):
        yield "--num-gpus, Ray counts them itself: declare devices: gpu:N or give --gpus-per-node"
    if spec.hf_home is None:
        yield "the mount of the Hugging Face home: declare hf_home"
    if node.user != "root":
        yield "the mount that keeps compiled code: declare user: root, or use --live"
    if not _declared_rdma(spec, node) and spec.devices_of(node).kind != "cpu":
        yield "/dev/infiniband: declare NCCL_IB_HCA in env where there are RDMA adapters"


def _without(asked: Asked, node: NodeSpec, container: ContainerSpec) -> ContainerSpec:
    """Less what is not known. Where all is declared it is `up`'s own, label and all."""
    spec = asked.spec
    targets = {HF_TARGET} if spec.hf_home is None else set()
    targets |= {f"{HOME}/cache"} if node.user != "root" else set()
    words = container.command
    known = replace(
        container,
        mounts=tuple(mount for mount in container.mounts if mount.target not in targets),
        env=container.env if spec.network.interface else _without_interface(container.env),
        command=words
        if counts_gpus(asked, node)
        else tuple(word for word in words if not word.startswith("--num-gpus=")),
    )
    labels = {**container.labels, LABEL_SPEC_HASH: spec_hash(replace(known, labels={}))}
    return replace(known, labels=labels)


def _without_interface(env: Mapping[str, str]) -> dict[str, str]:
    """Less the variables that came of no name; what the user set has a value."""
    empty = [name for name in _INTERFACE_VARIABLES if env[name] in ("", "=")]
    return {name: value for name, value in env.items() if name not in empty}


def _of_whom(what: str, names: list[str], spec: ClusterSpec) -> str:
    return what if len(names) == len(spec.nodes) else f"{', '.join(names)}: {what}"
