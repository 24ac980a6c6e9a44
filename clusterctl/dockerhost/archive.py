"""Files as the tar that Docker takes and gives. PURE."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable

from clusterctl.containers import ContainerFile


def pack(files: Iterable[ContainerFile]) -> bytes:
    """A tar to unpack at /. Root's files; directories are left to the unpacker, which makes only
    those that are missing, so that nobody's mode changes."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for file in files:
            member = tarfile.TarInfo(file.path.lstrip("/"))
            member.size = len(file.data)
            member.mode = file.mode
            tar.addfile(member, io.BytesIO(file.data))
    return packed.getvalue()


def only_file(packed: bytes) -> bytes | None:
    """The one regular file of a tar, None when it holds something else (a link, a directory)."""
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        member = tar.next()
        content = tar.extractfile(member) if member and member.isreg() else None
        return content.read() if content else None
