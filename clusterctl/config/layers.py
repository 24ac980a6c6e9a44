"""Where a value came from. A Layer is what one source says (file, environment, flags); layers are
merged, the later one winning, and every value keeps its Origin."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from clusterctl.config.document import Document, KeyPath
from clusterctl.config.hostlist import expand_entry
from clusterctl.errors import ConfigError

LOCAL_FILES: tuple[KeyPath, ...] = (("ssh", "config"), ("ssh", "known_hosts"))


@dataclass(frozen=True)
class Origin:
    """`where`: "cluster.yaml:12", "--image", "INFERCLUSTER_IMAGE", "default" or "detected"."""

    kind: Literal["flag", "env", "file", "default", "detected"]
    where: str


@dataclass(frozen=True)
class HostEntry:
    """One host, ranges expanded. `origins` are of its own keys; () is the entry itself."""

    data: Mapping[str, object]
    origins: Mapping[KeyPath, Origin]


@dataclass(frozen=True)
class Layer:
    """What one source says. `hosts` None: it names none."""

    data: Mapping[str, object]
    origins: Mapping[KeyPath, Origin]
    hosts: tuple[HostEntry, ...] | None = None

    def origin(self, path: KeyPath) -> Origin | None:
        """Of the value at `path`, or of the short form ("cpu:2") that holds it; None: not given."""
        value: object = self.data
        for depth, step in enumerate(path):
            if isinstance(value, dict | list):
                value = _member(value, step)
            if value is None:
                return None
            if not isinstance(value, dict | list):
                return nearest(self.origins, path[: depth + 1])
        return nearest(self.origins, path)


def _member(holder: dict[str, object] | list[object], step: str | int) -> object:
    if isinstance(holder, dict):
        return holder.get(str(step))
    return holder[step] if isinstance(step, int) and step < len(holder) else None


def from_document(document: Document, base: Path) -> Layer:
    """`base`: the directory that relative names of local files are meant from."""
    origins: dict[KeyPath, Origin] = {(): Origin("file", document.file)}
    for path, line in document.lines.items():
        origins[path] = Origin("file", f"{document.file}:{line}")
    data = {key: value for key, value in document.data.items() if key != "hosts"}
    entries = document.data.get("hosts")
    hosts = None if entries is None else tuple(_file_hosts(entries, origins, base))
    return Layer(_anchored(data, base), origins, hosts)


def _file_hosts(
    entries: object, origins: Mapping[KeyPath, Origin], base: Path
) -> Iterator[HostEntry]:
    if not isinstance(entries, list):
        raise ConfigError(f"{origins[('hosts',)].where}: hosts must be a list")
    for index, entry in enumerate(entries):
        own = {path[2:]: at for path, at in origins.items() if path[:2] == ("hosts", index)}
        if not isinstance(entry, str | dict):
            raise ConfigError(f"{own[()].where}: a host is a name or a mapping, not {entry!r}")
        yield from _expanded(entry, own, base)


def _expanded(
    entry: str | Mapping[str, object], origins: Mapping[KeyPath, Origin], base: Path
) -> Iterator[HostEntry]:
    at = origins[()]
    try:
        hosts = list(expand_entry(entry))
    except ConfigError as error:
        raise ConfigError(f"{at.where}: {error.message}") from error
    for host in hosts:
        if isinstance(identity := host.get("identity"), str):
            host["identity"] = _anchor(identity, base)
        yield HostEntry(host, {**{(key,): at for key in host}, **origins})


def from_values(values: Mapping[KeyPath, tuple[object, Origin]], base: Path) -> Layer:
    """A layer of single values, such as flags and environment variables."""
    data: dict[str, object] = {}
    for path, (value, _) in values.items():
        data = merge(data, _nested(path, value))
    return Layer(_anchored(data, base), {path: origin for path, (_, origin) in values.items()})


def named_hosts(texts: Mapping[str, Sequence[str]]) -> tuple[HostEntry, ...]:
    """{"--worker": ["gpu[02-04]"]} -> their entries."""
    return tuple(
        entry
        for flag, hosts in texts.items()
        for text in hosts
        for entry in _expanded(text, {(): Origin("flag", flag)}, Path())
    )


def choose_hosts(known: Sequence[HostEntry], chosen: Sequence[HostEntry]) -> tuple[HostEntry, ...]:
    """The chosen hosts; one that the file knows by that bare name keeps its settings there."""
    settings = {entry.data.get("name"): entry for entry in known}
    return tuple(
        settings.get(entry.data["name"], entry)
        if entry.data.keys() == {"name", "address"}
        else entry
        for entry in chosen
    )


def stack(layers: Sequence[Layer]) -> Layer:
    """Later layers win, key by key; lists are replaced whole."""
    result = Layer({}, {})
    for layer in layers:
        result = Layer(
            merge(result.data, layer.data),
            {**result.origins, **layer.origins},
            result.hosts if layer.hosts is None else layer.hosts,
        )
    return result


def with_hosts(layer: Layer) -> Layer:
    """The hosts put back into data and origins, as ("hosts", 0, ...)."""
    origins = {path: at for path, at in layer.origins.items() if path[:1] != ("hosts",)}
    for index, entry in enumerate(layer.hosts or ()):
        origins |= {("hosts", index, *path): at for path, at in entry.origins.items()}
    hosts = [dict(entry.data) for entry in layer.hosts or ()]
    return replace(layer, data={**layer.data, "hosts": hosts}, origins=origins)


def nearest(origins: Mapping[KeyPath, Origin], path: KeyPath) -> Origin:
    """Where an error at `path` is to be mended: its own line, else that of what holds it."""
    while path and path not in origins:
        path = path[:-1]
    return origins.get(path, Origin("default", "cluster"))


def merge(below: Mapping[str, object], above: Mapping[str, object]) -> dict[str, object]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        merged[key] = merge(old, value) if both else value  # type: ignore[arg-type]
    return merged


def _nested(path: KeyPath, value: object) -> dict[str, object]:
    first, *rest = path
    return {str(first): _nested(tuple(rest), value) if rest else value}


def _anchored(data: Mapping[str, object], base: Path) -> dict[str, object]:
    result = dict(data)
    for section, key in LOCAL_FILES:
        holder = result.get(str(section))
        if isinstance(holder, dict) and isinstance(value := holder.get(key), str):
            result = merge(result, _nested((section, key), _anchor(value, base)))
    return result


def _anchor(path: str, base: Path) -> str:
    return str(base / Path(path).expanduser())
