"""An inventory that means harm, on a real host: words stay words, whatever is in them."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from .bed import Cluster, brought_down
from .conftest import RunningTestbed

MARK = "/tmp/owned"
WORD = f"""$(touch {MARK})`touch {MARK}`; touch {MARK} & '"$HOME%h\\ é — 模型 \U0001f4a3"""
LONG = (WORD + "\n") * (10_240 // len(WORD) + 1)
DIRECTORY = f"/srv/it's $(touch {MARK})`touch {MARK}`; é"


@pytest.fixture
def cluster(testbed: RunningTestbed, tmp_path: Path) -> Cluster:
    return Cluster(testbed, tmp_path, "hostile", testbed.hosts[:1])


@pytest.mark.parametrize(
    "hosts",
    [["$(reboot)"], ["gpu01;reboot"], ["-oProxyCommand=reboot"], [{"name": "a", "user": "`id`"}]],
)
def test_a_host_that_is_a_command_is_no_host(cluster: Cluster, hosts: list[object]) -> None:
    cluster.write(hosts=hosts, head=None)
    code, error, _ = cluster.refused("up")
    assert (code, error["code"]) == (2, "config")
    assert "cluster.yaml:" in error["message"]


def test_values_arrive_as_they_are_and_do_nothing(cluster: Cluster) -> None:
    (host,) = cluster.hosts
    labels, env = {"rack": WORD}, {"NOTE": WORD, "LONG": LONG}
    cluster.write(
        hosts=[{"name": host, "labels": labels, "env": env}], model_dirs=["/models", DIRECTORY]
    )
    cluster.testbed.ssh(host, f"mkdir -p {shlex.quote(DIRECTORY)}")
    try:
        with brought_down(cluster):
            cluster.ok("up", "--no-sanity")
            assert cluster.ok("exec", host, "--", "printenv", "NOTE") == f"{WORD}\n"
            assert cluster.ok("exec", host, "--", "printenv", "LONG") == f"{LONG}\n"
            assert cluster.run("exec", host, "--", "test", "-d", DIRECTORY).returncode == 0
            again = json.loads(cluster.ok("up", "--no-sanity", "--json"))
            assert [node["action"] for node in again["nodes"]] == ["keep"]
            for command in (["status"], ["diff"], ["logs"], ["up", "--dry-run"], ["doctor"]):
                assert "Traceback" not in cluster.run(*command).stderr
            assert cluster.testbed.ssh(host, f"ls {MARK} 2>/dev/null || echo none") == "none\n"
            assert cluster.run("exec", host, "--", "test", "-e", MARK).returncode == 1
    finally:
        cluster.testbed.ssh(host, f"rmdir {shlex.quote(DIRECTORY)}")
    assert not Path(MARK).exists()
