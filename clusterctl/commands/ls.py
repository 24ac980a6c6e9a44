"""clusterctl ls: the clusters that `up` saved."""

from __future__ import annotations

from clusterctl import console
from clusterctl.options import Json


def ls(as_json: Json = False) -> None:
    """List the clusters that `up` or `adopt` saved, and which is current."""
    from clusterctl import clusters

    saved = clusters.saved()
    if as_json:
        records = [{"name": c.name, "current": c.current, "file": str(c.file)} for c in saved]
        console.json({"schema_version": console.SCHEMA_VERSION, "clusters": records})
        return
    console.table(
        ("NAME", "CURRENT", "FILE"),
        [(c.name, "yes" if c.current else "", str(c.file)) for c in saved],
    )
