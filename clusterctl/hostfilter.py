"""Which nodes a word means: a name, a glob over names, or the roles `head` and `workers`. PURE."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from clusterctl.errors import ConfigError
from clusterctl.spec import ClusterSpec


def choose_nodes(spec: ClusterSpec, words: Sequence[str] | None) -> list[str]:
    """Node names in the spec's order; all of them without words. Raises ConfigError for a word
    that means no node."""
    chosen = {name for word in words or ["*"] for name in _meant(spec, word)}
    return [node.name for node in spec.nodes if node.name in chosen]


def _meant(spec: ClusterSpec, word: str) -> list[str]:
    names = [node.name for node in spec.nodes]
    found = [name for name in names if fnmatchcase(name, word)] or _by_role(spec, word)
    if found:
        return found
    close = get_close_matches(word, names, n=1)
    raise ConfigError(
        f"no node of {spec.name} is called {word!r}",
        hint=f"did you mean {close[0]!r}?" if close else f"its nodes: {', '.join(names)}",
    )


def _by_role(spec: ClusterSpec, word: str) -> list[str]:
    roles = {"head": [spec.head], "workers": [node.name for node in spec.workers]}
    return roles.get(word, [])
