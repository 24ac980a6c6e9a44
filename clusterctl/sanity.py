"""The collective check over a whole cluster: engine.sanity in every node's container at once.

Its result is kept on the head together with exactly which containers it was seen on: a container
that was replaced or restarted since is not the one that passed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from clusterctl import autopsy, enginepackage, hoststate
from clusterctl.doctor.logs.reading import Source
from clusterctl.enginepackage import TORCH_ONLY, EnginePackage
from clusterctl.events import Event, Report, silent
from clusterctl.fanout import fan_out
from clusterctl.members import Member
from clusterctl.sanityreport import SanityReport, failure, gather
from clusterctl.session import Session, results
from clusterctl.transport.base import Result

FILE = "sanity.json"
SCHEMA_VERSION = 1
WAITS = 4  # a rank's deadlines one after the other: arriving, the step, its goodbye; and the start

_FREE_PORT = (
    "import socket, sys; s = socket.socket(); s.bind((sys.argv[1], 0)); print(s.getsockname()[1])"
)


@dataclass(frozen=True)
class Record:
    """A check that passed, and on what. `containers`: node name -> (id, started_at)."""

    summary: str
    at: float
    containers: Mapping[str, tuple[str, str]]

    def covers(self, members: Sequence[Member]) -> bool:
        """Whether these very containers, not restarted since, are those that passed."""
        return dict(self.containers) == identities(members)


def check(
    session: Session,
    members: Sequence[Member],
    *,
    report: Report = silent,
    timeout: float | None = None,
    package: EnginePackage | None = None,
) -> SanityReport:
    """Run the check on all members at once and keep a pass on record.

    `timeout` (limits.sanity_timeout by default) bounds all of it. Raises NotReady naming the rank
    that did not answer, its host and the step; PreflightFailed where torch is missing.
    """
    timeout = session.spec.limits.sanity_timeout if timeout is None else timeout
    report(Event("begin", "sanity", f"{world_size(members)} ranks"))
    directories = deliver(session, members, package or enginepackage.load())
    found = run(members, directories, timeout)
    if not found.passed:
        # Kept, and covering no container: `status` must not take a failure for a check skipped.
        _keep(session, Record("failed", time.time(), {}))
        raise autopsy.diagnosed(failure(found), _said(found))
    _keep(session, Record(found.summary(), time.time(), identities(members)))
    report(Event("done", "sanity", found.summary()))
    return found


def _said(found: SanityReport) -> list[Source]:
    """What the ranks that failed said of it, host by host."""
    lines = {host: [why] for host, why in found.lost.items()}
    for verdict in found.verdicts:
        if not verdict.ok:
            said = verdict.detail.split(" | ")
            lines.setdefault(found.hosts[verdict.rank], []).extend(said)
    return [
        Source(f"collective check on {host}", "\n".join(said).encode(), host)
        for host, said in lines.items()
    ]


def deliver(session: Session, members: Sequence[Member], package: EnginePackage) -> dict[str, str]:
    """The engine package into every member's container; where it lies, by node name. Raises
    PreflightFailed where torch is missing."""
    by_name = {member.name: member for member in members}

    def bring(name: str) -> str:
        member = by_name[name]
        runtime, container = member.link.runtime, member.container
        enginepackage.check(runtime, container.id, TORCH_ONLY, image=container.image)
        return enginepackage.deliver(runtime, container.id, package)

    return results(fan_out(by_name, bring, limit=session.spec.limits.parallel_hosts))


def run(
    members: Sequence[Member],
    directories: Mapping[str, str],
    timeout: float,
    *,
    speed: bool = False,
) -> SanityReport:
    """The check over all devices of these members, within `timeout` seconds; what its ranks said.
    `directories`: of `deliver`. `speed`: each device is timed by itself, too."""
    head = members[0]
    port = _free_port(head)
    step_timeout = timeout / WAITS
    first_ranks = dict(zip([m.name for m in members], _first_ranks(members), strict=True))
    by_name = {member.name: member for member in members}

    def on_node(name: str) -> Result:
        member = by_name[name]
        argv = [
            *("python3", "-m", "engine.sanity", "--json"),
            *("--first-rank", str(first_ranks[name]), "--world-size", str(world_size(members))),
            *("--nproc-per-node", str(member.node.devices)),
            *("--master-addr", head.node.address, "--master-port", str(port)),
            *("--backend", "gloo" if member.node.device_kind == "cpu" else "nccl"),
            *("--timeout", f"{step_timeout:g}"),
            *(["--speed"] if speed else []),
        ]
        return member.link.runtime.exec(
            member.container.id,
            argv,
            env={"PYTHONPATH": directories[name]},
            timeout=timeout,
            check=False,
        )

    # Every node at once, whatever the cap for other work: ranks wait for each other.
    outcomes = fan_out(by_name, on_node, limit=len(members))
    return gather([member.node for member in members], outcomes)


def _free_port(head: Member) -> int:
    answer = head.link.runtime.exec(
        head.container.id, ["python3", "-c", _FREE_PORT, head.node.address]
    )
    return int(answer.stdout)


def world_size(members: Sequence[Member]) -> int:
    """How many devices, and so ranks, they have together."""
    return sum(member.node.devices for member in members)


def _first_ranks(members: Sequence[Member]) -> list[int]:
    counts = [member.node.devices for member in members]
    return [sum(counts[:index]) for index in range(len(counts))]


def identities(members: Sequence[Member]) -> dict[str, tuple[str, str]]:
    return {m.name: (m.container.id, m.container.started_at) for m in members}


def _keep(session: Session, record: Record) -> None:
    content = {"schema_version": SCHEMA_VERSION, **asdict(record)}
    data = json.dumps(content, indent=2).encode()
    hoststate.write(session.head.transport, session.spec.name, FILE, data)


def recorded(session: Session) -> Record | None:
    """The last check; None when there was none since the cluster was made."""
    text = hoststate.read(session.head.transport, session.spec.name, FILE)
    if text is None:
        return None
    content = json.loads(text)
    containers = {name: (one[0], one[1]) for name, one in content["containers"].items()}
    return Record(content["summary"], content["at"], containers)
