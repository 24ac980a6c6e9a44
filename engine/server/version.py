"""Which engine this is."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

DISTRIBUTION = "clusterctl-inference"


def version() -> str:
    """Of the installed distribution; in a container the name of the directory that was delivered,
    "engine-VERSION-HASH". "unknown" where neither says it."""
    try:
        return importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        name = Path(__file__).parents[2].name
        return name.removeprefix("engine-") if name.startswith("engine-") else "unknown"
