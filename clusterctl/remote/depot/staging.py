"""A tree on its way: made under a hidden name beside the final one, and renamed when it is whole.

/models/.NAME.clusterctl/lock     who holds it
/models/.NAME.clusterctl/tree/    what has arrived so far; a file grows to its end
/models/NAME                      absent, or whole
"""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .failures import Failure
from .trees import (
    READERS,
    RECORD,
    Entry,
    Link,
    OnBytes,
    digest,
    hashed,
    read_record,
    recorded,
    write_record,
)

SUFFIX = ".clusterctl"


def staging_of(final: Path) -> Path:
    return final.with_name(f".{final.name}{SUFFIX}")


class Piece:
    """One file: `have` of its bytes can be read at `path`; `whole` when their digest was right."""

    def __init__(self, entry: Entry, path: Path) -> None:
        self.entry = entry
        self.path = path
        self.have = 0
        self.whole = False
        self.running: Any = None

    def adopt(self, path: Path) -> None:
        """It is here already."""
        self.path, self.have, self.whole = path, self.entry.size, True


class Offer:
    """Files that peers may read. `arrived` is notified whenever there is more of one."""

    def __init__(self, pieces: Iterable[Piece]) -> None:
        self.pieces = list(pieces)
        self.arrived = threading.Condition()

    def wait_beyond(self, index: int, position: int, timeout: float) -> int:
        """How much of a piece there is, once it is more than `position` or time is up."""
        piece = self.pieces[index]
        with self.arrived:
            self.arrived.wait_for(lambda: piece.have > position, timeout)
            return piece.have


def offer_in_place(root: Path, files: Iterable[Entry]) -> Offer:
    """A finished tree, as it lies."""
    pieces = [Piece(entry, root / entry.path) for entry in files]
    for piece in pieces:
        piece.adopt(piece.path)
    return Offer(pieces)


class Stage(Offer):
    """The tree that is to be at `final`. `keep`: files there that the tree lacks stay (a cache may
    hold other revisions); else they go, as a stale shard would be loaded with the others."""

    def __init__(
        self, final: Path, files: Iterable[Entry], links: Iterable[Link], *, keep: bool
    ) -> None:
        self.final = final
        self.hidden = staging_of(final)
        self.tree = self.hidden / "tree"
        self.links = list(links)
        self.keep = keep
        self._lock = _held(self.hidden)
        super().__init__(Piece(entry, self.tree / entry.path) for entry in files)

    # --- what is here already

    def prepare(self, on_bytes: OnBytes, *, fresh: bool) -> int:
        """Find what need not be moved; the bytes that must. `fresh`: believe no record."""
        known = {} if fresh else read_record(self.final / RECORD)
        with ThreadPoolExecutor(READERS) as readers:
            list(readers.map(lambda piece: self._look(piece, known, on_bytes), self.pieces))
        return self.missing

    @property
    def missing(self) -> int:
        return sum(piece.entry.size - piece.have for piece in self.pieces)

    @property
    def has_arrivals(self) -> bool:
        """Whether any byte lies under the hidden name."""
        return any(one.have for one in self.pieces if self.tree in one.path.parents)

    def _look(self, piece: Piece, known: dict[str, Any], on_bytes: OnBytes) -> None:
        if self._is_final(piece, known, on_bytes):
            piece.adopt(self.final / piece.entry.path)
            return
        piece.path.parent.mkdir(parents=True, exist_ok=True)
        piece.path.touch()
        piece.have = min(piece.path.stat().st_size, piece.entry.size)
        os.truncate(piece.path, piece.have)
        piece.running = hashed(piece.path, on_bytes)
        if piece.have == piece.entry.size:
            self._judge(piece)

    def _is_final(self, piece: Piece, known: dict[str, Any], on_bytes: OnBytes) -> bool:
        entry, path = piece.entry, self.final / piece.entry.path
        if not path.is_file() or path.stat().st_size != entry.size:
            return False
        seen = recorded(known, entry.path, path.stat()) or digest(path, on_bytes)
        return seen == entry.sha256

    # --- what arrives

    def write(self, index: int, offset: int, data: bytes) -> bool:
        """The next bytes of a piece. False: its last ones came, and they are not what was sent."""
        piece = self.pieces[index]
        if offset != piece.have:
            raise Failure(f"{piece.entry.path}: got offset {offset} at {piece.have}", "corrupt")
        try:
            _append(piece.path, data, last=offset + len(data) == piece.entry.size)
        except OSError as error:
            raise Failure(f"writing {piece.path}: {error.strerror}", "disk") from error
        piece.running.update(data)
        with self.arrived:
            piece.have += len(data)
            self.arrived.notify_all()
        return piece.have < piece.entry.size or self._judge(piece)

    def _judge(self, piece: Piece) -> bool:
        """Whole, or emptied again: whoever reads it from here sees the wrong digest too."""
        good = bool(piece.running.hexdigest() == piece.entry.sha256)
        with self.arrived:
            if good:
                piece.whole = True
            else:
                os.truncate(piece.path, 0)
                piece.have = 0
                piece.running = hashed(piece.path, lambda _: None)
            self.arrived.notify_all()
        return good

    def wait_whole(self, piece: Piece, timeout: float) -> bool:
        with self.arrived:
            return self.arrived.wait_for(lambda: piece.whole, timeout)

    # --- into place

    def commit(self) -> bool:
        """Make the tree visible under its name; whether anything had to be changed."""
        if not all(piece.whole for piece in self.pieces):
            raise Failure(f"{self.final} is not whole", "corrupt")
        entries = [piece.entry for piece in self.pieces]
        if self._is_in_place():
            write_record(self.final / RECORD, self.final, entries)
            self.discard()
            return False
        self._complete()
        _give(self.tree, like=self.final.parent)
        write_record(self.tree / RECORD, self.tree, entries)
        self._exchange()
        self.discard()
        return True

    def _is_in_place(self) -> bool:
        """Every byte and every link lies there already, and nothing that must go."""
        if any(piece.path != self.final / piece.entry.path for piece in self.pieces):
            return False
        linked = all(_link_is(self.final / link.path, link.target) for link in self.links)
        wanted = {piece.entry.path for piece in self.pieces} | {link.path for link in self.links}
        return linked and (self.keep or _contents(self.final) <= wanted | {RECORD})

    def _complete(self) -> None:
        """What stays of the present tree joins the new one under a second name."""
        wanted = {piece.entry.path for piece in self.pieces} | {link.path for link in self.links}
        for stale in _contents(self.tree) - wanted if self.tree.exists() else ():
            (self.tree / stale).unlink()
        for piece in self.pieces:
            if piece.path != self.tree / piece.entry.path:
                _same_file(piece.path, self.tree / piece.entry.path)
        for link in self.links:
            _make_link(self.tree / link.path, link.target)
        for name in _contents(self.final) - wanted - {RECORD} if self.keep else ():
            _same_file(self.final / name, self.tree / name)

    def _exchange(self) -> None:
        former = self.hidden / "former"
        if self.final.exists():
            self.final.rename(former)
        self.tree.rename(self.final)
        with self.arrived:
            for piece in self.pieces:
                piece.path = self.final / piece.entry.path
        _settle(self.final.parent)

    def discard(self) -> None:
        """The lock goes with the directory, and is let go of last."""
        shutil.rmtree(self.hidden)
        os.close(self._lock)


