"""What can go wrong with the node image of one host, and a Ray that nobody expects."""

from __future__ import annotations

from . import host as hosts
from .files import NODE_IMAGE
from .layout import Host
from .shell import wait_until

LABEL = "testbed.fault"
KEPT = "testbed-fault:kept"  # the true image, while another has its name
BUILD_S = 300
OTHER_RAY = "2.53.0"
# Ray compares `ray.__version__`; packaging tools read METADATA.
AGE_RAY = (
    "RUN at=$(python3 -c 'import importlib.util as u; "
    'print(u.find_spec("ray").submodule_search_locations[0])\') && '
    rf"sed -i 's/^version = .*/version = \"{OTHER_RAY}\"/' $at/_version.py && "
    rf"sed -i 's/^Version: .*/Version: {OTHER_RAY}/' $at/../ray-*.dist-info/METADATA"
)


def heal(host: Host) -> None:
    strays = hosts.docker(host, "ps", "--all", "--quiet", "--filter", f"label={LABEL}").split()
    if strays:
        hosts.docker(host, "rm", "--force", *strays)
    if hosts.docker(host, "images", "--quiet", KEPT):
        hosts.docker(host, "tag", KEPT, _image(host))
        hosts.docker(host, "rmi", KEPT)
    other = hosts.docker(host, "images", "--quiet", "--filter", f"label={LABEL}").split()
    if other:
        hosts.docker(host, "rmi", "--force", *other)


def replace_image(host: Host, _: str) -> None:
    _build_over(host, "")


def age_ray(host: Host, _: str) -> None:
    _build_over(host, AGE_RAY)


def start_stray_ray(host: Host, _: str) -> None:
    """As run_cluster.sh of vLLM's examples leaves one: named by chance, without a label of ours."""
    run = ["run", "--detach", "--network", "host", "--name", "node-31337"]
    ray = ["ray", "start", "--head", "--port=6379", "--disable-usage-stats", "--block"]
    hosts.docker(host, *run, "--label", f"{LABEL}=ray", _image(host), *ray, timeout=BUILD_S)
    wait_until(lambda: ":6379 " in hosts.enter(host, ["ss", "-Hlnt"]), "the stray Ray listens", 90)


def _build_over(host: Host, line: str) -> None:
    image = _image(host)
    if not hosts.docker(host, "images", "--quiet", image):
        hosts.docker(host, "pull", "--quiet", image, timeout=BUILD_S)
    hosts.docker(host, "tag", image, KEPT)
    recipe = f"FROM {KEPT}\nLABEL {LABEL}=image\n{line}\n".encode()
    build = ["build", "--quiet", "--network", "none", "--tag", image, "-"]
    hosts.docker(host, *build, stdin=recipe, timeout=BUILD_S)


def _image(host: Host) -> str:
    return host.testbed.image(NODE_IMAGE)
