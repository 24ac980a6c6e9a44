"""All facts of a host in one round trip: one shell script out, one text back."""

from __future__ import annotations

from clusterctl.facts.types import HostFacts

PROBE_ARGV = ("sh", "-s")  # the script goes to its stdin


def probe_script(docker_socket: str) -> str:
    """POSIX sh. Needs no root and no tool that may be missing; changes nothing."""
    raise NotImplementedError


def parse_facts(name: str, text: str, *, sent: float, received: float) -> HostFacts:
    """`text`: what the script wrote to stdout. `sent`, `received`: our clock around the round trip."""
    raise NotImplementedError
