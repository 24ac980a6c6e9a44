"""An image from one host's Docker into the others', without the registry."""

from __future__ import annotations

import functools
import json
import subprocess
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from .bed import Cluster
from .conftest import RunningTestbed

WHEELHOUSE = Path(__file__).parents[2] / "scripts/wheelhouse"


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


# --- image build ---------------------------------------------------------------------------------

BARE, RAYED = "test/bare:1", "test/bare:1-rayed"

# The node image as a stock vLLM image is: with pip and torch, without Ray.
BARE_DOCKERFILE = """
FROM {node}
RUN python3 -c "import glob, io, urllib.request, zipfile; \\
    site = glob.glob('/usr/local/lib/python3*/dist-packages')[0]; \\
    wheel = urllib.request.urlopen('{wheels}/{pip}').read(); \\
    zipfile.ZipFile(io.BytesIO(wheel)).extractall(site)" \\
 && rm -rf /usr/local/lib/python3*/dist-packages/ray /usr/local/lib/python3*/dist-packages/ray-*
"""


@pytest.fixture
def wheels(testbed: RunningTestbed) -> Iterator[tuple[str, str]]:
    """A package index that the hosts reach: its URL, and the name of pip's own wheel."""
    done = subprocess.run([WHEELHOUSE], capture_output=True, text=True, check=True)
    directory = Path(done.stdout.strip())
    address = testbed.registry.partition(":")[0]
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(directory))
    with ThreadingHTTPServer((address, 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://{address}:{server.server_port}", next(directory.glob("pip-*.whl")).name
        server.shutdown()


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_ray_is_added_once_and_the_image_is_the_same_everywhere(
    cluster: Cluster, wheels: tuple[str, str]
) -> None:
    testbed, (url, pip) = cluster.testbed, wheels
    dockerfile = BARE_DOCKERFILE.format(node=testbed.image, wheels=url, pip=pip)
    script = f"docker build --quiet --network host --tag {BARE} - <<'END'\n{dockerfile}\nEND\n"
    testbed.ssh(cluster.hosts[0], script)
    code, error, _ = cluster.refused("up", "--image", BARE, "--pull", "never")
    assert (code, error["code"]) == (4, "preflight")
    pip_options = {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": url,
        "PIP_TRUSTED_HOST": url.split("/")[2].partition(":")[0],
    }
    arguments = [
        w for name, value in pip_options.items() for w in ("--build-arg", f"{name}={value}")
    ]
    try:
        built = cluster.ok("image", "build", "--from", BARE, "--tag", RAYED, *arguments, "--json")
        assert json.loads(built)["ray"] == "2.60.0"
        held = json.loads(cluster.ok("image", "verify", RAYED, "--json"))
        assert held["equal"] is True
        assert {node["ray"] for node in held["nodes"]} == {"2.60.0"}
        again = cluster.run("image", "build", "--from", RAYED, *arguments)
        assert (again.returncode, "already: there is nothing to build" in again.stderr) == (4, True)
    finally:
        for host in cluster.hosts:
            testbed.ssh(host, f"docker rmi --force {RAYED} {BARE} || true")
