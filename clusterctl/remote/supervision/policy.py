"""What a death leads to. PURE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

# exit: a process ended; lost: a node; hung: no token, or a start that stands still; container: with
# all that ran in it; asked: the container was asked to end, which is nobody's fault.
Kind = Literal["exit", "lost", "hung", "container", "asked"]
Then = Literal["waiting", "failed", "stopped"]


@dataclass(frozen=True)
class Death:
    kind: Kind
    cause: str
    exit_code: int | None = None


@dataclass(frozen=True)
class Restart:
    """`restart` of spec.json."""

    in_a_row: int
    backoff_s: float
    backoff_max_s: float
    stable_s: float
    retry_start: Sequence[str]


@dataclass(frozen=True)
class Verdict:
    then: Then
    cause: str
    backoff_s: float = 0.0
    in_a_row: int = 0


def judge(
    restart: Restart | None, death: Death, *, was_ready: bool, in_a_row: int, printed: str
) -> Verdict:
    """`was_ready`: this generation has given a token before. `in_a_row`: restarts without a stable
    time between them. `printed`: what the group said last."""
    if restart is None:
        well = death.kind == "exit" and death.exit_code == 0
        return Verdict("stopped" if well else "failed", death.cause)
    if death.kind == "asked":
        return Verdict("waiting", death.cause, 0.0, in_a_row)
    race = any(text in printed for text in restart.retry_start)
    if death.kind == "exit" and not was_ready and not race:
        return Verdict("failed", death.cause)
    if in_a_row >= restart.in_a_row:
        return Verdict("failed", f"{death.cause}; given up after {in_a_row} restarts in a row")
    backoff_s = min(restart.backoff_s * 2**in_a_row, restart.backoff_max_s)
    return Verdict("waiting", death.cause, backoff_s, in_a_row + 1)
