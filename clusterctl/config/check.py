"""Merged data -> a validated Cluster, or one ConfigError that names every fault and its place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from clusterctl.config import schema
from clusterctl.config.document import KeyPath, dotted
from clusterctl.config.layers import Origin, nearest
from clusterctl.errors import ConfigError

SHOWN = 80  # of a value that is refused: it may be a whole file


@dataclass(frozen=True)
class Problem:
    path: KeyPath
    message: str
    hint: str | None = None


def check(data: Mapping[str, object], origins: Mapping[KeyPath, Origin]) -> schema.Cluster:
    """Raises ConfigError."""
    try:
        cluster = schema.Cluster.model_validate(with_default_names(data))
    except ValidationError as error:
        derived = {("name",), ("head",)} - {(key,) for key in data}  # faults of the first host
        problems = [_problem(detail) for detail in error.errors()]
        raise refusal([p for p in problems if p.path not in derived], origins) from error
    if contradictions := list(_contradictions(cluster)):
        raise refusal(contradictions, origins)
    return cluster


def with_default_names(data: Mapping[str, object]) -> dict[str, object]:
    """The head is the first host and gives an unnamed cluster its name."""
    hosts = data.get("hosts")
    first = hosts[0].get("name") if isinstance(hosts, list) and hosts else ""
    head = data.get("head") or first
    return {**data, "head": head, "name": data.get("name") or head}


def refusal(problems: Sequence[Problem], origins: Mapping[KeyPath, Origin]) -> ConfigError:
    lines = [f"{nearest(origins, problem.path).where}: {problem.message}" for problem in problems]
    hint = next((problem.hint for problem in problems if problem.hint), None)
    return ConfigError("\n".join(lines), hint=hint)


def _contradictions(cluster: schema.Cluster) -> Iterator[Problem]:
    names = [host.name for host in cluster.hosts]
    if cluster.head not in names:
        yield Problem(
            ("head",),
            f"the head {cluster.head!r} is not among the hosts",
            _did_you_mean(cluster.head, names),
        )
    yield from _repeated(names, "name", "the host name {} is given twice")
    if cluster.runtime == "docker":
        doors = [f"{host.door} port {host.port or 22}" for host in cluster.hosts]
        yield from _repeated(doors, "address", "two hosts have the address {}")
    addresses = [host.cluster_address for host in cluster.hosts]
    yield from _repeated(addresses, "cluster_address", "two hosts have the cluster address {}")


def _repeated(values: Sequence[str | None], key: str, message: str) -> Iterator[Problem]:
    for index, value in enumerate(values):
        if value is not None and value in values[:index]:
            yield Problem(("hosts", index, key), message.format(value))


def _problem(detail: ErrorDetails) -> Problem:
    path = tuple(step for step in detail["loc"] if step != "[key]")
    key = dotted(path)
    match detail["type"]:
        case "extra_forbidden":
            return _unknown_key(path)
        case "missing":
            return Problem(path[:-1], f"{key} is missing")
        case "string_pattern_mismatch":
            return Problem(
                path, f"{key} {schema.IN_WORDS[detail['ctx']['pattern']]}: {_shown(detail)}"
            )
        case "value_error":
            return Problem(path, f"{key} {detail['ctx']['error']}: {_shown(detail)}")
        case "model_type" | "dict_type":
            return Problem(path, f"{key} should be a mapping, not {_shown(detail)}")
        case "too_short":
            return Problem(path, f"{key} must hold at least one")
        case _:
            expectation = detail["msg"].removeprefix("Input ").removeprefix("Value ")
            return Problem(path, f"{key} {expectation}, not {_shown(detail)}")


def _shown(detail: ErrorDetails) -> str:
    value = detail["input"]
    if isinstance(value, dict | BaseModel):
        return "a mapping"
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(text):,} characters)"


def _unknown_key(path: KeyPath) -> Problem:
    known = list(section_at(path[:-1]).model_fields)
    hint = _did_you_mean(str(path[-1]), known) or f"known keys here: {', '.join(known)}"
    return Problem(path, f"unknown key {dotted(path)!r}", hint)


def _did_you_mean(word: str, known: Sequence[str]) -> str | None:
    close = get_close_matches(word, known, n=1)
    return f"did you mean {close[0]!r}?" if close else None


def section_at(path: KeyPath) -> type[schema.Section]:
    """The model that holds `path`: () is the cluster, ("hosts", 0) a host."""
    section: type[schema.Section] = schema.Cluster
    for step in path:
        if isinstance(step, str):
            section = next(_models_in(section.model_fields[step].annotation))
    return section


def _models_in(annotation: object) -> Iterator[type[schema.Section]]:
    if isinstance(annotation, type) and issubclass(annotation, schema.Section):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)