def _append(path: Path, data: bytes, *, last: bool) -> None:
    with path.open("ab") as file:
        file.write(data)
        file.flush()
        if last:
            os.fsync(file.fileno())


@contextmanager
def download_area(final: Path) -> Iterator[Path]:
    """A Hugging Face cache under the hidden name, which knows what the final one has already. What
    it holds of `final` at the end becomes the tree that is on its way."""
    hidden = staging_of(final)
    lock = _held(hidden)
    try:
        cache = hidden / "hub"
        for name in _contents(final) - {RECORD} if not (cache / final.name).exists() else ():
            _same_file(final / name, cache / final.name / name)
        yield cache
        shutil.rmtree(hidden / "tree", ignore_errors=True)
        (cache / final.name).rename(hidden / "tree")
    finally:
        os.close(lock)


def _held(hidden: Path) -> int:
    """The lock of a hidden directory; it ends with this process."""
    hidden.mkdir(parents=True, exist_ok=True)
    lock = os.open(hidden / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Failure(f"another run is writing {hidden}", "held") from None
    shutil.rmtree(hidden / "former", ignore_errors=True)
    return lock


def _contents(root: Path) -> set[str]:
    """Files and links, by relative path."""
    return {
        str((Path(directory) / name).relative_to(root))
        for directory, below, names in os.walk(root)
        for name in (*names, *(one for one in below if (Path(directory) / one).is_symlink()))
    }


def _link_is(path: Path, target: str) -> bool:
    return path.is_symlink() and os.readlink(path) == target


def _make_link(path: Path, target: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def _same_file(there: Path, here: Path) -> None:
    here.parent.mkdir(parents=True, exist_ok=True)
    here.unlink(missing_ok=True)
    os.link(there, here, follow_symlinks=False)


def _give(root: Path, *, like: Path) -> None:
    """To whom the directory around it belongs: its owner must be able to remove what we wrote."""
    owner = like.stat()
    if os.geteuid() != 0:
        return
    _each(root, lambda path: os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False))


def _each(root: Path, act: Callable[[Path], None]) -> None:
    act(root)
    for directory, below, names in os.walk(root):
        for name in (*below, *names):
            act(Path(directory) / name)


def _settle(directory: Path) -> None:
    """The rename itself outlives a power cut."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
