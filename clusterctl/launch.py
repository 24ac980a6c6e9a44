"""What `up` is going to do, as a value. PURE: spec + what was seen on the hosts -> LaunchPlan.
`--dry-run` prints it; `up` executes the same one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import PurePosixPath
from typing import Literal

from clusterctl import __version__
from clusterctl.containers import (
    LABEL_CLUSTER,
    LABEL_GPUS,
    LABEL_NODE,
    LABEL_ROLE,
    LABEL_SPEC_HASH,
    LABEL_VERSION,
    ContainerSpec,
    Ulimit,
    container_name,
    spec_hash,
)
from clusterctl.fabric import Derived, Variables
from clusterctl.facts.types import HostFacts
from clusterctl.raycluster import ExpectedNode, ray_start_argv
from clusterctl.runtime import SeenContainer
from clusterctl.spec import ClusterSpec, MountSpec, NodeSpec, RaySpec

Action = Literal["keep", "start", "create", "replace", "remove"]

SUPERVISOR = "supervisor.py"
SUPERVISION = "supervision"  # the package that it runs
RAY_PROBE = "ray_probe.py"
NODE_PROBE = "node_probe.py"
RAY_TOKEN = "secrets/ray_token"
BOOT_FILE = "boot"
OURS = "clusterctl"  # the origin of a variable that is the same for everybody
CRASHES = "crashes"  # where the supervisor keeps what it saw of each death
HF_TARGET = "/root/.cache/huggingface"  # one path on every node, whatever the hosts' homes are
LOCAL_PORTS = 64  # of one node, where several share a machine


@dataclass(frozen=True)
class NodePlan:
    """One node's part. `pull` says the image is not on the host yet. `container` is None for
    remove. `host` is the node whose link reaches it: another one for what left the cluster.
    `origins`: of every variable of the container's environment."""

    expected: ExpectedNode
    action: Action
    reason: str
    container: ContainerSpec | None
    pull: bool = False
    existing_id: str | None = None
    host: str = ""
    origins: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LaunchPlan:
    cluster: str
    nodes: tuple[NodePlan, ...]

    @property
    def changes(self) -> tuple[NodePlan, ...]:
        return tuple(node for node in self.nodes if node.action != "keep")

    @property
    def disturbed(self) -> tuple[NodePlan, ...]:
        """Nodes on which something that runs would end."""
        return tuple(node for node in self.nodes if node.action in ("replace", "remove"))

    @property
    def made(self) -> tuple[NodePlan, ...]:
        """Nodes that get a new container."""
        return tuple(node for node in self.nodes if node.action in ("create", "replace"))


@dataclass(frozen=True)
class Place:
    """What was seen of one node's host. `home` is Runtime.home, `state_dir` the directory that
    the host keeps for this cluster; `image_id` of the spec's image there, None: not known;
    `fabric` what its RDMA ports ask for."""

    facts: HostFacts
    address: str
    interface: str
    home: str
    state_dir: str
    containers: tuple[SeenContainer, ...] = ()
    image_present: bool = True
    image_id: str | None = None
    fabric: Variables = field(default_factory=dict)


def plan(
    spec: ClusterSpec, places: Mapping[str, Place], leaving: Mapping[str, Sequence[SeenContainer]]
) -> LaunchPlan:
    """`leaving`: this cluster's containers on hosts that are no longer in the spec, by host."""
    nodes = [_decide(spec, node, places) for node in spec.nodes]
    if next(plan for plan in nodes if plan.expected.role == "head").action != "keep":
        nodes = [_rejoin(plan) for plan in nodes]
    strangers = [
        _remove(host, seen)
        for host, place in places.items()
        for seen in place.containers
        if seen.labels.get(LABEL_NODE) != host
    ]
    left = [_remove(host, seen) for host, all_seen in leaving.items() for seen in all_seen]
    return LaunchPlan(spec.name, (*nodes, *strangers, *left))


def expected_nodes(spec: ClusterSpec, places: Mapping[str, Place]) -> tuple[ExpectedNode, ...]:
    return tuple(expected_node(spec, node, places[node.name]) for node in spec.nodes)


