"""What is known of a host. None means "could not be learnt", never "no" or zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Address:
    """An IP address with its prefix length, as bound to an interface."""

    ip: str
    prefix: int


@dataclass(frozen=True)
class Interface:
    """`up`: switched on and with a carrier."""

    name: str
    up: bool
    addresses: tuple[Address, ...]
    mtu: int
    speed_mbit: int | None
    mac: str
    rdma_device: str | None = None
    is_virtual: bool = False  # docker0, virbr, veth, tailscale, ...


@dataclass(frozen=True)
class Gpu:
    index: int
    vendor: str  # "nvidia" | "amd"
    name: str
    uuid: str
    memory_mib: int | None
    memory_used_mib: int | None


@dataclass(frozen=True)
class GpuProcess:
    """A process that holds GPU memory. `container`: the id of the one it runs in."""

    pid: int
    name: str
    memory_mib: int | None
    user: str | None = None
    container: str | None = None


@dataclass(frozen=True)
class GpuHealth:
    """What the driver says of one NVIDIA GPU. `slowed`: hardware reasons that hold its clock down.
    `fabric`: its state in the NVSwitch fabric, None where it is in none. `recovery`: what the
    driver asks for (Reset, Reboot, ...), None when nothing."""

    index: int
    uuid: str
    bus_id: str
    persistence: bool | None = None
    mig: bool | None = None
    uncorrected_errors: int | None = None  # since the driver was loaded
    remap_pending: bool | None = None
    remap_failed: bool | None = None
    pcie_width: int | None = None
    pcie_width_max: int | None = None
    slowed: tuple[str, ...] = ()
    fabric: str | None = None
    recovery: str | None = None
    processes: tuple[GpuProcess, ...] = ()


@dataclass(frozen=True)
class NvLinks:
    """NVLinks of one GPU: how many carry traffic, how many do not."""

    index: int
    active: int
    inactive: int


@dataclass(frozen=True)
class GpuPath:
    """How two devices are joined, as `nvidia-smi topo -m` says: NV18, PIX, PXB, PHB, NODE, SYS."""

    a: str
    b: str
    kind: str


@dataclass(frozen=True)
class NvidiaFacts:
    """What there is of NVIDIA beside the GPUs' names. `services`: systemd's word for each.
    `driver_on_disk`: of the module that the next boot loads."""

    health: tuple[GpuHealth, ...] | None = None
    links: tuple[NvLinks, ...] | None = None
    paths: tuple[GpuPath, ...] | None = None
    numa: tuple[tuple[int, str], ...] = ()  # GPU index, its NUMA node
    services: tuple[tuple[str, str], ...] = ()
    switches: int = 0
    driver_on_disk: str | None = None
    open_module: bool | None = None
    modules: tuple[str, ...] = ()
    imex_channels: bool = False
    toolkit: str | None = None
    cdi: bool = False

    def service(self, name: str) -> str | None:
        return dict(self.services).get(name)


@dataclass(frozen=True)
class AmdGpu:
    """What AMD's tools say of a GPU. `uncorrected_errors`: of memory and other blocks together."""

    index: int
    series: str | None
    uncorrected_errors: int | None


@dataclass(frozen=True)
class Gid:
    """An entry of a port's GID table. `kind`: "IB/RoCE v1" or "RoCE v2"."""

    index: int
    gid: str
    kind: str
    interface: str | None = None


@dataclass(frozen=True)
class RdmaPort:
    """`state`: ACTIVE, DOWN, INIT, ...; `rate_gbit` of the link; `mtu` is the active one, bytes."""

    device: str
    port: int
    state: str
    link_layer: str  # "InfiniBand" | "Ethernet"
    rate_gbit: float | None = None
    mtu: int | None = None
    gids: tuple[Gid, ...] = ()

    @property
    def active(self) -> bool:
        return self.state == "ACTIVE"


@dataclass(frozen=True)
class Firewall:
    """What may drop packets that come in. `rules`: those that drop or refuse, as iptables-save
    writes them; `policy`: of INPUT, None when the rules may not be read by this user."""

    policy: str | None
    rules: tuple[str, ...] = ()
    ufw: bool = False
    firewalld: bool = False


