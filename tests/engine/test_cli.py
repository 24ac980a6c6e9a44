"""`python -m engine serve`: flags, and the life of the process."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path

import httpx
import pytest

from engine.config import EngineConfig
from engine.server.auth import read_key
from engine.server.flags import HELP, ServeConfig, add_engine_flags, add_flags, config_of
from tests.certificates import Authority
from tests.engine.conftest import MakeCheckpoint


def parse(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_flags(parser, ServeConfig)
    add_engine_flags(parser)
    return parser.parse_args(argv)


def test_defaults_are_those_of_the_config() -> None:
    assert config_of(EngineConfig, parse("some/model")) == EngineConfig(model="some/model")


def test_every_option_of_the_config_is_a_flag_with_help() -> None:
    options = {field.name for config in (EngineConfig, ServeConfig) for field in fields(config)}
    assert set(HELP) == options - {"model"}


def test_flags_are_named_as_vllm_names_them() -> None:
    argv = (
        "m -tp 2 -pp 3 -ep --pipeline-partition 4,3,3 --distributed-executor-backend ray "
        "--dtype bfloat16 --max-model-len 512 --block-size 32 --kv-cache-memory-bytes 1000 "
        "--gpu-memory-utilization 0.5 --max-num-seqs 7 --max-num-batched-tokens 99 --seed 5"
    )
    assert config_of(EngineConfig, parse(*argv.split())) == EngineConfig(
        model="m",
        tensor_parallel_size=2,
        pipeline_parallel_size=3,
        pipeline_partition=(4, 3, 3),
        enable_expert_parallel=True,
        distributed_executor_backend="ray",
        dtype="bfloat16",
        max_model_len=512,
        block_size=32,
        kv_cache_memory_bytes=1000,
        gpu_memory_utilization=0.5,
        max_num_seqs=7,
        max_num_batched_tokens=99,
        seed=5,
    )
    long = parse("m", "--tensor-parallel-size", "2", "--pipeline-parallel-size", "3")
    assert config_of(EngineConfig, long).world_size == 6


def test_vllms_variable_gives_the_layers_of_each_stage_where_no_flag_does() -> None:
    variable = {"VLLM_PP_LAYER_PARTITION": "18,10"}
    config = EngineConfig(model="m", pipeline_parallel_size=2)
    assert config.completed(variable).pipeline_partition == (18, 10)
    assert config.completed({}) is config
    own = replace(config, pipeline_partition=(14, 14))
    assert own.completed(variable) is own
    with pytest.raises(ValueError, match="VLLM_PP_LAYER_PARTITION=half is not numbers"):
        config.completed({"VLLM_PP_LAYER_PARTITION": "half"})


def test_the_key_comes_from_a_file_or_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("from file\n")
    assert read_key(path, {"VLLM_API_KEY": "from environment"}) == "from file"
    assert read_key(None, {"VLLM_API_KEY": "from environment"}) == "from environment"
    assert read_key(None, {}) is None
    path.write_text("\n")
    with pytest.raises(ValueError, match="is empty"):
        read_key(path, {})
    with pytest.raises(ValueError, match="VLLM_API_KEY is empty"):
        read_key(None, {"VLLM_API_KEY": ""})


COMMAND = [sys.executable, "-m", "engine", "serve"]


def engine(*argv: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *argv], capture_output=True, text=True, check=False)


def test_wrong_usage_ends_with_2() -> None:
    done = engine("m", "--max-num-seqs", "9", "--max-num-batched-tokens", "3")
    assert done.returncode == 2
    assert "max_num_batched_tokens (3) must be at least max_num_seqs (9)" in done.stderr
    assert engine("m", "--api-key", "sesame").returncode == 2


def test_a_taken_port_is_found_before_anything_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = engine("no/such/model", "--port", str(taken.getsockname()[1]))
    assert done.returncode == 1
    assert "Address already in use" in done.stderr.splitlines()[-1]


def test_a_key_that_does_not_belong_is_found_before_anything_is_loaded(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    one, other = authority.issue("one"), authority.issue("other")
    done = engine("no/such/model", "--ssl-certfile", one.certificate, "--ssl-keyfile", other.key)
    assert done.returncode == 1
    assert f"no TLS by {one.certificate}, {other.key}: " in done.stderr.splitlines()[-1]


def test_it_speaks_https_alone_where_it_has_a_certificate(
    checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("api", "127.0.0.1")
    files = ["--ssl-certfile", str(pair.certificate), "--ssl-keyfile", str(pair.key)]
    trust = ssl.create_default_context(cafile=authority.ca)
    with running(checkpoint(), *files) as (_, url):
        assert url.startswith("https://127.0.0.1:")
        assert httpx.get(f"{url}/health", verify=trust).status_code == 200
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(f"{url}/health")
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http{url[5:]}/health")


@contextmanager
def running(
    model: Path, *argv: str, **environment: str
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process and its URL, once it listens."""
    command = [*COMMAND, str(model), "--port", "0", "--device", "cpu", "--dtype", "float32"]
    command += ["--kv-cache-memory-bytes", "8000000", *argv]
    environment = {**os.environ, **environment}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        try:
            yield process, next(line.split()[-1] for line in process.stderr if "Listening" in line)
        finally:
            process.kill()


