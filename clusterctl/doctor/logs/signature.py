"""What log lines mean: one YAML file a cause, read once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from string import Formatter
from typing import Any

import yaml

SURE = 0.9
MIN_LITERAL = 4
_KEYS = {"regex", "sure", "any_level", "stays", "given", "unless", "distinct"}


@dataclass(frozen=True)
class Pattern:
    """One wording of a cause.

    `literals`: one of them, in lower case, stands in the first line of every match. `sure`: that
    the cause is the root when this is read. `any_level`: read in INFO and WARNING lines too.
    `stays`: still true when the server came up later. `distinct`: counts only when this capture
    had two different values.
    """

    cause: str
    regex: re.Pattern[str]
    literals: tuple[bytes, ...]
    sure: float = SURE
    any_level: bool = False
    stays: bool = False
    given: re.Pattern[str] | None = None
    unless: re.Pattern[str] | None = None
    distinct: str | None = None


@dataclass(frozen=True)
class Signature:
    """A cause, how it is recognised, and what to do. `captures`: what each named group of the
    patterns means, whose value `fixes` may name. `explains`: causes that follow from it. `links`:
    where to read on."""

    id: str
    title: str
    cause: str
    fixes: tuple[str, ...]
    patterns: tuple[Pattern, ...]
    captures: Mapping[str, str]
    explains: tuple[str, ...]
    confused_with: tuple[str, ...]
    samples: tuple[str, ...]
    not_samples: tuple[str, ...]
    links: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """Its entry in `doctor --explain ID --json`."""
        return {
            "id": self.id,
            "title": self.title,
            "cause": self.cause,
            "fixes": list(self.fixes),
            "captures": dict(self.captures),
            "confused_with": list(self.confused_with),
            "links": list(self.links),
        }

    def explained(self) -> str:
        """What `doctor --explain` prints."""
        lines = [f"{self.id}: {self.title}", "", self.cause, "", "fix:"]
        lines += [f"  {one}" for one in self.fixes]
        if self.captures:
            lines += ["", "what is read from the log:"]
            lines += [f"  {name}: {meaning}" for name, meaning in self.captures.items()]
        if self.confused_with:
            lines += ["", f"often taken for: {', '.join(self.confused_with)}"]
        return "\n".join([*lines, "", *self.links])

    def fix(self, values: Mapping[str, str]) -> str:
        """The first wording whose values are all known; the last one needs none."""
        for template in self.fixes:
            if all(name is None or name in values for _, name, _, _ in Formatter().parse(template)):
                return template.format_map(values)
        return self.fixes[-1]


@cache
def signatures() -> Mapping[str, Signature]:
    """By cause."""
    folder = files("clusterctl.doctor") / "signatures"
    names = sorted(one.name for one in folder.iterdir() if one.name.endswith(".yaml"))
    loaded = [_signature(yaml.safe_load((folder / name).read_text("utf-8"))) for name in names]
    return {one.id: one for one in loaded}


def _signature(entry: Mapping[str, Any]) -> Signature:
    fixes = entry["fix"] if isinstance(entry["fix"], list) else [entry["fix"]]
    patterns = tuple(_pattern(entry["id"], one) for one in entry["patterns"])
    captures: dict[str, str] = entry.get("captures", {})
    if odd := {name for one in patterns for name in one.regex.groupindex} ^ captures.keys():
        raise ValueError(f"{entry['id']}: patterns and captures differ in {', '.join(sorted(odd))}")
    return Signature(
        id=entry["id"],
        title=entry["title"],
        cause=entry["cause"],
        fixes=tuple(fixes),
        patterns=patterns,
        captures=captures,
        explains=tuple(entry.get("explains", ())),
        confused_with=tuple(entry.get("confused_with", ())),
        samples=tuple(entry["samples"]),
        not_samples=tuple(entry.get("not_samples", ())),
        links=tuple(entry["links"]),
    )


def _pattern(cause: str, entry: str | Mapping[str, Any]) -> Pattern:
    given: dict[str, Any] = {"regex": entry} if isinstance(entry, str) else dict(entry)
    if unknown := set(given) - _KEYS:
        raise ValueError(f"{cause}: unknown {', '.join(sorted(unknown))}")
    text = given.pop("regex")
    for name in ("given", "unless"):
        if name in given:
            given[name] = compiled(given[name])
    return Pattern(cause, compiled(text), literals(text), **given)


def compiled(text: str) -> re.Pattern[str]:
    return re.compile(text, re.IGNORECASE | re.MULTILINE)


@cache
def literals(regex: str) -> tuple[bytes, ...]:
    """The longest plain text of each alternative. Raises ValueError where one has none."""
    return tuple(one for branch in _branches(regex) for one in _of_branch(branch))


def _of_branch(branch: str) -> tuple[bytes, ...]:
    longest = max(_runs(branch), key=len, default="")
    if len(longest) >= MIN_LITERAL:
        return (longest.lower().encode(),)
    for group in _GROUP.finditer(_LOOK.sub("", branch)):  # each of its alternatives, then
        inner = [max(_runs(one), key=len, default="") for one in group[1].split("|")]
        if all(len(one) >= MIN_LITERAL for one in inner):
            return tuple(one.lower().encode() for one in inner)
    raise ValueError(f"no plain text of {MIN_LITERAL} characters in {branch!r}")


_LOOK = re.compile(r"\(\?<?[!=][^()]*(?:\([^()]*\)[^()]*)*\)")  # says what is not there
_GROUP = re.compile(r"\(\?:([^()]*)\)(?![?*{])")
_TOKEN = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\(\?[a-zA-Z<=!:#P]*|.", re.DOTALL)


def _branches(regex: str) -> list[str]:
    """Split at the bars outside all groups."""
    depth, branches = 0, [""]
    for token in _TOKEN.findall(regex):
        depth += token.startswith("(") - (token == ")")
        if token == "|" and depth == 0:
            branches.append("")
        else:
            branches[-1] += token
    return branches


def _runs(branch: str) -> list[str]:
    """Plain texts outside groups; a character that may be absent is in none."""
    depth, runs = 0, [""]
    for token in _TOKEN.findall(re.sub(r"\{\d*,?\d*\}", "*", branch)):
        plain = token if len(token) == 1 else token[1:] if re.match(r"\\\W", token) else ""
        depth += token.startswith("(") - (token == ")")
        if token in ("?", "*"):
            runs[-1] = runs[-1][:-1]
            runs.append("")
        elif depth or not plain or token in "()^$.+":
            runs.append("")
        else:
            runs[-1] += plain
    return runs
