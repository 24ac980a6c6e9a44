"""Bring the operator's own `engine` package into a container, and check first that it runs there.

It lands in a directory named by version and content, which is on the PYTHONPATH of our own
processes only: never in site-packages, and never loaded here (that would import torch).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clusterctl import __version__
from clusterctl.containers import ContainerFile
from clusterctl.errors import ClusterctlError, PreflightFailed
from clusterctl.runtime import Runtime
from clusterctl.serving.requirements import (
    PROBE,
    FoundPython,
    Requirement,
    declared,
    unmet,
)

DISTRIBUTION = "clusterctl-inference"
MARKER = "complete"


@dataclass(frozen=True)
class EnginePackage:
    """Relative paths ("engine/core.py") and their contents."""

    files: tuple[tuple[str, bytes], ...]

    @property
    def name(self) -> str:
        """The directory's name: equal content has an equal name on every node."""
        digest = hashlib.sha256()
        for path, data in self.files:
            digest.update(f"{path}\0{len(data)}\0".encode() + data)
        return f"engine-{__version__}-{digest.hexdigest()[:12]}"


def load() -> EnginePackage:
    """The package as it is installed here, from a wheel or an editable install."""
    found = importlib.util.find_spec("engine")
    if found is None or not found.submodule_search_locations:
        raise ClusterctlError(
            "this installation of clusterctl lacks its `engine` package",
            hint=f"pip install --force-reinstall {DISTRIBUTION}",
        )
    root = Path(next(iter(found.submodule_search_locations)))
    paths = sorted(path for path in root.rglob("*") if path.is_file() and _belongs(path))
    return EnginePackage(
        tuple(("engine/" + path.relative_to(root).as_posix(), path.read_bytes()) for path in paths)
    )


def _belongs(path: Path) -> bool:
    return "__pycache__" not in path.parts and not path.name.startswith(".")


def deliver(runtime: Runtime, container_id: str, package: EnginePackage) -> str:
    """Put the package into the container unless it is there; what PYTHONPATH has to be."""
    directory = f"{runtime.home}/{package.name}"
    marker = f"{directory}/{MARKER}"
    if runtime.read_file(container_id, marker) is None:
        runtime.put_files(
            container_id,
            [ContainerFile(f"{directory}/{path}", data) for path, data in package.files],
        )
        # A second step: a put that broke off must not look complete.
        runtime.put_files(container_id, [ContainerFile(marker, b"")])
    return directory


def requirements(*, ray: bool) -> tuple[Requirement, ...]:
    """All that `engine serve` imports; `ray` only where it is the executor."""
    lines = importlib.metadata.requires(DISTRIBUTION) or []
    return tuple(need for need in declared(lines) if ray or need.name != "ray")


TORCH_ONLY = (Requirement("torch"),)


def check(
    runtime: Runtime, container_id: str, wanted: Sequence[Requirement], *, image: str
) -> None:
    """Raises PreflightFailed naming each thing that this container's Python lacks."""
    result = runtime.exec(
        container_id,
        ["python3", "-c", PROBE, *(need.name for need in wanted)],
        check=False,
    )
    if not result.ok:
        raise PreflightFailed(
            f"python3 does not run in image {image}: {result.stderr.strip()}",
            host=runtime.host,
            hint="use an image with Python 3.10-3.13 and torch (`image:` in cluster.yaml)",
        )
    if problems := unmet(FoundPython(**json.loads(result.stdout)), wanted):
        raise PreflightFailed(
            f"image {image} cannot run the engine: {'; '.join(problems)}",
            host=runtime.host,
            hint=f"use an image that has them, or build one: pip install '{DISTRIBUTION}[engine]'",
        )
