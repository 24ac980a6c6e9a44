"""What the user wants, frozen. config.py makes these from cluster.yaml and flags."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from clusterctl.secret import Secret

# Carries Ray 2.56 (token authentication), vLLM and torch 2.11; stock images of vLLM lack Ray now.
DEFAULT_IMAGE = "rayproject/ray-llm:2.56.0-py312-cu130"


@dataclass(frozen=True)
class DevicesSpec:
    """Which devices a node gives the cluster.

    kind "auto": GPUs where the host has any, else an error that says how to ask for CPU slots.
    kind "cpu": `count` slots (processes) a node, a Ray resource of its own (raycluster.CPU_SLOT).
    count None: all that the host has (gpu), one (cpu). `indices`: of a GPU host, these and no
    others, in the driver's numbers; `count` is then how many.
    """

    kind: Literal["auto", "gpu", "cpu"] = "auto"
    count: int | None = None
    indices: tuple[int, ...] = ()


@dataclass(frozen=True)
class MountSpec:
    source: str
    target: str
    read_only: bool = False


@dataclass(frozen=True)
class NetworkSpec:
    """How nodes find each other. None: chosen by mutual reachability, RDMA-capable first."""

    interface: str | None = None
    subnet: str | None = None
    allow_public_address: bool = False


@dataclass(frozen=True)
class RaySpec:
    """Ray's ports, and that of the head's supervisor, are pinned, so that a firewall can be
    described and a clash can be named."""

    port: int = 6379
    node_manager_port: int = 6380
    object_manager_port: int = 6381
    runtime_env_agent_port: int = 6382
    dashboard_agent_grpc_port: int = 6383
    metrics_export_port: int = 6384
    supervisor_port: int = 6385  # of the head's supervisor, for those of the other nodes
    dashboard_agent_listen_port: int = 52365
    dashboard_port: int = 8265
    client_server_port: int = 10001
    min_worker_port: int = 10002
    max_worker_port: int = 10999
    insecure: bool = False
    object_store_memory: int | None = None


@dataclass(frozen=True)
class ProxySpec:
    http: str | None = None
    https: str | None = None
    no_proxy: str | None = None


@dataclass(frozen=True)
class LimitsSpec:
    """Seconds, unless the name says otherwise."""

    parallel_hosts: int = 32
    connect_timeout: float = 10.0
    command_timeout: float = 60.0
    pull_timeout: float = 3600.0
    formation_timeout: float = 120.0
    sanity_timeout: float = 180.0
    lock_wait: float = 0.0
    liveness_deadline: float = 30.0


@dataclass(frozen=True)
class NodeSpec:
    """One host. `name` is what people type and see; `address` is where SSH goes (an alias of
    ~/.ssh/config is fine; "localhost" means no SSH at all); `cluster_address` is the private
    address for Ray and NCCL, None when it is to be chosen."""

    name: str
    address: str
    user: str | None = None
    port: int | None = None
    identity: str | None = None
    cluster_address: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    devices: DevicesSpec | None = None


@dataclass(frozen=True)
class SshSpec:
    config: str | None = None
    known_hosts: str | None = None
    accept_new_host_keys: bool = False


@dataclass(frozen=True)
class ClusterSpec:
    """A whole cluster as asked for. The head is one of the nodes.

    `profiling`: profilers may read the GPUs' performance counters (CAP_SYS_ADMIN). runtime
    "docker": one container a node over SSH. runtime "process": processes on this machine
    (`up --local`), each node with a loopback address of its own.
    """

    name: str
    nodes: tuple[NodeSpec, ...]
    head: str
    image: str = DEFAULT_IMAGE
    devices: DevicesSpec = DevicesSpec()
    env: Mapping[str, str] = field(default_factory=dict)
    model_dirs: tuple[str, ...] = ()
    mounts: tuple[MountSpec, ...] = ()
    hf_home: str | None = None
    network: NetworkSpec = NetworkSpec()
    ray: RaySpec = RaySpec()
    proxies: ProxySpec = ProxySpec()
    limits: LimitsSpec = LimitsSpec()
    ssh: SshSpec = SshSpec()
    docker_socket: str = "/var/run/docker.sock"
    profiling: bool = False
    runtime: Literal["docker", "process"] = "docker"

    @property
    def head_node(self) -> NodeSpec:
        return self.node(self.head)

    @property
    def workers(self) -> tuple[NodeSpec, ...]:
        return tuple(node for node in self.nodes if node.name != self.head)

    def node(self, name: str) -> NodeSpec:
        return next(node for node in self.nodes if node.name == name)

    def devices_of(self, node: NodeSpec) -> DevicesSpec:
        return node.devices or self.devices


@dataclass(frozen=True)
class TlsSpec:
    """By what a server shows itself, as PEM: its certificate, those of its issuers behind it, and
    its private key. `names`: the hosts and addresses that the certificate speaks for."""

    certificate: str
    key: Secret
    names: tuple[str, ...] = ()

    @property
    def own_certificate(self) -> str:
        """Without those of its issuers."""
        end = "-----END CERTIFICATE-----"
        return self.certificate.partition(end)[0] + f"{end}\n"


@dataclass(frozen=True)
class ServeSpec:
    """One deployment as asked for. `extra` is what stood after `--`, untouched. `open_sizes`: those
    that nobody asked for, and the plan may choose.

    `dp` replicas of tp x pp ranks behind one address; `ep`: the experts lie whole on the ranks, not
    in slices; `dcp`: a token's cache is spread over so many tensor ranks. `allow_tcp`: tensor ranks
    of several nodes may speak TCP. `expose`: the API may listen on more than private addresses.
    `timeout`: how long to wait in all, None: as long as it moves; `stall_timeout`: how long it may
    stand still before it has given a token. `liveness_deadline`: seconds without a token, a counter
    that moves or a rank that computes, after which it counts as hung.
    """

    model: str
    name: str
    tp: int = 1
    pp: int = 1
    dp: int = 1
    ep: bool = False
    dcp: int = 1
    open_sizes: frozenset[Literal["tp", "pp"]] = frozenset()
    engine: Literal["auto", "native", "vllm"] = "auto"
    executor: Literal["auto", "ray", "mp", "inproc"] = "auto"
    dtype: str = "auto"
    max_model_len: int | None = None
    served_model_name: str | None = None
    host: str | None = None
    port: int = 8000
    expose: bool = False
    tls: TlsSpec | None = None
    api_key: Secret | None = None
    timeout: float | None = None
    stall_timeout: float = 600.0
    allow_tcp: bool = False
    liveness_deadline: float = LimitsSpec.liveness_deadline
    extra: tuple[str, ...] = field(default=())

    @property
    def ranks(self) -> int:
        return self.tp * self.pp * self.dp

    @property
    def expert_parallel(self) -> bool:
        """By our flag or by the engine's own."""
        return self.ep or bool({"-ep", "--enable-expert-parallel"} & set(self.extra))

    @property
    def sizes(self) -> str:
        """For people: tp=2 x pp=2."""
        return f"tp={self.tp} x pp={self.pp}" + (f" x dp={self.dp}" if self.dp > 1 else "")
