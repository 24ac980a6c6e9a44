"""A command as a process group, and what it prints."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

LOG_MAX_BYTES = 64 * 1024 * 1024

print_lock = threading.Lock()


def say(line: bytes) -> None:
    """One whole line on stdout, whichever thread has it."""
    with print_lock:
        sys.stdout.buffer.write(line.rstrip(b"\n") + b"\n")
        sys.stdout.buffer.flush()


class Group:
    """A command as a process group: started, asked to end, then made to end."""

    def __init__(self, argv: list[str], **options: Any) -> None:
        self.process = subprocess.Popen(argv, start_new_session=True, **options)
        self.kill_at: float | None = None

    @property
    def exit_code(self) -> int | None:
        code = self.process.poll()
        return None if code is None else code if code >= 0 else 128 - code

    def alive(self) -> bool:
        """Whether any process of the group is left. Reaps the leader: a zombie counts as alive."""
        self.process.poll()
        return self._signal(0)

    def ask_to_end(self, grace: float) -> None:
        if self.kill_at is None:
            self.kill_at = time.monotonic() + grace
            self._signal(signal.SIGTERM)

    def end_if_due(self) -> None:
        if self.kill_at is not None and time.monotonic() >= self.kill_at:
            self._signal(signal.SIGKILL)

    def end(self, grace: float) -> None:
        self.ask_to_end(grace)
        while self.alive():
            self.end_if_due()
            time.sleep(0.05)

    def _signal(self, number: int) -> bool:
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            return False
        except PermissionError:  # macOS, for a group of zombies
            return False
        return True


class Log:
    """A file that keeps the newest output: at the limit it moves to `log.1` and starts anew. What a
    full disk does not take is lost here, which is said once; it was on stdout."""

    def __init__(self, path: Path, max_bytes: int = LOG_MAX_BYTES) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self.file = path.open("ab", buffering=0)
        self._refused = False

    def write(self, line: bytes) -> None:
        try:
            if self.file.tell() + len(line) > self.max_bytes:
                self._rotate()
            self.file.write(line)
            self._refused = False
        except OSError as error:
            if not self._refused:
                say(f"{self.path}: {error.strerror}".encode())
            self._refused = True

    def _rotate(self) -> None:
        self.file.close()
        self.path.replace(self.path.with_suffix(".1"))
        self.file = self.path.open("wb", buffering=0)
