"""What cluster.yaml may hold: pydantic models at the edge, and the JSON Schema that comes of them.

The frozen values of clusterctl.spec are what everyone else sees; a default is written there, once.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import CoreSchema

from clusterctl.config.hostlist import parse_host
from clusterctl.spec import (
    DEFAULT_IMAGE,
    ClusterSpec,
    DevicesSpec,
    LimitsSpec,
    MountSpec,
    NetworkSpec,
    NodeSpec,
    ProxySpec,
    RaySpec,
    SshSpec,
)

T = TypeVar("T")

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$"
# What ssh itself accepts as a host: no dash in front, nothing that a shell would read.
ADDRESS = r"""^[^-\s'"`$\\;&<>|(){}][^\s'"`$\\;&<>|(){}]*$"""
INTERFACE = r"^[A-Za-z0-9_][A-Za-z0-9_.:@-]{0,14}$"
VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*$"
DIRECTORY = r"^/[^/:\x00][^:\x00]*$"
MOUNT = r"^/[^:\x00]*:/[^/:\x00][^:\x00]*(:(ro|rw))?$"
IMAGE = r"^[A-Za-z0-9][A-Za-z0-9_.:/@-]*$"
VALUE = r"^[^\x00]*$"

IN_WORDS: Mapping[str, str] = {
    NAME: "may hold letters, digits, '_', '.' and '-', begins with a letter or digit, and is at "
    "most 63 long",
    ADDRESS: "must be a host name, an address or an ssh alias, without '-' in front, blanks, "
    "quotes or any of $\\;&<>|(){}",
    INTERFACE: "must be the name of a network interface, such as eth0",
    VARIABLE: "must be a variable's name: letters, digits and '_', no digit in front",
    DIRECTORY: "must be an absolute path on the hosts, without ':'",
    MOUNT: "must be SOURCE:TARGET or SOURCE:TARGET:ro, both absolute paths",
    IMAGE: "must be an image reference, such as registry:5000/team/image:tag",
    VALUE: "must not hold a NUL character",
}

MAX_GPUS = 1024  # of one host

_SECRET = re.compile(r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_KEY|PRIVATE_KEY)$")


def _ip_address(text: str) -> str:
    return str(ipaddress.ip_address(text))


def _subnet(text: str) -> str:
    return str(ipaddress.ip_network(text))


def _environment_text(value: object) -> object:
    """A number is taken as its text; a float is not, because 1.10 would arrive as 1.1."""
    if isinstance(value, bool | float) or value is None:
        raise ValueError("must be text: put it in quotes")
    return str(value) if isinstance(value, int) else value


def is_secret(variable: str) -> bool:
    """Whether a variable of this name holds what `docker inspect` must not show."""
    return _SECRET.search(variable) is not None


def _no_secret_variable(name: str) -> str:
    if is_secret(name):
        raise ValueError(
            "looks like a secret, and a container's environment can be read by `docker inspect`: "
            "keep it in a file on the hosts and mount that (for Hugging Face, `hf auth login` on "
            "the host: its token lies in hf_home, which is mounted)"
        )
    return name


def _no_password(url: str) -> str:
    if "@" in url.partition("://")[2].partition("/")[0]:
        raise ValueError(
            "holds a password, which `docker inspect` would show: use a proxy that knows the host"
        )
    return url


Name = Annotated[str, Field(pattern=NAME)]
Address = Annotated[str, Field(pattern=ADDRESS)]
Directory = Annotated[str, Field(pattern=DIRECTORY)]
Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(gt=0)]
Proxy = Annotated[str, Field(pattern=ADDRESS), AfterValidator(_no_password)]
IpAddress = Annotated[str, AfterValidator(_ip_address)]
Variable = Annotated[str, Field(pattern=VARIABLE), AfterValidator(_no_secret_variable)]
VariableText = Annotated[str, BeforeValidator(_environment_text), Field(pattern=VALUE)]
# When the values are checked, ranges are expanded; whoever reads the JSON Schema still has them.
RANGES = WithJsonSchema({"type": "string"})
Environment = dict[Variable, VariableText]


