"""serve, ps and stop against a real supervisor and a stub engine, over directories for nodes."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

import httpx
import pytest

from clusterctl import certificate, deploy, deployments
from clusterctl.deploy import Served
from clusterctl.errors import ClusterctlError, ConfigError, NotReady, PreflightFailed
from clusterctl.events import Event
from clusterctl.fabric import PER_HOST
from clusterctl.secret import Secret
from clusterctl.serving.placement import Executor
from clusterctl.spec import ServeSpec
from tests.certificates import Authority
from tests.clusterctl.localcluster import STUB, LocalCluster, cluster, wait_until

__all__ = ["cluster"]

KEY = Secret("sk-test")
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "num_hidden_layers": 30,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-05,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
}
# One GiB a rank; a token takes 2 x 3 heads x 64 x 2 bytes in a layer, and the first stage holds 19
# of the 30, as the second has the LM head.
PREDICTED = (1 << 30) // (16 * 2 * 3 * 64 * 2 * 19) * 16


@pytest.fixture(autouse=True)
def no_real_engine_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stub needs nothing of what the real engine declares."""
    monkeypatch.setattr("clusterctl.enginepackage.requirements", lambda *, ray: ())


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "models" / "tiny"
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(CONFIG))
    (path / "model.safetensors").write_bytes(b"weights")
    return path


@pytest.fixture
def port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.2", 0))
        return int(listener.getsockname()[1])


@pytest.fixture
def asked(model: Path, port: int) -> ServeSpec:
    return ServeSpec(str(model), "tiny", pp=2, port=port, api_key=KEY, timeout=30)


Serve = Callable[..., Served]


@pytest.fixture
def serve(cluster: LocalCluster, tmp_path: Path) -> Serve:
    return serve_on(cluster, tmp_path)


@pytest.fixture
def serve_on_gpus(tmp_path: Path) -> Iterator[Serve]:
    """One host with four GPUs."""
    made = LocalCluster(tmp_path / "gpus", devices=(4,), kind="gpu")
    yield serve_on(made, tmp_path)
    made.close()


def serve_on(cluster: LocalCluster, tmp_path: Path) -> Serve:
    def start(spec: ServeSpec, **options: object) -> Served:
        env = {"XDG_CONFIG_HOME": str(tmp_path / "config")}
        with cluster.session() as session:
            return deploy.serve(session, spec, package=STUB, env=env, **options)  # type: ignore[arg-type]

    return start


def test_it_is_ready_when_a_token_came_back(
    serve: Serve, asked: ServeSpec, cluster: LocalCluster
) -> None:
    events: list[Event] = []
    served = serve(asked, report=events.append)
    seen = served.deployment
    assert (seen.name, seen.model, seen.engine, seen.tp, seen.pp, seen.state, seen.url) == (
        *("tiny", asked.model, "native", 1, 2, "ready"),
        f"http://127.0.0.2:{asked.port}/v1",
    )
    assert served.deployment.prediction == {
        "kv_cache_tokens": PREDICTED,
        "max_concurrency": round(PREDICTED / 8192, 2),
        "max_model_len": 8192,
        "logged_kv_cache_tokens": 93184,
        "difference": round(PREDICTED / 93184 - 1, 4),
    }
    assert served.deployment.kv_cache_tokens == 93184
    ended = [event.step for event in events if event.kind == "done"]
    assert ended[-4:] == ["start", "loading", "kv cache", "first token"]
    assert [(e.message, e.done, e.total) for e in events if e.kind == "progress"] == [
        ("loading weights 1/2", 1, 2),
        ("loading weights 2/2", 2, 2),
        ("KV cache 93,184 tokens", None, None),
        ("the API is up; waiting for a first token", None, None),
    ]


def holders(cluster: LocalCluster, secret: str) -> list[Path]:
    return [
        path
        for path in cluster.path().rglob("*")
        if path.is_file() and secret.encode() in path.read_bytes()
    ]


