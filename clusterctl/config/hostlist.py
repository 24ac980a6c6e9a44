"""Hosts as people write them: `gpu01`, `alice@gpu01:2222`, `gpu[01-16]`, `[fe80::1]:22`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import product

from clusterctl.errors import ConfigError

_RANGE = re.compile(r"\[(\d+)-(\d+)\]")
MAX_HOSTS = 4096

# The keys of a host entry in which a range stands for one value a host.
RANGED = ("name", "address", "cluster_address")


def expand(text: str) -> list[str]:
    """`gpu[08-10]` -> gpu08, gpu09, gpu10. Zeros in front are kept; several ranges multiply."""
    parts = _RANGE.split(text)
    fixed, firsts, lasts = parts[0::3], parts[1::3], parts[2::3]
    ranges = [_numbers(first, last, text) for first, last in zip(firsts, lasts, strict=True)]
    return [_interleave(fixed, numbers) for numbers in product(*ranges)]


def _numbers(first: str, last: str, text: str) -> list[str]:
    if int(last) < int(first):
        raise ConfigError(f"{text}: the range [{first}-{last}] runs backwards")
    if int(last) - int(first) >= MAX_HOSTS:
        raise ConfigError(f"{text}: the range [{first}-{last}] is longer than {MAX_HOSTS} hosts")
    return [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]


def _interleave(fixed: list[str], numbers: tuple[str, ...]) -> str:
    return fixed[0] + "".join(
        number + rest for number, rest in zip(numbers, fixed[1:], strict=True)
    )


def parse_host(text: str) -> dict[str, object]:
    """`[USER@]HOST[:PORT]` -> a host entry. Values are checked later, with all the others."""
    user, _, rest = text.rpartition("@")
    if rest.startswith("["):
        address, _, tail = rest[1:].partition("]")
        port = tail.removeprefix(":")
    elif rest.count(":") == 1:
        address, _, port = rest.partition(":")
    else:  # no port, or a bare IPv6 address
        address, port = rest, ""
    entry: dict[str, object] = {"name": address.replace(":", "-"), "address": address}
    if user:
        entry["user"] = user
    if port:
        entry["port"] = int(port) if port.isdecimal() else port
    return entry


def expand_entry(entry: str | Mapping[str, object]) -> Iterator[dict[str, object]]:
    """One entry of `hosts:` -> one mapping a host."""
    if isinstance(entry, str):
        yield from map(parse_host, expand(entry))
        return
    ranged = {key: expand(text) for key in RANGED if isinstance(text := entry.get(key), str)}
    count = max((len(values) for values in ranged.values()), default=1)
    for key, values in ranged.items():
        if len(values) != count:
            raise ConfigError(
                f"{key} {entry[key]!r} stands for {len(values)} hosts, not for {count}"
            )
    for index in range(count):
        yield {**entry, **{key: values[index] for key, values in ranged.items()}}
