"""known_hosts, read line by line. PURE, but for `load` and `append`.

A line that cannot be understood loses itself, never the file. What is asked of the file is one
question: what does it say about this key of this host?
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

Marker = Literal["", "@revoked", "@cert-authority"]
Verdict = Literal["known", "unknown", "changed", "revoked", "certificate-only"]

SSH_PORT = 22


@dataclass(frozen=True)
class HostKey:
    """A public key as sshd shows it: its type and its base64 text."""

    type: str
    base64: str

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(base64.b64decode(self.base64)).digest()
        return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


@dataclass(frozen=True)
class KnownHost:
    """One line: who it speaks of, and the key it names. `where` is FILE:LINE."""

    marker: Marker
    patterns: str
    key: HostKey
    where: str

    def speaks_of(self, name: str) -> bool:
        if self.patterns.startswith("|1|"):
            return _hash_matches(self.patterns, name)
        patterns = self.patterns.lower().split(",")
        if any(p.startswith("!") and fnmatchcase(name, _glob(p[1:])) for p in patterns):
            return False
        return any(fnmatchcase(name, _glob(p)) for p in patterns)


@dataclass(frozen=True)
class Judgement:
    """`lines` are the known_hosts lines that led to the verdict."""

    verdict: Verdict
    lines: tuple[KnownHost, ...] = ()


def parse_known_hosts(text: str, file: str) -> list[KnownHost]:
    parsed = (_parse_line(line, f"{file}:{n}") for n, line in enumerate(text.splitlines(), 1))
    return [entry for entry in parsed if entry is not None]


def _parse_line(line: str, where: str) -> KnownHost | None:
    fields = line.split()
    if not fields or fields[0].startswith("#"):
        return None
    marker: Marker = ""
    if fields[0] == "@revoked" or fields[0] == "@cert-authority":
        marker = "@revoked" if fields[0] == "@revoked" else "@cert-authority"
        fields = fields[1:]
    if len(fields) < 3 or not _is_base64(fields[2]):
        return None
    return KnownHost(marker, fields[0], HostKey(fields[1], fields[2]), where)


def _is_base64(text: str) -> bool:
    try:
        base64.b64decode(text, validate=True)
    except binascii.Error:
        return False
    return True


def _glob(pattern: str) -> str:
    """ssh knows `*` and `?` only: a bracket (as in [host]:2222) means itself."""
    return pattern.replace("[", "[[]")


def _hash_matches(pattern: str, name: str) -> bool:
    parts = pattern.split("|")
    if len(parts) != 4 or not (_is_base64(parts[2]) and _is_base64(parts[3])):
        return False
    salt, expected = base64.b64decode(parts[2]), base64.b64decode(parts[3])
    return hmac.compare_digest(hmac.new(salt, name.encode(), "sha1").digest(), expected)


def name_in_file(host: str, port: int) -> str:
    """How known_hosts writes a host: with its port, where that is not 22."""
    return host.lower() if port == SSH_PORT else f"[{host.lower()}]:{port}"


def speaking_of(entries: Iterable[KnownHost], host: str, port: int) -> list[KnownHost]:
    """The lines about this host. As in OpenSSH, lines without the port serve when none has it;
    a revoked key is revoked for either name."""
    entries = list(entries)
    exact = [entry for entry in entries if entry.speaks_of(name_in_file(host, port))]
    plain = [entry for entry in entries if entry.speaks_of(host.lower())]
    settled = any(entry.marker != "@revoked" for entry in exact)
    return exact + [e for e in plain if e not in exact and (e.marker == "@revoked" or not settled)]


def judge(entries: Iterable[KnownHost], host: str, port: int, key: HostKey) -> Judgement:
    """What known_hosts says about the key that this host showed.

    A host with any key on record must show one of those: a key of another type is as much a
    change as another key of the same type.
    """
    about = speaking_of(entries, host, port)
    revoked = tuple(e for e in about if e.marker == "@revoked" and e.key == key)
    if revoked:
        return Judgement("revoked", revoked)
    plain = tuple(e for e in about if e.marker == "")
    same = tuple(e for e in plain if e.key == key)
    if same:
        return Judgement("known", same)
    if plain:
        return Judgement("changed", plain)
    authorities = tuple(e for e in about if e.marker == "@cert-authority")
    return Judgement("certificate-only", authorities) if authorities else Judgement("unknown")


def key_types(entries: Iterable[KnownHost], host: str, port: int) -> list[str]:
    """The types of the keys on record, so that the server is asked for one of those."""
    about = speaking_of(entries, host, port)
    return list(dict.fromkeys(entry.key.type for entry in about if entry.marker == ""))


def load(files: Sequence[str]) -> list[KnownHost]:
    """All lines of those of the files that exist."""
    texts = [
        (file, Path(file).read_text(encoding="utf-8", errors="replace"))
        for file in files
        if Path(file).is_file()
    ]
    return [entry for file, text in texts for entry in parse_known_hosts(text, file)]


_appending = threading.Lock()


def append(file: str, host: str, port: int, key: HostKey) -> None:
    """Remember a new key. One write, so that several runs may share the file."""
    path = Path(file)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    line = f"{name_in_file(host, port)} {key.type} {key.base64}\n"
    with _appending:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT
        with os.fdopen(os.open(path, flags, 0o600), "r+b", buffering=0) as out:
            out.write(_on_a_line_of_its_own(out.read(), line))


def _on_a_line_of_its_own(before: bytes, line: str) -> bytes:
    gap = b"\n" if before and not before.endswith(b"\n") else b""
    return gap + line.encode()
