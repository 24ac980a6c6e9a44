"""The API key of a deployment: given by file, environment or prompt, else generated and kept."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from clusterctl import privatefile
from clusterctl.config.saved import config_dir
from clusterctl.errors import ConfigError
from clusterctl.secret import Secret

VARIABLE = "INFERCLUSTER_API_KEY"


@dataclass(frozen=True)
class ApiKey:
    """`origin` says how it was given. `file` is where it lies on this machine, if it does."""

    secret: Secret
    origin: Literal["file", "environment", "prompt", "generated"]
    file: Path | None = None

    @property
    def for_shell(self) -> str:
        """How a shell line on this machine gets at the key without showing it."""
        if self.file is not None:
            return f"$(cat {self.file})"
        return f"${VARIABLE}" if self.origin == "environment" else "$API_KEY"


def resolve(
    file: Path | None, env: Mapping[str, str], ask: Callable[[], Secret | None] | None
) -> ApiKey | None:
    """The key the user gave: `--api-key-file` > prompt > environment. None: there is none.

    `ask` is given when a prompt was asked for. Raises ConfigError for a key that is empty.
    """
    if file is not None:
        return ApiKey(read(file), "file", file.absolute())
    if ask is not None:
        if secret := ask():
            return ApiKey(secret, "prompt")
        raise ConfigError("no API key was typed", hint="--api-key-file FILE")
    text = env.get(VARIABLE, "").strip()
    return ApiKey(Secret(text), "environment") if text else None


def generate(cluster: str, deployment: str, env: Mapping[str, str]) -> ApiKey:
    """A new key, kept in a 0600 file of the user's config directory."""
    secret = Secret("sk-" + secrets.token_urlsafe(32))
    path = config_dir(env) / "keys" / f"{cluster}-{deployment}"
    _write_private(path, secret.reveal())
    return ApiKey(secret, "generated", path)


def read(file: Path) -> Secret:
    """A key or token out of a file. Raises ConfigError where it cannot be read, or is empty."""
    try:
        text = file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from error
    if not text:
        raise ConfigError(f"{file} is empty")
    return Secret(text)


def _write_private(path: Path, text: str) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    privatefile.write(path, f"{text}\n".encode())
