"""Where saved clusters lie: ~/.config/infercluster/clusters/NAME.yaml, the current one's name in
~/.config/infercluster/current."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path

from clusterctl.errors import ConfigError


def config_dir(env: Mapping[str, str]) -> Path:
    base = env.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "infercluster"


def cache_dir(env: Mapping[str, str]) -> Path:
    """What may be thrown away at any time."""
    base = env.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "infercluster"


def clusters_dir(env: Mapping[str, str]) -> Path:
    return config_dir(env) / "clusters"


def current_file(env: Mapping[str, str]) -> Path:
    return config_dir(env) / "current"


def saved_names(env: Mapping[str, str]) -> list[str]:
    return sorted(path.stem for path in clusters_dir(env).glob("*.yaml"))


def current_name(env: Mapping[str, str]) -> str | None:
    file = current_file(env)
    return file.read_text(encoding="utf-8").strip() or None if file.exists() else None


def saved_file(name: str, env: Mapping[str, str]) -> Path:
    """Raises ConfigError when no such cluster was saved."""
    names = saved_names(env)
    if name in names:
        return clusters_dir(env) / f"{name}.yaml"
    close = get_close_matches(name, names, n=1)
    raise ConfigError(
        f"no cluster {name!r} is saved",
        hint=f"did you mean {close[0]!r}?" if close else "clusterctl ls shows those that are",
    )
