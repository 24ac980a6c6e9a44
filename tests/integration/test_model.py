"""A model onto real hosts: passed on in a chain, broken off, healed, proved equal, removed."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import hub

from .bed import Cluster
from .conftest import RunningTestbed

DIRECTORY = "/srv/tested-models"
SHARDS = 3
SHARD_BYTES = 20_000_000
SLOW_MBIT = 80  # the model takes six seconds
WAIT_S = 60


@pytest.fixture(scope="module")
def cluster(testbed: RunningTestbed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Hosts with an image that has Python; nothing of a cluster runs on them."""
    settings = {"image": testbed.noray_image, "model_dirs": [DIRECTORY]}
    made = Cluster(
        testbed, tmp_path_factory.mktemp("model"), "model", testbed.hosts[:3], settings=settings
    )
    made.write()
    for host in made.hosts:
        testbed.ssh(host, f"docker pull --quiet {testbed.noray_image}")
    yield made
    for host in made.hosts:
        testbed.ssh(host, f"rm -rf {DIRECTORY}")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint's files in their usual shape, with bytes that no two shards share."""
    directory = tmp_path_factory.mktemp("source") / "tiny"
    directory.mkdir()
    names = [f"model-{n:05}-of-{SHARDS:05}.safetensors" for n in range(1, SHARDS + 1)]
    for number, name in enumerate(names):
        (directory / name).write_bytes(bytes([number, 7, 11, 13]) * (SHARD_BYTES // 4))
    index = {"weight_map": {f"layer{n}": name for n, name in enumerate(names)}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    (directory / "config.json").write_text("{}")
    return directory


@pytest.fixture
def clean(cluster: Cluster) -> Iterator[None]:
    yield
    cluster.ok("model", "rm", "tiny", "--yes")


@contextmanager
def slow_links(cluster: Cluster) -> Iterator[None]:
    with ExitStack() as links:
        for host in cluster.hosts:
            links.enter_context(cluster.testbed.fault(host, f"slow-link:{SLOW_MBIT}"))
        yield


def pushed(text: str) -> dict[str, Any]:
    return {node["name"]: node for node in json.loads(text)["nodes"]}


def moved(nodes: dict[str, Any]) -> int:
    """Bytes that any host received, from here or from another."""
    return sum(node["received_bytes"] + node["fed_bytes"] for node in nodes.values())


def helpers(cluster: Cluster, host: str) -> list[str]:
    return cluster.testbed.ssh(host, "docker ps -aq --filter label=clusterctl.helper").split()


def visible(cluster: Cluster, host: str) -> list[str]:
    return cluster.testbed.ssh(host, f"ls {DIRECTORY} 2>/dev/null || true").split()


def arrived(cluster: Cluster, host: str) -> int:
    """Bytes under the hidden name."""
    hidden = f"{DIRECTORY}/.tiny.clusterctl"
    return int(cluster.testbed.ssh(host, f"du -sb {hidden} 2>/dev/null || echo 0").split()[0])


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"never seen: {what}"
        time.sleep(0.2)


def interrupted(cluster: Cluster, model: Path, number: int) -> subprocess.Popen[str]:
    """A push that a signal ends in its middle; it has ended."""
    running = cluster.start("model", "push", str(model))
    wait_for(lambda: arrived(cluster, cluster.hosts[-1]) > SHARD_BYTES // 2, "the chain at work")
    running.send_signal(number)
    running.communicate(timeout=WAIT_S)
    return running


@pytest.mark.usefixtures("clean")
def test_a_model_is_pushed_once_and_a_flipped_byte_is_found(cluster: Cluster, model: Path) -> None:
    first = pushed(cluster.ok("model", "push", str(model), "--json"))
    assert {node["state"] for node in first.values()} == {"copied"}
    fed = [node["name"] for node in first.values() if node["fed_bytes"]]
    assert len(fed) == 1, "bytes left this machine once"
    second = pushed(cluster.ok("model", "push", str(model), "--json"))
    assert {node["state"] for node in second.values()} == {"kept"}
    assert moved(second) == sum(node["sent_bytes"] for node in second.values()) == 0
    assert json.loads(cluster.ok("model", "verify", "tiny", "--json"))["equal"] is True
    shard, host = f"model-00002-of-{SHARDS:05}.safetensors", cluster.hosts[2]
    flip = f"printf x | dd of={DIRECTORY}/tiny/{shard} bs=1 seek=4242 conv=notrunc"
    cluster.testbed.ssh(host, flip)
    said = cluster.run("model", "verify", "tiny", "--json")
    assert said.returncode == 1
    faults = json.loads(said.stdout)["faults"]
    assert [(fault["node"], fault["path"]) for fault in faults] == [(host, shard)]
    mended = pushed(cluster.ok("model", "push", str(model), "--json"))
    assert moved(mended) == SHARD_BYTES
    cluster.ok("model", "verify", "tiny")
    assert [helpers(cluster, one) for one in cluster.hosts] == [[], [], []]


@pytest.mark.full
@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_push_leaves_nothing_visible_and_goes_on(
    cluster: Cluster, model: Path, number: int
) -> None:
    with slow_links(cluster):
        interrupted(cluster, model, number)
        wait_for(lambda: not any(helpers(cluster, h) for h in cluster.hosts), "no helper left")
        assert [visible(cluster, host) for host in cluster.hosts] == [[], [], []]
        here = {host: arrived(cluster, host) for host in cluster.hosts}
        again = pushed(cluster.ok("model", "push", str(model), "--json"))
    total = SHARDS * SHARD_BYTES
    for host, node in again.items():
        took = node["received_bytes"] + node["fed_bytes"]
        assert 0 < took < total, "it went on from where it was"
        assert took + here[host] < total + 100_000, "no byte came twice"
    cluster.ok("model", "verify", "tiny")


@pytest.mark.full
@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("position", [0, 1])
def test_the_chain_heals_around_a_killed_host(cluster: Cluster, model: Path, position: int) -> None:
    """The first one of the chain is the one that is fed."""
    lost = cluster.hosts[position]
    with slow_links(cluster):
        running = cluster.start("model", "push", str(model), "--json")
        wait_for(lambda: arrived(cluster, cluster.hosts[-1]) > SHARD_BYTES // 2, "the chain")
        (helper,) = helpers(cluster, lost)
        cluster.testbed.ssh(lost, f"docker kill {helper}")
        out, err = running.communicate(timeout=WAIT_S)
    assert running.returncode == 1, err
    nodes = pushed(out)
    assert {name: node["state"] for name, node in nodes.items()} == {
        host: "failed" if host == lost else "copied" for host in cluster.hosts
    }
    assert visible(cluster, lost) == []
    others = ",".join(host for host in cluster.hosts if host != lost)
    cluster.ok("model", "verify", "tiny", "--hosts", others)
    again = pushed(cluster.ok("model", "push", str(model), "--json"))
    assert [name for name, node in again.items() if node["state"] == "copied"] == [lost]
    assert all(node["fed_bytes"] == 0 for node in again.values()), "its neighbours have it"


@pytest.mark.full
@pytest.mark.usefixtures("clean")
@pytest.mark.timeout(400)
def test_a_host_without_its_cable_is_named_and_the_rest_complete(
    cluster: Cluster, model: Path
) -> None:
    lost = cluster.hosts[1]
    with slow_links(cluster):
        running = cluster.start("model", "push", str(model), "--json")
        wait_for(lambda: arrived(cluster, cluster.hosts[-1]) > SHARD_BYTES // 2, "the chain")
        with cluster.testbed.fault(lost, "link-down"):
            out, err = running.communicate(timeout=200)
    assert running.returncode == 3, err
    states = {name: node["state"] for name, node in pushed(out).items()}
    assert states == {host: "failed" if host == lost else "copied" for host in cluster.hosts}


@pytest.mark.full
def test_a_directory_that_all_hosts_share_is_written_once(cluster: Cluster, model: Path) -> None:
    """/models is one directory of this machine; read-only unless its mount is changed."""
    to = "/models/tiny-shared"
    for host in cluster.hosts:
        cluster.testbed.ssh(host, "mount -o remount,bind,rw /models")
    try:
        nodes = pushed(cluster.ok("model", "push", str(model), "--to", to, "--json"))
        assert [node["state"] for node in nodes.values()] == ["copied", "shared", "shared"]
        assert nodes[cluster.hosts[0]]["sent_bytes"] == 0
        cluster.ok("model", "verify", to, "--to", to)
    finally:
        cluster.ok("model", "rm", to, "--to", to, "--yes")
        for host in cluster.hosts:
            cluster.testbed.ssh(host, "mount -o remount,bind,ro /models")


@pytest.mark.full
@pytest.mark.timeout(900)
def test_a_model_is_downloaded_once_and_its_token_is_nowhere(
    testbed: RunningTestbed, tmp_path: Path
) -> None:
    """By the node image's huggingface_hub, from a Hub on this machine's side of the bridge."""
    home, token = "/srv/tested-hf", "hf_integration"
    settings = {"hf_home": home, "image": testbed.image}
    made = Cluster(testbed, tmp_path, "hub", testbed.hosts[:3], settings=settings)
    made.write()
    made.ok("image", "pull")
    head = made.hosts[0]
    shard = bytes(range(256)) * 80_000
    files = {"config.json": b"{}", "model.safetensors": shard}
    try:
        with hub.serving(files, address=testbed.registry.split(":")[0], token=token) as at:
            with slow_links(made):
                environment = {"HF_ENDPOINT": at.url, "HF_TOKEN": token}
                running = made.start("model", "pull", hub.MODEL, "--json", **environment)
                wait_for(lambda: bool(helpers(made, head)), "the helper")
                (helper,) = helpers(made, head)
                wait_for(lambda: at.served > 0 or running.poll() is not None, "the download")
                assert token not in json.dumps(made.inspect(head, helper))
                assert token not in testbed.ssh(head, "ps -eo args")
                out, err = running.communicate(timeout=300)
            assert running.returncode == 0, err
            assert at.served == sum(map(len, files.values())), "each byte came from the Hub once"
        states = {name: node["state"] for name, node in pushed(out).items()}
        assert states == {head: "kept", **dict.fromkeys(made.hosts[1:], "copied")}
        verified = json.loads(made.ok("model", "verify", hub.MODEL, "--json"))
        assert (verified["equal"], len(verified["nodes"])) == (True, 3)
        listed = json.loads(made.ok("model", "ls", "--json"))["models"]
        nodes = {one["node"]: one["state"] for one in listed if one["name"] == hub.MODEL}
        assert nodes == dict.fromkeys(made.hosts, "complete")
    finally:
        for host in made.hosts:
            testbed.ssh(host, f"rm -rf {home}")
