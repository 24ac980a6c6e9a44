"""What is known of a host. None means "could not be learnt", never "no" or zero."""

from __future__ import annotations

from dataclasses import dataclass


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
class GpuFacts:
    """`driver` None with no GPUs: no driver on this host. `error`: what the tool said when it
    failed, or why GPUs that are there cannot be used."""

    gpus: tuple[Gpu, ...] = ()
    driver: str | None = None
    cuda: str | None = None
    error: str | None = None


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


@dataclass(frozen=True)
class Disk:
    path: str
    total_bytes: int
    free_bytes: int


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
