"""cluster.yaml, flags and environment -> ClusterSpec, with the origin of every value.

flag > environment > file > default (or detected on the hosts by `up`)
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from clusterctl.config.check import check
from clusterctl.config.document import KeyPath, dotted, read_document
from clusterctl.config.layers import (
    Layer,
    Origin,
    choose_hosts,
    from_document,
    from_values,
    named_hosts,
    stack,
    with_hosts,
)
from clusterctl.config.plain import leaves
from clusterctl.config.saved import current_name, saved_file
from clusterctl.errors import ConfigError, NoCluster
from clusterctl.spec import ClusterSpec

CLUSTER_FILE = "cluster.yaml"

ENVIRONMENT: Mapping[str, KeyPath] = {
    "INFERCLUSTER_IMAGE": ("image",),
    "INFERCLUSTER_DEVICES": ("devices",),
    "INFERCLUSTER_HF_HOME": ("hf_home",),
    "INFERCLUSTER_DOCKER_SOCKET": ("docker_socket",),
    "INFERCLUSTER_SSH_CONFIG": ("ssh", "config"),
    "INFERCLUSTER_KNOWN_HOSTS": ("ssh", "known_hosts"),
}
"""Beside these, INFERCLUSTER_CLUSTER and INFERCLUSTER_CONFIG stand for --cluster and --config."""

DETECTED = frozenset({"hf_home", "interface", "subnet", "cluster_address"})


@dataclass(frozen=True)
class Flags:
    """What was said on the command line. None or empty: nothing."""

    cluster: str | None = None
    config: Path | None = None
    head: str | None = None
    workers: tuple[str, ...] = ()
    name: str | None = None
    image: str | None = None
    devices: str | None = None
    model_dirs: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    ssh_config: str | None = None
    accept_new_host_keys: bool | None = None
    port_offset: int | None = None
    allow_public_address: bool = False

    def values(self) -> dict[KeyPath, tuple[object, Origin]]:
        said: dict[KeyPath, tuple[object, str]] = {
            ("name",): (self.name, "--name"),
            ("image",): (self.image, "--image"),
            ("devices",): (self.devices, "--devices"),
            ("model_dirs",): (list(self.model_dirs) or None, "--model-dir"),
            **{("env", key): (value, "--env") for key, value in map(_assignment, self.env)},
            ("ssh", "config"): (self.ssh_config, "--ssh-config"),
            ("ssh", "accept_new_host_keys"): (
                self.accept_new_host_keys or None,
                "--accept-new-host-keys",
            ),
            ("ray", "port_offset"): (self.port_offset, "--port-offset"),
            ("network", "allow_public_address"): (
                self.allow_public_address or None,
                "--allow-public-address",
            ),
        }
        return {
            path: (value, Origin("flag", flag))
            for path, (value, flag) in said.items()
            if value is not None
        }


def _assignment(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--env {text}: there is no value", hint=f"--env {text}=VALUE")
    return key, value


@dataclass(frozen=True)
class Loaded:
    """`origins`: by dotted key ("ray.port", "hosts[0].address"), of every value in the spec.
    `file`: the cluster.yaml or saved spec that was read, None when flags said it all."""

    spec: ClusterSpec
    origins: Mapping[str, Origin]
    file: Path | None


def load_spec(
    flags: Flags = Flags(), env: Mapping[str, str] = os.environ, cwd: Path | None = None
) -> Loaded:
    """The cluster that is meant. Raises ConfigError naming file and line, flag or variable."""
    cwd = cwd or Path.cwd()
    return _load(find_file(flags, env, cwd), flags, env, cwd)


def load_flags(
    flags: Flags, env: Mapping[str, str] = os.environ, cwd: Path | None = None
) -> Loaded:
    """The cluster that flags and environment mean by themselves, whatever files there are."""
    return _load(None, flags, env, cwd or Path.cwd())


def _load(file: Path | None, flags: Flags, env: Mapping[str, str], cwd: Path) -> Loaded:
    below = stack([_file_layer(file, env, cwd), _environment_layer(env, cwd)])
    layer = with_hosts(stack([below, _flags_layer(flags, below, cwd)]))
    spec = check(layer.data, layer.origins).spec()
    return Loaded(spec, _origins(spec, layer), file)


def explained(loaded: Loaded) -> list[tuple[str, str, str]]:
    """Key, value and origin of everything, for people. What `up` detects has no value yet."""
    return [
        (dotted(path), "-" if value is None else str(value), loaded.origins[dotted(path)].where)
        for path, value in leaves(loaded.spec)
    ]


def find_file(flags: Flags, env: Mapping[str, str], cwd: Path) -> Path | None:
    """--cluster or --config > INFERCLUSTER_CLUSTER or _CONFIG > ./cluster.yaml > the current one.
    Hosts given by flags never build upon the current cluster."""
    if flags.cluster and flags.config:
        raise ConfigError("--cluster and --config name two clusters", hint="give one of them")
    if flags.cluster:
        return saved_file(flags.cluster, env)
    if flags.config:
        return cwd / flags.config
    return _file_not_flagged(flags, env, cwd)


def _file_not_flagged(flags: Flags, env: Mapping[str, str], cwd: Path) -> Path | None:
    if name := env.get("INFERCLUSTER_CLUSTER"):
        return saved_file(name, env)
    if path := env.get("INFERCLUSTER_CONFIG"):
        return cwd / path
    if (cwd / CLUSTER_FILE).exists():
        return cwd / CLUSTER_FILE
    if flags.head or flags.workers:
        return None
    if name := current_name(env):
        return saved_file(name, env)
    raise NoCluster(
        f"no cluster: there is no {CLUSTER_FILE} here and none was saved as the current one",
        hint="clusterctl up --head HOST --worker HOST, or clusterctl init HOST... to write a "
        f"{CLUSTER_FILE}",
    )


def _file_layer(file: Path | None, env: Mapping[str, str], cwd: Path) -> Layer:
    if file is None:
        return Layer({}, {})
    shown = str(file.relative_to(cwd)) if file.is_relative_to(cwd) else str(file)
    return from_document(read_document(file, env, shown_as=shown), file.parent)


def _environment_layer(env: Mapping[str, str], cwd: Path) -> Layer:
    values = {
        path: (env[name], Origin("env", name))
        for name, path in ENVIRONMENT.items()
        if env.get(name)
    }
    return from_values(values, cwd)


def _flags_layer(flags: Flags, below: Layer, cwd: Path) -> Layer:
    layer = from_values(flags.values(), cwd)
    if flags.head is None:
        if flags.workers:
            raise ConfigError(
                "--worker needs --head", hint="clusterctl up --head HOST --worker HOST"
            )
        return layer
    head = named_hosts({"--head": [flags.head]})
    if len(head) != 1:
        raise ConfigError(f"--head: {flags.head!r} stands for {len(head)} hosts", hint="name one")
    data = {**layer.data, "head": head[0].data["name"]}
    origins = {**layer.origins, ("head",): Origin("flag", "--head")}
    if below.hosts and not flags.workers:  # one of the file's hosts, all of which stay
        return Layer(data, origins)
    chosen = head + named_hosts({"--worker": flags.workers})
    return Layer(data, origins, choose_hosts(below.hosts or (), chosen))


def _origins(spec: ClusterSpec, layer: Layer) -> dict[str, Origin]:
    return {
        dotted(path): layer.origin(path) or _shifted(layer, path) or _unsaid(path, value)
        for path, value in leaves(spec)
    }


def _shifted(layer: Layer, path: KeyPath) -> Origin | None:
    """Of a port that is its default and the offset."""
    is_port = path[0] == "ray" and str(path[-1]).endswith("port")
    return layer.origin(("ray", "port_offset")) if is_port else None


def _unsaid(path: KeyPath, value: object) -> Origin:
    detected = value is None and path[-1] in DETECTED
    return Origin("detected", "by up") if detected else Origin("default", "default")
