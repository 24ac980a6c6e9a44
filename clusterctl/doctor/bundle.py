"""One file to send to who is to help: facts, findings, spec, versions and logs, without secrets."""

from __future__ import annotations

import io
import json
import platform
import tarfile
import time
from collections.abc import Iterable, Iterator, Mapping

from clusterctl import __version__
from clusterctl.doctor.check import document
from clusterctl.doctor.redaction import redact
from clusterctl.doctor.snapshot import Snapshot, to_json

FOLDER = "clusterctl-bundle"


def bundle(snapshot: Snapshot, logs: Mapping[str, str], secrets: Iterable[str]) -> bytes:
    """A tar.gz. `logs`: by node name. `secrets`: values to hide wherever they stand; what looks
    like a secret is hidden in any case."""
    hidden = list(secrets)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, text in _files(snapshot, logs):
            data = redact(text, hidden).encode()
            entry = tarfile.TarInfo(f"{FOLDER}/{name}")
            entry.size, entry.mode, entry.mtime = len(data), 0o600, int(time.time())
            archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def _files(snapshot: Snapshot, logs: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    versions = {"clusterctl": __version__, "python": platform.python_version()}
    yield "versions.json", json.dumps({**versions, "system": platform.platform()}, indent=1)
    yield "facts.json", to_json(snapshot)
    yield "findings.json", json.dumps(document(snapshot.findings), indent=1)
    for name, text in logs.items():
        yield f"logs/{name}.log", text
