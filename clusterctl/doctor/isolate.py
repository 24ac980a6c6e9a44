"""Who is to blame, where some of the ways between hosts are bad. PURE."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

Way = tuple[str, str]  # from, to
Touches = Callable[[Way, str], bool]


@dataclass(frozen=True)
class Blame:
    """`hosts`: every way from and to them is bad. `receivers`, `senders`: every way to, or from,
    them. `ways`: what is left, each by itself."""

    hosts: tuple[str, ...] = ()
    receivers: tuple[str, ...] = ()
    senders: tuple[str, ...] = ()
    ways: tuple[Way, ...] = ()


def isolate(bad: Collection[Way], tried: Collection[Way]) -> Blame:
    """A host is blamed when all its ways are bad that do not touch a host already blamed, and there
    are two of them at least: of a single bad way nobody can say which end it is."""
    rest, sound = set(bad), set(tried)
    hosts = tuple(_worst(rest, sound, lambda way, host: host in way))
    receivers = tuple(_worst(rest, sound, lambda way, host: way[1] == host))
    senders = tuple(_worst(rest, sound, lambda way, host: way[0] == host))
    return Blame(hosts, receivers, senders, tuple(sorted(rest)))


def _worst(rest: set[Way], sound: set[Way], touches: Touches) -> Iterator[str]:
    """The hosts all of whose ways are bad, the one with the most first. Takes their ways out."""
    while True:
        own = {
            host: {way for way in sound if touches(way, host)}
            for host in sorted({end for way in rest for end in way})
        }
        peers = {host: len({e for way in own[host] for e in way} - {host}) for host in own}
        found = [host for host in own if peers[host] > 1 and own[host] <= rest]
        if not found:
            return
        worst = max(found, key=lambda host: len(own[host]))
        rest -= own[worst]
        sound -= own[worst]
        yield worst
