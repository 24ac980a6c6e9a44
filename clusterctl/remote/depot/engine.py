"""Images of a Docker Engine as directories, over its unix socket: `docker save`, `docker load`.

An image is kept unpacked, layer by layer, so that a transfer which broke off goes on in its middle.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import tarfile
import threading
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .failures import Failure

SILENCE_S = 600.0  # unpacking a large layer says nothing for a while


class EngineConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("docker", timeout=SILENCE_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(SILENCE_S)
        self.sock.connect(self._path)


def save(engine: str, image: str, directory: Path) -> None:
    """Unpack an image of the Engine at this socket into a new directory."""
    connection = EngineConnection(engine)
    connection.request("GET", f"/images/{quote(image, safe='')}/get")
    response = connection.getresponse()
    if response.status != http.client.OK:
        raise _refused(response, f"saving {image}")
    directory.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=response, mode="r|") as packed:
        for member in packed:
            _unpack(packed, member, directory)


def _unpack(packed: tarfile.TarFile, member: tarfile.TarInfo, directory: Path) -> None:
    """Files only, and links by which older Engines name a layer twice; nothing outside."""
    path = directory / member.name
    if not os.path.normpath(path).startswith(f"{directory}/"):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if member.issym():
        path.symlink_to(member.linkname)
    elif content := packed.extractfile(member) if member.isfile() else None:
        with path.open("wb") as file:
            while data := content.read(1 << 20):
                file.write(data)


def load(engine: str, directory: Path) -> str:
    """Give an unpacked image to the Engine; what it said last."""
    reading, writing = os.pipe()
    packing = threading.Thread(target=_pack, args=(directory, writing), daemon=True)
    packing.start()
    connection = EngineConnection(engine)
    with os.fdopen(reading, "rb") as body:
        connection.request(
            "POST",
            "/images/load?quiet=1",
            body=iter(lambda: body.read(1 << 20), b""),
            headers={"Content-Type": "application/x-tar"},
            encode_chunked=True,
        )
    response = connection.getresponse()
    if response.status != http.client.OK:
        raise _refused(response, "loading the image")
    return _last_word(response.read().decode(errors="replace"))


def _pack(directory: Path, writing: int) -> None:
    with os.fdopen(writing, "wb") as out, tarfile.open(fileobj=out, mode="w|") as packed:
        for path in sorted(directory.rglob("*")):
            name = str(path.relative_to(directory))
            if path.name != ".clusterctl.json":
                packed.add(path, name, recursive=False)


def _last_word(said: str) -> str:
    """The Engine says what went wrong in a stream that began with 200."""
    last: dict[str, Any] = {}
    for line in said.splitlines():
        last = json.loads(line)
        if "error" in last:
            raise Failure(f"loading the image: {last['error']}", "docker")
    return str(last.get("stream", "")).strip()


def _refused(response: http.client.HTTPResponse, doing: str) -> Failure:
    said = response.read().decode(errors="replace")
    if response.getheader("Content-Type", "").startswith("application/json"):
        said = json.loads(said)["message"]
    return Failure(f"{doing}: {said}", "docker")
