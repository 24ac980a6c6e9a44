"""One tree onto many hosts: find what each lacks, order the chain, let it run, put it into place.

    scan -> whose disks are one -> what is missing -> is there room -> serve -> fetch -> commit

A host that is lost on the way is told of, and the chain closes behind it. When no host that has the
bytes is left, or none had them, a host is fed from this machine over its SSH connection.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from clusterctl.errors import ClusterctlError, PreflightFailed
from clusterctl.events import Event, Report
from clusterctl.fanout import Done, Failed, Outcome, fan_out
from clusterctl.secret import Secret
from clusterctl.session import results
from clusterctl.transfer import chain
from clusterctl.transfer.chain import Hop, Room
from clusterctl.transfer.depot import Depot, OnEvent
from clusterctl.transfer.meter import Meter, size_text
from clusterctl.transfer.places import Place
from clusterctl.transfer.trees import Tree

T = TypeVar("T")
SLICE = 1 << 20
State = Literal["copied", "kept", "shared", "failed"]


@dataclass(frozen=True)
class Origin:
    """Where the bytes come from: a directory of this machine, or (`node`) of one of the hosts."""

    path: str
    node: str | None = None


@dataclass(frozen=True)
class Arrival:
    """What became of one host. `received`: bytes it took from other hosts; `fed`: from here;
    `sent`: what it passed on. `error` where the state is "failed"."""

    node: str
    state: State
    received: int = 0
    fed: int = 0
    sent: int = 0
    error: ClusterctlError | None = None


@dataclass
class Push:
    """One run. `depots` are those of the nodes; `addresses` and `speeds` of the network they use.
    `fresh`: read every byte that is there already, rather than trust size and time of change."""

    place: Place
    origin: Origin
    tree: Tree
    depots: Mapping[str, Depot]
    addresses: Mapping[str, str]
    speeds: Mapping[str, int]
    report: Report
    port: int = 0
    fresh: bool = False
    token: Secret = field(default_factory=lambda: Secret(secrets.token_hex(32)))
    fed: dict[str, int] = field(default_factory=dict)

    def run(self) -> dict[str, Arrival]:
        """Every host's outcome. Raises before anything is moved where it cannot work on all."""
        owner = self._owners()
        names = [node for node in self.depots if owner[node] == node]
        missing = {node: int(one["missing"]) for node, one in self._each(names, self._stage)}
        self._refuse_full(names, missing)
        hops = self._hops(names, missing)
        outcomes = self._all(names, lambda node: self._bring(node, hops))
        sent = self._sent(names, outcomes)
        arrived = {
            node: self._arrival(node, missing[node], out, sent) for node, out in outcomes.items()
        }
        others = {node: self._as_owner(node, arrived[owner[node]]) for node in owner}
        return {node: arrived.get(node, others[node]) for node in self.depots}

    def _all(self, names: Sequence[str], act: Callable[[str], T]) -> dict[str, Outcome[T]]:
        """On all at once, however many: a host that waits its turn would break the chain."""
        return fan_out(names, act, limit=len(names))

    def _each(self, names: Sequence[str], act: Callable[[str], T]) -> Iterator[tuple[str, T]]:
        yield from results(self._all(names, act)).items()

    # --- before

    def _owners(self) -> dict[str, str]:
        """Each node, and the node whose disk it sees there."""
        parents = self.place.parents
        run = secrets.token_hex(4)
        names = {node: f".clusterctl-{run}-{node}" for node in self.depots}
        nodes = {name: node for node, name in names.items()}

        def mark(node: str) -> None:
            self.depots[node].call("mark", directory=parents[node], name=names[node])

        def see(node: str) -> list[str]:
            said = self.depots[node].call("see", directory=parents[node], names=list(nodes))
            return [nodes[name] for name in said["seen"]]

        def unmark(node: str) -> None:
            self.depots[node].call("unmark", directory=parents[node], name=names[node])

        everyone = list(self.depots)
        try:
            results(self._all(everyone, mark))
            return chain.shared(results(self._all(everyone, see)))
        finally:
            self._all(everyone, unmark)

    def _stage(self, node: str) -> dict[str, Any]:
        self.report(Event("begin", "check", self.place.path(node), node))
        return self.depots[node].call(
            "stage",
            self.telling(node),
            path=self.place.path(node),
            keep=self.place.keep,
            fresh=self.fresh,
            **self.tree.request(),
        )

    def _refuse_full(self, names: Sequence[str], missing: Mapping[str, int]) -> None:
        """Where it does not fit, nothing stays of what was begun for it."""
        try:
            chain.refuse_full(dict(self._each(names, self._room)), missing)
        except PreflightFailed:
            self._all(names, lambda node: self.depots[node].call("abandon"))
            raise

    def _room(self, node: str) -> Room:
        directory = self.place.parents[node]
        said = self.depots[node].call("room", directory=directory)
        return Room(directory, said["free"], said["writable"])

    def _hops(self, names: Sequence[str], missing: Mapping[str, int]) -> list[Hop]:
        ports = dict(self._each(names, self._serve)) if len(names) > 1 else {}
        hops = [
            Hop(node, missing[node], self.addresses[node], ports.get(node, 0), self.speeds[node])
            for node in names
        ]
        return chain.ordered(hops)

    def _serve(self, node: str) -> int:
        said = self.depots[node].call(
            "serve", address=self.addresses[node], port=self.port, token=self.token.reveal()
        )
        return int(said["port"])

    # --- the transfer

    def _bring(self, node: str, hops: Sequence[Hop]) -> int:
        """Fetch and put into place; the bytes received from other hosts."""
        depot, told = self.depots[node], self.telling(node)

        def on_event(event: Mapping[str, Any]) -> None:
            if event["event"] == "starving":
                self._starving(depot, event["pieces"])
            elif event["event"] == "lost":
                self.report(Event("warn", "transfer", _lost(event), node))
            else:
                told(event)

        try:
            said = depot.call("fetch", on_event, sources=chain.sources(hops, node))
            self.report(Event("begin", "commit", self.place.path(node), node))
            depot.call("commit")
        except ClusterctlError as error:
            self.report(Event("warn", "transfer", error.message, node))
            depot.close()  # whoever waits for its bytes looks for another source
            raise
        self.report(Event("done", "commit", f"{self.place.path(node)} is whole", node))
        return int(said["received"])

    def _starving(self, depot: Depot, pieces: Sequence[tuple[int, int]]) -> None:
        if self.origin.node is None:
            threading.Thread(target=self._feed, args=(depot, pieces), daemon=True).start()
            return
        depot.fail(
            ClusterctlError(
                f"no host is left that has all of {self.origin.path}",
                host=depot.host,
                hint="run it again: it goes on from where it broke off",
            )
        )

    def _feed(self, depot: Depot, pieces: Sequence[tuple[int, int]]) -> None:
        """The rest of these files, from here. It ends early where the host is lost, or a file."""
        try:
            for index, offset in pieces:
                path = Path(self.origin.path, self.tree.files[index].path)
                for start, content in _slices(path, offset):
                    depot.send(index, start, content)
                    self.fed[depot.host] = self.fed.get(depot.host, 0) + len(content)
        except ClusterctlError as error:
            depot.fail(error)
        except OSError as error:
            depot.fail(ClusterctlError(f"cannot read {error.filename}: {error.strerror}"))

    def telling(self, node: str) -> OnEvent:
        return progress_of(node, self.report)

    # --- after

    def _sent(self, names: Sequence[str], outcomes: Mapping[str, object]) -> dict[str, int]:
        well = [node for node in names if isinstance(outcomes[node], Done)]
        said = self._all(well, lambda node: int(self.depots[node].call("sent")["sent"]))
        return {node: one.value for node, one in said.items() if isinstance(one, Done)}

    def _arrival(
        self, node: str, missing: int, outcome: Outcome[int], sent: Mapping[str, int]
    ) -> Arrival:
        fed = self.fed.get(node, 0)
        if isinstance(outcome, Failed):
            return Arrival(node, "failed", fed=fed, error=outcome.error)
        state: State = "copied" if missing else "kept"
        return Arrival(node, state, outcome.value, fed, sent.get(node, 0))

    def _as_owner(self, node: str, owner: Arrival) -> Arrival:
        """A node that sees the disk of another has what that one has."""
        if owner.error is not None:
            return Arrival(node, "failed", error=owner.error)
        return Arrival(node, "shared")


def progress_of(node: str, report: Report) -> OnEvent:
    """A depot's progress events as ours, with rate and time left."""
    meters: dict[str, Meter] = {}

    def tell(event: Mapping[str, Any]) -> None:
        step, done, total = event["step"], event["done"], event["total"]
        text = meters.setdefault(step, Meter()).feed(done, total, time.monotonic())
        amount = f"{size_text(done)} of {size_text(total)}"
        said = f"{amount}, {text}" if text else amount
        report(Event("progress", step, said, node, done, total))

    return tell


def _slices(path: Path, offset: int) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        file.seek(offset)
        while content := file.read(SLICE):
            yield offset, content
            offset += len(content)


def _lost(event: Mapping[str, Any]) -> str:
    return f"goes on without {event['source']} ({event['why']})"
