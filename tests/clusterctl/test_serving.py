"""The pure half of serving: placement, log lines, model files, states."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clusterctl.commands.serve import checked_flags, curl_line, curl_target, deployment_name
from clusterctl.doctor.logs import diagnose_sources
from clusterctl.doctor.logs.suspicion import earliest_errors
from clusterctl.errors import ConfigError, PreflightFailed
from clusterctl.following import first_errors, sources
from clusterctl.keys import ApiKey
from clusterctl.members import command_of, node_of, ray_address
from clusterctl.raycluster import CPU_SLOT, ExpectedNode, ray_start_argv
from clusterctl.secret import Secret
from clusterctl.serving import modelfiles
from clusterctl.serving.modelfiles import ModelFiles, difference, kind_of
from clusterctl.serving.phases import Phase, kv_cache_tokens, phase_of
from clusterctl.serving.placement import Contents, Devices, devices_in_use, place
from clusterctl.serving.records import deployment_of, state_of
from clusterctl.serving.requirements import FoundPython
from clusterctl.serving.vllm import Abilities
from clusterctl.spec import RaySpec, ServeSpec, TlsSpec

TWO_NODES = Devices({"gpu01": 2, "gpu02": 2}, "gpu01")
ONE_NODE = Devices({"gpu01": 2}, "gpu01")

HELP = frozenset({"--nnodes", "--headless", "--data-parallel-size"})


def holding(ray_resource: str = "GPU", flags: frozenset[str] = HELP, **packages: str) -> Contents:
    """Containers with these packages; their vLLM, where there is one, runs on that Ray resource."""
    python = FoundPython("3.12.3", packages)
    abilities = Abilities(flags, ray_resource) if "vllm" in packages else None
    return Contents({"gpu01": python, "gpu02": python}, abilities)


PLAIN = holding(ray="2.60.0", torch="2.13.0")
BOTH = holding(ray="2.60.0", vllm="0.32.0")
NO_RAY = holding(vllm="0.32.0")


def asked(**values: Any) -> ServeSpec:
    return ServeSpec("/models/m", "m", **values)


# --- placement -----------------------------------------------------------------------------------


def placed(devices: Devices, contents: Contents = PLAIN, **values: Any) -> str:
    return str(place(asked(**values), devices, contents))


NATIVE = "engine native (the image has no vLLM), executor"
VLLM = "engine vllm (the image has vLLM 0.32.0), executor"


def test_the_native_engine_where_the_image_has_no_vllm() -> None:
    assert placed(TWO_NODES, pp=4) == f"{NATIVE} ray (the cluster has 2 nodes)"
    assert placed(ONE_NODE, tp=2) == f"{NATIVE} mp (gpu01 is the only node)"
    assert placed(ONE_NODE, executor="ray") == f"{NATIVE} ray (as asked)"


@pytest.mark.parametrize(
    ("contents", "executor"),
    [
        (BOTH, "ray (the cluster has 2 nodes, and the image Ray 2.60.0)"),
        (NO_RAY, "mp (the image has no Ray)"),
        (
            holding("", ray="2.60.0", vllm="0.32.0"),
            "mp (vLLM in this image runs on a platform that does not support Ray)",
        ),
        (
            holding("TPU", ray="2.60.0", vllm="0.32.0"),
            "mp (vLLM in this image asks Ray for TPU; the nodes give GPU)",
        ),
    ],
)
def test_vllm_over_ray_where_it_can_and_by_itself_where_not(
    contents: Contents, executor: str
) -> None:
    assert placed(TWO_NODES, contents, tp=2, pp=2) == f"{VLLM} {executor}"


def test_on_cpu_slots_vllm_has_to_be_asked_for() -> None:
    slots = replace(TWO_NODES, kind="cpu")
    assert placed(slots, BOTH).startswith("engine native (the nodes give CPU slots; vLLM for CPUs")
    chosen = place(asked(engine="vllm"), slots, holding(CPU_SLOT, ray="2.60.0", vllm="0.32.0"))
    assert (chosen.engine, chosen.executor) == ("vllm", "ray")


@pytest.mark.parametrize(
    ("sizes", "nodes"),
    [
        ({"tp": 2}, ("gpu01",)),
        ({"tp": 2, "pp": 2}, ("gpu01", "gpu02")),
        ({"pp": 3}, ("gpu01", "gpu02", "gpu03")),
    ],
)
def test_a_group_is_the_fewest_nodes_with_as_many_ranks_each(
    sizes: dict[str, int], nodes: tuple[str, ...]
) -> None:
    devices = Devices({"gpu01": 2, "gpu02": 2, "gpu03": 1}, "gpu01")
    assert place(asked(executor="mp", **sizes), devices, NO_RAY).nodes == nodes


@pytest.mark.parametrize(
    ("sizes", "nodes"),
    [({"dp": 2}, ("gpu01",)), ({"dp": 2, "tp": 2}, ("gpu01", "gpu02")), ({"dp": 2, "tp": 3}, ())],
)
def test_every_node_of_a_group_holds_whole_replicas(
    sizes: dict[str, int], nodes: tuple[str, ...]
) -> None:
    devices = Devices({"gpu01": 2, "gpu02": 2, "gpu03": 2}, "gpu01")
    spec = asked(executor="mp", engine="vllm", **sizes)
    if nodes:
        assert place(spec, devices, NO_RAY).nodes == nodes
        return
    with pytest.raises(PreflightFailed, match="tp=3 x pp=1 x dp=2 cannot be divided evenly"):
        place(spec, devices, NO_RAY)


def test_ranks_that_cannot_be_divided_evenly_are_refused() -> None:
    devices = Devices({"gpu01": 4, "gpu02": 1}, "gpu01")
    with pytest.raises(PreflightFailed, match="tp=5 x pp=1 cannot be divided evenly over nodes"):
        place(asked(executor="mp", tp=5), devices, NO_RAY)


def test_an_old_vllm_without_ray_stays_on_one_node() -> None:
    old = holding(flags=frozenset(), vllm="0.8.5")
    with pytest.raises(PreflightFailed, match="vLLM 0.8.5 in this image does not know --nnodes"):
        place(asked(pp=4), TWO_NODES, old)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (NO_RAY, "the image has no Ray"),
        (holding("", ray="2.60.0", vllm="0.9"), "a platform that does not support Ray"),
    ],
)
def test_ray_that_was_asked_for_and_cannot_be_is_refused(contents: Contents, message: str) -> None:
    with pytest.raises(PreflightFailed, match=message) as caught:
        place(asked(executor="ray", pp=4), TWO_NODES, contents)
    assert "image build" in str(caught.value.hint)


def test_the_native_mp_beyond_the_head_is_refused_with_numbers() -> None:
    with pytest.raises(ConfigError) as caught:
        place(asked(tp=2, pp=2, executor="mp"), TWO_NODES, PLAIN)
    assert caught.value.message == (
        "executor mp runs on the head alone: gpu01 has 2 devices, and 4 are needed"
    )


def test_too_few_devices_are_refused_with_numbers() -> None:
    with pytest.raises(PreflightFailed) as caught:
        place(asked(tp=3, pp=2), TWO_NODES, PLAIN)
    assert caught.value.message == (
        "tp=3 x pp=2 needs 6 devices; the cluster has 4 (gpu01: 2, gpu02: 2)"
    )
    assert caught.value.hint == "choose tp x pp of at most 4"


def test_rays_account_is_read() -> None:
    status = """
