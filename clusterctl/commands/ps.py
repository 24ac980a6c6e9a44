"""clusterctl ps: the deployments, and whether each gives a token now."""

from __future__ import annotations

from clusterctl import console
from clusterctl.options import ClusterName, ConfigFile, Json, load_spec


def ps(config: ConfigFile = None, cluster: ClusterName = None, as_json: Json = False) -> None:
    """List deployments; one is ready only if a token came back just now."""
    from clusterctl import deployments
    from clusterctl.session import Session

    spec = load_spec(config=config, cluster=cluster)
    with Session.connect(spec, names=[spec.head]) as session:
        found = deployments.seen(session)
    documents = [one.document() for one in found]
    if as_json:
        console.json({"schema_version": console.SCHEMA_VERSION, "deployments": documents})
        return
    console.deployments(documents)
    for one in found:
        if one.detail:
            console.note(f"{one.name}: {one.detail}")
