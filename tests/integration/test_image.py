"""An image from one host's Docker into the others', without the registry."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from .bed import Cluster
from .conftest import RunningTestbed


@pytest.fixture(scope="module")
def cluster(testbed: RunningTestbed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Hosts that have an image with Python, for the helpers; the first has the other one too."""
    made = Cluster(
        testbed,
        tmp_path_factory.mktemp("image"),
        "image",
        testbed.hosts[:3],
        settings={"image": testbed.noray_image},
    )
    made.write()
    made.ok("image", "pull")
    testbed.ssh(made.hosts[0], f"docker pull --quiet {testbed.empty_image}")
    for host in made.hosts[1:]:
        testbed.ssh(host, f"docker rmi --force {testbed.empty_image} || true")
    yield made
    for host in made.hosts:
        testbed.ssh(host, f"docker rmi --force {testbed.empty_image}")


def test_an_image_is_passed_on_once_and_runs(cluster: Cluster) -> None:
    image, (head, *others) = cluster.testbed.empty_image, cluster.hosts
    missing = cluster.run("image", "verify", image, "--json")
    assert missing.returncode == 1
    assert json.loads(missing.stdout)["equal"] is False
    push = ("image", "push", image, "--from", head, "--json")
    first = {node["name"]: node for node in json.loads(cluster.ok(*push))["nodes"]}
    assert {name: node["state"] for name, node in first.items()} == {
        head: "kept",
        **dict.fromkeys(others, "copied"),
    }
    assert all(node["fed_bytes"] == 0 for node in first.values()), "nothing came from here"
    again = json.loads(cluster.ok(*push))["nodes"]
    assert {node["state"] for node in again} == {"kept"}
    assert sum(node["received_bytes"] + node["sent_bytes"] for node in again) == 0
    assert json.loads(cluster.ok("image", "verify", image, "--json"))["equal"] is True
    for host in others:
        said = cluster.testbed.ssh(
            host, f"docker run --rm --network none {image} sh -c 'echo runs'"
        )
        assert said == "runs\n"
    for host in cluster.hosts:
        assert cluster.testbed.ssh(host, "ls -d /var/lib/clusterctl-images* || true") == ""


def test_versions_are_read_out_of_the_image(cluster: Cluster) -> None:
    said = json.loads(cluster.ok("image", "verify", "--json"))
    assert said["equal"] is True
    assert len({node["python"] for node in said["nodes"]}) == 1
    assert all(node["python"].startswith("3.") for node in said["nodes"])
    assert all(node["ray"] is node["vllm"] is node["nccl"] is None for node in said["nodes"])
