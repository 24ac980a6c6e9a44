"""A container as a value. PURE: the `docker run` line people read and the Docker SDK arguments
that are executed come from the same ContainerSpec."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from clusterctl.spec import MountSpec
from clusterctl.transport.base import shell_line

HOME = "/opt/clusterctl"  # where a Docker container holds our files (Runtime.home)

LABEL_CLUSTER = "clusterctl.cluster"
LABEL_NODE = "clusterctl.node"
LABEL_ROLE = "clusterctl.role"
LABEL_SPEC_HASH = "clusterctl.spec-hash"
LABEL_VERSION = "clusterctl.version"
LABEL_GPUS = "clusterctl.gpus"  # of the host: "all", or indices; CPU nodes have none
LABEL_HELPER = "clusterctl.helper"  # who runs it; such a container is no node of a cluster

# The docker command line of 20.10 sends these empty, and `docker inspect` tells empty from absent.
# Later ones send more of them so; that is all in which their containers differ.
_CLI_EMPTY: dict[str, Any] = {
    "BlkioWeightDevice": [],
    "Dns": [],
    "DnsOptions": [],
    "DnsSearch": [],
    "PortBindings": {},
}


@dataclass(frozen=True)
class Ulimit:
    name: str
    soft: int
    hard: int


@dataclass(frozen=True)
class ContainerSpec:
    """Everything Docker is told about one node's container.

    Capabilities carry their full names (CAP_...). `user` is root whatever the image says: our
    0600 files, the mounted caches and /dev/infiniband are root's. `restart` "always", not
    "unless-stopped": after its own crash Docker ends what it finds, and takes that for a stop by
    hand.
    """

    name: str
    image: str
    command: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    mounts: tuple[MountSpec, ...] = ()
    devices: tuple[str, ...] = ()
    gpus: str | None = None  # "all" or a device list; None: no GPU request
    cap_add: tuple[str, ...] = ()
    security_opt: tuple[str, ...] = ()
    group_add: tuple[str, ...] = ()
    ulimits: tuple[Ulimit, ...] = ()
    shm_size: int | None = None
    ipc: str | None = "host"
    user: str = "root"
    restart: str = "always"
    log_max_size: str = "64m"
    log_max_file: int = 4


@dataclass(frozen=True)
class HelperSpec:
    """A container that serves one run of ours through its stdin and stdout, and goes when either
    ends: `docker run --rm --interactive --network host`. A mount's source is made where absent."""

    name: str
    image: str
    command: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    mounts: tuple[MountSpec, ...] = ()


@dataclass(frozen=True)
class ContainerFile:
    """A file put into the created container's own layer before it starts (survives a reboot)."""

    path: str
    data: bytes
    mode: int = 0o644


def container_name(cluster: str, node: str) -> str:
    return f"clusterctl-{cluster}-{node}"


def spec_hash(spec: ContainerSpec) -> str:
    """What the user asked for, as 16 hex digits. Labels (our version among them) stay outside:
    an upgrade of clusterctl alone must not replace a container."""
    asked = asdict(replace(spec, labels={}))
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]


def docker_run_argv(spec: ContainerSpec) -> list[str]:
    """The `docker run` line that makes the container which `sdk_arguments` makes."""
    entrypoint, *command = spec.command
    return [
        *("docker", "run", "--detach", "--name", spec.name),
        *("--network", "host", "--init", "--user", spec.user),
        *("--restart", spec.restart),
        *_flag("--ipc", spec.ipc),
        *_flag("--shm-size", spec.shm_size),
        *_flag("--gpus", _gpus_flag(spec.gpus)),
        *_each("--device", spec.devices),
        *_each("--cap-add", spec.cap_add),
        *_each("--security-opt", spec.security_opt),
        *_each("--group-add", spec.group_add),
        *_each("--ulimit", (f"{u.name}={u.soft}:{u.hard}" for u in spec.ulimits)),
        *("--log-driver", "json-file"),
        *_each("--log-opt", (f"{key}={value}" for key, value in _log_options(spec).items())),
        *_each("--mount", map(_mount_flag, spec.mounts)),
        *_each("--env", (f"{key}={value}" for key, value in spec.env.items())),
        *_each("--label", (f"{key}={value}" for key, value in spec.labels.items())),
        *("--entrypoint", entrypoint, spec.image, *command),
    ]


