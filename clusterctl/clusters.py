"""The clusters this user has brought up: their resolved specs, saved under the user's config
directory, and which of them is current. Secrets are no part of a spec."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from clusterctl import privatefile
from clusterctl.config import spec_to_yaml
from clusterctl.config.saved import (
    clusters_dir,
    current_file,
    current_name,
    saved_file,
    saved_names,
)
from clusterctl.spec import ClusterSpec

_HEADER = """\
# The cluster {name} as `up` resolved it. Written by every `up` of this cluster.
"""


@dataclass(frozen=True)
class SavedCluster:
    name: str
    file: Path
    current: bool


def save_current(spec: ClusterSpec, env: Mapping[str, str] = os.environ) -> Path:
    """Save the spec and make it the one that commands without --cluster or cluster.yaml mean."""
    file = save(spec, env)
    use(spec.name, env)
    return file


def save(spec: ClusterSpec, env: Mapping[str, str] = os.environ) -> Path:
    """Trusting new host keys is said anew at every run, so it is not saved."""
    kept = replace(spec, ssh=replace(spec.ssh, accept_new_host_keys=False))
    file = clusters_dir(env) / f"{spec.name}.yaml"
    _write(file, _HEADER.format(name=spec.name) + spec_to_yaml(kept))
    return file


def use(name: str, env: Mapping[str, str] = os.environ) -> Path:
    """Raises ConfigError when no such cluster was saved."""
    file = saved_file(name, env)
    _write(current_file(env), f"{name}\n")
    return file


def saved(env: Mapping[str, str] = os.environ) -> list[SavedCluster]:
    current = current_name(env)
    return [SavedCluster(name, saved_file(name, env), name == current) for name in saved_names(env)]


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    privatefile.write(file, text.encode())
