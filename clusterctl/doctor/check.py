"""A check as a value: facts in, findings out. PURE; who runs them decides what a failure means."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

Subject = TypeVar("Subject")
Status = Literal["ok", "warn", "fail", "unknown"]


@dataclass(frozen=True)
class Verdict:
    """What a check says of one subject. `fix` is a command where one exists."""

    status: Status
    message: str
    fix: str | None = None


@dataclass(frozen=True)
class Check(Generic[Subject]):
    """`id` is stable: it is what people skip a check by."""

    id: str
    title: str
    judge: Callable[[Subject], Verdict | None]  # None: does not apply


@dataclass(frozen=True)
class Finding:
    """A verdict with its place. `host` None: the cluster as a whole."""

    check: str
    host: str | None
    status: Status
    message: str
    fix: str | None = None


def run_checks(
    checks: Iterable[Check[Subject]], subjects: Iterable[tuple[str | None, Subject]]
) -> Iterator[Finding]:
    known = list(checks)
    for host, subject in subjects:
        for check in known:
            verdict = check.judge(subject)
            if verdict is not None:
                yield Finding(check.id, host, verdict.status, verdict.message, verdict.fix)
