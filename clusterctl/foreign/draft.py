"""A cluster.yaml in the making, and what could not be taken into it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from clusterctl.config import spec_from_dict
from clusterctl.config.document import dump_document
from clusterctl.errors import ConfigError


@dataclass
class Draft:
    """`lost`: each thing that was not carried over, and why, in words."""

    data: dict[str, Any] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)

    @property
    def hosts(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.data.setdefault("hosts", [])
        return found

    def lose(self, what: str, why: str) -> None:
        said = f"{what}: {why}"
        if said not in self.lost:
            self.lost.append(said)

    def lose_secret(self, name: str) -> None:
        self.lose(
            name,
            "a secret; keep it in a file on the hosts (for Hugging Face: `hf auth login` there)",
        )

    def rest(self, said: Mapping[str, Any], known: set[str]) -> None:
        for key in said:
            if key not in known:
                self.lose(str(key), "has no key in cluster.yaml")

    def text(self) -> str:
        """The file. Raises ConfigError where what was read makes no cluster."""
        if not self.hosts:
            raise ConfigError("no host was found in it", hint="clusterctl import --help")
        spec_from_dict(self.data)
        order = ("name", "head", "hosts")
        first = {key: self.data[key] for key in order if key in self.data}
        notes = [f"# Not carried over: {plain(one)}\n" for one in self.lost]
        return "".join(notes) + dump_document({**first, **self.data})


def plain(text: str) -> str:
    """One line, whatever it holds."""
    return re.sub(r"[^ -~]", "?", text)


def written_out(word: str, what: str) -> str:
    """Raises ConfigError for a value that stands for another one."""
    if re.fullmatch(r"<.*>", word):
        raise ConfigError(f"{what} is {word}, a placeholder", hint="put the value there")
    if "$" in word or "`" in word:
        raise ConfigError(
            f"{what} is {word}, which a shell would replace", hint="put the value there"
        )
    return word
