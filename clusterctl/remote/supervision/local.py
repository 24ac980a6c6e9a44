"""One deployment's process on this node."""

from __future__ import annotations

import os
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .files import Json, read_json
from .outcries import Outcries
from .processes import Group, Log, say
from .progress import NewLines

CLEAR_GRACE_S = 2.0  # of what is dead already in part

Act = Literal["run", "end", "clear"]


@dataclass(frozen=True)
class Order:
    """What is to be so on a node. `act` "run": its process runs, in this epoch; "end": it ends, by
    asking first; "clear": nothing that `owner` marks is left."""

    generation: int
    epoch: int
    act: Act
    owner: str = ""

    @property
    def life(self) -> tuple[int, int]:
        return self.generation, self.epoch


class Local:
    """Its directory's spec.json as a process group, at most once an epoch."""

    def __init__(self, directory: Path, stop_grace: float) -> None:
        self.directory = directory
        self.group: Group | None = None
        self.life: tuple[int, int] | None = None
        self.exit_code: int | None = None
        self._stop_grace = stop_grace
        self._asked = False  # to end
        self._outcries = Outcries()
        self._news = NewLines()

    def obey(self, order: Order) -> None:
        if self.group is not None:
            self._watch(self.group, order)
        elif order.act == "run" and order.life != self.life:
            self._begin(order)

    def report(self) -> Json:
        spec = read_json(self.directory / "spec.json")
        return {
            "spec": spec["generation"] if spec else None,
            "life": self.life,
            "running": self.group is not None,
            "pid": self.group.process.pid if self.group else None,
            "exit_code": self.exit_code,
            "errors": self._outcries.all(),
            "lines": self._news.count,
            "last_line": self._news.last,
        }

    def state(self) -> Json | None:
        """What a node that follows writes down; the head knows more. None: nothing is known."""
        spec = read_json(self.directory / "spec.json")
        if spec is None:
            return None
        generation, epoch = self.life or (None, 0)
        if generation != spec["generation"]:
            epoch, state = 0, "stopped" if spec.get("stop") else "waiting"
        elif self.group is not None:
            state = "running"
        else:
            state = "stopped" if self._asked else "failed"
        return {
            "name": self.directory.name,
            "generation": spec["generation"],
            "epoch": epoch,
            "state": state,
            "pid": self.group.process.pid if self.group else None,
            "exit_code": self.exit_code,
        }

    def end(self, grace: float) -> None:
        if self.group is not None:
            self.group.end(grace)
            self._ended(self.group)

    def _watch(self, group: Group, order: Order) -> None:
        if order.act != "run" or order.life != self.life:
            self._asked = True
            group.ask_to_end(CLEAR_GRACE_S if order.act == "clear" else self._stop_grace)
        elif group.exit_code is not None:
            group.ask_to_end(0)  # the first process is gone: what it left behind goes too
        group.end_if_due()
        if not group.alive():
            self._ended(group)

    def _ended(self, group: Group) -> None:
        self.exit_code = group.exit_code
        self.group = None

    def _begin(self, order: Order) -> None:
        spec = read_json(self.directory / "spec.json")
        if spec is None or spec["generation"] != order.generation or not spec["argv"]:
            return
        self.life, self.exit_code, self._asked = order.life, None, False
        self._outcries.forget()
        self._news.forget()
        log = Log(self.directory / "log")
        try:
            self.group = self._start(spec)
        except OSError as error:
            self._print(f"{error.filename or spec['argv'][0]}: {error.strerror}\n".encode(), log)
            self.exit_code = 127
            return
        threading.Thread(
            target=self._copy_output, args=(self.group.process, log), daemon=True
        ).start()

    def _start(self, spec: Json) -> Group:
        return Group(
            spec["argv"],
            env={**os.environ, **spec.get("env", {}), **_secrets(spec)},
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def _copy_output(self, process: subprocess.Popen[bytes], log: Log) -> None:
        for line in process.stdout or ():
            self._print(line, log)

    def _print(self, line: bytes, log: Log) -> None:
        self._outcries.hear(line)
        self._news.hear(line)
        log.write(line)
        say(b"[" + self.directory.name.encode() + b"] " + line)


def _secrets(spec: dict[str, Any]) -> dict[str, str]:
    """Values that stand in files of their own, read at the last moment."""
    files = spec.get("env_files") or {}
    return {name: Path(path).read_text().strip() for name, path in files.items()}
