"""ClusterSpec <-> plain data in the form of cluster.yaml: for the saved file, `config show` and the
head's own copy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING

from clusterctl.config.check import check
from clusterctl.config.document import KeyPath, dump_document
from clusterctl.spec import ClusterSpec, MountSpec

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_RENAMED = {"nodes": "hosts"}


def spec_to_dict(spec: ClusterSpec) -> dict[str, object]:
    """JSON-able, every default written out, so that a later default changes no running cluster."""
    return _said(_mapping(spec))


def spec_from_dict(data: Mapping[str, object]) -> ClusterSpec:
    """The inverse. Raises ConfigError on data that is no cluster."""
    return check(data, {}).spec()


def spec_to_yaml(spec: ClusterSpec) -> str:
    """A complete cluster.yaml."""
    return dump_document(spec_to_dict(spec))


def leaves(spec: ClusterSpec) -> Iterator[tuple[KeyPath, object]]:
    """Every single value with its path in cluster.yaml, None and empty ones included."""
    return _leaves(_mapping(spec), ())


def _mapping(value: DataclassInstance) -> dict[str, object]:
    return {_RENAMED.get(f.name, f.name): _plain(getattr(value, f.name)) for f in fields(value)}


def _plain(value: object) -> object:
    if isinstance(value, MountSpec):
        return f"{value.source}:{value.target}" + (":ro" if value.read_only else "")
    if is_dataclass(value) and not isinstance(value, type):
        return _mapping(value)
    if isinstance(value, Mapping):
        return dict(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _said(data: Mapping[str, object]) -> dict[str, object]:
    """Without None and what is empty."""
    kept = {key: _said_value(value) for key, value in data.items()}
    return {key: value for key, value in kept.items() if value not in (None, {}, [])}


def _said_value(value: object) -> object:
    if isinstance(value, list):
        return [_said_value(item) for item in value]
    return _said(value) if isinstance(value, dict) else value


def _leaves(value: object, path: KeyPath) -> Iterator[tuple[KeyPath, object]]:
    if isinstance(value, dict) and value:
        for key, below in value.items():
            yield from _leaves(below, (*path, key))
    elif isinstance(value, list) and value:
        for index, below in enumerate(value):
            yield from _leaves(below, (*path, index))
    else:
        yield path, value
