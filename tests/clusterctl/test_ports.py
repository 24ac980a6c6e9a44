"""Which ports are opened between which hosts, and the rules that do it."""

from __future__ import annotations

import json

import pytest

from clusterctl import cli
from clusterctl.ports import Port, Rule, firewalld, iptables, nftables, ports, rules, ufw
from clusterctl.spec import ClusterSpec, NodeSpec

SPEC = ClusterSpec(
    "c",
    (
        NodeSpec("gpu01", "gpu01", cluster_address="10.0.0.1"),
        NodeSpec("gpu02", "gpu02", port=2222, cluster_address="10.0.0.2"),
        NodeSpec("gpu03", "gpu03", cluster_address="10.0.0.3"),
    ),
    "gpu01",
)
GCS = Port(6379, 6379, "tcp", "every node", "head", "Ray, GCS")
WORKERS = Port(10002, 10999, "tcp", "every node", "every node", "Ray, workers")
CONFIG = """\
name: c
hosts:
  - {name: gpu01, address: gpu01, cluster_address: 10.0.0.1}
  - {name: gpu02, address: gpu02, cluster_address: 10.0.0.2}
"""


def test_every_port_of_a_cluster() -> None:
    found = [(one.numbers, one.source, one.target) for one in ports(SPEC, [8000, 8001])]
    assert found == [
        ("22", "operator", "every node"),
        ("2222", "operator", "every node"),
        ("6379", "every node", "head"),
        ("6385", "every node", "head"),
        ("6380", "every node", "every node"),
        ("6381", "every node", "every node"),
        ("6382", "every node", "every node"),
        ("6383", "every node", "every node"),
        ("6384", "every node", "every node"),
        ("52365", "every node", "every node"),
        ("10002-10999", "every node", "every node"),
        ("29501", "every node", "every node"),
        ("32768-60999", "every node", "every node"),
        ("8000", "clients", "head"),
        ("8001", "clients", "head"),
    ]
    roce = [one for one in ports(SPEC, [], rdma=True) if one.protocol == "udp"]
    assert [one.numbers for one in roce] == ["4791"]


def test_a_rule_for_every_other_node() -> None:
    addresses = {"gpu01": "10.0.0.1", "gpu02": "10.0.0.2", "gpu03": "10.0.0.3"}
    found = list(rules(SPEC, [GCS, WORKERS], addresses))
    assert found == [
        Rule("gpu01", "10.0.0.2", GCS),
        Rule("gpu01", "10.0.0.3", GCS),
        Rule("gpu01", "10.0.0.2", WORKERS),
        Rule("gpu01", "10.0.0.3", WORKERS),
        Rule("gpu02", "10.0.0.1", WORKERS),
        Rule("gpu02", "10.0.0.3", WORKERS),
        Rule("gpu03", "10.0.0.1", WORKERS),
        Rule("gpu03", "10.0.0.2", WORKERS),
    ]


def test_rules_in_the_words_of_each_firewall() -> None:
    between = Rule("gpu01", "10.0.0.2", WORKERS)
    assert ufw(between) == (
        "ufw allow proto tcp from 10.0.0.2 to any port 10002:10999 comment 'Ray, workers'"
    )
    assert firewalld(between) == (
        """firewall-cmd --permanent --add-rich-rule='rule family="ipv4" """
        """source address="10.0.0.2" port port="10002-10999" protocol="tcp" accept'"""
    )
    assert iptables(between) == (
        "iptables -I INPUT -s 10.0.0.2 -p tcp --dport 10002:10999 "
        "-m comment --comment 'Ray, workers' -j ACCEPT"
    )
    assert nftables(between) == (
        "nft insert rule inet filter input ip saddr 10.0.0.2 tcp dport 10002-10999 accept "
        "comment '\"Ray, workers\"'"
    )
    assert iptables(Rule("gpu01", None, GCS)) == (
        "iptables -I INPUT -p tcp --dport 6379 -m comment --comment 'Ray, GCS' -j ACCEPT"
    )


def test_the_command(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "cluster.yaml"
    file.write_text(CONFIG)
    assert cli.run(["ports", "-f", str(file), "--firewall", "ufw", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert list(said["rules"]) == ["gpu01", "gpu02"]
    assert said["rules"]["gpu02"][0] == (
        "ufw allow proto tcp from any to any port 22 comment 'SSH: all that clusterctl does'"
    )
    assert cli.run(["ports", "-f", str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["PORT", "PROTOCOL", "FROM", "TO", "FOR"]
    assert lines[-1].endswith("the API of a deployment")