class Section(BaseModel):
    """A mapping of known keys. `x-...` keys are the user's own; an empty key is a key not given."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        use_attribute_docstrings=True,
        json_schema_extra={"patternProperties": {"^x-": {}}},
    )

    @model_validator(mode="before")
    @classmethod
    def _known(cls, data: Any) -> Any:
        data = cls.from_text(data) if isinstance(data, str) else data
        if not isinstance(data, dict):
            return data
        return {k: v for k, v in data.items() if v is not None and not str(k).startswith("x-")}

    @classmethod
    def from_text(cls, text: str) -> object:
        """The short form of this section, where it has one."""
        return text

    def make(self, spec: type[T]) -> T:
        """The frozen value with the same field names."""
        return spec(**self.model_dump())


class ShortForm(Section):
    """A section that may also be written as one word."""

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"anyOf": [{"type": "string"}, handler.resolve_ref_schema(handler(core_schema))]}


class Devices(ShortForm):
    """`auto`, `gpu`, `gpu:4` (four), `gpu=4-7` (these), `cpu:2`, or {kind, count, indices}."""

    kind: Literal["auto", "gpu", "cpu"] = DevicesSpec.kind
    """auto: the GPUs of the host. cpu: slots, one process each."""
    count: Annotated[int, Field(ge=1)] | None = DevicesSpec.count
    """How many a node gives; without it every GPU, or one CPU slot."""
    indices: list[Annotated[int, Field(ge=0)]] = []
    """Which GPUs of the host, by the driver's numbers, where others are not to be touched."""

    @classmethod
    def from_text(cls, text: str) -> object:
        kind, equals, which = text.partition("=")
        if equals:
            return {"kind": kind, "indices": numbers(which)}
        kind, colon, count = text.partition(":")
        return (
            {"kind": kind, "count": int(count) if count.isdecimal() else count}
            if colon
            else {"kind": kind}
        )

    @model_validator(mode="after")
    def _count_of_what(self) -> Devices:
        if self.kind == "auto" and self.count is not None:
            raise ValueError("count needs a kind: gpu or cpu")
        if self.indices and self.kind != "gpu":
            raise ValueError("indices are of GPUs: kind gpu")
        if len(set(self.indices)) < len(self.indices):
            raise ValueError("indices name a GPU twice")
        if self.indices and self.count not in (None, len(self.indices)):
            raise ValueError(f"count is {self.count}, and indices name {len(self.indices)}")
        return self

    def spec(self) -> DevicesSpec:
        count = len(self.indices) or self.count
        return DevicesSpec(self.kind, count, tuple(sorted(self.indices)))


def numbers(text: str) -> list[int | str]:
    """`0,4-6` is 0, 4, 5, 6. What is no number stays a word, to be refused as such."""
    found: list[int | str] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if dash and first.isdecimal() and last.isdecimal() and int(first) <= int(last) < MAX_GPUS:
            found += range(int(first), int(last) + 1)
        else:
            found.append(int(part) if part.isdecimal() else part)
    return found


class Host(ShortForm):
    """[USER@]HOST[:PORT], or a mapping."""

    name: Annotated[Name, RANGES]
    """What people type and see. A range such as gpu[01-16] stands for many hosts."""
    address: Annotated[Address, RANGES] | None = None
    """Where SSH goes: a name, an address or an alias of ~/.ssh/config. Default: the name."""
    user: Address | None = None
    port: Port | None = None
    identity: str | None = None
    """The private key's file on this machine."""
    cluster_address: IpAddress | None = None
    """The private address for Ray and NCCL, where it is not to be chosen."""
    labels: dict[str, str] = {}
    env: Environment = {}
    """Set in this host's container, over the cluster's."""
    devices: Devices | None = None

    @classmethod
    def from_text(cls, text: str) -> object:
        return parse_host(text)

    def spec(self) -> NodeSpec:
        fields = {key: getattr(self, key) for key in type(self).model_fields}
        fields["address"] = self.door
        fields["devices"] = self.devices.spec() if self.devices else None
        return NodeSpec(**fields)

    @property
    def door(self) -> str:
        return self.address or self.name


class Network(Section):
    """How the nodes find each other; without it, chosen from the subnets that they share."""

    interface: Annotated[str, Field(pattern=INTERFACE)] | None = NetworkSpec.interface
    subnet: Annotated[str, AfterValidator(_subnet)] | None = NetworkSpec.subnet
    """In CIDR form, such as 10.0.0.0/24."""
    allow_public_address: bool = NetworkSpec.allow_public_address
    """Let Ray and NCCL listen on an address of the public internet."""


class Ray(Section):
    """Ray's ports and the head's supervisor's, pinned so that a firewall can be described."""

    port_offset: Annotated[int, Field(ge=0, le=12000)] = 0
    """Added to every port that is not set here: for a second cluster on the same hosts."""
    port: Port = RaySpec.port
    node_manager_port: Port = RaySpec.node_manager_port
    object_manager_port: Port = RaySpec.object_manager_port
    runtime_env_agent_port: Port = RaySpec.runtime_env_agent_port
    dashboard_agent_grpc_port: Port = RaySpec.dashboard_agent_grpc_port
    metrics_export_port: Port = RaySpec.metrics_export_port
    supervisor_port: Port = RaySpec.supervisor_port
    dashboard_agent_listen_port: Port = RaySpec.dashboard_agent_listen_port
    dashboard_port: Port = RaySpec.dashboard_port
    client_server_port: Port = RaySpec.client_server_port
    min_worker_port: Port = RaySpec.min_worker_port
    max_worker_port: Port = RaySpec.max_worker_port
    insecure: bool = RaySpec.insecure
    """Run without Ray's token authentication."""
    object_store_memory: Annotated[int, Field(ge=75 * 1024**2)] | None = RaySpec.object_store_memory
    """Bytes."""

    @model_validator(mode="before")
    @classmethod
    def _shifted(cls, data: Any) -> Any:
        offset = data.get("port_offset") if isinstance(data, dict) else None
        if type(offset) is not int:  # absent, or to be refused
            return data
        shifted = {key: cls.model_fields[key].default + offset for key in cls._ports()}
        return {**shifted, **{key: value for key, value in data.items() if value is not None}}

    @classmethod
    def _ports(cls) -> list[str]:
        return [key for key in cls.model_fields if key.endswith("port")]

    def spec(self) -> RaySpec:
        return RaySpec(**self.model_dump(exclude={"port_offset"}))

    @model_validator(mode="after")
    def _distinct(self) -> Ray:
        seen: dict[int, str] = {}
        for key in (key for key in self._ports() if "_worker_" not in key):
            port = getattr(self, key)
            if port in seen:
                raise ValueError(f"{seen[port]} and {key} are both {port}")
            if self.min_worker_port <= port <= self.max_worker_port:
                raise ValueError(f"{key} {port} lies among the worker ports")
            seen[port] = key
        if self.min_worker_port > self.max_worker_port:
            raise ValueError("min_worker_port is above max_worker_port")
        return self