def docker_run_line(spec: ContainerSpec) -> str:
    return shell_line(docker_run_argv(spec))


def sdk_arguments(spec: ContainerSpec) -> dict[str, Any]:
    """The body of the Engine API's `POST /containers/create` (the name is a query parameter)."""
    entrypoint, *command = spec.command
    return {
        "Image": spec.image,
        "User": spec.user,
        "Entrypoint": [entrypoint],
        "Cmd": command,
        "Env": [f"{key}={value}" for key, value in spec.env.items()],
        "Labels": dict(spec.labels),
        "HostConfig": _host_config(spec),
    }


def helper_arguments(spec: HelperSpec) -> dict[str, Any]:
    """The body of `POST /containers/create` for a helper."""
    entrypoint, *command = spec.command
    return {
        "Image": spec.image,
        "User": "root",
        "Entrypoint": [entrypoint],
        "Cmd": command,
        "Env": [f"{key}={value}" for key, value in spec.env.items()],
        "Labels": dict(spec.labels),
        "AttachStdin": True,
        "OpenStdin": True,
        "StdinOnce": True,  # its stdin ends when we are gone, however we went
        "HostConfig": {
            "NetworkMode": "host",
            "Init": True,
            "AutoRemove": True,
            "Binds": [_bind(mount) for mount in spec.mounts],
        },
    }


def _bind(mount: MountSpec) -> str:
    return f"{mount.source}:{mount.target}{':ro' if mount.read_only else ''}"


def _host_config(spec: ContainerSpec) -> dict[str, Any]:
    return _CLI_EMPTY | {
        "NetworkMode": "host",
        "Init": True,
        "RestartPolicy": {"Name": spec.restart, "MaximumRetryCount": 0},
        "LogConfig": {"Type": "json-file", "Config": _log_options(spec)},
        "DeviceRequests": _device_requests(spec.gpus) or None,
        "Devices": [_device(path) for path in spec.devices],
        "CapAdd": list(spec.cap_add) or None,
        "SecurityOpt": list(spec.security_opt) or None,
        "GroupAdd": list(spec.group_add) or None,
        "Ulimits": [_ulimit(ulimit) for ulimit in spec.ulimits] or None,
        **({"IpcMode": spec.ipc} if spec.ipc else {}),
        **({"ShmSize": spec.shm_size} if spec.shm_size else {}),
        **({"Mounts": [_mount(mount) for mount in spec.mounts]} if spec.mounts else {}),
    }


def _log_options(spec: ContainerSpec) -> dict[str, str]:
    return {"max-size": spec.log_max_size, "max-file": str(spec.log_max_file)}


def _gpus_flag(gpus: str | None) -> str | None:
    """docker reads the flag as CSV: a list of devices needs quotes of its own."""
    return gpus if gpus in (None, "all") else f'"device={gpus}"'


def _device_requests(gpus: str | None) -> list[dict[str, Any]]:
    if gpus is None:
        return []
    chosen: dict[str, Any] = {"Count": -1} if gpus == "all" else {"DeviceIDs": gpus.split(",")}
    return [{"Driver": "", "Capabilities": [["gpu"]], "Options": {}, **chosen}]


def _device(path: str) -> dict[str, str]:
    return {"PathOnHost": path, "PathInContainer": path, "CgroupPermissions": "rwm"}


def _ulimit(ulimit: Ulimit) -> dict[str, Any]:
    return {"Name": ulimit.name, "Soft": ulimit.soft, "Hard": ulimit.hard}


def _mount(mount: MountSpec) -> dict[str, Any]:
    read_only = {"ReadOnly": True} if mount.read_only else {}
    return {"Type": "bind", "Source": mount.source, "Target": mount.target, **read_only}


def _mount_flag(mount: MountSpec) -> str:
    """`--mount`, not `--volume`: a source that is absent is refused, not made as root."""
    suffix = ",readonly" if mount.read_only else ""
    return f"type=bind,source={mount.source},target={mount.target}{suffix}"


def _flag(name: str, value: object | None) -> list[str]:
    return [] if value is None else [name, str(value)]


def _each(name: str, values: Iterable[str]) -> list[str]:
    return [word for value in values for word in (name, value)]
