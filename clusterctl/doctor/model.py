"""Checks of the model that is to be served (`--model`), on every host."""

from __future__ import annotations

from collections.abc import Mapping

from clusterctl.doctor.check import Answer, Check, Said, check, fail, ok, skip, unknown, warn
from clusterctl.doctor.subject import Cluster, Host, Plan
from clusterctl.facts.types import ModelFacts
from clusterctl.planner.legality import config_faults
from clusterctl.planner.memory import Split


@check("model.present", "The model is on the host", tags=["model"])
def present(one: Host) -> Said:
    """Every rank loads its own part from its own host. A path that is not there is taken for a Hub
    id, and the error then speaks of repositories."""
    model = one.facts.model
    if model is None:
        return skip("no --model was named")
    if model.files:
        return ok(f"{len(model.files)} files")
    if model.exists:
        return fail(
            f"{model.path} is there without a file of a model",
            f"copy the model there, or mount what should be there: ls -la {model.path} on the host",
            cause="model-path-missing",
            values={"path": model.path},
        )
    if model.path.startswith("/"):
        return fail(
            f"{model.path} is not on this host",
            "copy it to the same path on every host",
            cause="model-path-missing",
            values={"path": model.path},
        )
    if one.spec.env.get("HF_HUB_OFFLINE") == "1":
        return fail(
            f"{model.path} is not in the cache, and HF_HUB_OFFLINE=1 forbids to fetch it",
            f"huggingface-cli download {model.path} on the host",
            cause="hf-offline-not-cached",
        )
    return ok("not in the cache yet: it will be downloaded")


@check("model.complete", "The model's files are whole", tags=["model"])
def complete(one: Host) -> Said:
    """A copy or a download that was cut off shows in the header of the file, before any rank has
    loaded for minutes."""
    model = one.facts.model
    if model is None or not model.exists:
        return skip("no model is there to look at")
    return _broken(one, model) or [ok(f"{len(model.files)} files")]


def _broken(one: Host, model: ModelFacts) -> list[Answer]:
    line = f"rsync -a --checksum HOST:{model.path}/ {one.name}:{model.path}/"
    again = f"copy it again from a host where it is whole: {line}"
    short = [f for f in model.files if f.declared is not None and f.size != f.declared]
    said = [
        fail(
            f"{f.name} has {f.size:,} bytes, its header asks for {f.declared:,}"
            if f.declared
            else f"{f.name} is no safetensors file, or cut off in its header",
            again,
            cause="safetensors-truncated",
            values={"file": f.name},
        )
        for f in short
    ]
    if model.missing:
        said.append(
            fail(
                f"the index names files that are not there: {', '.join(model.missing[:3])}",
                again,
                cause="model-weights-missing",
                values={"files": " ".join(model.missing)},
            )
        )
    return said


@check("model.token", "The Hub would let us in", cause="hf-gated-403", tags=["model"])
def token(one: Host) -> Said:
    """Each host downloads for itself: a token on the head alone is a 401 on the workers. It is only
    looked for, never read; whether the licence was accepted the Hub alone knows."""
    model = one.facts.model
    if model is None or model.path.startswith("/") or model.exists:
        return skip("nothing is to be downloaded")
    if one.facts.host.hf_token or one.spec.env.get("HF_TOKEN"):
        return ok("there is a token")
    return warn(
        "no Hugging Face token: a gated model cannot be fetched",
        "huggingface-cli login",
        confidence=0.3,
    )


@check(
    "model.equal",
    "All hosts have the same model",
    cause="model-files-differ",
    scope="cluster",
    tags=["model"],
)
def equal(whole: Cluster) -> Said:
    """Ranks that loaded different files answer nonsense, or not at all."""
    known = {n: h.facts.model for n, h in whole.hosts.items() if h.facts.model}
    there = {n: model for n, model in known.items() if model.files}
    if len(there) < 2:
        return skip("no two hosts have the model")
    head, *others = there
    said = [a for name in others if (a := _difference(name, there[name], head, there[head]))]
    return said or [ok(f"{len(there)} hosts")]


def _difference(name: str, here: ModelFacts, head: str, there: ModelFacts) -> Answer | None:
    ours, theirs = _sizes(here), _sizes(there)
    odd = [file for file in sorted({*ours, *theirs}) if ours.get(file) != theirs.get(file)]
    if not odd and dict(here.digests) == dict(there.digests):
        return None
    what = (
        f"{odd[0]}: {_bytes(ours.get(odd[0]))}, {_bytes(theirs.get(odd[0]))} on {head}"
        if odd
        else ("config.json or the index has other content")
    )
    return fail(
        f"its copy of {here.path} differs from {head}'s ({what})",
        f"copy it again: rsync -a --checksum {head}:{here.path}/ {name}:{here.path}/",
        host=name,
    )


def _bytes(size: int | None) -> str:
    return "absent" if size is None else f"{size} bytes"


@check(
    "model.split",
    "The model can be split so",
    cause="heads-not-divisible-by-tp",
    scope="cluster",
    tags=["model"],
)
def split(whole: Cluster) -> Said:
    """Each rank of a tensor-parallel group holds an equal part of every matrix: attention heads,
    columns, and whole blocks of a quantised one. Judged from the model's config.json for `--tp`
    and `--pp`."""
    plan = whole.plan
    if plan is None:
        return skip("no split was named (--tp, --pp)")
    configs = [m.config for h in whole.hosts.values() if (m := h.facts.model) and m.config]
    if not configs:
        return skip("no model's config.json is there to look at (--model)")
    try:
        found = config_faults(configs[0], Split(plan.tp, plan.pp))
    except ValueError as error:
        return unknown(f"the model's config.json cannot be judged: {error}")
    return [_cannot(fault, plan) for fault in found] or ok(f"tp={plan.tp} pp={plan.pp}")


_SPLIT_CAUSES = {
    "quantisation": "quant-block-not-divisible-by-tp",
    "layers": "parallel-size-invalid",
}


def _cannot(fault: str, plan: Plan) -> Answer:
    return fail(
        f"tp={plan.tp} pp={plan.pp} ({plan.whence}): {fault}",
        "choose --tp and --pp among the legal sizes: clusterctl plan MODEL",
        cause=next((cause for word, cause in _SPLIT_CAUSES.items() if word in fault), None),
        values={"tp": str(plan.tp), "pp": str(plan.pp)},
    )


def _sizes(model: ModelFacts) -> Mapping[str, int]:
    return {file.name: file.size for file in model.files}


CHECKS: tuple[Check[Host], ...] = (present, complete, token)
CLUSTER_CHECKS: tuple[Check[Cluster], ...] = (equal, split)
