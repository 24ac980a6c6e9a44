"""clusterctl ps: the deployments, and whether each gives a token now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from clusterctl import console
from clusterctl.options import ClusterName, ConfigFile, Json, Watch, load_spec

if TYPE_CHECKING:
    from clusterctl.serving.records import Deployment

WATCH_S = 2.0


def ps(
    config: ConfigFile = None,
    cluster: ClusterName = None,
    ranks: Annotated[
        bool, typer.Option("--ranks", help="Show the processes of each, on every node.")
    ] = False,
    watch: Watch = False,
    as_json: Json = False,
) -> None:
    """List deployments; one is ready only if a token came back just now."""
    from clusterctl import deployments
    from clusterctl.session import Session

    spec = load_spec(config=config, cluster=cluster)
    with Session.connect(spec, names=[spec.head]) as session:
        _show(deployments.seen(session), ranks=ranks, as_json=as_json, one_of_many=watch)
        while watch:
            console.again(WATCH_S)
            _show(deployments.seen(session), ranks=ranks, as_json=as_json, one_of_many=watch)


def _show(found: tuple[Deployment, ...], *, ranks: bool, as_json: bool, one_of_many: bool) -> None:
    documents = [one.document() for one in found]
    if as_json:
        document = {"schema_version": console.SCHEMA_VERSION, "deployments": documents}
        (console.json_line if one_of_many else console.json)(document)
        return
    console.deployments(documents)
    if ranks:
        console.line()
        console.ranks(documents)
    for one in found:
        for remark in one.remarks():
            console.note(remark)
