"""Running commands, and the one way in which the testbed fails."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path


class Failure(Exception):
    """Something is missing or went wrong; the text is for a person and says what to do."""


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def run(argv: Sequence[str | Path], *, stdin: bytes = b"", timeout: float = 120) -> str:
    """The standard output of a command that must succeed."""
    words = [str(word) for word in argv]
    try:
        done = subprocess.run(words, input=stdin, capture_output=True, timeout=timeout)
    except subprocess.TimeoutExpired as late:
        raise Failure(f"{shlex.join(words)}: no end within {timeout:.0f} s") from late
    if done.returncode:
        said = (done.stderr or done.stdout).decode(errors="replace").strip()
        raise Failure(f"{shlex.join(words)}: exit {done.returncode}\n{said}")
    return done.stdout.decode(errors="replace")


def succeeds(argv: Sequence[str | Path]) -> bool:
    quiet = subprocess.DEVNULL
    words = [str(word) for word in argv]
    return subprocess.run(words, stdin=quiet, stdout=quiet, stderr=quiet).returncode == 0


def logged(argv: Sequence[str | Path], log: Path, *, env: dict[str, str] | None = None) -> None:
    """A long command whose output goes to a file; the file's end is the error text."""
    words = [str(word) for word in argv]
    with log.open("ab") as sink:
        code = subprocess.run(
            words, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT, env=env
        ).returncode
    if code:
        raise Failure(f"{shlex.join(words)}: exit {code}; {log} ends with\n{tail(log)}")


def tail(path: Path, lines: int = 15) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])


def wait_until(true: Callable[[], bool], what: str, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while not true():
        if time.monotonic() > deadline:
            raise Failure(f"{what}: not so within {timeout:.0f} s")
        time.sleep(0.1)
