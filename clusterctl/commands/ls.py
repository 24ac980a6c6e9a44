"""clusterctl ls: the clusters that `up` saved, and whose nodes run on the hosts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clusterctl import console
from clusterctl.options import ClusterName, ConfigFile, Json, load_spec

if TYPE_CHECKING:
    from clusterctl.clusters import SavedCluster
    from clusterctl.errors import ClusterctlError
    from clusterctl.runtime import SeenContainer
    from clusterctl.session import Session
    from clusterctl.spec import DevicesSpec


def ls(
    live: Annotated[
        bool,
        typer.Option("--live", help="Look at the hosts: nodes of every cluster there, whoever's."),
    ] = False,
    config: ConfigFile = None,
    cluster: ClusterName = None,
    as_json: Json = False,
) -> None:
    """List the clusters that `up` or `adopt` saved, and which is current.

    \b
      clusterctl ls
      clusterctl ls --live
    """
    if live:
        show_nodes(config, cluster, as_json)
        return
    from clusterctl import clusters

    records = [described(one) for one in clusters.saved()]
    if as_json:
        console.json({"schema_version": console.SCHEMA_VERSION, "clusters": records})
        return
    console.table(
        ("NAME", "CURRENT", "HEAD", "HOSTS", "DEVICES", "RAY", "FILE"),
        [
            (
                one["name"],
                "yes" if one["current"] else "",
                one["head"] or one["error"],
                str(len(one["hosts"]) or ""),
                one["devices"] or "",
                str(one["ray_port"] or ""),
                one["file"],
            )
            for one in records
        ],
    )


def described(saved: SavedCluster) -> dict[str, Any]:
    """`error`: why its file cannot be read."""
    from clusterctl.errors import ConfigError

    known: dict[str, Any] = {
        "name": saved.name,
        "current": saved.current,
        "file": str(saved.file),
        "head": None,
        "hosts": [],
        "devices": None,
        "ray_port": None,
        "error": None,
    }
    try:
        spec = load_spec(cluster=saved.name)
    except ConfigError as error:
        return known | {"error": error.message}
    return known | {
        "head": spec.head,
        "hosts": [node.name for node in spec.nodes],
        "devices": devices_text(spec.devices),
        "ray_port": spec.ray.port,
    }


def devices_text(devices: DevicesSpec) -> str:
    """As `--devices` takes it."""
    if devices.indices:
        return f"{devices.kind}={','.join(map(str, devices.indices))}"
    return devices.kind if devices.count is None else f"{devices.kind}:{devices.count}"


def show_nodes(config: Path | None, cluster: str | None, as_json: bool) -> None:
    """Raises the first failure of a host after all that was seen is shown."""
    from clusterctl.session import Session, all_failures

    spec = load_spec(config=config, cluster=cluster)
    with (
        console.progress() as report,
        Session.connect(spec, report=report, partial=True) as session,
    ):
        nodes, lost = on_hosts(session)
    if as_json:
        console.json({"schema_version": console.SCHEMA_VERSION, "nodes": nodes})
    else:
        columns = ("host", "cluster", "node", "role", "state", "gpus", "image")
        rows = [tuple(str(one[column] or "") for column in columns) for one in nodes]
        console.table(tuple(column.upper() for column in columns), rows)
    if lost:
        raise all_failures(lost)


def on_hosts(session: Session) -> tuple[list[dict[str, Any]], dict[str, ClusterctlError]]:
    """Every cluster's containers on the hosts of this one, and the hosts that did not answer."""
    from clusterctl.containers import LABEL_CLUSTER
    from clusterctl.fanout import Failed

    lost, nodes = dict(session.failures), []
    outcomes = session.each(lambda link: link.runtime.containers({LABEL_CLUSTER: ""}))
    for host, out in outcomes.items():
        if isinstance(out, Failed):
            lost[host] = out.error
        else:
            nodes += [node_of(host, one) for one in out.value]
    return nodes, lost


def node_of(host: str, container: SeenContainer) -> dict[str, Any]:
    from clusterctl.containers import LABEL_CLUSTER, LABEL_GPUS, LABEL_NODE, LABEL_ROLE

    labels = container.labels
    return {
        "host": host,
        "cluster": labels[LABEL_CLUSTER],
        "node": labels.get(LABEL_NODE),
        "role": labels.get(LABEL_ROLE),
        "state": container.state,
        "gpus": labels.get(LABEL_GPUS),
        "image": container.image,
    }
