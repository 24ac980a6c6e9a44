"""A deployment as its files and a probe describe it, and the one word for its state. PURE."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

State = Literal["starting", "ready", "degraded", "restarting", "failed", "stopped"]

ENDED: frozenset[State] = frozenset({"failed", "stopped"})


@dataclass(frozen=True)
class Rank:
    """A process of the deployment as a node's supervisor saw it. `state` is a word of proc(5);
    `cpu_s` the seconds that it has computed, `io_bytes` what it has read and written, `busy`
    the share of a core that it used lately (None: a supervisor of an older version says nothing of
    it)."""

    node: str
    pid: int
    title: str
    state: str
    cpu_s: float
    io_bytes: int = 0
    busy: float | None = None


@dataclass(frozen=True)
class Health:
    """What the head's supervisor keeps of it. Times are seconds since 1970.

    `cause`: why it ended last, empty: never. `waiting_for`: who must be there before it starts.
    `alive_at`: the last proof of life. `tokens_per_s`, `kv_usage` (1 is all) None: not known.
    """

    since: float | None = None
    restarts: int = 0
    cause: str = ""
    waiting_for: str = ""
    alive_at: float | None = None
    tokens_per_s: float | None = None
    kv_usage: float | None = None
    ranks: tuple[Rank, ...] = ()

    @property
    def standing_still(self) -> tuple[Rank, ...]:
        """Ranks that no signal but SIGCONT moves."""
        return tuple(rank for rank in self.ranks if rank.state == "stopped")


@dataclass(frozen=True)
class Deployment:
    """One deployment as it was seen. `generation` counts its starts under this name.

    `kv_cache_tokens` None: not known. `prediction`: what the plan said of its memory, None where
    it could not. `transports`: what NCCL said of the ranks' ways, empty where it said nothing.
    `executor` and `address`, `port` are what it was started with; `certificate`: by which its API
    shows itself (PEM), empty where it speaks plain HTTP; `detail` says why it is not ready;
    `exit_code` belongs to failed and stopped. `gpus`: by node, those that it was given; empty over
    Ray, which gives out its own, and on CPU slots.
    """

    name: str
    model: str
    engine: str
    tp: int
    pp: int
    state: State
    url: str
    executor: str = ""
    address: str = ""
    port: int = 0
    generation: int = 1
    kv_cache_tokens: int | None = None
    exit_code: int | None = None
    detail: str = ""
    prediction: Mapping[str, Any] | None = None
    dp: int = 1
    transports: tuple[str, ...] = ()
    health: Health = Health()
    certificate: str = ""
    gpus: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def devices(self) -> int:
        return self.tp * self.pp * self.dp

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    def document(self) -> dict[str, Any]:
        """Its entry in `deployments` of `status --json` and `ps --json`."""
        keys = ("name", "model", "engine", "tp", "pp", "state", "url", "prediction", "exit_code")
        known = {key: getattr(self, key) for key in keys}
        return known | {"detail": self.detail} | asdict(self.health)

    def remarks(self) -> list[str]:
        """What a line of a table has no room for."""
        health = self.health
        said = [
            *([self.detail] if self.detail else []),
            *([f"waits: {health.waiting_for}"] if health.waiting_for else []),
            *([f"ended last by: {health.cause}"] if health.cause else []),
            *(
                f"{rank.node}: {rank.title} (pid {rank.pid}) is stopped"
                for rank in health.standing_still
            ),
        ]
        return [f"{self.name}: {text}" for text in said]


def deployment_of(record: Mapping[str, Any]) -> Deployment:
    """One record of remote/deployments.py. `info` is written before the process starts."""
    info: Mapping[str, Any] = record["info"]
    supervised: Mapping[str, Any] = record["state"] or {}
    return Deployment(
        name=record["name"],
        model=info["model"],
        engine=info["engine"],
        tp=info["tp"],
        pp=info["pp"],
        state=state_of(record),
        url=info["url"],
        executor=info["executor"],
        address=info["address"],
        port=info["port"],
        generation=record["generation"],
        kv_cache_tokens=info["kv_cache_tokens"],
        exit_code=supervised.get("exit_code"),
        detail=record["detail"],
        prediction=info.get("prediction"),  # deployments of older versions have none
        dp=info.get("dp", 1),
        transports=tuple(info.get("transports", ())),
        health=health_of(supervised),
        certificate=info.get("certificate", ""),
        gpus={node: tuple(own) for node, own in info.get("gpus", {}).items()},
    )


_WORDS = {"R": "running", "S": "sleeping", "D": "in the kernel", "T": "stopped", "t": "stopped"}


def health_of(supervised: Mapping[str, Any]) -> Health:
    """state.json of remote/supervision."""
    keys = ("since", "restarts", "cause", "waiting_for", "alive_at", "tokens_per_s", "kv_usage")
    ranks = tuple(
        Rank(**{**rank, "state": _WORDS.get(rank["state"], "ended")})
        for rank in supervised.get("ranks", ())
    )
    return Health(**{key: supervised[key] for key in keys if key in supervised}, ranks=ranks)


def state_of(record: Mapping[str, Any]) -> State:
    """Ready is said only when a token came back in this very look, and the supervisor has had one
    too: it starts again what was ready. What listens has loaded its model, so without a token it is
    degraded, not starting."""
    supervised, info = record["state"], record["info"]
    if supervised is None:
        return "starting"
    process, live = supervised["state"], supervised["state"] in ("starting", "running")
    if supervised["generation"] != record["generation"]:
        return "restarting" if live else "starting"
    if process in ("failed", "stopped"):
        return "failed" if process == "failed" else "stopped"
    if record["token"] and process == "running":
        return "ready"
    again = supervised.get("epoch", 1) > 1 or process == "restarting"
    was_ready = info["ready_generation"] == record["generation"] and not again
    listens = record["listening"] or record["stop"] or was_ready
    if live and not record["token"] and (listens or process == "running"):
        return "degraded"
    return "restarting" if again else "starting"