Resources
---------------------------------------------------------------
Total Usage:
 0.0/4.0 CPU
 2.0/4.0 GPU (2.0 used of 2.0 reserved in placement groups)
 1.0/2.0 cpu_slot
 0B/9.31GiB memory
"""
    assert devices_in_use(status) == 3.0


# --- log lines -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "(RankActor pid=71, ip=10.0.0.2) INFO 11-24 02:33:11 [rank 1] "
            "Loading safetensors shard 3/30",
            Phase("loading", "loading weights 3/30", 3, 30),
        ),
        (
            "INFO 11-24 02:33:12 CPU KV cache size: 93,184 tokens",
            Phase("kv cache", "KV cache 93,184 tokens"),
        ),
        (
            "INFO 11-24 02:33:13 Application startup complete.",
            Phase("serving", "the API is up; waiting for a first token"),
        ),
        ("INFO 11-24 02:33:10 Loading weights: /models/m", None),
        (
            "Loading safetensors checkpoint shards:  50% Completed | 1/2 [00:01<00:01,  1.10s/it]",
            Phase("loading", "loading weights 1/2", 1, 2),
        ),
        (
            "Capturing CUDA graphs (mixed prefill-decode, PIECEWISE):  46%|##  | 31/67 [00:01]",
            Phase("graphs", "capturing graphs 31/67", 31, 67),
        ),
        (
            "INFO [ray_utils.py:231] Waiting for creating a placement group of specs for 20 "
            "seconds. specs=[{'GPU': 1.0}]. Check `ray status`",
            Phase("waiting", "Ray has had no devices for it for 20 s"),
        ),
        (
            "INFO [backends.py:548] Dynamo bytecode transform time: 9.07 s",
            Phase("compiling", "compiling the model"),
        ),
    ],
)
def test_phases(line: str, expected: Phase | None) -> None:
    assert phase_of(line) == expected


@pytest.mark.parametrize(
    ("line", "tokens"),
    [
        ("INFO executor_base.py:111] # cuda blocks: 27443, # CPU blocks: 2340", 439088),
        ("INFO gpu_executor.py:122] # GPU blocks: 2014, # CPU blocks: 2048", 32224),
        ("INFO kv_cache_utils.py:395] # GPU blocks: 1381", 22096),
        ("GPU blocks: 1952, CPU blocks: 2048", 31232),
        ("INFO [kv_cache_utils.py:864] GPU KV cache size: 643,232 tokens", 643232),
        (
            "INFO [kv_cache_utils.py:1711] CPU KV cache size: 93,184 tokens, Maximum concurrency "
            "for 2,048 tokens per request: 45.50x",
            93184,
        ),
        ("INFO Maximum concurrency for 40,960 tokens per request: 15.70x", None),
    ],
)
def test_the_capacity_line_of_every_era(line: str, tokens: int | None) -> None:
    assert kv_cache_tokens([line]) == tokens


def test_the_smallest_cache_counts() -> None:
    lines = ["GPU KV cache size: 9,000 tokens", "noise", "GPU KV cache size: 8,192 tokens"]
    assert kv_cache_tokens(lines) == 8192
    assert kv_cache_tokens(["noise"]) is None


def test_the_earliest_errors_come_from_any_rank_and_name_it() -> None:
    lines = [
        "WARNING 11-24 02:33:11 something odd",
        "\x1b[36m(RankActor pid=71, ip=10.0.0.2)\x1b[0m Traceback (most recent call last):",
        '\x1b[36m(RankActor pid=71, ip=10.0.0.2)\x1b[0m   File "x.py", line 3, in f',
        "\x1b[36m(RankActor pid=71, ip=10.0.0.2)\x1b[0m torch.OutOfMemoryError: CUDA out of memory",
        "ERROR 11-24 02:33:12 rank 1: torch.OutOfMemoryError: CUDA out of memory",
        "ValueError",
        "ERROR 11-24 02:33:13 a fourth one",
    ]
    assert earliest_errors(lines) == [
        "torch.OutOfMemoryError: CUDA out of memory (RankActor pid=71, ip=10.0.0.2)",
        "ERROR 11-24 02:33:12 rank 1: torch.OutOfMemoryError: CUDA out of memory",
        "ValueError",
    ]


def test_the_frames_of_a_logged_traceback_are_no_errors() -> None:
    """As vLLM logs the death of a pipeline stage that was never warmed up."""
    prefix = "(Worker_PP1 pid=449) ERROR 11-25 15:10:21 [multiproc_executor.py:1063]"
    lines = [
        f"{prefix} WorkerProc hit an exception.",
        f"{prefix} Traceback (most recent call last):",
        f'{prefix}   File "/vllm/v1/worker/gpu_model_runner.py", line 3174, in sync',
        f"{prefix}     assert self.intermediate_tensors is not None",
        f"{prefix} AssertionError",
        f"{prefix} ",
    ]
    assert earliest_errors(lines) == [
        "ERROR 11-25 15:10:21 [multiproc_executor.py:1063] WorkerProc hit an exception. "
        "(Worker_PP1 pid=449)",
        "ERROR 11-25 15:10:21 [multiproc_executor.py:1063] AssertionError: "
        "assert self.intermediate_tensors is not None (Worker_PP1 pid=449)",
    ]


# As the second stage fails, and the head stumbles over what did not come. Recorded, less frames.
HEAD_STUMBLES = """\
(EngineCore pid=1456) ERROR 11-25 18:38:43 [core.py:1512] EngineCore encountered a fatal error.
(EngineCore pid=1456) ERROR 11-25 18:38:43 [core.py:1512] Traceback (most recent call last):
(EngineCore pid=1456) ERROR 11-25 18:38:43 [core.py:1512] KeyError: 'cmpl-aa5e8fcc'
(APIServer pid=1112) ERROR 11-25 18:38:43 [async_llm.py:906] AsyncLLM output_handler failed.
""".splitlines()
STAGE_FAILS = """\
(Worker_PP1 pid=703) ERROR 11-25 18:38:43 [multiproc_executor.py:1063] WorkerProc hit an exception.
(Worker_PP1 pid=703) ERROR 11-25 18:38:43 [multiproc_executor.py:1063] Traceback (most recent call last):
(Worker_PP1 pid=703) ERROR 11-25 18:38:43 [multiproc_executor.py:1063]     assert self.intermediate_tensors is not None
(Worker_PP1 pid=703) ERROR 11-25 18:38:43 [multiproc_executor.py:1063] AssertionError
""".splitlines()  # noqa: E501


def test_of_one_second_the_heads_errors_follow_from_the_others() -> None:
    errors = first_errors([HEAD_STUMBLES, STAGE_FAILS])
    assert [error.split("] ")[1] for error in errors] == [
        "WorkerProc hit an exception. (Worker_PP1 pid=703)",
        "AssertionError: assert self.intermediate_tensors is not None (Worker_PP1 pid=703)",
        "EngineCore encountered a fatal error. (EngineCore pid=1456)",
    ]
    cause = diagnose_sources(sources("m", {"gpu01": HEAD_STUMBLES, "gpu02": STAGE_FAILS}))[0]
    assert cause.host == "gpu02"
    assert cause.evidence is not None
    assert cause.evidence.text.endswith("assert self.intermediate_tensors is not None")


def test_an_earlier_error_of_the_head_comes_first() -> None:
    assert first_errors([["ERROR 11-25 18:38:42 before"], STAGE_FAILS])[0].endswith("before")


def test_argparse_usage_errors_are_errors() -> None:
    line = "python -m engine serve: error: unrecognized arguments: --fast"
    assert earliest_errors(["usage: python -m engine", line]) == [line]


# --- the model's files ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "kind"),
    [("/models/m", "path"), ("meta-llama/Llama-3.1-8B", "hub"), ("a/b", "hub")],
)
def test_what_a_model_is(model: str, kind: str) -> None:
    assert kind_of(model) == kind


@pytest.mark.parametrize("model", ["./m", "../m", "m", "a/b/c", "~/m", "hub.example.com/a/b"])
def test_what_a_model_is_not(model: str) -> None:
    with pytest.raises(ConfigError):
        kind_of(model)


def look(path: Path) -> ModelFiles:
    said = subprocess.run(
        [sys.executable, "-c", modelfiles.PROBE, str(path)],
        capture_output=True,
        text=True,
        check=True,
    )
    return modelfiles.parse(said.stdout)


@pytest.mark.parametrize("variable", ["HF_HOME", "HF_HUB_CACHE"])
def test_the_revision_that_a_cache_holds(tmp_path: Path, variable: str) -> None:
    """The layout that huggingface_hub documents: refs/BRANCH names a directory of snapshots."""
    cache = tmp_path / "hub" if variable == "HF_HOME" else tmp_path
    model, commit = cache / "models--org--tiny", "ab" * 20
    (model / "snapshots" / commit).mkdir(parents=True)
    (model / "refs").mkdir()
    (model / "refs/main").write_text(commit)
    (model / "refs/half").write_text("cd" * 20)  # its snapshot is not there

    def held(wanted: str, name: str = "org/tiny") -> str | None:
        argv = [sys.executable, "-c", modelfiles.REVISION_PROBE, name, wanted]
        env = {variable: str(tmp_path)}
        said = subprocess.run(argv, env=env, capture_output=True, text=True, check=True)
        commit: str | None = json.loads(said.stdout)
        return commit

    assert (held("main"), held(commit)) == (commit, commit)
    assert (held("half"), held("v2"), held("main", "org/other")) == (None, None, None)


@pytest.mark.parametrize(
    ("flags", "revision"),
    [
        ((), "main"),
        (("--revision", "v2"), "v2"),
        (("--seed", "1", "--revision=pr/1"), "pr/1"),
        (("--tokenizer-revision", "v2"), "main"),
    ],
)
def test_which_revision_an_engine_is_asked_for(flags: tuple[str, ...], revision: str) -> None:
    assert modelfiles.asked_revision(flags) == revision


def checkpoint(path: Path, weights: bytes = b"12345") -> Path:
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(weights)
    return path


def test_a_checkpoint_is_looked_at(tmp_path: Path) -> None:
    found = look(checkpoint(tmp_path / "m"))
    assert found.exists
    assert found.is_model
    assert dict(found.sizes) == {"config.json": 2, "model.safetensors": 5}


def test_an_absent_or_empty_directory_is_no_model(tmp_path: Path) -> None:
    assert not look(tmp_path / "none").exists
    assert not look(tmp_path).is_model


def test_differences_between_hosts_are_named(tmp_path: Path) -> None:
    here, there = checkpoint(tmp_path / "a"), checkpoint(tmp_path / "b")
    assert difference(look(here), look(there), "gpu01") is None
    (here / "model.safetensors").write_bytes(b"1234")
    assert difference(look(here), look(there), "gpu01") == (
        "model.safetensors has 4 bytes; on gpu01 it has 5 bytes"
    )
    (here / "model.safetensors").unlink()
    assert difference(look(here), look(there), "gpu01") == (
        "model.safetensors is absent; on gpu01 it has 5 bytes"
    )


def test_an_equally_long_but_other_config_is_a_difference(tmp_path: Path) -> None:
    here, there = checkpoint(tmp_path / "a"), checkpoint(tmp_path / "b")
    (here / "config.json").write_text("[]")
    assert difference(look(here), look(there), "gpu01") == (
        "config.json has other content than on gpu01"
    )


# --- states --------------------------------------------------------------------------------------


def record(
    state: str | None,
    *,
    token: bool | None = None,
    seen: int = 2,
    ready: int | None = None,
    stop: bool = False,
    listening: bool | None = None,
    epoch: int = 1,
) -> dict[str, Any]:
    return {
        "name": "m",
        "generation": 2,
        "stop": stop,
        "state": state and {"state": state, "generation": seen, "epoch": epoch},
        "info": {"ready_generation": ready},
        "token": token,
        "listening": listening,
        "detail": "",
    }


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (record(None), "starting"),
        (record("starting"), "starting"),
        (record("starting", token=False, listening=False), "starting"),
        (record("starting", token=False, listening=True), "degraded"),
        (record("starting", token=False, ready=1), "starting"),
        (record("starting", token=False, ready=2, epoch=2), "restarting"),
        (record("waiting"), "starting"),
        (record("waiting", epoch=2), "restarting"),
        (record("restarting"), "restarting"),
        (record("running", token=None), "degraded"),
        (record("running", token=False, listening=False), "degraded"),
        (record("running", token=False, listening=True), "degraded"),
        (record("running", token=True), "ready"),
        (record("starting", token=True, listening=True), "starting"),
        (record("running", token=False, ready=2), "degraded"),
        (record("running", ready=2, stop=True), "degraded"),
        (record("running", seen=1), "restarting"),
        (record("stopped", seen=1), "starting"),
        (record("failed"), "failed"),
        (record("stopped"), "stopped"),
    ],
)
def test_the_word_for_a_state(seen: dict[str, Any], expected: str) -> None:
    assert state_of(seen) == expected


INFO = {
    "model": "/models/m",
    "engine": "native",
    "executor": "ray",
    "tp": 1,
    "pp": 2,
    "url": "http://10.0.0.1:8000/v1",
    "address": "10.0.0.1",
    "port": 8000,
    "kv_cache_tokens": 93184,
    "ready_generation": 2,
}


def test_a_deployment_is_shown_with_the_keys_of_status() -> None:
    found = deployment_of({**record("running", token=True), "info": INFO})
    assert found.document() == {
        "name": "m",
        "model": "/models/m",
        "engine": "native",
        "tp": 1,
        "pp": 2,
        "state": "ready",
        "url": "http://10.0.0.1:8000/v1",
        "prediction": None,  # nothing was foretold
        "exit_code": None,
        "detail": "",
        "since": None,
        "restarts": 0,
        "cause": "",
        "waiting_for": "",
        "alive_at": None,
        "tokens_per_s": None,
        "kv_usage": None,
        "ranks": (),
    }
    assert (found.devices, found.kv_cache_tokens, found.ended) == (2, 93184, False)


def test_what_the_supervisor_keeps_is_told_in_words() -> None:
    rank = {"node": "gpu02", "pid": 77, "title": "ray::RankActor", "state": "T", "cpu_s": 4.5}
    kept = {
        "restarts": 2,
        "cause": "gpu02: exit code 1",
        "waiting_for": "not in Ray: gpu03",
        "ranks": [rank],
    }
    seen = {**record("waiting", epoch=3), "info": INFO, "detail": "no answer"}
    found = deployment_of({**seen, "state": {**seen["state"], **kept}})
    assert (found.state, found.health.restarts) == ("restarting", 2)
    assert found.remarks() == [
        "m: no answer",
        "m: waits: not in Ray: gpu03",
        "m: ended last by: gpu02: exit code 1",
        "m: gpu02: ray::RankActor (pid 77) is stopped",
    ]


# --- members -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "node",
    [
        ExpectedNode("gpu01", "10.0.0.1", "head", "gpu", 8),
        ExpectedNode("gpu02", "10.0.0.2", "worker", "cpu", 2),
    ],
)
def test_a_node_is_read_back_from_its_own_command(node: ExpectedNode) -> None:
    command = ray_start_argv(node, "10.0.0.1", RaySpec(port=6400))
    argv = command_of({"Config": {"Entrypoint": ["python3"], "Cmd": ["s.py", "--", *command]}})
    assert node_of(node.name, argv) == node
    assert ray_address(argv) == "10.0.0.1:6400"


# --- the command line ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("meta-llama/Llama-3.1-8B", "llama-3.1-8b"),
        ("/models/SmolLM2-135M-Instruct/", "smollm2-135m-instruct"),
        ("/models/My Model", "my-model"),
    ],
)
def test_deployment_names(model: str, name: str) -> None:
    assert deployment_name(model) == name


def test_flags_of_the_engine_need_dashes() -> None:
    assert checked_flags(["--max-num-seqs", "4"]) == ("--max-num-seqs", "4")
    with pytest.raises(ConfigError, match="unexpected argument 'tp=2'"):
        checked_flags(["tp=2"])


@pytest.mark.parametrize("flag", ["--host", "--port=1", "--api-key", "--ssl-keyfile=/k"])
def test_what_we_have_to_know_is_no_flag_of_the_engine(flag: str) -> None:
    with pytest.raises(ConfigError, match="after --"):
        checked_flags(["--max-num-seqs", "4", flag, "x"])


@pytest.mark.parametrize(
    ("names", "target"),
    [
        (("10.0.0.1",), "https://10.0.0.1:8000/v1"),
        (("api.x",), "--resolve api.x:8000:10.0.0.1 https://api.x:8000/v1"),
        ((), "https://10.0.0.1:8000/v1"),
    ],
)
def test_curl_calls_it_by_a_name_of_the_certificate(names: tuple[str, ...], target: str) -> None:
    served = replace(asked(), tls=TlsSpec("", Secret("k"), names))
    line = curl_target(served, "https://10.0.0.1:8000/v1", Path("/my cert"))
    assert line == f"--cacert '/my cert' {target}"


def test_the_curl_line_does_not_show_the_key() -> None:
    key = ApiKey(Secret("sk-secret"), "generated", Path("/home/me/key"))
    line = curl_line(asked(), "http://10.0.0.1:8000/v1", key)
    assert line == (
        "curl http://10.0.0.1:8000/v1/chat/completions "
        '-H "Authorization: Bearer $(cat /home/me/key)" '
        "-H 'Content-Type: application/json' "
        """-d '{"model": "/models/m", "messages": [{"role": "user", "content": "Hello"}]}'"""
    )
    assert json.loads(line.split("-d ")[1].strip("'"))["model"] == "/models/m"
