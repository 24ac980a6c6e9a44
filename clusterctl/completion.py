"""What the shell offers on Tab: names from files on this machine, never a connection."""

from __future__ import annotations


def clusters(incomplete: str) -> list[str]:
    return []


def hosts(incomplete: str) -> list[str]:
    return []
