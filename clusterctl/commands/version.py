"""clusterctl version: what is running here."""

from __future__ import annotations

import platform

from clusterctl import __version__, console
from clusterctl.options import Json


def version(as_json: Json = False) -> None:
    """Print the versions in use."""
    if as_json:
        console.json(
            {
                "schema_version": console.SCHEMA_VERSION,
                "clusterctl": __version__,
                "python": platform.python_version(),
            }
        )
        return
    console.line(f"clusterctl {__version__} (Python {platform.python_version()})")