def expected_node(spec: ClusterSpec, node: NodeSpec, place: Place) -> ExpectedNode:
    kind, count = devices_of(spec, node, place.facts)
    return ExpectedNode(node.name, place.address, expected_role(spec, node), kind, count)


def expected_role(spec: ClusterSpec, node: NodeSpec) -> Literal["head", "worker"]:
    return "head" if node.name == spec.head else "worker"


def devices_of(
    spec: ClusterSpec, node: NodeSpec, facts: HostFacts
) -> tuple[Literal["gpu", "cpu"], int]:
    """What a node gives the cluster. ("gpu", 0) is for preflight to refuse."""
    asked = spec.devices_of(node)
    if asked.kind == "cpu":
        return "cpu", 1 if asked.count is None else asked.count
    return "gpu", len(facts.gpu.gpus) if asked.count is None else asked.count


def node_ray(spec: ClusterSpec, node: NodeSpec) -> RaySpec:
    """Ray's ports on this node. Processes of one machine share its ports: each node has its own."""
    if spec.runtime != "process":
        return spec.ray
    step = LOCAL_PORTS * spec.nodes.index(node)
    ray = spec.ray
    return replace(
        ray,
        node_manager_port=ray.node_manager_port + step,
        object_manager_port=ray.object_manager_port + step,
        runtime_env_agent_port=ray.runtime_env_agent_port + step,
        dashboard_agent_grpc_port=ray.dashboard_agent_grpc_port + step,
        dashboard_agent_listen_port=ray.dashboard_agent_listen_port + step,
        metrics_export_port=ray.metrics_export_port + step,
        min_worker_port=ray.min_worker_port + step,
        max_worker_port=ray.max_worker_port + step,
    )


def container_for(
    spec: ClusterSpec, node: NodeSpec, place: Place, head_address: str
) -> ContainerSpec:
    expected = expected_node(spec, node, place)
    ray_start = ray_start_argv(expected, head_address, node_ray(spec, node))
    leads = expected.role == "head"
    wait = [] if leads else ["--wait-for", f"{head_address}:{spec.ray.port}"]
    group = ["--node", node.name, "--group", f"{head_address}:{spec.ray.supervisor_port}"]
    part = [*wait, *group, *(["--lead"] if leads else [])]
    bare = ContainerSpec(
        name=container_name(spec.name, node.name),
        image=spec.image,
        command=("python3", f"{place.home}/{SUPERVISOR}", *part, "--", *ray_start),
        env=node_environment(spec, node, place),
        mounts=_mounts(spec, place),
    )
    seen = _with_profiling(_with_rdma(bare, place.facts), spec)
    asked = _with_devices(seen, expected, place.facts, spec, node)
    labels = {
        LABEL_CLUSTER: spec.name,
        LABEL_NODE: node.name,
        LABEL_ROLE: expected.role,
        LABEL_SPEC_HASH: spec_hash(asked),
        LABEL_VERSION: __version__,
    }
    if asked.gpus is not None:
        labels[LABEL_GPUS] = asked.gpus
    return replace(asked, labels=labels)


def supervisor_files() -> dict[str, bytes]:
    """The supervisor, by its files' paths below a container's HOME."""
    remote = files("clusterctl.remote")
    package = remote.joinpath(SUPERVISION)
    modules = [SUPERVISOR, *(f"{SUPERVISION}/{one.name}" for one in package.iterdir())]
    return {
        name: remote.joinpath(name).read_bytes() for name in sorted(modules) if name.endswith(".py")
    }


def node_environment(spec: ClusterSpec, node: NodeSpec, place: Place) -> dict[str, str]:
    """What every process of the node inherits. What the user set wins."""
    return {name: one.value for name, one in explained_environment(spec, node, place).items()}


