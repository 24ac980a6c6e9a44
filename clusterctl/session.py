"""The hosts of a cluster, connected: one link each, opened at once and closed together."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TypeVar

from clusterctl.errors import ClusterctlError, LockHeld, NotReady, PreflightFailed, Unreachable
from clusterctl.events import Event, Report, silent
from clusterctl.facts.types import HostFacts
from clusterctl.fanout import Done, Failed, Outcome, fan_out
from clusterctl.launch import model_directories
from clusterctl.links import HostLink, Opener, opener_for
from clusterctl.spec import ClusterSpec
from clusterctl.trace import Trace, traced, untraced

T = TypeVar("T")


@dataclass(frozen=True)
class Session:
    """Links to the hosts that answered, by node name; `failures` holds why the others did not."""

    spec: ClusterSpec
    links: Mapping[str, HostLink]
    failures: Mapping[str, ClusterctlError] = field(default_factory=dict)
    close_shared: Callable[[], None] = lambda: None

    @classmethod
    def connect(
        cls,
        spec: ClusterSpec,
        *,
        names: Sequence[str] | None = None,
        report: Report = silent,
        partial: bool = False,
        trace: Trace = untraced,
        opener: Opener | None = None,
    ) -> Session:
        """Connect the named hosts (all, by default) at once.

        Raises Unreachable naming every host that failed, unless `partial`; what was connected is
        closed first. `opener` replaces how one host is reached (tests).
        """
        opener = opener or opener_for(spec, traced(trace))
        wanted = [node.name for node in spec.nodes if names is None or node.name in names]
        try:
            outcomes = _connect_all(spec, wanted, opener, report)
        except BaseException:
            opener.close()
            raise
        session = cls(spec, *_split(outcomes), opener.close)
        if session.failures and not partial:
            session.close()
            raise all_failures(session.failures)
        return session

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        for link in self.links.values():
            link.close()
        self.close_shared()

    @property
    def head(self) -> HostLink:
        """The head's link. Raises what its connection failed with."""
        return self.link(self.spec.head)

    def link(self, name: str) -> HostLink:
        if name in self.failures:
            raise self.failures[name]
        return self.links[name]

    def each(
        self, call: Callable[[HostLink], T], names: Sequence[str] | None = None
    ) -> dict[str, Outcome[T]]:
        """`call(link)` on the named hosts (all that are linked) at once; every outcome."""
        wanted = [name for name in self.links if names is None or name in names]
        return fan_out(
            wanted, lambda name: call(self.links[name]), limit=self.spec.limits.parallel_hosts
        )

    def facts(self, names: Sequence[str] | None = None) -> dict[str, HostFacts]:
        """All that is known of the linked hosts, one round trip each. A host that fails raises."""
        return results(self.each(self.facts_of, names))

    def facts_of(self, link: HostLink, model: str | None = None) -> HostFacts:
        """All that is known of one host, in one round trip. `model`: a path or Hub id."""
        from clusterctl.facts.gather import Question, parse_facts, probe_script

        question = Question(
            self.spec.docker_socket,
            image=self.spec.image if self.spec.runtime == "docker" else "",
            directories=model_directories(self.spec),
            hf_home=self.spec.hf_home,
            model=model,
        )
        script = probe_script(question).encode()
        sent = time.time()
        answer = link.transport.run(
            ["sh", "-s"], stdin=script, timeout=self.spec.limits.command_timeout
        )
        return parse_facts(link.name, answer.stdout, sent=sent, received=time.time())


def results(outcomes: Mapping[str, Outcome[T]]) -> dict[str, T]:
    """The values, where every host has one; else one error that names every host that failed."""
    failures = {name: out.error for name, out in outcomes.items() if isinstance(out, Failed)}
    if failures:
        raise all_failures(failures)
    return {name: out.value for name, out in outcomes.items() if isinstance(out, Done)}


def all_failures(failures: Mapping[str, ClusterctlError]) -> ClusterctlError:
    """One error for several hosts; a single one stays what it is."""
    errors = list(failures.values())
    if len(errors) == 1:
        return errors[0]
    lines = "\n".join(f"  {name}: {error.message}" for name, error in failures.items())
    hints = dict.fromkeys(error.hint for error in errors if error.hint)
    return _kind(errors)(
        f"{len(errors)} hosts failed:\n{lines}",
        host=", ".join(failures),
        hint="\n".join(hints) or None,
    )


def _kind(errors: Sequence[ClusterctlError]) -> type[ClusterctlError]:
    """What several errors are together: the exit code says the earliest thing to fix."""
    present = [
        kind
        for kind in (Unreachable, PreflightFailed, LockHeld, NotReady)
        if any(isinstance(error, kind) for error in errors)
    ]
    return present[0] if present else ClusterctlError


def _split(
    outcomes: Mapping[str, Outcome[HostLink]],
) -> tuple[dict[str, HostLink], dict[str, ClusterctlError]]:
    links = {name: out.value for name, out in outcomes.items() if isinstance(out, Done)}
    failures = {name: out.error for name, out in outcomes.items() if isinstance(out, Failed)}
    return links, failures


def _connect_all(
    spec: ClusterSpec, names: Sequence[str], opener: Opener, report: Report
) -> dict[str, Outcome[HostLink]]:
    def connect(name: str) -> HostLink:
        report(Event("begin", "connect", host=name))
        link = opener.open(spec.node(name))
        report(Event("done", "connect", host=name))
        return link

    return fan_out(names, connect, limit=spec.limits.parallel_hosts)
