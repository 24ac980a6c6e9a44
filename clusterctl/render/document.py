"""What rendering is asked for and what comes of it, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from clusterctl.errors import ConfigError
from clusterctl.launch import Place
from clusterctl.serving.placement import Executor
from clusterctl.spec import ClusterSpec, ServeSpec

SlurmRuntime = Literal["pyxis", "apptainer", "modules"]


@dataclass(frozen=True)
class Asked:
    """`serve` None: the cluster alone. `gpus_per_node` is what cluster.yaml need not say. `places`:
    the hosts as they were seen, where they were asked; else only what is declared is known."""

    spec: ClusterSpec
    serve: ServeSpec | None = None
    gpus_per_node: int | None = None
    places: Mapping[str, Place] | None = None
    slurm: SlurmRuntime = "pyxis"
    modules: tuple[str, ...] = ()

    @property
    def deployment(self) -> ServeSpec:
        """Raises ConfigError where no model was named."""
        if self.serve is None:
            raise ConfigError(
                "this target is a deployment, and no model was named",
                hint="clusterctl render TARGET MODEL --tp N --pp N",
            )
        return self.serve

    @property
    def executor(self) -> Executor:
        if self.serve is None or self.serve.executor == "auto":
            return "ray" if len(self.spec.nodes) > 1 else "mp"
        return self.serve.executor

    @property
    def without_ray(self) -> bool:
        """The engine makes its own connections: no Ray is started for it."""
        return self.serve is not None and self.executor != "ray"

    def devices_per_node(self) -> int:
        """The same number on every node, as job descriptions have it. Raises ConfigError where it
        is not declared or differs."""
        counts = {self.devices_of(name) for name in [node.name for node in self.spec.nodes]}
        if None in counts:
            raise ConfigError(
                "how many GPUs a node has is not declared",
                hint="--gpus-per-node N, or `devices: gpu:N` in cluster.yaml",
            )
        if len(counts) > 1:
            raise ConfigError(
                f"nodes with {' and '.join(sorted(map(str, counts)))} devices cannot be one group "
                "of equal members",
                hint="give every host the same `devices:`, or render shell, compose or systemd",
            )
        return int(next(iter(counts)) or 0)

    def devices_of(self, name: str) -> int | None:
        """Of one node; None: not known."""
        asked = self.spec.devices_of(self.spec.node(name))
        if asked.kind == "cpu":
            return asked.count or 1
        if asked.count is None and self.places is not None:
            return len(self.places[name].facts.gpu.gpus)
        return self.gpus_per_node if asked.count is None else asked.count

    @property
    def on_cpus(self) -> bool:
        return self.spec.devices_of(self.spec.head_node).kind == "cpu"


@dataclass(frozen=True)
class File:
    """`name` is relative to the directory that is written."""

    name: str
    text: str
    mode: int = 0o644


@dataclass(frozen=True)
class Rendered:
    """`left_out`: what the target has no place for, or what could not be known, in words."""

    target: str
    files: tuple[File, ...]
    left_out: tuple[str, ...] = ()
