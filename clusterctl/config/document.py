"""YAML text -> plain data that remembers the line of every key.

A dialect without surprises: `true`, `false`, `null`, decimal numbers; everything else is text (no
`yes`/`NO` booleans, no octal). A key given twice is an error. `${VAR}` and `${VAR:-default}` come
from the environment, an unset one is an error; `$${` writes a literal `${`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from clusterctl.errors import ConfigError

KeyPath = tuple[str | int, ...]

_INTEGER = re.compile(r"-?(0|[1-9][0-9]*)")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)\.[0-9]+([eE][-+]?[0-9]+)?")
_REFERENCE = re.compile(r"\$\$\{|\$\{(?P<body>[^}]*)(?P<closed>\}?)")
_VARIABLE = re.compile(r"(?P<name>[A-Za-z_][A-Za-z0-9_]*)(:-(?P<default>.*))?", re.DOTALL)
_UNTAGGED = re.compile(r"tag:yaml\.org,2002:(str|seq|map)")


@dataclass(frozen=True)
class Document:
    """`file` as it is shown to people; `lines` holds every mapping key and list item."""

    file: str
    data: dict[str, object]
    lines: Mapping[KeyPath, int]


def read_document(path: Path, env: Mapping[str, str], *, shown_as: str | None = None) -> Document:
    """Raises ConfigError with file and line."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise ConfigError(f"{path}: {reason}") from error
    return parse_document(text, env, file=shown_as or str(path))


def parse_document(text: str, env: Mapping[str, str], *, file: str) -> Document:
    try:
        root = yaml.compose(text, Loader=yaml.BaseLoader)
    except yaml.MarkedYAMLError as error:
        raise _not_yaml(error, text, file) from error
    except yaml.reader.ReaderError as error:
        raise ConfigError(f"{file}: {error.reason}") from error
    builder = _Builder(file, env)
    data = builder.value(root, ()) if root is not None else {}
    if not isinstance(data, dict):
        raise ConfigError(f"{file}:1: a mapping of keys was expected at the top")
    return Document(file, data, builder.lines)


def _not_yaml(error: yaml.MarkedYAMLError, text: str, file: str) -> ConfigError:
    line = error.problem_mark.line if error.problem_mark else 0
    braces = "${" in "".join(text.splitlines()[line : line + 1])
    return ConfigError(
        f"{file}:{line + 1}: {error.problem}",
        hint='inside [...] and {...}, write "${VAR}" in quotes' if braces else None,
    )


def dump_document(data: Mapping[str, object]) -> str:
    """Plain data as text that `parse_document` reads back equal."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def interpolate(text: str, env: Mapping[str, str], *, where: str) -> str:
    """`${VAR}` replaced. `where` ("cluster.yaml:4") begins the error."""
    return _REFERENCE.sub(lambda match: _replacement(match, env, where), text)


def _replacement(match: re.Match[str], env: Mapping[str, str], where: str) -> str:
    if match["body"] is None:
        return "${"
    variable = _VARIABLE.fullmatch(match["body"])
    if variable is None or not match["closed"]:
        raise ConfigError(
            f"{where}: {match[0]!r} is not a variable", hint="write $${ for a literal ${"
        )
    name, default = variable["name"], variable["default"]
    if default is not None:
        return env.get(name) or default
    if name not in env:
        raise ConfigError(
            f"{where}: the environment variable {name} is not set",
            hint=f"export {name}=..., or give a default: ${{{name}:-value}}",
        )
    return env[name]


def _joined(text: str, *, where: str) -> str:
    """JSON writes a character beyond 16 bits as two halves, and YAML's reader leaves them so."""
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where}: half a character (a lone surrogate)") from error


@dataclass
class _Builder:
    file: str
    env: Mapping[str, str]
    lines: dict[KeyPath, int] = field(default_factory=dict)

    def value(self, node: yaml.Node, path: KeyPath) -> object:
        if not _UNTAGGED.fullmatch(node.tag):
            raise ConfigError(f"{self._at(node)}: the YAML tag {node.tag} is not understood")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self._item(item, (*path, i)) for i, item in enumerate(node.value)]
        whole = _joined(node.value, where=self._at(node))
        text = interpolate(whole, self.env, where=self._at(node))
        plain = isinstance(node, yaml.ScalarNode) and node.style is None
        return plain_value(text) if plain else text

    def _item(self, node: yaml.Node, path: KeyPath) -> object:
        self.lines[path] = node.start_mark.line + 1
        return self.value(node, path)

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, object]:
        own: dict[str, object] = {}
        merged: dict[str, object] = {}
        for key_node, value_node in node.value:
            if _is_merge(key_node):
                merged |= self._merged(value_node, path)
                continue
            key = self._key(key_node, own)
            key_path = (*path, key)
            self.lines[key_path] = key_node.start_mark.line + 1
            own[key] = self.value(value_node, key_path)
        return {**merged, **own}

    def _merged(self, node: yaml.Node, path: KeyPath) -> dict[str, object]:
        sources = node.value if isinstance(node, yaml.SequenceNode) else [node]
        values: dict[str, object] = {}
        for source in reversed(sources):
            if not isinstance(source, yaml.MappingNode):
                raise ConfigError(f"{self._at(source)}: << takes a mapping")
            values |= self._mapping(source, path)
        return values

    def _key(self, node: yaml.Node, seen: Mapping[str, object]) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise ConfigError(f"{self._at(node)}: a key must be plain text")
        key = interpolate(node.value, self.env, where=self._at(node))
        if key in seen:
            raise ConfigError(f"{self._at(node)}: the key {key!r} is given twice")
        return key

    def _at(self, node: yaml.Node) -> str:
        return f"{self.file}:{node.start_mark.line + 1}"


def _is_merge(key: yaml.Node) -> bool:
    return isinstance(key, yaml.ScalarNode) and key.style is None and key.value == "<<"


def plain_value(text: str) -> str | int | float | bool | None:
    """What an unquoted scalar means."""
    if text in {"", "~", "null"}:
        return None
    if text in {"true", "false"}:
        return text == "true"
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if _NUMBER.fullmatch(text) else text


class _Dumper(yaml.SafeDumper):
    """Quotes what our dialect would read as something else, and escapes `${`."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = '"' if plain_value(text) != text or not text.isprintable() else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text.replace("${", "$${"), style=style)


_Dumper.add_representer(str, _text)


def dotted(path: KeyPath) -> str:
    """("hosts", 0, "port") as people write it: hosts[0].port"""
    return "".join(_steps(path)).removeprefix(".")


def _steps(path: KeyPath) -> Iterator[str]:
    for step in path:
        yield f"[{step}]" if isinstance(step, int) else f".{step}"
