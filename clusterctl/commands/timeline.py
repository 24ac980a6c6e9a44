"""clusterctl timeline: where the seconds of `up` and `serve` went."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from clusterctl import console
from clusterctl.commands.audit import moment
from clusterctl.errors import ClusterctlError
from clusterctl.options import ClusterName, ConfigFile, Json, load_spec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clusterctl.runlog import Run


def timeline(
    command: Annotated[
        Literal["up", "serve"] | None,
        typer.Argument(metavar="[up|serve]", help="Both by default.", show_default=False),
    ] = None,
    by_host: Annotated[
        bool, typer.Option("--by-host", help="The seconds of every host, slowest first.")
    ] = False,
    config: ConfigFile = None,
    cluster: ClusterName = None,
    as_json: Json = False,
) -> None:
    """Show how long each stage of the last `up` and `serve` took, beside the run before it."""
    from dataclasses import asdict

    from clusterctl import runlog
    from clusterctl.session import Session

    spec = load_spec(config=config, cluster=cluster)
    with Session.connect(spec, names=[spec.head]) as session:
        runs = runlog.read(session)[spec.head]
    wanted = [command] if command else list(runlog.TIMED)
    found = {name: newest(runs, name) for name in wanted}
    if as_json:
        told = {name: [asdict(run) for run in pair] for name, pair in found.items()}
        console.json({"schema_version": console.SCHEMA_VERSION, "runs": told})
        return
    if not any(found.values()):
        raise ClusterctlError(f"no {' or '.join(wanted)} is on record", host=spec.head)
    for pair in found.values():
        if pair:
            show(pair, by_host)


def newest(runs: Sequence[Run], command: str) -> list[Run]:
    """The last run of a command that ended well, then the one before it, as far as there are."""
    return [run for run in reversed(runs) if (run.command, run.result) == (command, "ok")][:2]


def show(pair: Sequence[Run], by_host: bool) -> None:
    run = pair[0]
    told = f", {run.seconds - pair[1].seconds:+.1f} s to the run before" if pair[1:] else ""
    console.line(f"{run.command}, {moment(run.at)} UTC: {run.seconds:.1f} s{told}")
    console.stages(run.stages, pair[1].stages if pair[1:] else ())
    if by_host:
        rows = [
            (stage.step, host, f"{seconds:.1f} s")
            for stage in run.stages
            for host, seconds in sorted(stage.hosts.items(), key=lambda one: -one[1])
        ]
        console.table(("STAGE", "HOST", "TIME"), rows)
