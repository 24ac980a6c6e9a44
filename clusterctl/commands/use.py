"""clusterctl use: which cluster is meant where nothing else says so."""

from __future__ import annotations

from typing import Annotated

import typer

from clusterctl import completion, console


def use(
    name: Annotated[
        str, typer.Argument(metavar="NAME", autocompletion=completion.clusters, show_default=False)
    ],
) -> None:
    """Make a saved cluster the current one."""
    from clusterctl import clusters

    clusters.use(name)
    console.line(f"{name} is the current cluster")
