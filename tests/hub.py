"""A Hub for huggingface_hub, over HTTP: one model, its small files by their git id and its weights
as LFS by their SHA-256, with ranges; a token where it is told one."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODEL = "org/tiny"


def is_large(name: str) -> bool:
    """Kept by LFS."""
    return name.endswith(".safetensors")


def git_id(data: bytes) -> str:
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


class Hub(ThreadingHTTPServer):
    """`served`: bytes of file content that have been sent, over all requests."""

    daemon_threads = True

    def __init__(self, address: str, files: Mapping[str, bytes], token: str | None) -> None:
        self.files = files
        self.token = token
        self.served = 0
        super().__init__((address, 0), Handler)

    @property
    def url(self) -> str:
        return f"http://{self.server_address[0]!s}:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        asked = self.path.partition("?")[0]
        resolved = re.fullmatch(rf"/{MODEL}/resolve/[^/]+/(.+)", asked)
        if self.server.token and self.headers["Authorization"] != f"Bearer {self.server.token}":
            self._send(401, b"{}", {"X-Error-Code": "GatedRepo"})
        elif resolved and resolved[1] in self.server.files:
            self._file(resolved[1], with_body=with_body)
        elif asked.startswith(f"/api/models/{MODEL}/tree/"):
            self._send(200, json.dumps([*map(self._entry, self.server.files)]).encode())
        elif asked.startswith(f"/api/models/{MODEL}"):
            self._send(200, json.dumps(self._info()).encode())
        else:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _info(self) -> dict[str, Any]:
        siblings = [{"rfilename": n, "size": len(data)} for n, data in self.server.files.items()]
        return {"id": MODEL, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}

    def _entry(self, name: str) -> dict[str, Any]:
        data = self.server.files[name]
        entry = {"type": "file", "path": name, "size": len(data), "oid": git_id(data)}
        if is_large(name):
            sha = hashlib.sha256(data).hexdigest()
            entry["lfs"] = {"oid": sha, "size": len(data), "pointerSize": 130}
        return entry

    def _file(self, name: str, *, with_body: bool) -> None:
        data = self.server.files[name]
        headers = {"X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if is_large(name):
            sha = hashlib.sha256(data).hexdigest()
            headers |= {"X-Linked-Etag": f'"{sha}"', "X-Linked-Size": str(len(data))}
        headers["ETag"] = f'"{git_id(data)}"'
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        body = data[int(asked[1]) :] if asked else data
        self._send(206 if asked else 200, body, headers, with_body=with_body)
        self.server.served += len(body) if with_body else 0

    def _send(
        self,
        status: int,
        body: bytes,
        headers: Mapping[str, str] | None = None,
        *,
        with_body: bool = True,
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body and self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """A test's output is its own."""


@contextmanager
def serving(
    files: Mapping[str, bytes], *, address: str = "127.0.0.1", token: str | None = None
) -> Iterator[Hub]:
    hub = Hub(address, files, token)
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