class Proxies(Section):
    """Proxies of the hosts, handed to the containers."""

    http: Proxy | None = ProxySpec.http
    https: Proxy | None = ProxySpec.https
    no_proxy: str | None = ProxySpec.no_proxy


class Limits(Section):
    """Seconds, unless the name says otherwise."""

    parallel_hosts: Annotated[int, Field(ge=1)] = LimitsSpec.parallel_hosts
    connect_timeout: Seconds = LimitsSpec.connect_timeout
    command_timeout: Seconds = LimitsSpec.command_timeout
    pull_timeout: Seconds = LimitsSpec.pull_timeout
    formation_timeout: Seconds = LimitsSpec.formation_timeout
    sanity_timeout: Seconds = LimitsSpec.sanity_timeout
    lock_wait: Annotated[float, Field(ge=0)] = LimitsSpec.lock_wait
    """How long `up` and `down` wait for another run on the same cluster to end."""
    liveness_deadline: Seconds = LimitsSpec.liveness_deadline
    """So long without a token, and a deployment of `serve` counts as hung: see there."""


class Ssh(Section):
    """Files on this machine."""

    config: str | None = SshSpec.config
    """An ssh configuration file instead of ~/.ssh/config."""
    known_hosts: str | None = SshSpec.known_hosts
    accept_new_host_keys: bool = SshSpec.accept_new_host_keys


class Cluster(Section):
    """cluster.yaml"""

    name: Name
    """The cluster's name, in the names and labels of its containers."""
    head: Name
    """The host that runs Ray's head. Default: the first of hosts."""
    hosts: Annotated[list[Host], Field(min_length=1)]
    image: Annotated[str, Field(pattern=IMAGE)] = DEFAULT_IMAGE
    devices: Devices = Devices()
    env: Environment = {}
    """Set in every container."""
    model_dirs: list[Directory] = []
    """Directories with models: mounted read-only at the same path on every host."""
    mounts: list[Annotated[str, Field(pattern=MOUNT)]] = []
    hf_home: Directory | None = None
    """The hosts' Hugging Face home, where it is not the user's own."""
    network: Network = Network()
    ray: Ray = Ray()
    proxies: Proxies = Proxies()
    limits: Limits = Limits()
    ssh: Ssh = Ssh()
    docker_socket: Directory = ClusterSpec.docker_socket
    profiling: bool = ClusterSpec.profiling
    """Let profilers read the GPUs' performance counters: adds CAP_SYS_ADMIN to every container."""
    runtime: Literal["docker", "process"] = ClusterSpec.runtime
    """process: the nodes are processes on this machine (`up --local`)."""

    def spec(self) -> ClusterSpec:
        return ClusterSpec(
            name=self.name,
            nodes=tuple(host.spec() for host in self.hosts),
            head=self.head,
            image=self.image,
            devices=self.devices.spec(),
            env=self.env,
            model_dirs=tuple(self.model_dirs),
            mounts=tuple(parse_mount(mount) for mount in self.mounts),
            hf_home=self.hf_home,
            network=self.network.make(NetworkSpec),
            ray=self.ray.spec(),
            proxies=self.proxies.make(ProxySpec),
            limits=self.limits.make(LimitsSpec),
            ssh=self.ssh.make(SshSpec),
            docker_socket=self.docker_socket,
            profiling=self.profiling,
            runtime=self.runtime,
        )


def parse_mount(text: str) -> MountSpec:
    source, target, *mode = text.split(":")
    return MountSpec(source, target, read_only=mode == ["ro"])


def json_schema() -> dict[str, object]:
    """JSON Schema of cluster.yaml. `name` and `head` have defaults taken from the hosts."""
    schema = Cluster.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["required"] = ["hosts"]
    return schema
