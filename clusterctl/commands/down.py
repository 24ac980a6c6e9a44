"""clusterctl down: end the cluster, and prove it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from clusterctl import console
from clusterctl.options import ClusterName, ConfigFile, Json, LockWait, load_spec, with_lock_wait

if TYPE_CHECKING:
    from clusterctl.gpumemory import Holder


def down(
    config: ConfigFile = None,
    cluster: ClusterName = None,
    purge: Annotated[
        bool, typer.Option("--purge", help="Remove the state on the hosts too: token, caches.")
    ] = False,
    lock_wait: LockWait = None,
    as_json: Json = False,
) -> None:
    """End deployments, Ray and all containers of the cluster, and see that none is left."""
    from clusterctl import teardown
    from clusterctl.errors import ClusterctlError
    from clusterctl.runlog import recorded
    from clusterctl.session import Session

    spec = with_lock_wait(load_spec(config=config, cluster=cluster), lock_wait)
    with (
        console.progress() as report,
        Session.connect(spec, report=report, partial=True) as session,
        recorded(session, "down", report) as run,
    ):
        done = teardown.down(session, purge=purge, report=report)
        run.what = f"{sum(map(len, done.removed.values()))} containers removed"
    for host, ports in done.ports.items():
        raise ClusterctlError(
            f"no container of {spec.name} is left, but ports are in use: {', '.join(ports)}",
            host=host,
            hint="another Ray runs there; it is not this cluster's",
        )
    for gpu in done.released.held:
        raise ClusterctlError(
            f"no container of {spec.name} is left, but {gpu}",
            host=gpu.host,
            hint=f"sudo fuser -v /dev/nvidia{gpu.gpu} on the host; at worst reset the GPU",
            cause="gpu-held-by-orphan",
        )
    count = sum(map(len, done.removed.values()))
    if as_json:
        removed = {host: list(names) for host, names in done.removed.items()}
        console.json(
            {
                "schema_version": console.SCHEMA_VERSION,
                "cluster": spec.name,
                "removed": removed,
                "purged": purge,
                "gpus": [asdict(one) for one in done.released.gpus],
                "other_processes": [asdict(one) for one in done.released.others],
            }
        )
        return
    gpus = f", {done.released}" if done.released.gpus else ""
    state = ", state removed" if purge else ""
    console.line(
        f"{spec.name}: down; {count} containers removed, none left, ports free{gpus}{state}"
    )
    show_others(done.released.others)


def show_others(holders: Sequence[Holder]) -> None:
    """Who else is on these hosts' GPUs; nobody has touched them."""
    if not holders:
        return
    console.line("\nheld by others, left alone:")
    console.table(
        ("HOST", "GPU", "PID", "USER", "COMMAND", "MEMORY", "CONTAINER"),
        [
            (
                one.host,
                str(one.gpu),
                str(one.pid),
                one.user or "-",
                one.command,
                "-" if one.memory_mib is None else f"{one.memory_mib:,} MiB",
                one.container or "-",
            )
            for one in holders
        ],
    )
