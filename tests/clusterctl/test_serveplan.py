"""What `serve --dry-run` prints, whole: it is the value that runs."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace

import pytest

from clusterctl.commands.serve import show_plan
from clusterctl.serving.door import TlsFiles
from clusterctl.serving.placement import Engine, Executor, Placement
from clusterctl.serving.plan import ServePlan, Site, plan
from clusterctl.spec import ServeSpec

SITE = Site(
    addresses={"gpu01": "10.0.0.1", "gpu02": "10.0.0.2"},
    home="/opt/clusterctl",
    package_directory="/opt/clusterctl/engine-1",
    key_file="/opt/clusterctl/secrets/llama.key",
    ray_address="10.0.0.1:6379",
    host="10.0.0.1",
    owner="prod/llama",
    env={"NCCL_DEBUG": "INFO"},
)
SPEC = ServeSpec("/models/llama", "llama", tp=8, pp=2, extra=("--max-num-seqs", "8"))


def planned(engine: Engine, executor: Executor, *nodes: str) -> ServePlan:
    return plan(SPEC, Placement(engine, executor, nodes, "why this one", "and that"), SITE)


def printed(found: ServePlan, capsys: pytest.CaptureFixture[str]) -> list[str]:
    show_plan(found, as_json=False)
    engine, executor, *rest = capsys.readouterr().out.splitlines()
    assert engine == f"engine:   {found.placement.engine} (why this one)"
    assert executor == f"executor: {found.placement.executor} (and that)"
    return rest


VLLM = (
    "vllm serve /models/llama --served-model-name /models/llama --tensor-parallel-size 8 "
    "--pipeline-parallel-size 2 --distributed-executor-backend {} --dtype auto "
    "--host 10.0.0.1 --port 8000{} --max-num-seqs 8"
)
OWNER = "NCCL_DEBUG=INFO ENGINE_DEPLOYMENT=prod/llama PYTHONUNBUFFERED=1"
KEY = 'VLLM_API_KEY="$(cat /opt/clusterctl/secrets/llama.key)"'


def test_vllm_over_two_nodes(capsys: pytest.CaptureFixture[str]) -> None:
    group = " --nnodes 2 --node-rank {} --master-addr 10.0.0.1 --master-port 29501{}"
    assert printed(planned("vllm", "mp", "gpu01", "gpu02"), capsys) == [
        "",
        "# gpu02",
        f"env {OWNER} {VLLM.format('mp', group.format(1, ' --headless'))}",
        "",
        "# gpu01",
        f"env {KEY} {OWNER} {VLLM.format('mp', group.format(0, ''))}",
    ]


@pytest.mark.parametrize("engine", ["native", "vllm"])
def test_tls_is_the_business_of_who_serves_the_api(engine: Engine) -> None:
    files = TlsFiles("/c/m.crt", "/c/m.tls-key")
    placement = Placement(engine, "mp", ("gpu01", "gpu02"), "", "")
    found = plan(SPEC, placement, replace(SITE, tls=files, node_env={"gpu01": {"A": "1"}}))
    *others, head = found.processes.values()
    assert shlex.join(head.argv).endswith(
        "--ssl-certfile /c/m.crt --ssl-keyfile /c/m.tls-key --max-num-seqs 8"
        if engine == "native"
        else "--ssl-certfile /c/m.crt --ssl-keyfile /c/m.tls-key --nnodes 2 --node-rank 0 "
        "--master-addr 10.0.0.1 --master-port 29501 --max-num-seqs 8"
    )
    assert head.env["A"] == "1"
    assert all("ssl" not in word for one in others for word in one.argv)
    assert all("A" not in one.env for one in others)


def test_vllm_over_ray(capsys: pytest.CaptureFixture[str]) -> None:
    job = shlex.quote('{"runtime_env": {"env_vars": {"ENGINE_DEPLOYMENT": "prod/llama"}}}')
    job = f"'RAY_JOB_CONFIG_JSON_ENV_VAR={job[1:]}"
    ray = f"RAY_ADDRESS=10.0.0.1:6379 RAY_DEDUP_LOGS=0 {job}"
    assert printed(planned("vllm", "ray", "gpu01"), capsys) == [
        "",
        "# gpu01: /opt/clusterctl/vllm/ray_non_carry_over_env_vars.json",
        '["GLOO_SOCKET_IFNAME", "NCCL_IB_GID_INDEX", "NCCL_IB_HCA", "NCCL_SOCKET_IFNAME", '
        '"TP_SOCKET_IFNAME", "UCX_NET_DEVICES", "VLLM_HOST_IP"]',
        "",
        "# gpu01",
        f"env {KEY} {OWNER} {ray} VLLM_CONFIG_ROOT=/opt/clusterctl/vllm {VLLM.format('ray', '')}",
    ]


def test_the_native_engine(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(planned("native", "ray", "gpu01"), capsys) == [
        "",
        "# gpu01",
        "env NCCL_DEBUG=INFO ENGINE_DEPLOYMENT=prod/llama PYTHONPATH=/opt/clusterctl/engine-1 "
        "PYTHONUNBUFFERED=1 RAY_ADDRESS=10.0.0.1:6379 "
        "python3 -m engine serve /models/llama --served-model-name /models/llama "
        "--tensor-parallel-size 8 --pipeline-parallel-size 2 --distributed-executor-backend ray "
        "--dtype auto --host 10.0.0.1 --port 8000 "
        "--api-key-file /opt/clusterctl/secrets/llama.key --max-num-seqs 8",
    ]


def test_as_json_with_the_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    show_plan(planned("vllm", "mp", "gpu01", "gpu02"), as_json=True)
    said = json.loads(capsys.readouterr().out)
    assert (said["engine"], said["engine_reason"]) == ("vllm", "why this one")
    assert (said["executor"], said["executor_reason"]) == ("mp", "and that")
    assert [process["node"] for process in said["processes"]] == ["gpu02", "gpu01"]
