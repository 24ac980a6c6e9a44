"""What the shell offers on Tab: names from files on this machine, never a connection."""

from __future__ import annotations

import os
from pathlib import Path

import typer

from clusterctl.errors import ConfigError


def clusters(incomplete: str) -> list[str]:
    """Clusters that `up` saved."""
    from clusterctl.config.saved import saved_names

    return [name for name in saved_names(os.environ) if name.startswith(incomplete)]


def hosts(context: typer.Context, incomplete: str) -> list[str]:
    """Nodes of the cluster that the line so far means; after a comma, one more of them."""
    before, comma, last = incomplete.rpartition(",")
    names = node_names(context.params.get("config"), context.params.get("cluster"))
    chosen = before.split(",")
    return [
        f"{before}{comma}{name}" for name in names if name.startswith(last) and name not in chosen
    ]


def node_names(config: Path | None, cluster: str | None) -> list[str]:
    from clusterctl.config import Flags, load_spec

    try:
        loaded = load_spec(Flags(config=config, cluster=cluster))
    except ConfigError:  # the command itself will say so; a shell in the middle of a line cannot
        return []
    return [node.name for node in loaded.spec.nodes]
