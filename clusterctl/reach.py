"""Which of the candidate addresses the hosts really reach each other on. PURE: what each host is to
try, as one script; its answer taken apart; the choice.

    connected, refused   the way there and the way back are free
    no answer, no route  they are not, unless a ping comes back
    nothing to try with  unknown: a warning, never a yes

The ways to Ray's pinned ports are tried by the same script: a firewall that drops one shows here,
and not as a worker that never joins or an actor that never starts.

Not seen from here: that an answer came from another machine with the same address, and that it
was a firewall which refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from clusterctl.doctor.check import Finding
from clusterctl.errors import ClusterctlError, PreflightFailed
from clusterctl.network import Chosen
from clusterctl.spec import ClusterSpec

PATIENCE_S = 4  # a lost SYN is sent again after 1 s and 3 s; a busy host starts bash slowly
EVERY_PAIR_UP_TO = 32  # hosts; beyond, each tries the head and its next RING hosts
RING = 8
SSH_PORT = 22

_NO_WAY = ("No route to host", "Network is unreachable", "Host is down", "Connection timed out")
_TIMED_OUT = (124, 143)  # timeout(1) of coreutils, and of older busybox

_MARK = "@@clusterctl reach"

# bash speaks TCP by itself: neither nc nor Python need be there. All targets at once.
_PRELUDE = f"""\
PATH=$PATH:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C
export PATH LC_ALL
has() {{ command -v "$1" >/dev/null 2>&1; }}
probe() {{
  tcp=- ping=- said=
  if has bash && has timeout; then
    said=$(timeout {PATIENCE_S} bash -c 'exec 3<>"/dev/tcp/$0/$1"' "$1" "$2" 2>&1); tcp=$?
  fi
  case "$tcp $said" in
    "0 "* | *refused*) ;;
    *) if has ping; then ping -c1 -W{PATIENCE_S} "$1" >/dev/null 2>&1; ping=$?; fi ;;
  esac
  printf '%s\\n' "{_MARK} $1 $2 $tcp $ping ${{said##*: }}"
}}
"""


@dataclass(frozen=True)
class Target:
    address: str
    port: int


@dataclass(frozen=True)
class Answer:
    """What trying a target gave: exit codes, None where there was nothing to try with; and the
    system's word for why no connection came about."""

    tcp: int | None = None
    ping: int | None = None
    said: str = ""

    @property
    def tcp_free(self) -> bool | None:
        if self.tcp == 0 or "refused" in self.said:
            return True
        return False if self.tcp in _TIMED_OUT or self.said.startswith(_NO_WAY) else None

    @property
    def reached(self) -> bool | None:
        if self.tcp_free or self.ping == 0:
            return True
        return False if self.tcp_free is False or self.ping == 1 else None

    @property
    def why(self) -> str:
        return self.said if self.said.startswith(_NO_WAY) else f"no answer within {PATIENCE_S} s"


Answers = Mapping[str, Mapping[Target, Answer]]  # by the host that tried


@dataclass(frozen=True)
class Gap:
    """One way that is not free: `host` does not reach `peer` at `target`."""

    host: str
    peer: str
    target: Target
    why: str


@dataclass(frozen=True)
class Reached:
    """The addresses to use, and what is to be said of them."""

    chosen: Chosen
    findings: tuple[Finding, ...] = ()


def targets(spec: ClusterSpec, candidates: Sequence[Chosen]) -> dict[str, tuple[Target, ...]]:
    """What each host is to try: its peers at all candidates, and Ray's ports there."""
    return {
        node.name: tuple(dict.fromkeys(_targets(spec, candidates, node.name)))
        for node in spec.nodes
    }


def _targets(spec: ClusterSpec, candidates: Sequence[Chosen], host: str) -> Iterator[Target]:
    for chosen in candidates:
        yield from (_way(spec, chosen, peer) for peer in peers(spec, host))
        yield from (way.target for way in ray_ways(spec, chosen, host))


def peers(spec: ClusterSpec, host: str) -> tuple[str, ...]:
    """Whom a host tries: all others; in a cluster of more than EVERY_PAIR_UP_TO hosts the head and
    the next RING hosts of the list, round its end, so that every host is tried by RING others."""
    names = [node.name for node in spec.nodes]
    at = names.index(host)
    others = names[at + 1 :] + names[:at]
    if len(names) <= EVERY_PAIR_UP_TO:
        return tuple(others)
    ahead = others[:RING]
    return (*ahead, spec.head) if spec.head not in (host, *ahead) else tuple(ahead)


def _way(spec: ClusterSpec, chosen: Chosen, peer: str) -> Target:
    """The port by which we reach a host is open to its peers, as a rule; else a refusal will do."""
    return Target(chosen[peer].address, spec.node(peer).port or SSH_PORT)


@dataclass(frozen=True)
class RayWay:
    """One of Ray's ports that a host must reach; `setting` is its key under `ray:`."""

    peer: str
    setting: str
    target: Target


def ray_ways(spec: ClusterSpec, chosen: Chosen, host: str) -> Iterator[RayWay]:
    """The control store and the supervisor on the head, the raylet and object manager of peers."""
    if host != spec.head:
        head = chosen[spec.head].address
        yield RayWay(spec.head, "port", Target(head, spec.ray.port))
        yield RayWay(spec.head, "supervisor_port", Target(head, spec.ray.supervisor_port))
    for peer in peers(spec, host):
        address = chosen[peer].address
        yield RayWay(peer, "node_manager_port", Target(address, spec.ray.node_manager_port))
        yield RayWay(peer, "object_manager_port", Target(address, spec.ray.object_manager_port))