def explained_environment(spec: ClusterSpec, node: NodeSpec, place: Place) -> dict[str, Derived]:
    """The same, each value with its origin."""
    ours = {**_ray_environment(spec, place.home), **_cache_environment(spec, place.home)}
    interface = "the interface of the node's address"
    return {
        "VLLM_HOST_IP": Derived(place.address, "the node's address"),
        **_of(interface_variables(place.interface), interface),
        **_fabric({**spec.env, **node.env}, place),
        **_of(ours, OURS),
        **_of(proxy_environment(spec), "proxies:"),
        **_of(spec.env, "env:"),
        **_of(node.env, f"hosts: {node.name}: env:"),
    }


def _fabric(own: Mapping[str, str], place: Place) -> Variables:
    """Less what would contradict the user: other ports have other GID tables, and a network that is
    switched off cannot be pinned."""
    if own.get("NCCL_IB_DISABLE") == "1" or own.get("NCCL_NET", "IB") != "IB":
        return {}
    if "NCCL_IB_HCA" in own:
        return {name: one for name, one in place.fabric.items() if name == "NCCL_NET"}
    return place.fabric


def _of(variables: Mapping[str, str], origin: str) -> dict[str, Derived]:
    return {name: Derived(value, origin) for name, value in variables.items()}


def interface_variables(interface: str) -> dict[str, str]:
    return {
        "NCCL_SOCKET_IFNAME": f"={interface}",  # exactly this one; without "=" a prefix
        "GLOO_SOCKET_IFNAME": interface,
        "TP_SOCKET_IFNAME": interface,
        "UCX_NET_DEVICES": interface,
    }


def _ray_environment(spec: ClusterSpec, home: str) -> dict[str, str]:
    # Without it a node that is asked to end waits half a minute for Ray Serve.
    environment = {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}
    if spec.ray.insecure:
        return environment | {"RAY_AUTH_MODE": "disabled"}
    return environment | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": f"{home}/{RAY_TOKEN}",
    }


def _cache_environment(spec: ClusterSpec, home: str) -> dict[str, str]:
    if spec.runtime == "process":
        return {}
    cache = f"{home}/cache"
    return {
        "HF_HOME": HF_TARGET,
        "VLLM_CACHE_ROOT": f"{cache}/vllm",
        "TORCHINDUCTOR_CACHE_DIR": f"{cache}/torchinductor",
        "TRITON_CACHE_DIR": f"{cache}/triton",
    }


def proxy_environment(spec: ClusterSpec) -> dict[str, str]:
    said = {
        "HTTP_PROXY": spec.proxies.http,
        "HTTPS_PROXY": spec.proxies.https,
        "NO_PROXY": spec.proxies.no_proxy,
    }
    return {
        spelling: value
        for name, value in said.items()
        if value is not None
        for spelling in (name, name.lower())
    }


def own_directories(spec: ClusterSpec, place: Place) -> tuple[str, ...]:
    """What is made on the host, where it is absent, before a container can mount it."""
    if spec.runtime == "process":
        return ()
    return _hf_home(spec, place), _cache_source(spec, place), _crashes(place)


def model_directories(spec: ClusterSpec) -> tuple[str, ...]:
    """What must be on every host already."""
    if spec.runtime == "process":
        return ()
    return (*spec.model_dirs, *(mount.source for mount in spec.mounts))


def _mounts(spec: ClusterSpec, place: Place) -> tuple[MountSpec, ...]:
    if spec.runtime == "process":
        return ()
    return (
        MountSpec(_hf_home(spec, place), HF_TARGET),
        MountSpec(_cache_source(spec, place), f"{place.home}/cache"),
        MountSpec(_crashes(place), f"{place.home}/{CRASHES}"),
        *(MountSpec(path, path, read_only=True) for path in spec.model_dirs),
        *spec.mounts,
    )


def _hf_home(spec: ClusterSpec, place: Place) -> str:
    return spec.hf_home or str(PurePosixPath(place.facts.host.home) / ".cache/huggingface")


def _cache_source(spec: ClusterSpec, place: Place) -> str:
    """Compiled code is of use to one image only."""
    image = hashlib.sha256(spec.image.encode()).hexdigest()[:12]
    return f"{place.state_dir}/cache/{image}"


