"""A check as a value: facts in, findings out. PURE; who runs them decides what a failure means."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, Protocol, TypeVar

Verdict = Literal["ok", "warn", "fail", "skip", "unknown"]
Scope = Literal["host", "pair", "cluster"]
Tag = Literal["preflight", "deep", "nvidia", "amd", "rdma", "ray", "model"]

# What to look at first. Within one verdict the likelier finding goes first.
_ORDER: Mapping[Verdict, int] = {"fail": 0, "warn": 1, "unknown": 2, "skip": 3, "ok": 4}
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Evidence:
    """What was seen, word for word. `file` and `line` (from 1) where it has them."""

    text: str
    file: str | None = None
    line: int | None = None

    def document(self) -> dict[str, Any]:
        return {"file": self.file, "line": self.line, "text": self.text}


@dataclass(frozen=True)
class Finding:
    """What is said of a place. `check` None: it comes from a log, not from a check. `cause`: the
    slug of the root cause. `host` None: the cluster as a whole. `message`: one sentence for people.
    `confidence`: 0 to 1 that `cause` is the reason of what goes (or will go) wrong. `fix`: a
    command where one exists."""

    check: str | None
    cause: str | None
    host: str | None
    verdict: Verdict
    message: str
    confidence: float = 1.0
    evidence: Evidence | None = None
    values: Mapping[str, str] = field(default_factory=dict)
    fix: str | None = None

    @property
    def unexplained(self) -> bool:
        """Whether a log shows a failure whose cause is not known: a failure it is all the same."""
        return self.check is None and self.verdict == "unknown"

    def document(self) -> dict[str, Any]:
        """One entry of `findings` in `doctor --json`."""
        return {
            "check": self.check,
            "cause": self.cause,
            "host": self.host,
            "verdict": self.verdict,
            "message": self.message,
            "confidence": self.confidence,
            "evidence": self.evidence.document() if self.evidence else None,
            "values": dict(self.values),
            "fix": self.fix,
        }


def likeliest_first(findings: Iterable[Finding]) -> list[Finding]:
    """Failures before warnings before what is unknown; equal ones stay in their order."""
    return sorted(findings, key=lambda one: (_ORDER[one.verdict], -one.confidence))


def troubles(findings: Iterable[Finding]) -> list[Finding]:
    """All but what is in order or does not apply."""
    return [one for one in findings if one.verdict not in ("ok", "skip")]


def document(findings: Iterable[Finding]) -> dict[str, Any]:
    """What `doctor --json` prints."""
    ordered = likeliest_first(findings)
    return {"schema_version": SCHEMA_VERSION, "findings": [one.document() for one in ordered]}


def exit_code(findings: Iterable[Finding], *, strict: bool = False) -> int:
    """1 when anything failed; with `strict` also for a warning and for what is not known."""
    bad = ("fail", "warn", "unknown") if strict else ("fail",)
    return int(any(one.verdict in bad or one.unexplained for one in findings))


# --- what a judge says ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """A judge's word on its subject: a Finding but for what the Check itself knows. `host` is for
    judges that see several; `cause` where it differs from the check's own."""

    verdict: Verdict
    message: str
    fix: str | None = None
    evidence: Evidence | None = None
    values: Mapping[str, str] = field(default_factory=dict)
    host: str | None = None
    confidence: float = 1.0
    cause: str | None = None


def ok(message: str, *, host: str | None = None) -> Answer:
    return Answer("ok", message, host=host)


def skip(reason: str, *, host: str | None = None) -> Answer:
    """It does not apply here, and why."""
    return Answer("skip", reason, host=host)


def unknown(reason: str, *, host: str | None = None, fix: str | None = None) -> Answer:
    """It applies, and could not be learnt."""
    return Answer("unknown", reason, fix, host=host)


def warn(message: str, fix: str | None = None, **more: Any) -> Answer:
    """`more`: fields of Answer."""
    return Answer("warn", message, fix, **more)


def fail(message: str, fix: str | None = None, **more: Any) -> Answer:
    """`more`: fields of Answer."""
    return Answer("fail", message, fix, **more)


# --- checks --------------------------------------------------------------------------------------


class Examined(Protocol):
    """What checks judge. `name` is the host's; None: the cluster as a whole."""

    @property
    def name(self) -> str | None: ...


Subject = TypeVar("Subject", bound=Examined)
Said = Answer | Iterable[Answer]


@dataclass(frozen=True)
class Check(Generic[Subject]):
    """`id` is stable: people choose and skip by it. `cause`: the slug of what will go wrong.
    `needs`: attribute paths of HostFacts (`host.clock_offset_s`); where one is None the judge says
    unknown, never ok. The judge's docstring says why the check matters."""

    id: str
    title: str
    judge: Callable[[Subject], Said]
    cause: str | None = None
    needs: tuple[str, ...] = ()
    scope: Scope = "host"
    tags: frozenset[Tag] = frozenset()

    @property
    def why(self) -> str:
        return " ".join((inspect.getdoc(self.judge) or "").split())

    def document(self) -> dict[str, Any]:
        """One entry of `checks` in `doctor --list --json`."""
        return {
            "id": self.id,
            "title": self.title,
            "cause": self.cause,
            "scope": self.scope,
            "tags": sorted(self.tags),
            "needs": list(self.needs),
            "why": self.why,
        }

    def explained(self) -> str:
        """What `doctor --explain` prints."""
        about = [f"scope {self.scope}", *(f"tag {tag}" for tag in sorted(self.tags))]
        about += [f"cause {self.cause}"] if self.cause else []
        about += [f"needs {need}" for need in self.needs]
        return f"{self.id}: {self.title}\n{', '.join(about)}\n\n{self.why}"


def check(
    id: str,
    title: str,
    *,
    cause: str | None = None,
    needs: Sequence[str] = (),
    scope: Scope = "host",
    tags: Iterable[Tag] = (),
) -> Callable[[Callable[[Subject], Said]], Check[Subject]]:
    """Turn a judge into its Check, where it is written."""

    def made(judge: Callable[[Subject], Said]) -> Check[Subject]:
        return Check(id, title, judge, cause, tuple(needs), scope, frozenset(tags))

    return made


def run_checks(checks: Iterable[Check[Subject]], subjects: Iterable[Subject]) -> Iterator[Finding]:
    known = list(checks)
    for subject in subjects:
        for one in known:
            said = one.judge(subject)
            for answer in [said] if isinstance(said, Answer) else said:
                yield _finding(one, answer, answer.host or subject.name)


def _finding(one: Check[Subject], answer: Answer, host: str | None) -> Finding:
    return Finding(
        one.id,
        answer.cause or one.cause,
        host,
        answer.verdict,
        answer.message,
        answer.confidence,
        answer.evidence,
        answer.values,
        answer.fix,
    )