def test_it_speaks_tls_and_shows_the_certificate_it_was_given(
    serve: Serve, asked: ServeSpec, cluster: LocalCluster, tmp_path: Path
) -> None:
    """Under whatever name: the certificate is known."""
    pair = Authority(tmp_path).issue("api", "api.example.com", chain=True)
    tls = certificate.load(pair.certificate, pair.key, datetime.now(timezone.utc))
    served = serve(replace(asked, tls=tls))
    assert (served.deployment.state, served.deployment.url) == (
        "ready",
        f"https://127.0.0.2:{asked.port}/v1",
    )
    secret = pair.key.read_text().splitlines()[1]
    assert holders(cluster, secret) == [cluster.path("secrets", "tiny.tls-key")]
    assert cluster.path("secrets", "tiny.tls-key").stat().st_mode & 0o777 == 0o600
    assert all(secret not in " ".join(call) for call in cluster.head.calls)
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.2:{asked.port}/v1/models")


@pytest.mark.parametrize(
    ("host", "says"),
    [("0.0.0.0", "every address of the head"), ("8.8.8.8", "a public"), ("gpu01", "IP address")],
)
def test_an_open_door_has_to_be_asked_for(
    serve: Serve, asked: ServeSpec, host: str, says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        serve(replace(asked, host=host))


def test_exposed_it_says_what_passes_in_the_clear(serve: Serve, asked: ServeSpec) -> None:
    events: list[Event] = []
    served = serve(replace(asked, expose=True), report=events.append)
    assert (served.deployment.address, served.deployment.url) == (
        "0.0.0.0",
        f"http://127.0.0.2:{asked.port}/v1",
    )
    warned = [event.message for event in events if event.kind == "warn"]
    assert any("exposed without TLS" in said for said in warned), warned


def test_the_key_is_in_one_private_file_and_nowhere_else(
    serve: Serve, asked: ServeSpec, cluster: LocalCluster
) -> None:
    serve(asked)
    (holder,) = holders(cluster, KEY.reveal())
    assert holder == cluster.path("secrets", "tiny.key")
    assert holder.stat().st_mode & 0o777 == 0o600
    assert all(KEY.reveal() not in " ".join(call) for call in cluster.head.calls)


def test_a_key_is_generated_and_kept_when_none_is_given(
    serve: Serve, asked: ServeSpec, tmp_path: Path
) -> None:
    served = serve(replace(asked, api_key=None))
    assert served.generated is not None
    kept = tmp_path / "config/infercluster/keys/c-tiny"
    assert served.generated.file == kept
    assert kept.read_text().strip() == served.generated.secret.reveal()
    assert kept.stat().st_mode & 0o777 == 0o600


def test_detached_it_returns_at_once_and_another_client_sees_it_become_ready(
    serve: Serve, asked: ServeSpec, model: Path, cluster: LocalCluster
) -> None:
    (model / "mute").touch()
    assert serve(asked, detach=True).deployment.state == "starting"
    (model / "mute").unlink()
    with cluster.session() as other:
        wait_until(lambda: deployments.seen(other)[0].state == "ready")


def test_alive_without_a_token_is_degraded_not_ready(
    serve: Serve, asked: ServeSpec, model: Path, cluster: LocalCluster
) -> None:
    serve(asked)
    (model / "mute").touch()
    with cluster.session() as session:
        (found,) = deployments.seen(session, probe=0.3)
    assert (found.state, found.detail) == ("degraded", "TimeoutError: timed out")


def test_an_answer_that_is_an_error_is_degraded_and_says_why(
    serve: Serve, asked: ServeSpec, cluster: LocalCluster
) -> None:
    serve(asked)
    cluster.path("secrets", "tiny.key").write_text("another key")
    with cluster.session() as session:
        (found,) = deployments.seen(session)
    assert (found.state, found.detail) == ("degraded", "HTTP 401: wrong key")


def test_a_failing_engine_is_reported_by_its_earliest_error(
    serve: Serve, asked: ServeSpec, model: Path, cluster: LocalCluster
) -> None:
    (model / "breaks").touch()
    with pytest.raises(ClusterctlError) as caught:
        serve(asked)
    assert caught.value.host == "gpu01"
    assert caught.value.message.splitlines() == [
        "deployment tiny failed (exit code 3):",
        "  torch.OutOfMemoryError: no room for 4 GiB (RankActor pid=7, ip=127.0.0.3)",
        "  ERROR 01-01 00:00:00 rank 1: torch.OutOfMemoryError: no room for 4 GiB",
        "diagnosis: CUDA out of memory (cuda-oom-load), confidence 0.9",
        "  log of tiny:4: (RankActor pid=7, ip=127.0.0.3) "
        "torch.OutOfMemoryError: no room for 4 GiB",
    ]
    with cluster.session() as session:
        (found,) = deployments.seen(session)
    assert (found.state, found.exit_code) == ("failed", 3)


def test_an_engine_that_ends_by_itself_has_failed_whatever_its_exit_code(
    serve: Serve, asked: ServeSpec, model: Path
) -> None:
    """vLLM ends with 0 when its engine died under it: nobody had asked it to."""
    (model / "leaves").touch()
    with pytest.raises(ClusterctlError, match="failed .exit code 0.(.|\n)*AssertionError: inter"):
        serve(asked)


def test_after_a_failure_the_same_name_serves_again(
    serve: Serve, asked: ServeSpec, model: Path
) -> None:
    (model / "breaks").touch()
    with pytest.raises(ClusterctlError):
        serve(asked)
    (model / "breaks").unlink()
    deployment = serve(asked).deployment
    assert (deployment.state, deployment.generation) == ("ready", 2)


def test_a_slow_start_is_not_ready_and_goes_on(
    serve: Serve,
    asked: ServeSpec,
    model: Path,
    cluster: LocalCluster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("clusterctl.deploy.PROBE_S", 0.1)
    (model / "mute").touch()
    with pytest.raises(NotReady, match="not ready within 2 s; it goes on"):
        serve(replace(asked, timeout=2))
    assert cluster.state("tiny")["state"] == "starting"


def test_a_start_that_stands_still_is_not_ready_and_the_supervisor_tries_again(
    serve: Serve, asked: ServeSpec, model: Path, cluster: LocalCluster
) -> None:
    (model / "mute").touch()
    patient = replace(asked, executor="mp", pp=1, timeout=None, stall_timeout=2)
    with pytest.raises(NotReady, match="no new line, bytes or CPU time for 2 s") as caught:
        serve(patient)
    assert "; last line: INFO Application startup complete." in caught.value.message
    assert "the supervisor starts it again" in caught.value.message
    wait_until(lambda: cluster.state("tiny")["epoch"] == 2)


def test_a_stopped_rank_is_why_a_start_stands_still(
    serve: Serve, asked: ServeSpec, model: Path, cluster: LocalCluster
) -> None:
    (model / "mute").touch()
    serve(replace(asked, stall_timeout=4), detach=True)
    wait_until(lambda: cluster.state("tiny")["pid"] is not None)
    pid = cluster.state("tiny")["pid"]
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: cluster.state("tiny")["kind"] == "hung")
    assert re.search(rf"gpu01: process {pid} \(.*\) is stopped", cluster.state("tiny")["cause"])


# --- refused before anything is started ----------------------------------------------------------


def test_a_second_deployment_of_the_name_is_refused(serve: Serve, asked: ServeSpec) -> None:
    serve(replace(asked, pp=1))
    with pytest.raises(PreflightFailed, match="deployment tiny exists already") as caught:
        serve(replace(asked, pp=1, port=asked.port + 1))
    assert caught.value.hint == "clusterctl stop tiny, or choose another --name"


def test_devices_of_other_deployments_are_not_given_twice(serve: Serve, asked: ServeSpec) -> None:
    serve(asked)
    with pytest.raises(PreflightFailed) as caught:
        serve(replace(asked, name="other", pp=1, port=asked.port + 1))
    assert caught.value.message == (
        "tp=1 x pp=1 needs 1 devices; the cluster has 2 (gpu01: 1, gpu02: 1), "
        "of which 2 serve other deployments"
    )


def test_without_ray_each_deployment_keeps_to_gpus_of_its_own(
    serve_on_gpus: Serve, asked: ServeSpec
) -> None:
    def at(place: int, **changes: object) -> ServeSpec:
        more = {"name": f"m{place}", "port": asked.port + place, "executor": "mp", **changes}
        return replace(asked, **more)  # type: ignore[arg-type]

    def visible(place: int, **changes: object) -> str | None:
        (process,) = serve_on_gpus(at(place, **changes), detach=True).plan.processes.values()
        return process.env.get("CUDA_VISIBLE_DEVICES")

    assert (visible(0), visible(1, pp=1)) == ("0,1", "2")
    with pytest.raises(PreflightFailed) as caught:
        visible(2)
    assert "needs 2 devices; the cluster has 4" in caught.value.message
    assert visible(3, pp=1) == "3"


@pytest.mark.parametrize("executors", [("mp", "ray"), ("ray", "mp")])
def test_a_second_deployment_on_the_gpus_of_a_host_is_refused(
    serve_on_gpus: Serve, asked: ServeSpec, executors: tuple[Executor, Executor]
) -> None:
    first, second = executors
    serve_on_gpus(replace(asked, executor=first), detach=True)
    with pytest.raises(PreflightFailed, match="tiny may hold the same GPUs") as caught:
        serve_on_gpus(replace(asked, name="other", executor=second, port=asked.port + 1))
    assert (caught.value.host, caught.value.hint) == (
        "gpu01",
        "clusterctl stop tiny, or serve all with the same --executor",
    )


def test_ray_gives_deployments_gpus_of_their_own(serve_on_gpus: Serve, asked: ServeSpec) -> None:
    serve_on_gpus(replace(asked, executor="ray"), detach=True)
    other = replace(asked, name="other", executor="ray", port=asked.port + 1)
    assert serve_on_gpus(other).deployment.state == "ready"


def test_an_illegal_split_is_refused_with_the_legal_ones(
    serve: Serve, asked: ServeSpec, cluster: LocalCluster
) -> None:
    with pytest.raises(PreflightFailed) as caught:
        serve(replace(asked, tp=2, pp=1))
    assert caught.value.message == (
        "9 attention heads cannot be split over tp=2 (legal for this model: 1, 3)"
    )
    assert not cluster.path("deployments").exists()


def test_sizes_that_nobody_asked_for_are_the_plans(serve: Serve, asked: ServeSpec) -> None:
    events: list[Event] = []
    served = serve(replace(asked, pp=1, open_sizes=frozenset({"tp", "pp"})), report=events.append)
    assert (served.deployment.tp, served.deployment.pp) == (1, 1)
    (said,) = [event.message for event in events if event.step == "plan"]
    assert said == (
        "tp=1 pp=1: It fits one CPU slot, so that no parallelism inside is needed. "
        "46,592 tokens of KV cache remain, 5.7 requests of 8,192 tokens at once."
    )


def test_the_engines_own_flags_count(serve: Serve, asked: ServeSpec) -> None:
    served = serve(replace(asked, extra=("--kv-cache-memory-bytes=134217728",)))
    assert served.deployment.prediction is not None
    assert served.deployment.prediction["kv_cache_tokens"] == (128 << 20) // (16 * 768 * 19) * 16


def test_a_cache_that_seems_too_small_is_a_warning(serve: Serve, asked: ServeSpec) -> None:
    events: list[Event] = []
    extra = ("--kv-cache-memory-bytes", "33554432")
    serve(replace(asked, extra=extra, max_model_len=8192), report=events.append)
    (warned,) = [event.message for event in events if event.kind == "warn"]
    assert warned == (
        "tp=1 pp=2 may not fit: one request of 8,192 tokens does not fit the 2,288 tokens of KV "
        "cache; the longest that does has 2,200. Nearest that works: --max-model-len 2200."
    )


def test_an_architecture_that_the_engine_does_not_know_is_refused(
    serve: Serve, asked: ServeSpec, model: Path
) -> None:
    other = {**CONFIG, "architectures": ["MambaForCausalLM"]}
    (model / "config.json").write_text(json.dumps(other))
    with pytest.raises(PreflightFailed, match="architecture MambaForCausalLM is not supported"):
        serve(asked)


def test_a_port_in_use_is_refused(serve: Serve, asked: ServeSpec) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.2", asked.port))
        taken.listen()
        with pytest.raises(PreflightFailed, match=f"127.0.0.2:{asked.port} cannot be bound"):
            serve(asked)


def test_an_absent_model_names_host_and_path(
    serve: Serve, asked: ServeSpec, cluster: LocalCluster
) -> None:
    with pytest.raises(PreflightFailed) as caught:
        serve(replace(asked, model="/models/none"))
    assert (caught.value.host, caught.value.message) == (
        "gpu01, gpu02",
        "/models/none does not exist",
    )
    assert "`model_dirs: [/models]`" in str(caught.value.hint)
    assert not cluster.path("deployments").exists()


def test_a_relative_path_is_a_usage_error(serve: Serve, asked: ServeSpec) -> None:
    with pytest.raises(ConfigError, match=r"'\./tiny' is neither an absolute path"):
        serve(replace(asked, model="./tiny"))


# --- stop ----------------------------------------------------------------------------------------


def test_stop_ends_the_only_deployment_and_frees_its_port(
    serve: Serve, asked: ServeSpec, cluster: LocalCluster
) -> None:
    serve(asked)
    with cluster.session() as session:
        stopped = deployments.stop(session)
    assert (stopped.name, stopped.state) == ("tiny", "stopped")
    socket.create_server(("127.0.0.2", asked.port)).close()


def test_stop_names_what_does_not_go(serve: Serve, asked: ServeSpec, cluster: LocalCluster) -> None:
    serve(asked)
    cluster.head.ray_status = " 1.0/2.0 cpu_slot (1.0 used of 1.0 reserved)"
    with (
        cluster.session() as session,
        pytest.raises(NotReady, match="Ray still has 1 devices in use"),
    ):
        deployments.stop(session, "tiny", timeout=3)


def test_stop_ends_a_rank_that_outlived_its_engine(
    serve: Serve, asked: ServeSpec, cluster: LocalCluster
) -> None:
    serve(asked)
    marks = {"ENGINE_DEPLOYMENT": "c/tiny", "RAY_TMPDIR": cluster.head.home}
    stray = subprocess.Popen(["sleep", "60"], env={**os.environ, **marks})
    with cluster.session() as session:
        deployments.stop(session)
    assert stray.wait() == -signal.SIGKILL


def test_stop_without_deployments_says_so(cluster: LocalCluster) -> None:
    with (
        cluster.session() as session,
        pytest.raises(ClusterctlError, match="nothing is being served"),
    ):
        deployments.stop(session)


def test_a_killed_engine_is_started_again(
    serve: Serve, asked: ServeSpec, cluster: LocalCluster
) -> None:
    serve(replace(asked, executor="mp", pp=1))
    os.kill(cluster.state("tiny")["pid"], signal.SIGKILL)
    with cluster.session() as session:
        wait_until(lambda: deployments.seen(session)[0].health.restarts == 1)
        wait_until(lambda: deployments.seen(session)[0].state == "ready")
        assert deployments.seen(session)[0].health.cause == "gpu01: its process ended by SIGKILL"


def test_the_supervisors_spec_is_the_whole_command_line(
    serve: Serve, asked: ServeSpec, cluster: LocalCluster
) -> None:
    serve(replace(asked, extra=("--max-num-seqs", "4")))
    home = cluster.head.home
    assert cluster.given("tiny") == {
        "name": "tiny",
        "argv": [
            *("python3", "-m", "engine", "serve", asked.model),
            *("--served-model-name", asked.model),
            *("--tensor-parallel-size", "1", "--pipeline-parallel-size", "2"),
            *("--distributed-executor-backend", "ray", "--dtype", "auto"),
            *("--host", "127.0.0.2", "--port", str(asked.port)),
            *("--api-key-file", f"{home}/secrets/tiny.key", "--max-num-seqs", "4"),
        ],
        "env": {
            "ENGINE_DEPLOYMENT": "c/tiny",
            "PYTHONPATH": f"{home}/{STUB.name}",
            "PYTHONUNBUFFERED": "1",
            "RAY_ADDRESS": "127.0.0.2:6379",
        },
        "env_files": {},
        "generation": 1,
        "stop": False,
        "owner": "c/tiny",
        "group": [],
        "nodes": [
            {"name": "gpu01", "address": "127.0.0.2", "devices": 1},
            {"name": "gpu02", "address": "127.0.0.3", "devices": 1},
        ],
        "liveness": {
            "url": f"http://127.0.0.2:{asked.port}/v1",
            "api_key_file": f"{home}/secrets/tiny.key",
            "interval_s": 5.0,
            "deadline_s": 30.0,
            "stall_s": 600.0,
            "certificate": "",
        },
        "restart": {
            "in_a_row": 5,
            "backoff_s": 2.0,
            "backoff_max_s": 60.0,
            "stable_s": 600.0,
            "retry_start": [],
        },
    }


# --- vLLM ----------------------------------------------------------------------------------------


@pytest.fixture
def with_vllm(tmp_path: Path) -> Iterator[LocalCluster]:
    made = LocalCluster(tmp_path / "vllm", devices=(1, 1), vllm="cpu_slot")
    yield made
    made.close()


@pytest.fixture
def serve_vllm(with_vllm: LocalCluster, tmp_path: Path) -> Serve:
    return serve_on(with_vllm, tmp_path)


def test_vllm_over_ray_is_one_process_on_the_head(
    serve_vllm: Serve, asked: ServeSpec, with_vllm: LocalCluster
) -> None:
    events: list[Event] = []
    served = serve_vllm(replace(asked, engine="vllm"), report=events.append)
    assert (served.deployment.state, served.deployment.engine) == ("ready", "vllm")
    assert str(served.plan.placement) == (
        "engine vllm (as asked), executor ray "
        f"(the cluster has 2 nodes, and the image Ray {metadata.version('ray')})"
    )
    home, owner = with_vllm.head.home, {"ENGINE_DEPLOYMENT": "c/tiny"}
    given = with_vllm.given("tiny")
    assert {key: given[key] for key in ("argv", "env", "env_files")} == {
        "argv": [
            *("vllm", "serve", asked.model, "--served-model-name", asked.model),
            *("--tensor-parallel-size", "1", "--pipeline-parallel-size", "2"),
            *("--distributed-executor-backend", "ray", "--dtype", "auto"),
            *("--host", "127.0.0.2", "--port", str(asked.port)),
        ],
        "env": {
            **owner,
            "PYTHONUNBUFFERED": "1",
            "RAY_ADDRESS": "127.0.0.2:6379",
            "RAY_DEDUP_LOGS": "0",
            "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps({"runtime_env": {"env_vars": owner}}),
            "VLLM_CONFIG_ROOT": f"{home}/vllm",
        },
        "env_files": {"VLLM_API_KEY": f"{home}/secrets/tiny.key"},
    }
    assert not Path(with_vllm.runtimes["gpu02"].home, "deployments").exists()
    # Each host's own word stays its own.
    kept = with_vllm.path("vllm", "ray_non_carry_over_env_vars.json")
    assert set(json.loads(kept.read_text())) == set(PER_HOST)


def test_vllm_is_asked_once_an_image_what_it_can_do(
    serve_vllm: Serve, asked: ServeSpec, with_vllm: LocalCluster
) -> None:
    events: list[Event] = []
    for name in ("one", "two"):
        spec = replace(asked, name=name, engine="vllm", pp=1, port=asked.port)
        serve_vllm(spec, report=events.append)
        with with_vllm.session() as session:
            deployments.stop(session, name)
    assert [event.message for event in events if event.step == "probe"] == [
        "asking the image's vLLM what it can do",
        "vllm serve has 4 flags",
    ]


@pytest.fixture
def group(asked: ServeSpec) -> ServeSpec:
    return replace(asked, engine="vllm", executor="mp")


def test_the_space_that_the_image_gives_vllms_cache_is_foretold(
    serve_vllm: Serve, asked: ServeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stands in the container's environment, whoever wrote it there."""
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "2")
    prediction = serve_vllm(replace(asked, engine="vllm")).deployment.prediction
    assert prediction is not None
    assert prediction["kv_cache_tokens"] == 2 * 93_184  # a GiB, 15 layers on a stage


def test_without_ray_every_node_runs_its_rank_and_the_head_the_api(
    serve_vllm: Serve, group: ServeSpec, with_vllm: LocalCluster
) -> None:
    served = serve_vllm(group)
    assert list(served.plan.processes) == ["gpu02", "gpu01"]
    head = served.plan.processes["gpu01"].argv
    master = head[head.index("--master-port") + 1]
    for rank, node in enumerate(("gpu01", "gpu02")):
        argv = with_vllm.given("tiny", node)["argv"]
        group_flags = [
            *("--nnodes", "2", "--node-rank", str(rank)),
            *("--master-addr", "127.0.0.2", "--master-port", master),
        ]
        assert argv[17:] == [*group_flags, *(["--headless"] if rank else [])]
        assert with_vllm.state("tiny", node)["state"] == "running"
    assert with_vllm.given("tiny", "gpu02")["env_files"] == {}
    assert with_vllm.given("tiny", "gpu02")["group"] == ["gpu01", "gpu02"]


def test_a_rank_that_fails_elsewhere_fails_the_deployment_and_ends_it(
    serve_vllm: Serve, group: ServeSpec, model: Path, with_vllm: LocalCluster
) -> None:
    (model / "headless_breaks").touch()
    (model / "mute").touch()
    with pytest.raises(ClusterctlError, match="ValueError: the headless rank broke") as caught:
        serve_vllm(group)
    assert caught.value.host == "gpu02"
    wait_until(lambda: with_vllm.state("tiny")["state"] == "failed")
    wait_until(lambda: with_vllm.state("tiny", "gpu02")["state"] == "failed")
    assert "gpu02" in with_vllm.state("tiny")["cause"]


def test_one_that_waits_for_a_node_in_vain_is_not_ready(
    serve_vllm: Serve, group: ServeSpec, model: Path, with_vllm: LocalCluster
) -> None:
    (model / "mute").touch()

    def lose_a_node(event: Event) -> None:
        if event.step == "first token":
            rank = with_vllm.state("tiny", "gpu02")["pid"]
            with_vllm.supervisors[1].kill()
            os.kill(rank, signal.SIGKILL)

    patient = replace(group, timeout=None, stall_timeout=8)
    with pytest.raises(NotReady) as caught:
        serve_vllm(patient, report=lose_a_node)
    assert "waits for 8 s, gpu02: its supervisor was not heard" in caught.value.message


def test_a_group_whose_port_was_taken_starts_again_with_another(
    serve_vllm: Serve, group: ServeSpec, model: Path, with_vllm: LocalCluster
) -> None:
    (model / "port_taken").touch()
    events: list[Event] = []
    assert serve_vllm(group, report=events.append).deployment.state == "ready"
    assert [event.message for event in events if event.kind == "warn"] == [
        "the group's port was taken while it started; once more with another"
    ]
    for node in ("gpu01", "gpu02"):
        assert with_vllm.given("tiny", node)["generation"] == 2
    given = with_vllm.given("tiny", "gpu02")["argv"]
    assert int(given[given.index("--master-port") + 1]) > 29501


def test_stop_ends_the_group_on_every_node(
    serve_vllm: Serve, group: ServeSpec, with_vllm: LocalCluster
) -> None:
    serve_vllm(group)
    with with_vllm.session() as session:
        assert deployments.stop(session).state == "stopped"
    assert with_vllm.given("tiny", "gpu02")["stop"]
    wait_until(lambda: with_vllm.state("tiny", "gpu02")["state"] == "stopped")


def test_a_dry_run_shows_what_runs_and_starts_nothing(
    group: ServeSpec, serve_vllm: Serve, with_vllm: LocalCluster
) -> None:
    with with_vllm.session() as session:
        planned = deploy.plan_serve(session, group)
    assert not Path(with_vllm.head.home, "deployments").exists()
    assert serve_vllm(group).plan == planned


def test_a_size_that_this_vllm_does_not_know_is_refused(
    serve_vllm: Serve, group: ServeSpec
) -> None:
    with pytest.raises(PreflightFailed) as caught:
        serve_vllm(replace(group, pp=1, tp=1, dcp=2))
    assert "does not divide" in caught.value.message or "does not know" in caught.value.message


def test_vllm_that_is_not_in_the_image_is_refused(serve: Serve, asked: ServeSpec) -> None:
    with pytest.raises(PreflightFailed, match="the image has no vLLM") as caught:
        serve(replace(asked, engine="vllm"))
    assert caught.value.host == "gpu01, gpu02"


# --- what the ranks speak ------------------------------------------------------------------------

RECORDED = Path(__file__).parents[1] / "data/gpu/h100x2"


@pytest.fixture
def three_gpus(tmp_path: Path) -> Iterator[LocalCluster]:
    """One each on three hosts."""
    made = LocalCluster(tmp_path / "three", devices=(1, 1, 1), kind="gpu", vllm="GPU")
    yield made
    made.close()


@pytest.fixture
def wide(asked: ServeSpec) -> ServeSpec:
    """A tensor group over all three."""
    return replace(asked, engine="vllm", executor="mp", tp=3, pp=1)


@pytest.fixture
def over_sockets(model: Path) -> None:
    """What NCCL said of two real ranks that were given no other way."""
    (model / "nccl").write_text((RECORDED / "nccl-socket.log").read_text())


@pytest.mark.usefixtures("over_sockets")
def test_tensor_ranks_of_several_nodes_over_tcp_are_refused_and_ended(
    three_gpus: LocalCluster, tmp_path: Path, wide: ServeSpec
) -> None:
    with pytest.raises(ClusterctlError, match=r"speak TCP(.|\n)*via NET/Socket") as caught:
        serve_on(three_gpus, tmp_path)(wide)
    assert "--allow-tcp" in str(caught.value.hint)
    for node in ("gpu01", "gpu02", "gpu03"):
        wait_until(lambda: three_gpus.state("tiny", node)["state"] == "stopped")  # noqa: B023


@pytest.mark.usefixtures("over_sockets")
def test_tcp_that_is_allowed_is_shown(
    three_gpus: LocalCluster, tmp_path: Path, wide: ServeSpec
) -> None:
    served = serve_on(three_gpus, tmp_path)(replace(wide, allow_tcp=True))
    assert served.deployment.transports == ("NET/Socket",)


@pytest.mark.usefixtures("over_sockets")
def test_pipeline_stages_may_speak_tcp(
    three_gpus: LocalCluster, tmp_path: Path, wide: ServeSpec
) -> None:
    served = serve_on(three_gpus, tmp_path)(replace(wide, tp=1, pp=3))
    assert served.deployment.state == "ready"
    env = three_gpus.given("tiny", "gpu02")["env"]
    assert (env["NCCL_DEBUG"], env["NCCL_DEBUG_SUBSYS"]) == ("INFO", "INIT")
