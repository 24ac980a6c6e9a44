"""The registry on the bridge, and the images in it: built on a host of their own, pushed, kept.

node   Debian, Python, torch, Ray and what the engine needs (templates/Dockerfile.node)
noray  Debian and Python
empty  one static busybox
"""

from __future__ import annotations

import hashlib
import http.client
from pathlib import Path

from . import host as hosts
from . import processes
from .files import NODE_IMAGE
from .layout import CACHE, REGISTRY_PORT, REPOSITORY, Host, Testbed
from .rootfs import SUITE, debootstrap, discard
from .shell import run, say, wait_until

NORAY_IMAGE = "infercluster-noray"
EMPTY_IMAGE = "infercluster-empty"
IMAGES = (NODE_IMAGE, NORAY_IMAGE, EMPTY_IMAGE)
BASE_PACKAGES = "python3,procps,iproute2,busybox-static"
DOCKERFILE = REPOSITORY / "templates" / "Dockerfile.node"
WHEELHOUSE = REPOSITORY / "scripts" / "wheelhouse"
STORAGE = CACHE / "registry"
BUILT = CACHE / "images.key"
WHEELS_MINUTES = 30
BUILD_MINUTES = 30

# What debootstrap took from this machine, and what nobody reads in a container, stays out.
OUTSIDE = (
    "etc/resolv.conf etc/hostname var/cache/apt/* var/lib/apt/lists/* "
    "usr/share/doc/* usr/share/man/*"
)
IMPORT_BASE = (
    "tar -C /mnt/base -c "
    + " ".join(f"--exclude='./{path}'" for path in OUTSIDE.split())
    + " . | docker import --change 'CMD [\"/bin/bash\"]' - {noray}"
)
IMPORT_EMPTY = (
    "mkdir -p /tmp/empty/bin && cd /tmp/empty/bin && "
    "cp /mnt/base/bin/busybox . && ln -s busybox sh && tar -C /tmp/empty -c . | "
    "docker import --change 'CMD [\"/bin/sh\"]' - {empty}"
)
# BuildKit, which Docker 20.10 uses only when told, mounts the wheels: no layer holds them.
BUILD_NODE = (
    "DOCKER_BUILDKIT=1 docker build --network none --progress plain --build-arg BASE={noray} "
    "--tag {node} --file - /mnt/wheels"
)


def serve_registry(testbed: Testbed) -> None:
    pidfile = _pidfile(testbed)
    if processes.alive(pidfile) is None:
        STORAGE.mkdir(parents=True, exist_ok=True)
        config = testbed.run / "registry.yml"
        config.write_text(_registry_config(testbed))
        log = testbed.run / "registry.log"
        processes.spawn(["docker-registry", "serve", config], pidfile, log)
    wait_until(lambda: registry_answers(testbed), f"registry {testbed.registry} answers", 20)


def stop_registry(testbed: Testbed) -> None:
    processes.end(_pidfile(testbed))


def registry_answers(testbed: Testbed) -> bool:
    connection = http.client.HTTPConnection(testbed.address, REGISTRY_PORT, timeout=2)
    try:
        connection.request("GET", "/v2/")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def build_images(testbed: Testbed) -> None:
    """Build and push all three, unless the ones in the registry come from the same recipe."""
    wheels = Path(run([WHEELHOUSE], timeout=WHEELS_MINUTES * 60).strip())
    recipe = _recipe_key(wheels)
    if BUILT.exists() and BUILT.read_text() == recipe:
        return
    say("building the node image (some minutes, once)")
    base = debootstrap(BASE_PACKAGES)
    builder = testbed.builder()
    try:
        hosts.boot(builder, {"/mnt/base": base, "/mnt/wheels": wheels})
        _build_on(builder)
        BUILT.write_text(recipe)
    finally:
        hosts.erase(builder)
        discard(base)


def _build_on(builder: Host) -> None:
    image = builder.testbed.image
    names = {"noray": image(NORAY_IMAGE), "empty": image(EMPTY_IMAGE), "node": image(NODE_IMAGE)}
    for script, stdin in (
        (IMPORT_BASE, b""),
        (IMPORT_EMPTY, b""),
        (BUILD_NODE, DOCKERFILE.read_bytes()),
    ):
        line = ["/bin/sh", "-c", script.format(**names)]
        hosts.enter(builder, line, stdin=stdin, timeout=BUILD_MINUTES * 60)
    for name in names.values():
        hosts.docker(builder, "push", name, timeout=BUILD_MINUTES * 60)


def _recipe_key(wheels: Path) -> str:
    """Changes when an image would. The directory of wheels is named by what was asked for."""
    scripts = [SUITE, BASE_PACKAGES, IMPORT_BASE, IMPORT_EMPTY, BUILD_NODE]
    recipe = "\n".join([*scripts, DOCKERFILE.read_text(), wheels.name])
    return hashlib.sha256(recipe.encode()).hexdigest()


def _registry_config(testbed: Testbed) -> str:
    return f"""version: 0.1
log: {{level: info}}
storage:
  filesystem: {{rootdirectory: {STORAGE}}}
http: {{addr: "{testbed.registry}"}}
"""


def _pidfile(testbed: Testbed) -> Path:
    return testbed.run / "registry.pid"
