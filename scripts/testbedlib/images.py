"""The registry on the bridge, and the images in it: built on a host of their own, pushed, kept.

node   Debian, Python, torch, Ray and what the engine needs (templates/Dockerfile.node)
noray  Debian and Python
empty  one static busybox
vllm   node, with vLLM for CPUs (templates/Dockerfile.vllm, and on it templates/vllm-testbed): only
       built when it is asked for
"""

from __future__ import annotations

import hashlib
import http.client
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from . import host as hosts
from . import processes
from .files import NODE_IMAGE
from .layout import CACHE, REGISTRY_PORT, REPOSITORY, Host, Testbed
from .rootfs import SUITE, debootstrap, discard
from .shell import run, say, wait_until

NORAY_IMAGE = "infercluster-noray"
EMPTY_IMAGE = "infercluster-empty"
VLLM_IMAGE = "infercluster-vllm"
VLLM_BASE_IMAGE = "infercluster-vllm-base"
IMAGES = (NODE_IMAGE, NORAY_IMAGE, EMPTY_IMAGE)
BASE_PACKAGES = "python3,procps,iproute2,busybox-static"
COMPILER = "g++,python3-dev,libnuma1"  # torch.compile writes C++; vLLM links the other
DOCKERFILE = REPOSITORY / "templates" / "Dockerfile.node"
VLLM_DOCKERFILE = REPOSITORY / "templates" / "Dockerfile.vllm"
VLLM_TESTBED = REPOSITORY / "templates" / "vllm-testbed"
WHEELHOUSE = REPOSITORY / "scripts" / "wheelhouse"
STORAGE = CACHE / "registry"
BUILT = CACHE / "images.key"
VLLM_BASE_BUILT = CACHE / "vllm-base.key"
VLLM_BUILT = CACHE / "vllm-testbed.key"
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
# BuildKit asks no registry without TLS: the base has been pulled.
BUILD_VLLM = (
    "DOCKER_BUILDKIT=1 docker build --network none --progress plain --build-arg BASE={base} "
    "--tag {image} /mnt/testbed"
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
    wheels = _wheels()
    recipe = _recipe_key(wheels, BASE_PACKAGES, DOCKERFILE)
    if _is_built(BUILT, recipe):
        return
    say("building the node image (some minutes, once)")
    names = {"noray": testbed.image(NORAY_IMAGE), "node": testbed.image(NODE_IMAGE)}
    empty = testbed.image(EMPTY_IMAGE)
    with _wheel_builder(testbed, BASE_PACKAGES, wheels) as builder:
        _build(builder, names, DOCKERFILE)
        _shell(builder, IMPORT_EMPTY.format(empty=empty))
        _push(builder, [*names.values(), empty])
    BUILT.write_text(recipe)


def build_vllm(testbed: Testbed) -> str:
    """The image with vLLM, built and pushed unless it is there already; its name."""
    base, image = testbed.image(VLLM_BASE_IMAGE), testbed.image(VLLM_IMAGE)
    recipe = _build_vllm_base(testbed, base) + _tree_key(VLLM_TESTBED)
    if not _is_built(VLLM_BUILT, recipe):
        with _builder(testbed, {"/mnt/testbed": VLLM_TESTBED}) as builder:
            hosts.docker(builder, "pull", base, timeout=BUILD_MINUTES * 60)
            _shell(builder, BUILD_VLLM.format(base=base, image=image))
            _push(builder, [image])
        VLLM_BUILT.write_text(recipe)
    return image


def _build_vllm_base(testbed: Testbed, base: str) -> str:
    """What takes long of it; the recipe's key."""
    wheels = _wheels("vllm")
    packages = f"{BASE_PACKAGES},{COMPILER}"
    recipe = _recipe_key(wheels, packages, VLLM_DOCKERFILE)
    if not _is_built(VLLM_BASE_BUILT, recipe):
        say("building the image with vLLM (some minutes, once)")
        with _wheel_builder(testbed, packages, wheels) as builder:
            _build(builder, {"noray": "base", "node": base}, VLLM_DOCKERFILE)
            _push(builder, [base])
        VLLM_BASE_BUILT.write_text(recipe)
    return recipe


def _wheels(*engine: str) -> Path:
    return Path(run([WHEELHOUSE, *engine], timeout=WHEELS_MINUTES * 60).strip())


def _is_built(mark: Path, recipe: str) -> bool:
    return mark.exists() and mark.read_text() == recipe


@contextmanager
def _wheel_builder(testbed: Testbed, packages: str, wheels: Path) -> Iterator[Host]:
    """With a fresh Debian and the wheels at hand."""
    base = debootstrap(packages)
    try:
        with _builder(testbed, {"/mnt/base": base, "/mnt/wheels": wheels}) as builder:
            yield builder
    finally:
        discard(base)


@contextmanager
def _builder(testbed: Testbed, shares: Mapping[str, Path]) -> Iterator[Host]:
    """A host of its own."""
    builder = testbed.builder()
    try:
        hosts.boot(builder, shares)
        yield builder
    finally:
        hosts.erase(builder)


def _build(builder: Host, names: Mapping[str, str], dockerfile: Path) -> None:
    _shell(builder, IMPORT_BASE.format(**names))
    _shell(builder, BUILD_NODE.format(**names), dockerfile.read_bytes())


def _shell(builder: Host, script: str, stdin: bytes = b"") -> None:
    line = ["/bin/sh", "-c", script]
    hosts.enter(builder, line, stdin=stdin, timeout=BUILD_MINUTES * 60)


def _push(builder: Host, images: Iterable[str]) -> None:
    for image in images:
        hosts.docker(builder, "push", image, timeout=BUILD_MINUTES * 60)


def _recipe_key(wheels: Path, packages: str, dockerfile: Path) -> str:
    """Changes when an image would. The directory of wheels is named by what was asked for."""
    scripts = [SUITE, packages, IMPORT_BASE, IMPORT_EMPTY, BUILD_NODE]
    recipe = "\n".join([*scripts, dockerfile.read_text(), wheels.name])
    return hashlib.sha256(recipe.encode()).hexdigest()


def _tree_key(directory: Path) -> str:
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(directory)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def _registry_config(testbed: Testbed) -> str:
    return f"""version: 0.1
log: {{level: info}}
storage:
  filesystem: {{rootdirectory: {STORAGE}}}
http: {{addr: "{testbed.registry}"}}
"""


def _pidfile(testbed: Testbed) -> Path:
    return testbed.run / "registry.pid"
