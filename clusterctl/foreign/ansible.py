"""An Ansible inventory, INI or YAML -> the hosts, and which of them is the head."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from clusterctl.config.hostlist import expand
from clusterctl.config.schema import is_secret
from clusterctl.errors import ConfigError
from clusterctl.foreign.draft import Draft

HEADS = ("head", "ray_head", "master", "leader")
_KEYS = {
    "ansible_host": "address",
    "ansible_user": "user",
    "ansible_port": "port",
    "ansible_ssh_private_key_file": "identity",
}
_SECTION = re.compile(r"\[([^\]:\s]+)(?::(vars|children))?\]\s*(?:[#;].*)?")
_RANGE = re.compile(r"\[(\d+):(\d+)\]")

Groups = dict[str, dict[str, dict[str, Any]]]
"""Group -> host -> its variables."""


def is_ini(text: str) -> bool:
    return any(_SECTION.fullmatch(line.strip()) for line in text.splitlines())


def is_yaml(content: Mapping[str, Any]) -> bool:
    return "all" in content or any(
        isinstance(group, dict) and isinstance(group.get("hosts"), dict)
        for group in content.values()
    )


def read_ini(text: str) -> Draft:
    groups: Groups = {}
    variables: dict[str, dict[str, Any]] = {}
    group, kind = "ungrouped", None
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if not line or line[0] in "#;":
            continue
        if match := _SECTION.fullmatch(line):
            group, kind = match[1], match[2]
        elif kind == "vars":
            key, _, value = line.partition("=")
            variables.setdefault(group, {})[key.strip()] = value.strip()
        elif kind is None:
            _ini_host(groups.setdefault(group, {}), line, number)
    return _draft(groups, variables)


def _ini_host(group: dict[str, dict[str, Any]], line: str, number: int) -> None:
    name, *said = shlex.split(line, comments=True)
    if "[" in name and not _RANGE.search(name):
        raise ConfigError(f"line {number}: the range of {name} is not read", hint="gpu[01:16]")
    own = dict(word.partition("=")[::2] for word in said)
    for one in expand(_RANGE.sub(r"[\1-\2]", name)):
        group.setdefault(one, {}).update(own)


def read_yaml(content: Mapping[str, Any]) -> Draft:
    groups: Groups = {}
    variables: dict[str, dict[str, Any]] = {}
    for name, group in _groups(content):
        variables.setdefault(name, {}).update(group.get("vars") or {})
        for pattern, own in (group.get("hosts") or {}).items():
            for one in expand(_RANGE.sub(r"[\1-\2]", str(pattern))):
                groups.setdefault(name, {}).setdefault(one, {}).update(own or {})
    return _draft(groups, variables)


def _groups(content: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, group in content.items():
        yield name, group or {}
        yield from _groups((group or {}).get("children") or {})


def _draft(groups: Groups, variables: Mapping[str, Mapping[str, Any]]) -> Draft:
    draft = Draft()
    hosts: dict[str, dict[str, Any]] = {}
    for group, members in groups.items():
        for name, own in members.items():
            shared = {**variables.get("all", {}), **variables.get(group, {})}
            hosts[name] = {**shared, **hosts.get(name, {}), **own}
    for name, said in hosts.items():
        draft.hosts.append({"name": name, **_entry(draft, said)})
    for group in HEADS:
        if groups.get(group):
            draft.data["head"] = next(iter(groups[group]))
            return draft
    if hosts:
        draft.lose("which host is the head", f"no group is named {', '.join(HEADS)}: the first is")
    return draft


def _entry(draft: Draft, said: Mapping[str, Any]) -> dict[str, Any]:
    entry = {_KEYS[key]: value for key, value in said.items() if key in _KEYS}
    for key in said:
        if is_secret(key.upper()) or key.endswith(("_pass", "_password")):
            draft.lose_secret(key)
        elif key not in _KEYS:
            draft.lose(key, "has no key in cluster.yaml")
    if "port" in entry:
        entry["port"] = int(entry["port"])
    return entry
