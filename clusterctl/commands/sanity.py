"""clusterctl sanity: can all ranks of the cluster reach each other, and how fast?"""

from __future__ import annotations

from clusterctl import console
from clusterctl.options import ClusterName, ConfigFile, Json, Timeout, load_spec


def sanity(
    config: ConfigFile = None,
    cluster: ClusterName = None,
    timeout: Timeout = None,
    as_json: Json = False,
) -> None:
    """Check collectives over all devices, and name the rank that does not answer."""
    from dataclasses import asdict

    from clusterctl import sanity as check
    from clusterctl.members import members
    from clusterctl.session import Session

    spec = load_spec(config=config, cluster=cluster)
    with console.progress() as report, Session.connect(spec, report=report) as session:
        found = check.check(session, members(session), report=report, timeout=timeout)
    if as_json:
        console.json(
            {
                "schema_version": console.SCHEMA_VERSION,
                "passed": found.passed,
                "busbw_gb_s": found.busbw_gb_s,
                "transports": found.transports,
                "hosts": found.hosts,
                "verdicts": [asdict(verdict) for verdict in found.verdicts],
            }
        )
        return
    console.line(f"{spec.name}: sanity passed, {found.summary()}")