def _crashes(place: Place) -> str:
    """A crash is to be read when its container is gone."""
    return f"{place.state_dir}/{CRASHES}"


def _with_rdma(container: ContainerSpec, facts: HostFacts) -> ContainerSpec:
    if not facts.rdma_devices:
        return container
    return replace(
        container,
        devices=("/dev/infiniband",),
        cap_add=("CAP_IPC_LOCK",),
        ulimits=(Ulimit("memlock", -1, -1), Ulimit("stack", 67108864, 67108864)),
    )


def _with_profiling(container: ContainerSpec, spec: ClusterSpec) -> ContainerSpec:
    """The driver shows performance counters to admins only."""
    if not spec.profiling:
        return container
    return replace(container, cap_add=(*container.cap_add, "CAP_SYS_ADMIN"))


def _with_devices(
    container: ContainerSpec,
    expected: ExpectedNode,
    facts: HostFacts,
    spec: ClusterSpec,
    node: NodeSpec,
) -> ContainerSpec:
    if expected.device_kind == "cpu" or spec.runtime == "process":
        return container
    if any(gpu.vendor == "amd" for gpu in facts.gpu.gpus):
        return replace(
            container,
            devices=(*container.devices, "/dev/kfd", "/dev/dri"),
            group_add=("video",),
        )
    if spec.devices_of(node).count is None:
        return replace(container, gpus="all")
    indices = spec.devices_of(node).indices or range(expected.devices)
    return replace(container, gpus=",".join(map(str, indices)))


def container_of(place: Place, name: str) -> SeenContainer | None:
    """The container of this node on its host, whatever its state."""
    return next((one for one in place.containers if one.labels.get(LABEL_NODE) == name), None)


def _decide(spec: ClusterSpec, node: NodeSpec, places: Mapping[str, Place]) -> NodePlan:
    place = places[node.name]
    wanted = container_for(spec, node, place, places[spec.head].address)
    seen = container_of(place, node.name)
    action, reason = _judge(wanted, seen, place.image_id)
    return NodePlan(
        expected=expected_node(spec, node, place),
        action=action,
        reason=reason,
        container=wanted,
        pull=action in ("create", "replace") and not place.image_present,
        existing_id=seen.id if seen else None,
        host=node.name,
        origins={name: one.why for name, one in explained_environment(spec, node, place).items()},
    )


def _judge(
    wanted: ContainerSpec, seen: SeenContainer | None, image_id: str | None
) -> tuple[Action, str]:
    if seen is None:
        return "create", "no container yet"
    if seen.image != wanted.image:
        return "replace", f"image was {seen.image}"
    if image_id is not None and seen.image_id != image_id:
        return "replace", "its image has been pulled or built anew since"
    if seen.labels.get(LABEL_SPEC_HASH) != wanted.labels[LABEL_SPEC_HASH]:
        return "replace", "what was asked for has changed"
    if seen.labels.get(LABEL_ROLE) != wanted.labels[LABEL_ROLE]:
        return "replace", f"was the {seen.labels.get(LABEL_ROLE)}"
    if seen.state == "running":
        return "keep", "runs as asked for"
    if seen.state == "exited":
        return "start", f"stopped with exit code {seen.exit_code}"
    return "replace", f"container is {seen.state}"


def _rejoin(plan: NodePlan) -> NodePlan:
    """Ray on a worker does not outlive its head."""
    if plan.expected.role == "worker" and plan.action in ("keep", "start"):
        return replace(plan, action="replace", reason="joins the new head")
    return plan


def _remove(host: str, seen: SeenContainer) -> NodePlan:
    role: Literal["head", "worker"] = "head" if seen.labels.get(LABEL_ROLE) == "head" else "worker"
    name = seen.labels.get(LABEL_NODE) or seen.name
    return NodePlan(
        expected=ExpectedNode(name, "", role, "cpu", 0),
        action="remove",
        reason="left the cluster",
        container=None,
        existing_id=seen.id,
        host=host,
    )
