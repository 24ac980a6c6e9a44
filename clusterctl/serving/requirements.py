"""What the engine needs of a container's Python, and whether it is there. PURE.

The ranges are those of this project's own metadata (the `engine` extra), so they are stated once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

PYTHON = ">=3.10,<3.14"

# Reads metadata only: importing torch to learn its version costs seconds.
PROBE = """
import importlib.metadata as metadata, json, platform, sys
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        found[name] = None
print(json.dumps({"python": platform.python_version(), "packages": found}))
"""

_DECLARED = re.compile(r"(?P<name>[\w.-]+)\s*(?P<bounds>[^;]*);.*extra == ['\"]engine['\"]")
_BOUND = re.compile(r"(>=|<)\s*([\d.]+)")


@dataclass(frozen=True)
class Requirement:
    """A package and the versions that will do; empty `bounds`: any."""

    name: str
    bounds: str = ""


@dataclass(frozen=True)
class FoundPython:
    """What the probe saw. A package's version is None where it is not installed."""

    python: str
    packages: Mapping[str, str | None]


def declared(requires: Iterable[str]) -> tuple[Requirement, ...]:
    """The `engine` extra out of a distribution's Requires-Dist lines."""
    matches = (_DECLARED.match(line) for line in requires)
    return tuple(Requirement(m["name"], m["bounds"].strip()) for m in matches if m)


def unmet(found: FoundPython, wanted: Sequence[Requirement]) -> tuple[str, ...]:
    """Each thing that is missing or of the wrong version, in words; empty when all is well."""
    problems = []
    if not satisfies(found.python, PYTHON):
        problems.append(f"Python {found.python} (needed: {PYTHON})")
    for requirement in wanted:
        version = found.packages[requirement.name]
        if version is None:
            problems.append(f"{requirement.name} is not installed")
        elif not satisfies(version, requirement.bounds):
            problems.append(f"{requirement.name} {version} (needed: {requirement.bounds})")
    return tuple(problems)


def satisfies(version: str, bounds: str) -> bool:
    """Whether a version such as 2.13.0+cpu lies within bounds such as >=2.11,<2.15."""
    return all(
        _within(_release(version), operator, _release(limit))
        for operator, limit in _BOUND.findall(bounds)
    )


def _within(version: tuple[int, ...], operator: str, limit: tuple[int, ...]) -> bool:
    head = version[: len(limit)]  # 2.15.1 is not below 2.15
    return head >= limit if operator == ">=" else head < limit


def _release(version: str) -> tuple[int, ...]:
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, match[0].split("."))) if match else ()