@dataclass(frozen=True)
class ModelFile:
    """`declared`: the size that a safetensors header asks for; None for other files, 0 where the
    header cannot be read."""

    name: str
    size: int
    declared: int | None = None


@dataclass(frozen=True)
class ModelFacts:
    """A model as this host has it: a directory, or what the Hub's cache holds of it. `digests`:
    SHA-256 by name of config.json and of the weights' index. `config`: what config.json holds."""

    path: str
    exists: bool
    files: tuple[ModelFile, ...] = ()
    digests: tuple[tuple[str, str], ...] = ()
    missing: tuple[str, ...] = ()  # named by the index, and not there
    config: str | None = None


@dataclass(frozen=True)
class GpuFacts:
    """`driver` None with no GPUs: no driver on this host. `error`: what the tool said when it
    failed, or why GPUs that are there cannot be used."""

    gpus: tuple[Gpu, ...] = ()
    driver: str | None = None
    cuda: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class DockerContainer:
    """Any container of the host, ours or not. `state`: running, exited, ..."""

    id: str
    name: str
    image: str
    state: str
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class DockerFacts:
    """`error` holds why Docker did not answer; the rest is then None or empty."""

    version: str | None = None
    api_version: str | None = None
    root_dir: str | None = None
    runtimes: tuple[str, ...] = ()
    cgroup_driver: str | None = None
    http_proxy: str | None = None
    https_proxy: str | None = None
    no_proxy: str | None = None
    needs_sudo: bool = False
    error: str | None = None
    containers: tuple[DockerContainer, ...] | None = None
    image_id: str | None = None  # of the spec's image; None: it is not there
    rootless: bool = False
    cgroup_version: str | None = None


@dataclass(frozen=True)
class Disk:
    path: str
    total_bytes: int
    free_bytes: int
    free_inodes: int | None = None


@dataclass(frozen=True)
class Listener:
    """A TCP port in LISTEN state; `process` as ss shows it, when we may see it."""

    address: str
    port: int
    process: str | None = None


@dataclass(frozen=True)
class HostInfo:
    hostname: str
    os: str
    kernel: str
    architecture: str
    user: str
    home: str
    is_root: bool
    can_sudo: bool
    cpus: int
    cpu_model: str | None
    memory_bytes: int
    memory_available_bytes: int
    clock_offset_s: float | None  # host clock minus ours, round trip taken out
    hostname_resolves_to: tuple[str, ...] | None  # (): it does not resolve
    ulimits: tuple[
        tuple[str, str], ...
    ]  # ("memlock", "unlimited"), ("nofile", "1024"), ("stack", "8192")
    disks: tuple[Disk, ...]  # Docker root, /dev/shm, /
    selinux: str | None = None
    numa_nodes: int | None = None
    numa_balancing: bool | None = None
    kernel_options: str | None = None
    iommu_groups: int | None = None
    acs_bridges: int | None = None  # PCIe bridges that send peer traffic up to the root
    preloaded: str | None = None  # /etc/ld.so.preload; "" where there is none
    ephemeral_ports: tuple[int, int] | None = None
    hf_home: str | None = None
    memory_free_bytes: int | None = None  # holding nothing, not even the page cache
    hf_token: bool | None = None  # that there is one; never the token

    def disk(self, path: str) -> Disk | None:
        return next((disk for disk in self.disks if disk.path == path), None)


@dataclass(frozen=True)
class HostFacts:
    """All of one host, from one round trip."""

    name: str
    host: HostInfo
    interfaces: tuple[Interface, ...]
    gpu: GpuFacts
    docker: DockerFacts
    listeners: tuple[Listener, ...] | None
    rdma_devices: tuple[str, ...] = ()
    rdma_ports: tuple[RdmaPort, ...] | None = None
    nvidia: NvidiaFacts = NvidiaFacts()
    amd: tuple[AmdGpu, ...] | None = None
    kernel_log: tuple[str, ...] | None = None  # lines that speak of GPUs, RDMA and memory
    firewall: Firewall | None = None
    missing_directories: tuple[str, ...] = ()
    model: ModelFacts | None = None  # None: none was asked for