def worker_pids(driver: int) -> list[int]:
    """Its children: the ranks."""
    return [int(pid) for pid in Path(f"/proc/{driver}/task/{driver}/children").read_text().split()]


def wait_gone(pids: list[int]) -> None:
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        time.sleep(0.05)


def test_sigterm_to_the_process_group_ends_requests_ranks_and_process_with_0(
    checkpoint: MakeCheckpoint,
) -> None:
    options = ["-pp", "2", "--served-model-name", "tiny", "--shutdown-timeout", "0"]
    with running(checkpoint(), *options, VLLM_API_KEY="sesame") as (process, url):
        ranks = worker_pids(process.pid)
        assert len(ranks) == 2
        assert httpx.get(f"{url}/v1/models").status_code == 401
        headers = {"Authorization": "Bearer sesame"}
        body = {"model": "tiny", "prompt": "x", "max_tokens": 500, "stream": True}
        post = httpx.stream("POST", f"{url}/v1/completions", json=body, headers=headers, timeout=60)
        with post as stream:
            lines = stream.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            for rank in ranks:
                os.kill(rank, signal.SIGTERM)
            assert "the server is shutting down" in [line for line in lines if line][-1]
        assert process.wait() == 0
        wait_gone(ranks)


def test_sigterm_lets_what_runs_end_and_refuses_what_comes(checkpoint: MakeCheckpoint) -> None:
    body = {"prompt": "x", "max_tokens": 300, "ignore_eos": True, "stream": True}
    long = ["--shutdown-timeout", "60"]
    with running(checkpoint(), *long) as (process, url):
        post = httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60)
        with post as stream, httpx.Client(base_url=url, timeout=60) as client:
            assert client.get("/ready").status_code == 200
            lines = stream.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            while (ready := client.get("/ready")).status_code == 200:
                time.sleep(0.01)
            assert ready.json()["error"]["message"] == "the server is shutting down"
            refused = client.post("/v1/completions", json={"prompt": "x"})
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            events = [line for line in lines if line]
        assert events[-1] == "data: [DONE]"
        assert '"finish_reason": "length"' in events[-2]
        assert process.wait() == 0


def test_a_stopped_rank_makes_every_client_fail_within_the_deadline(
    checkpoint: MakeCheckpoint,
) -> None:
    """SIGSTOP: the rank is there, and does not answer."""
    with running(checkpoint(), "-tp", "2", "--step-timeout-s", "3") as (process, url):
        ranks = worker_pids(process.pid)
        body = {"prompt": "x", "max_tokens": 500, "ignore_eos": True}
        answers: list[httpx.Response] = []

        def ask() -> None:
            answers.append(httpx.post(f"{url}/v1/completions", json=body, timeout=60))

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        os.kill(ranks[1], signal.SIGSTOP)
        for thread in threads:
            thread.join()
        assert {answer.status_code for answer in answers} == {503}
        assert {answer.json()["error"]["type"] for answer in answers} == {"service_unavailable"}
        ready = httpx.get(f"{url}/ready")
        assert ready.status_code == 503
        assert "did not answer" in ready.json()["error"]["message"]
        assert process.wait() == 1
        wait_gone(ranks)


def test_a_killed_rank_makes_health_fail_and_the_process_end_with_1(
    checkpoint: MakeCheckpoint,
) -> None:
    with running(checkpoint(), "-tp", "2") as (process, url):
        ranks = worker_pids(process.pid)
        assert httpx.get(f"{url}/health").status_code == 200
        os.kill(ranks[1], signal.SIGKILL)
        while httpx.get(f"{url}/health").status_code == 200:
            time.sleep(0.05)
        response = httpx.post(f"{url}/v1/completions", json={"prompt": "x"})
        assert response.status_code == 503
        assert "rank 1: its process was killed by SIGKILL" in response.json()["error"]["message"]
        assert process.wait() == 1
        wait_gone(ranks)
