"""clusterctl diff: what is no longer as `up` made it, or as it is asked for."""

from __future__ import annotations

from clusterctl import console
from clusterctl.options import ClusterName, ConfigFile, Json, load_spec

DRIFTED = 1


def diff(config: ConfigFile = None, cluster: ClusterName = None, as_json: Json = False) -> int:
    """Show what has drifted since `up`: image, environment, flags, driver, weights.

    Exit code 0: nothing; 1: something. Nothing is changed.
    """
    from clusterctl import drift
    from clusterctl.session import Session

    spec = load_spec(config=config, cluster=cluster)
    with console.progress() as report, Session.connect(spec, report=report) as session:
        found = drift.look(session, report)
    if as_json:
        console.json(
            {
                "schema_version": console.SCHEMA_VERSION,
                "cluster": spec.name,
                "drift": drift.document(found),
            }
        )
    elif found:
        rows = [(one.host, one.what, one.was or "-", one.now or "-") for one in found]
        console.table(("HOST", "WHAT", "WAS", "NOW"), rows)
        for fix in dict.fromkeys(one.fix for one in found):
            console.note(f"fix: {fix}")
    else:
        console.line(f"{spec.name}: nothing has changed since up")
    return DRIFTED if found else 0
