"""Depots on many hosts: each in a short-lived container of an image that is there, or in the host's
own Python where it has one and no image. They end with this run, however it ends."""

from __future__ import annotations

import io
import json
import secrets
import sys
import threading
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.resources import files

from clusterctl import lock
from clusterctl.containers import LABEL_HELPER, LABEL_NODE, ContainerFile, HelperSpec
from clusterctl.errors import ClusterctlError, PreflightFailed
from clusterctl.links import HostLink
from clusterctl.spec import MountSpec
from clusterctl.transfer.depot import Depot
from clusterctl.transport.base import ByteStream, Transport
from clusterctl.transport.local import LocalTransport

PACKAGE = "depot"
THIS_MACHINE = "this machine"

# The package comes in over stdin, as a zip whose size stands in the first line.
BOOT = """
import os, sys, tempfile
size = int(sys.stdin.buffer.readline())
with tempfile.NamedTemporaryFile(suffix=".zip") as packed:
    packed.write(sys.stdin.buffer.read(size))
    packed.flush()
    sys.path.insert(0, packed.name)
    import depot.__main__ as depot
depot.main()
"""


class Depots:
    """Opened by many threads, closed once: what is opened after that is closed at once."""

    def __init__(self, image: str, proxies: Mapping[str, str]) -> None:
        self._image = image
        self._proxies = proxies
        self._open: list[Depot] = []
        self._changing = threading.Lock()
        self._closed = False

    def on_host(self, link: HostLink, mounts: Sequence[MountSpec]) -> Depot:
        """Raises PreflightFailed where the host has neither the image nor a Python."""
        remove_left_behind(link)
        return self._keep(Depot(link.name, _stream(link, self._image, mounts, self._proxies)))

    def here(self) -> Depot:
        """On this machine."""
        stream = booted(LocalTransport(THIS_MACHINE), sys.executable)
        return self._keep(Depot(THIS_MACHINE, stream))

    def _keep(self, depot: Depot) -> Depot:
        with self._changing:
            if not self._closed:
                self._open.append(depot)
                return depot
        depot.close()
        raise ClusterctlError("this run was ended", host=depot.host)

    def close(self) -> None:
        with self._changing:
            self._closed = True
        closing = [threading.Thread(target=depot.close, daemon=True) for depot in self._open]
        for one in closing:
            one.start()
        for one in closing:
            one.join()


@contextmanager
def opened(image: str, proxies: Mapping[str, str]) -> Iterator[Depots]:
    """`proxies`: environment variables, for what is fetched from outside."""
    depots = Depots(image, proxies)
    try:
        yield depots
    finally:
        depots.close()


def remove_left_behind(link: HostLink) -> None:
    """Helpers of a run of this machine that is gone; Docker removes the others as they end."""
    for container in link.runtime.containers({LABEL_HELPER: ""}):
        if lock.parse_owner(container.labels[LABEL_HELPER]).is_gone:
            link.runtime.remove(container.id)


def _stream(
    link: HostLink, image: str, mounts: Sequence[MountSpec], proxies: Mapping[str, str]
) -> ByteStream:
    if link.runtime.image_id(image) is not None:
        made = helper(link, image, mounts, proxies)
        return link.runtime.open_helper(made, _package(link.runtime.home))
    if link.transport.run(["python3", "--version"], check=False).ok:
        return booted(link.transport, "python3")
    raise PreflightFailed(
        f"nothing there can run Python: image {image} is absent, and the host has no python3",
        host=link.name,
        hint="`clusterctl image pull`, or --helper-image with an image that is on every host "
        "and has Python",
    )


def helper(
    link: HostLink, image: str, mounts: Sequence[MountSpec], proxies: Mapping[str, str]
) -> HelperSpec:
    return HelperSpec(
        name=f"clusterctl-helper-{secrets.token_hex(4)}",
        image=image,
        command=("python3", "-m", PACKAGE),
        env={"PYTHONPATH": link.runtime.home, "PYTHONDONTWRITEBYTECODE": "1", **proxies},
        labels={LABEL_HELPER: json.dumps(asdict(lock.this_run())), LABEL_NODE: link.name},
        mounts=tuple(mounts),
    )


def _package(home: str) -> list[ContainerFile]:
    return [ContainerFile(f"{home}/{PACKAGE}/{name}", data) for name, data in _sources().items()]


def _sources() -> dict[str, bytes]:
    package = files("clusterctl.remote").joinpath(PACKAGE)
    found = [one for one in package.iterdir() if one.name.endswith(".py")]
    return {one.name: one.read_bytes() for one in found}


def booted(transport: Transport, python: str) -> ByteStream:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, data in _sources().items():
            archive.writestr(f"{PACKAGE}/{name}", data)
    stream = transport.open_command([python, "-c", BOOT])
    content = packed.getvalue()
    stream.sendall(f"{len(content)}\n".encode() + content)
    return stream
