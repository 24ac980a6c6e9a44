"""clusterctl config: what holds, where it comes from, and what may be written."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from clusterctl import console
from clusterctl.options import ClusterName, ConfigFile, Head, Image, Json, Workers, command_group

app = command_group("Show the merged configuration, the origin of each value, or the JSON Schema.")


@app.command()
def show(
    config: ConfigFile = None,
    cluster: ClusterName = None,
    head: Head = None,
    workers: Workers = None,
    image: Image = None,
    origin: Annotated[
        bool, typer.Option("--origin", help="Each value and where it comes from.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Print the merged configuration as YAML, as the other commands see it."""
    from clusterctl import config as configuration

    loaded = configuration.load_spec(
        configuration.Flags(
            config=config, cluster=cluster, head=head, workers=tuple(workers or ()), image=image
        )
    )
    if as_json:
        console.json(
            {
                "schema_version": console.SCHEMA_VERSION,
                "cluster": configuration.spec_to_dict(loaded.spec),
                "origins": {key: origin.where for key, origin in loaded.origins.items()},
            }
        )
    elif origin:
        console.table(("KEY", "VALUE", "FROM"), configuration.explained(loaded))
    else:
        console.line(configuration.spec_to_yaml(loaded.spec).rstrip())


@app.command()
def schema() -> None:
    """Print the JSON Schema of cluster.yaml."""
    from clusterctl.config.schema import json_schema

    console.line(json.dumps(json_schema(), indent=2))
