"""What is kept of a death: HOME/crashes/NAME/TIME/, in the host's state directory.

crash.json   cause, exit code, argv, environment without secrets, versions, the first error of
             every rank, the processes as they were last seen
log          the end of what this node's process printed
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from .files import Json, write_json
from .processes import say

KEPT = 20
LOG_BYTES = 256 * 1024
PACKAGES = ("ray", "torch", "vllm", "transformers", "tokenizers", "safetensors")

_SECRET = re.compile(r"(?:^|[_-])(?:token|key|secret|passw\w*|credentials?)$", re.IGNORECASE)
_USER_IN_URL = re.compile(r"(?<=://)[^/@\s]+(?=@)")
HIDDEN = "[redacted]"
SECRET_LENGTH = 6  # what is shorter would be found everywhere


def keep(crashes: Path, directory: Path, spec: Json, found: Json) -> None:
    """One more bundle. A disk that does not take it costs the bundle alone."""
    name = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    bundle = crashes / directory.name / f"{name}-g{found['generation']}-e{found['epoch']}"
    env = {**os.environ, **spec.get("env", {})}
    log = tail(directory / "log")
    for secret in secrets_of(spec, env):
        log = log.replace(secret.encode(), HIDDEN.encode())
    try:
        bundle.mkdir(parents=True, exist_ok=True)
        (bundle / "log").write_bytes(log)
    except OSError as error:
        say(f"{bundle}: {error.strerror}".encode())
        return
    more = {"argv": without_secrets(spec["argv"]), "env": shown(env), "versions": versions()}
    write_json(bundle / "crash.json", {**found, **more})
    for old in sorted(bundle.parent.iterdir())[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)


def tail(log: Path) -> bytes:
    if not log.exists():
        return b""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - LOG_BYTES))
        return file.read()


def secrets_of(spec: Json, env: Mapping[str, str]) -> set[str]:
    """Values that may have been printed all the same."""
    paths = [*(spec.get("env_files") or {}).values()]
    paths += [liveness["api_key_file"]] if (liveness := spec.get("liveness")) else []
    contents = [Path(path).read_text().strip() for path in paths if Path(path).exists()]
    named = [value for name, value in env.items() if _SECRET.search(name)]
    return {value for value in (*contents, *named) if len(value) >= SECRET_LENGTH}


def shown(env: Mapping[str, str]) -> dict[str, str]:
    return {
        name: HIDDEN if _SECRET.search(name) else _USER_IN_URL.sub(HIDDEN, value)
        for name, value in sorted(env.items())
    }


def without_secrets(argv: Sequence[str]) -> list[str]:
    """`--api-key VALUE` and `--api-key=VALUE` lose their value."""
    words, hide = [], False
    for word in argv:
        flag, equals, _ = word.partition("=")
        secret = flag.startswith("--") and bool(_SECRET.search(flag))
        words.append(HIDDEN if hide else f"{flag}={HIDDEN}" if secret and equals else word)
        hide = secret and not equals
    return words


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
