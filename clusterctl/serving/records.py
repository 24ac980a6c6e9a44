"""A deployment as its files and a probe describe it, and the one word for its state. PURE."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

State = Literal["starting", "ready", "degraded", "restarting", "failed", "stopped"]

ENDED: frozenset[State] = frozenset({"failed", "stopped"})


@dataclass(frozen=True)
class Deployment:
    """One deployment as it was seen. `generation` counts its starts under this name.

    `kv_cache_tokens` None: not known. `prediction`: what the plan said of its memory, None where
    it could not. `transports`: what NCCL said of the ranks' ways, empty where it said nothing.
    `executor` and `address`, `port` are what it was started with; `detail` says why it is not
    ready; `exit_code` belongs to failed and stopped.
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

    @property
    def devices(self) -> int:
        return self.tp * self.pp * self.dp

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    def document(self) -> dict[str, Any]:
        """Its entry in `deployments` of `status --json` and `ps --json`."""
        keys = ("name", "model", "engine", "tp", "pp", "state", "url", "prediction")
        return {key: getattr(self, key) for key in keys}


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
    )


def state_of(record: Mapping[str, Any]) -> State:
    """Ready is said only when a token came back in this very look. What listens has loaded its
    model, so without a token it is degraded, not starting."""
    supervised, info = record["state"], record["info"]
    if supervised is None:
        return "starting"
    process = supervised["state"]
    if supervised["generation"] != record["generation"]:
        return "restarting" if process == "running" else "starting"
    if process in ("failed", "stopped"):
        return "failed" if process == "failed" else "stopped"
    if record["token"]:
        return "ready"
    was_ready = info["ready_generation"] == record["generation"]
    has_loaded = record["listening"] or was_ready or record["stop"]
    return "degraded" if has_loaded else "starting"
