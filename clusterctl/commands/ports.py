"""clusterctl ports: what must be open between the hosts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from clusterctl import console
from clusterctl.options import ClusterName, ConfigFile, Head, Json, Workers, load_spec
from clusterctl.spec import ServeSpec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from clusterctl.ports import Port
    from clusterctl.spec import ClusterSpec

NOT_OPENED = "Ray's dashboard listens on the head's loopback alone: clusterctl tunnel reaches it."


def ports(
    head: Head = None,
    worker: Workers = None,
    config: ConfigFile = None,
    cluster: ClusterName = None,
    api_port: Annotated[
        list[int] | None,
        typer.Option(
            "--api-port", metavar="PORT", min=1, max=65535, help="Of a deployment; repeat it."
        ),
    ] = None,
    roce: Annotated[bool, typer.Option("--roce", help="The nodes use RDMA over Ethernet.")] = False,
    firewall: Annotated[
        Literal["ufw", "firewalld", "iptables", "nftables"] | None,
        typer.Option("--firewall", help="As commands for each host.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show which ports must be open between which hosts, as a table or as firewall rules.

    Rules name the nodes' private addresses: those of cluster.yaml (`cluster_address`), or those
    that the hosts are found to reach each other on.

    \b
      clusterctl ports
      clusterctl ports --firewall ufw
    """
    from dataclasses import asdict

    from clusterctl import ports as opening

    spec = load_spec(config=config, cluster=cluster, head=head, workers=worker)
    opened = opening.ports(spec, api_port or [ServeSpec.port], rdma=roce)
    if firewall is not None:
        show_rules(spec, opened, firewall, as_json)
    elif as_json:
        rows = [asdict(one) for one in opened]
        console.json({"schema_version": console.SCHEMA_VERSION, "ports": rows})
    else:
        console.table(
            ("PORT", "PROTOCOL", "FROM", "TO", "FOR"),
            [(one.numbers, one.protocol, one.source, one.target, one.purpose) for one in opened],
        )
        console.note(NOT_OPENED)


def show_rules(spec: ClusterSpec, opened: Sequence[Port], firewall: str, as_json: bool) -> None:
    from clusterctl import ports as opening

    line_of = opening.FIREWALLS[firewall]
    by_host: dict[str, list[str]] = {node.name: [] for node in spec.nodes}
    for rule in opening.rules(spec, opened, private_addresses(spec)):
        by_host[rule.host].append(line_of(rule))
    if as_json:
        console.json(
            {"schema_version": console.SCHEMA_VERSION, "firewall": firewall, "rules": by_host}
        )
        return
    for host, lines in by_host.items():
        console.line(f"# on {host}")
        for line in lines:
            console.line(line)


def private_addresses(spec: ClusterSpec) -> Mapping[str, str]:
    declared = {node.name: node.cluster_address for node in spec.nodes if node.cluster_address}
    if len(declared) == len(spec.nodes):
        return declared
    from clusterctl import planning
    from clusterctl.session import Session

    with console.progress() as report, Session.connect(spec, report=report) as session:
        chosen = planning.addresses(session, session.facts(), report).chosen
    return {name: one.address for name, one in chosen.items()}
