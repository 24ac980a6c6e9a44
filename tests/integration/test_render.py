"""`render` beside a real `up`: the same lines, and hosts that run them form the same Ray."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .bed import Cluster, brought_down
from .conftest import RunningTestbed

pytestmark = [pytest.mark.full, pytest.mark.testbed, pytest.mark.timeout(900)]

SECRETS = "/etc/clusterctl/rendered"
NODES = "import ray; ray.init(logging_level='ERROR'); print(sum(n['Alive'] for n in ray.nodes()))"


def test_the_script_makes_what_up_would_make(testbed: RunningTestbed, tmp_path: Path) -> None:
    hosts = testbed.hosts[:2]
    cluster = Cluster(testbed, tmp_path, "rendered", hosts)
    cluster.write()
    with brought_down(cluster):
        planned = json.loads(cluster.ok("up", "--dry-run", "--json"))
        cluster.ok("render", "shell", "--live", "-o", "rendered.sh")
        text = (tmp_path / "rendered.sh").read_text()
        for node in planned["nodes"]:
            assert node["command"] in text.splitlines()
        for host in hosts:
            testbed.ssh(host, f"docker pull -q {testbed.image}")
            testbed.ssh(host, f"mkdir -p {SECRETS}; printf %064d 7 >{SECRETS}/ray_token")
            testbed.ssh(host, f"cat >/tmp/rendered.sh <<'END OF SCRIPT'\n{text}\nEND OF SCRIPT\n")
            testbed.ssh(host, f"bash /tmp/rendered.sh {host}")
        inside = f"docker exec {cluster.container(hosts[0])} python3 -c"
        waiting = (
            f'for i in $(seq 120); do n=$({inside} "{NODES}" 2>/dev/null | tail -n 1); '
            '[ "$n" = 2 ] && break; sleep 2; done; echo "$n"'
        )
        assert testbed.ssh(hosts[0], waiting).strip() == "2"
        for host in hosts:
            testbed.ssh(host, f"rm -r {SECRETS} /tmp/rendered.sh")
