"""Before a model is served: which tp and pp, whether that is legal and fits, and how many tokens of
KV cache it will have. After: how near that was.

Legal or not is certain, and what is not legal is refused; so is a model whose weights alone are
larger than the devices. Whether a cache of the wanted size remains is reckoned to some percent:
where it seems not to, that is a warning, and the engine has the last word.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from clusterctl.errors import ConfigError, PreflightFailed
from clusterctl.fanout import fan_out
from clusterctl.members import Member
from clusterctl.planner.explain import nearest, sentences
from clusterctl.planner.flags import with_flags
from clusterctl.planner.gpus import Hardware
from clusterctl.planner.live import cpu_hardware, hardware_of
from clusterctl.planner.memory import Settings, Split
from clusterctl.planner.published import Model, find_model, read_model
from clusterctl.planner.strategy import Asked, Plan, Planned, make_plans
from clusterctl.serving.placement import Devices, Engine
from clusterctl.session import Session, results
from clusterctl.spec import ServeSpec


@dataclass(frozen=True)
class Forecast:
    """`said`: why these sizes, and what they give. `plan` None: nothing could be reckoned."""

    tp: int
    pp: int
    said: str
    warning: str | None = None
    plan: Plan | None = None

    def document(self, logged: int | None = None) -> dict[str, Any] | None:
        """`prediction` of the deployment's record; `logged`: the tokens that the engine named."""
        if self.plan is None or self.plan.memory is None:
            return None
        predicted = self.plan.memory.kv_cache_tokens
        return {
            "kv_cache_tokens": predicted,
            "max_concurrency": round(self.plan.memory.max_concurrency, 2),
            "max_model_len": self.plan.memory.max_model_len,
            "logged_kv_cache_tokens": logged,
            "difference": round(predicted / logged - 1, 4) if logged else None,
        }


def foresee(
    session: Session, nodes: Sequence[Member], serve: ServeSpec, devices: Devices, engine: Engine
) -> Forecast:
    """Raises PreflightFailed for what cannot run: `nodes` may hold ranks, the head first."""
    seen = _look(session, nodes, serve.model)
    hardware = _hardware(session, nodes, seen)
    model = _model(serve, nodes[0].name, seen[nodes[0].name].files, engine)
    if hardware is None or model is None:
        lacking = "GPUs of these hosts" if hardware is None else f"sizes of {serve.model}"
        return Forecast(serve.tp, serve.pp, f"no forecast: the {lacking} are not known here")
    settings = Settings(
        max_model_len=serve.max_model_len,
        engine=engine,
        kv_cache_bytes=_cpu_space(seen.values(), hardware) if engine == "vllm" else None,
    )
    asked = Asked(
        tp=None if "tp" in serve.open_sizes else serve.tp,
        pp=None if "pp" in serve.open_sizes else serve.pp,
        engine=engine,
        ranks=(devices.total - devices.taken) // serve.dp,
        rest=Split(1, 1, serve.dp, 2 if serve.expert_parallel else 1, serve.dcp),
    )
    planned = make_plans(model, hardware, with_flags(settings, serve.extra), asked)
    return judged(planned, nodes[0].name)


def judged(planned: Planned, head: str) -> Forecast:
    """The first plan as a forecast. PURE. Raises PreflightFailed naming `head`."""
    first = planned.plans[0]
    if first.memory is None:
        raise PreflightFailed("; ".join(first.reasons), host=head, hint=_hint(planned))
    if planned.best is None:
        over = max(stage.weights - stage.gpu.memory_bytes for stage in first.memory.stages)
        reason = "; ".join(first.reasons)
        if over > 0:
            raise PreflightFailed(f"{first.split}: {reason}", host=head, hint=_hint(planned))
        warning = " ".join([f"{first.split} may not fit: {reason}.", *nearest(planned)])
        return Forecast(first.split.tp, first.split.pp, str(first.split), warning, first)
    _, why, gives = sentences(planned)
    return Forecast(first.split.tp, first.split.pp, f"{first.split}: {why} {gives}", None, first)


def _hint(planned: Planned) -> str | None:
    return " ".join(nearest(planned)) or None


# --- what is there -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Seen:
    """What remote/plan_probe.py said of a node."""

    files: Mapping[str, str]
    memory: int
    cpu_kv_gib: int


def _look(session: Session, nodes: Sequence[Member], model: str) -> dict[str, _Seen]:
    script = files("clusterctl.remote").joinpath("plan_probe.py").read_bytes()
    by_name = {member.name: member for member in nodes}

    def look(name: str) -> _Seen:
        runtime, container = by_name[name].link.runtime, by_name[name].container
        said = runtime.exec(container.id, ["python3", "-", model], stdin=script).stdout
        return _Seen(**json.loads(said))

    return results(fan_out(by_name, look, limit=session.spec.limits.parallel_hosts))


def _hardware(
    session: Session, nodes: Sequence[Member], seen: Mapping[str, _Seen]
) -> Hardware | None:
    if all(member.node.device_kind == "cpu" for member in nodes):
        return cpu_hardware(
            [seen[member.name].memory for member in nodes],
            [member.node.devices for member in nodes],
        )
    counts = {member.name: member.node.devices for member in nodes}
    return hardware_of(session.facts(list(counts)), counts)


def _cpu_space(seen: Iterable[_Seen], hardware: Hardware) -> int | None:
    """Bytes a rank that vLLM is told to take on CPUs, on the node where they are fewest; None: it
    chooses by itself."""
    said = [one.cpu_kv_gib for one in seen if one.cpu_kv_gib and hardware.gpu.cpu]
    return min(said) << 30 if said else None


def _model(serve: ServeSpec, head: str, texts: Mapping[str, str], engine: Engine) -> Model | None:
    """As the head has it, else as this machine knows it by name; None: neither. What our own
    engine could not read either is refused."""
    if not texts and serve.model.startswith("/"):
        return None
    try:
        return _read(serve, texts) if texts else find_model(serve.model, serve.dtype)
    except ConfigError as error:
        if texts and engine == "native":
            raise PreflightFailed(error.message, host=head, hint=error.hint) from error
        return None


def _read(serve: ServeSpec, texts: Mapping[str, str]) -> Model:
    with tempfile.TemporaryDirectory() as scratch:
        for name, text in texts.items():
            Path(scratch, name).write_text(text, encoding="utf-8")
        return read_model(serve.model, Path(scratch), "the head's files", serve.dtype)