# The one trip


def script(tried: Iterable[Target]) -> str:
    """POSIX sh, for `sh -s`: one line of answer for each target."""
    probes = [f"probe {target.address} {target.port} &" for target in tried]
    return "\n".join([_PRELUDE, *probes, "wait", ""])


def parse(text: str, tried: Iterable[Target], *, host: str) -> dict[Target, Answer]:
    """What `script` printed; other lines (a greeting of the login shell) are ignored. Raises
    ClusterctlError when the host's answer leaves a target out."""
    found = dict(_answer(line) for line in text.splitlines() if line.startswith(_MARK))
    for target in tried:
        if target not in found:
            raise ClusterctlError(
                f"it did not say whether it reaches {target.address} port {target.port}",
                host=host,
                hint=f"does `ssh {host} sh -s` run a POSIX shell there?",
            )
    return found


def _answer(line: str) -> tuple[Target, Answer]:
    address, port, tcp, ping, *said = line.removeprefix(_MARK).split(maxsplit=4)
    return Target(address, int(port)), Answer(_code(tcp), _code(ping), "".join(said))


def _code(word: str) -> int | None:
    return None if word == "-" else int(word)


# The choice


def choose(spec: ClusterSpec, candidates: Sequence[Chosen], answers: Answers) -> Reached:
    """The first candidate on which no host fails to reach another.

    Raises PreflightFailed naming every pair that fails, where each candidate has one.
    """
    passed_over: list[str] = []
    for chosen in candidates:
        gaps = list(_gaps(spec, chosen, answers))
        if not gaps:
            return _reached(spec, chosen, answers, passed_over)
        passed_over.append(f"{_label(chosen)}: {'; '.join(_said(gaps))}")
    raise _unreached(passed_over)


def _gaps(spec: ClusterSpec, chosen: Chosen, answers: Answers) -> Iterator[Gap]:
    for host, tried in answers.items():
        for peer in peers(spec, host):
            target = _way(spec, chosen, peer)
            if tried[target].reached is False:
                yield Gap(host, peer, target, tried[target].why)


def _reached(
    spec: ClusterSpec, chosen: Chosen, answers: Answers, passed_over: Sequence[str]
) -> Reached:
    findings = (
        *(_passed_over(one) for one in passed_over),
        *_unknown(spec, chosen, answers),
        *_ray_blocked(spec, chosen, answers),
    )
    reasons = "".join(f"; passed over {one}" for one in passed_over)
    told = {name: replace(one, reason=one.reason + reasons) for name, one in chosen.items()}
    return Reached(told, findings)


def _said(gaps: Iterable[Gap]) -> list[str]:
    """Hosts that fail to reach one peer in one way stand together."""
    hosts: dict[str, list[str]] = {}
    for gap in gaps:
        there = f"{gap.target.address} ({gap.peer}): {gap.why}"
        hosts.setdefault(there, []).append(gap.host)
    return [f"{', '.join(names)} cannot reach {there}" for there, names in hosts.items()]


def _label(chosen: Chosen) -> str:
    """`10.0.1.0/24 (eth1)`; nodes that are routed to each other may differ in both."""
    networks = dict.fromkeys(one.network for one in chosen.values())
    interfaces = dict.fromkeys(one.interface for one in chosen.values())
    return f"{', '.join(networks)} ({', '.join(interfaces)})"


def _passed_over(said: str) -> Finding:
    fix = "repair that network, or name the one to use: network: {subnet: ...}"
    return Finding("net.passed-over", None, None, "warn", f"passed over {said}", fix=fix)


def _unknown(spec: ClusterSpec, chosen: Chosen, answers: Answers) -> Iterator[Finding]:
    for host, tried in answers.items():
        ways = [tried[_way(spec, chosen, peer)].reached for peer in peers(spec, host)]
        ray = [tried[way.target].tcp_free for way in ray_ways(spec, chosen, host)]
        if None in (*ways, *ray):
            what = "the others" if None in ways else "Ray's ports on the others"
            message = f"whether it reaches {what} could not be tried"
            fix = "install bash and coreutils on the host: /dev/tcp and timeout are what tries"
            yield Finding("net.reach", None, host, "unknown", message, fix=fix)


def _ray_blocked(spec: ClusterSpec, chosen: Chosen, answers: Answers) -> Iterator[Finding]:
    for host, tried in answers.items():
        for way in ray_ways(spec, chosen, host):
            if tried[way.target].tcp_free is False:
                yield _blocked(spec, host, way, tried[way.target].why)


def _blocked(spec: ClusterSpec, host: str, way: RayWay, why: str) -> Finding:
    where = f"the head, {way.target.address}" if way.peer == spec.head else way.target.address
    return Finding(
        "net.ray-port-blocked",
        "ray-gcs-unreachable" if way.setting == "port" else "ray-port-blocked",
        host,
        "fail",
        f"cannot reach Ray's port {way.target.port} on {where} ({way.peer}): {why}",
        fix=f"let TCP {way.target.port} pass the firewalls of {way.peer} and {host}, "
        f"or choose another port: ray: {{{way.setting}: ...}}",
    )


def _unreached(passed_over: Sequence[str]) -> PreflightFailed:
    lines = [f"  {said}" for said in passed_over]
    return PreflightFailed(
        "\n".join(["the hosts do not reach each other:", *lines]),
        hint="open the firewalls between them for the cluster's network, or name another network: "
        "network: {subnet: ...} or network: {interface: ...}",
    )
