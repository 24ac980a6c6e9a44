"""What a request can fail with. The other side knows the kinds and what to advise."""

from __future__ import annotations


class Failure(Exception):
    """`kind`: "held", "absent", "corrupt", "docker", "hub" or "disk"."""

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind
