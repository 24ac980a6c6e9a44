"""A container as a value. PURE: the `docker run` line people read and the Docker SDK arguments
that are executed come from the same ContainerSpec."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from clusterctl.spec import NO_ENV, MountSpec


@dataclass(frozen=True)
class Ulimit:
    name: str
    soft: int
    hard: int


@dataclass(frozen=True)
class ContainerSpec:
    """Everything Docker is told about one node's container."""

    name: str
    image: str
    command: tuple[str, ...]
    env: Mapping[str, str] = NO_ENV
    labels: Mapping[str, str] = NO_ENV
    mounts: tuple[MountSpec, ...] = ()
    devices: tuple[str, ...] = ()
    gpus: str | None = None  # "all" or a device list; None: no GPU request
    cap_add: tuple[str, ...] = ()
    security_opt: tuple[str, ...] = ()
    group_add: tuple[str, ...] = ()
    ulimits: tuple[Ulimit, ...] = ()
    shm_size: int | None = None
    ipc: str | None = "host"
    restart: str = "unless-stopped"
    log_max_size: str = "64m"
    log_max_file: int = 4


@dataclass(frozen=True)
class ContainerFile:
    """A file put into the created container's own layer before it starts (survives a reboot)."""

    path: str
    data: bytes
    mode: int = 0o644
