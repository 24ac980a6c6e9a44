"""Requests in, replies and events out."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from . import engine, hub, inventory, trees
from .failures import Failure
from .fetching import Fetch
from .rangeserver import RangeServer
from .staging import Offer, Stage, download_area, offer_in_place, staging_of
from .trees import Entry, Link, Tree

SILENCE_S = 120.0  # whoever runs us says something every few seconds
REPORT_S = 0.5

Json = dict[str, Any]
OfBytes = Callable[[], int]


class Depot:
    """What one run has open on this host. Each public method is a request of its name."""

    def __init__(self, out: IO[bytes]) -> None:
        self._out = out
        self._writing = threading.Lock()
        self._stage: Stage | None = None
        self._offer: Offer | None = None
        self._server: RangeServer | None = None
        self._fetch: Fetch | None = None
        self._token = ""
        self.heard = time.monotonic()

    def say(self, content: Json) -> None:
        with self._writing:
            self._out.write(json.dumps(content).encode() + b"\n")
            self._out.flush()

    def tell(self, event: str, **details: Any) -> None:
        self.say({"event": event, **details})

    @contextmanager
    def _reporting(self, step: str, done: OfBytes, total: OfBytes) -> Iterator[None]:
        """Say how far it is, twice a second."""
        over = threading.Event()

        def report() -> None:
            while not over.wait(REPORT_S):
                self.tell("progress", step=step, done=done(), total=total())

        reporter = threading.Thread(target=report, daemon=True)
        reporter.start()
        try:
            yield
        finally:
            over.set()
            reporter.join()

    # --- what is on this host

    def room(self, directory: str) -> Json:
        """Free bytes for us; whether the directory can be written to."""
        space = os.statvfs(directory)
        writable = os.access(directory, os.W_OK) and not space.f_flag & os.ST_RDONLY
        return {"free": space.f_bavail * space.f_frsize, "writable": writable}

    def mark(self, directory: str, name: str) -> Json:
        Path(directory, name).touch()
        return {}

    def see(self, directory: str, names: list[str]) -> Json:
        """Which of the markers can be seen. Each is asked for by name: a network file system may
        show an old listing."""
        return {"seen": [name for name in names if Path(directory, name).exists()]}

    def unmark(self, directory: str, name: str) -> Json:
        Path(directory, name).unlink(missing_ok=True)
        return {}

    def models(self, directories: list[str]) -> Json:
        return {"models": [one for path in directories for one in inventory.models(Path(path))]}

    def scan(self, path: str, record: str = "", fresh: bool = False) -> Json:
        """Digests are remembered in `record`, a file; without it in the directory itself, if it
        lets us."""
        root, counted = Path(path), Count()
        kept = Path(record) if record else root / trees.RECORD
        total = inventory.size_of(root)
        with self._reporting("hash", counted.value, lambda: total):
            tree = trees.scan(root, record=kept, fresh=fresh, on_bytes=counted.add)
        if not fresh and os.access(kept.parent, os.W_OK):
            trees.write_record(kept, root, tree.files)
        return {"files": tree.files, "links": tree.links}

    def shards(self, path: str) -> Json:
        return {"missing": inventory.missing_shards(Path(path))}

    def recorded(self, path: str) -> Json:
        """What was written here, by the record of who wrote it; nothing where there is none."""
        record = trees.read_record(Path(path) / trees.RECORD)
        return {"digests": {name: entry["sha256"] for name, entry in record.items()}}

    def remove(self, path: str) -> Json:
        """The directory, and what is on its way there. First out of sight, then away."""
        root, hidden = Path(path), staging_of(Path(path))
        found = root.exists() or hidden.exists()
        if root.exists():
            gone = hidden / "removed"
            hidden.mkdir(exist_ok=True)
            root.rename(gone)
        shutil.rmtree(hidden, ignore_errors=not found)
        return {"removed": found}

    # --- a tree on its way

    def stage(self, path: str, files: list[Any], links: list[Any], keep: bool, fresh: bool) -> Json:
        tree = Tree([Entry(*one) for one in files], [Link(*one) for one in links])
        self._stage = Stage(Path(path), tree.files, tree.links, keep=keep)
        self._offer = self._stage
        counted = Count()
        total = sum(one.size for one in tree.files)
        with self._reporting("check", counted.value, lambda: total):
            missing = self._stage.prepare(counted.add, fresh=fresh)
        return {"missing": missing, "files": sum(not one.whole for one in self._stage.pieces)}

    def abandon(self) -> Json:
        """The hidden directory goes, unless bytes of an earlier run lie in it."""
        assert self._stage is not None
        if not self._stage.has_arrivals:
            self._stage.discard()
        return {}

    def offer(self, path: str, files: list[Any]) -> Json:
        self._offer = offer_in_place(Path(path), [Entry(*one) for one in files])
        return {}

    def serve(self, address: str, port: int, token: str) -> Json:
        assert self._offer is not None
        self._token = token
        self._server = RangeServer(address, port, token, self._offer)
        return {"port": self._server.server_port}

    def fetch(self, sources: list[Json]) -> Json:
        stage = self._stage
        assert stage is not None
        total = sum(piece.entry.size for piece in stage.pieces)
        self._fetch = Fetch(stage, sources, self._token, self.tell)
        with self._reporting("transfer", lambda: total - stage.missing, lambda: total):
            self._fetch.run()
        return {"received": self._fetch.received}

    def data(self, index: int, offset: int, content: bytes) -> None:
        assert self._stage is not None
        assert self._fetch is not None
        try:
            if self._stage.write(index, offset, content):
                return
            path = self._stage.pieces[index].entry.path
            raise Failure(f"{path} has changed while it was sent", "corrupt")
        except Failure as failure:
            self._fetch.fail(failure)

    def commit(self) -> Json:
        assert self._stage is not None
        return {"changed": self._stage.commit()}

    def sent(self) -> Json:
        return {"sent": self._server.sent if self._server else 0}

    # --- where it comes from

    def hub(self, path: str, **asked: Any) -> Json:
        """Into a cache under the hidden name of `path`; see hub.download. `tree`: where it is."""
        final, total = Path(path), Count()
        with download_area(final) as cache:

            def fits(size: int) -> None:
                total.add(size)
                hub.refuse_full(cache.parent, size - hub.fetched(cache))

            with self._reporting("download", lambda: hub.fetched(cache), total.value):
                revision = hub.download({**asked, "cache": str(cache)}, fits)
        return {"revision": revision, "tree": str(staging_of(final) / "tree")}

    def save_image(self, engine_socket: str, image: str, directory: str) -> Json:
        shutil.rmtree(directory, ignore_errors=True)
        engine.save(engine_socket, image, Path(directory))
        return {}

    def load_image(self, engine_socket: str, directory: str) -> Json:
        return {"said": engine.load(engine_socket, Path(directory))}


class Count:
    """Added to by several threads."""

    def __init__(self) -> None:
        self._sum = 0
        self._adding = threading.Lock()

    def add(self, amount: int) -> None:
        with self._adding:
            self._sum += amount

    def value(self) -> int:
        return self._sum


def answer(depot: Depot, request: Json) -> None:
    number, op = request.pop("id"), request.pop("op")
    try:
        depot.say({"id": number, "ok": getattr(depot, op)(**request)})
    except Failure as failure:
        depot.say({"id": number, "error": str(failure), "kind": failure.kind})
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        depot.say({"id": number, "error": f"{where}{error.strerror or error}", "kind": "disk"})


def serve(depot: Depot, requests: IO[bytes]) -> None:
    """Until stdin ends. Bytes are taken in their order, all else in a thread of its own."""
    for line in requests:
        depot.heard = time.monotonic()
        request = json.loads(line)
        if request["op"] == "data":
            size = request["size"]
            depot.data(request["index"], request["offset"], requests.read(size))
        elif request["op"] != "alive":
            threading.Thread(target=answer, args=(depot, request), daemon=True).start()


def watch(depot: Depot) -> None:
    while time.monotonic() - depot.heard < SILENCE_S:
        time.sleep(1)
    print(f"nothing was heard for {SILENCE_S:.0f} s", file=sys.stderr)
    os._exit(1)


def crash(problem: threading.ExceptHookArgs) -> None:
    traceback.print_exception(problem.exc_type, problem.exc_value, problem.exc_traceback)
    os._exit(1)


def main() -> None:
    threading.excepthook = crash
    depot = Depot(sys.stdout.buffer)
    threading.Thread(target=watch, args=(depot,), daemon=True).start()
    serve(depot, sys.stdin.buffer)
    os._exit(0)  # what still runs was for somebody who has gone


if __name__ == "__main__":
    main()
