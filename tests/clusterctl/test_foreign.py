"""Clusters of other tools become cluster.yaml; what has no place there is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clusterctl import cli
from clusterctl.config import Flags, load_spec
from clusterctl.errors import ConfigError
from clusterctl.foreign import convert, kind_of
from clusterctl.spec import ClusterSpec

RUN_CLUSTER = r"""
# head
bash run_cluster.sh \
                vllm/vllm-openai \
                10.0.0.1 \
                --head \
                /path/to/the/huggingface/home/in/this/node \
                -e VLLM_HOST_IP=10.0.0.1 --privileged \
                -e NCCL_IB_HCA=mlx5 --cap-add=CAP_SYS_ADMIN -e NCCL_SOCKET_IFNAME=eth0 \
                -e HF_TOKEN=hf_planted
bash run_cluster.sh \
                vllm/vllm-openai \
                10.0.0.1 \
                --worker \
                /path/to/the/huggingface/home/in/this/node \
                -e VLLM_HOST_IP=10.0.0.2 --privileged \
                -eNCCL_IB_HCA=mlx5 --cap-add CAP_SYS_ADMIN --env=NCCL_SOCKET_IFNAME=eth0
"""


def loaded(text: str, tmp_path: Path) -> ClusterSpec:
    """By our own loader."""
    file = tmp_path / "cluster.yaml"
    file.write_text(text)
    return load_spec(Flags(config=file), {}, tmp_path).spec


def imported(text: str, kind: str, tmp_path: Path) -> tuple[ClusterSpec, list[str]]:
    assert kind_of(text) == kind
    draft = convert(text, kind)
    return loaded(draft.text(), tmp_path), draft.lost


def test_run_cluster_is_carried_over(tmp_path: Path) -> None:
    spec, lost = imported(RUN_CLUSTER, "run_cluster", tmp_path)
    assert [(one.name, one.cluster_address) for one in spec.nodes] == [
        ("10.0.0.1", "10.0.0.1"),
        ("10.0.0.2", "10.0.0.2"),
    ]
    assert spec.head == "10.0.0.1"
    assert spec.image == "vllm/vllm-openai"
    assert spec.hf_home == "/path/to/the/huggingface/home/in/this/node"
    assert spec.env == {"NCCL_IB_HCA": "mlx5", "NCCL_SOCKET_IFNAME": "eth0"}
    assert [one.partition(":")[0] for one in lost] == [
        "--privileged",
        "--cap-add CAP_SYS_ADMIN",
        "HF_TOKEN",
    ]
    assert "planted" not in str(lost)


def test_run_cluster_round_trips_into_docker_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lines.txt").write_text(RUN_CLUSTER)
    assert cli.run(["import", "lines.txt", "-o", "cluster.yaml"]) == 0
    assert "not carried over: --privileged" in capsys.readouterr().err
    assert cli.run(["render", "shell", "org/model", "--tp", "8", "--pp", "2"]) == 0
    lines = [
        line
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("docker run --detach")
    ]
    assert len(lines) == 2
    for own, line in zip(("10.0.0.1", "10.0.0.2"), lines, strict=True):
        for word in (
            f"--env VLLM_HOST_IP={own}",
            "--env NCCL_IB_HCA=mlx5",
            "--env NCCL_SOCKET_IFNAME=eth0",
            "source=/path/to/the/huggingface/home/in/this/node,target=/root/.cache/huggingface",
            " vllm/vllm-openai ",
            "--device /dev/infiniband",
            "--gpus all",
        ):
            assert word in line
    assert "--wait-for 10.0.0.1:6379" in lines[1]
    assert "planted" not in (tmp_path / "cluster.yaml").read_text()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("run_cluster.sh i <head_node_ip> --head /hf", "<head_node_ip>, a placeholder"),
        ("run_cluster.sh i 10.0.0.1 --head $HOME/hf", "which a shell would replace"),
        ("run_cluster.sh i 10.0.0.1 /hf", "not a line of run_cluster.sh"),
    ],
)
def test_what_a_line_does_not_say_is_not_made_up(line: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        convert(line, "run_cluster")


def test_differences_between_nodes(tmp_path: Path) -> None:
    text = (
        "run_cluster.sh a:1 10.0.0.1 --head /hf -e A=1 -v /models:/models:ro\n"
        "run_cluster.sh b:2 10.0.0.1 --worker /other -e A=2 -e VLLM_HOST_IP=10.0.0.2\n"
        "run_cluster.sh a:1 10.0.0.1 --worker /hf\n"
    )
    spec, lost = imported(text, "run_cluster", tmp_path)
    assert [node.env for node in spec.nodes] == [{"A": "1"}, {"A": "2"}]
    assert [(one.source, one.read_only) for one in spec.mounts] == [("/models", True)]
    assert lost == [
        "image b:2: all nodes have one, a:1",
        "hf_home /other: all nodes have one, /hf",
        "a worker: without -e VLLM_HOST_IP=ADDRESS nothing says which host it is",
    ]


def test_ray(tmp_path: Path) -> None:
    text = """
cluster_name: lab
provider: {type: local, head_ip: 10.0.0.1, worker_ips: [10.0.0.2, gpu03]}
auth: {ssh_user: alice, ssh_private_key: ~/.ssh/id_ed25519}
docker:
  image: rayproject/ray-llm:2.56.0
  container_name: ray
  run_options: ["--ulimit nofile=65536:65536", "-v /data:/data", "-e NCCL_DEBUG=INFO"]
setup_commands: [pip install vllm]
"""
    spec, lost = imported(text, "ray", tmp_path)
    assert (spec.name, spec.head, spec.image) == ("lab", "10.0.0.1", "rayproject/ray-llm:2.56.0")
    assert [(one.address, one.user) for one in spec.nodes] == [
        ("10.0.0.1", "alice"),
        ("10.0.0.2", "alice"),
        ("gpu03", "alice"),
    ]
    assert spec.env == {"NCCL_DEBUG": "INFO"}
    assert [one.partition(":")[0] for one in lost] == [
        "container_name",
        "--ulimit nofile=65536",
        "setup_commands",
    ]
    with pytest.raises(ConfigError, match="provider aws makes machines"):
        convert("provider: {type: aws}", "ray")


INI = """
[head]
gpu01 ansible_host=10.0.0.1 ansible_port=2222
[workers]
gpu[02:04] rack=7
[all:vars]
ansible_user=alice
ansible_become_password=planted
"""
YAML = """
all:
  vars: {ansible_user: alice, ansible_become_password: planted}
  children:
    head: {hosts: {gpu01: {ansible_host: 10.0.0.1, ansible_port: 2222}}}
    workers: {hosts: {"gpu[02:04]": {rack: 7}}}
"""


@pytest.mark.parametrize(("text", "kind"), [(INI, "ansible"), (YAML, "ansible-yaml")])
def test_ansible(text: str, kind: str, tmp_path: Path) -> None:
    spec, lost = imported(text, kind, tmp_path)
    assert [(one.name, one.address, one.port, one.user) for one in spec.nodes] == [
        ("gpu01", "10.0.0.1", 2222, "alice"),
        ("gpu02", "gpu02", None, "alice"),
        ("gpu03", "gpu03", None, "alice"),
        ("gpu04", "gpu04", None, "alice"),
    ]
    assert spec.head == "gpu01"
    assert {one.partition(":")[0] for one in lost} == {"rack", "ansible_become_password"}
    assert "planted" not in str(lost)


def test_slurm(tmp_path: Path) -> None:
    spec, lost = imported("gpu[01-03,07],login1,r[1-2]n[05]", "slurm", tmp_path)
    assert [one.name for one in spec.nodes] == [
        *("gpu01", "gpu02", "gpu03", "gpu07"),
        *("login1", "r1n05", "r2n05"),
    ]
    assert lost == []


def test_spark_vllm_docker(tmp_path: Path) -> None:
    text = 'CLUSTER_NODES="10.0.0.1,10.0.0.2"\nETH_IF=enp1s0f1np1\nIB_IF=rocep1s0f1\nMODE=x\n'
    spec, lost = imported(text, "spark-vllm-docker", tmp_path)
    assert [one.cluster_address for one in spec.nodes] == ["10.0.0.1", "10.0.0.2"]
    assert spec.network.interface == "enp1s0f1np1"
    assert spec.env == {"NCCL_IB_HCA": "rocep1s0f1"}
    assert lost == ["MODE: has no key in cluster.yaml"]


def test_sparkrun(tmp_path: Path) -> None:
    text = "name: lab\nhosts: [10.0.0.1, 10.0.0.2]\nuser: nv\ntransfer_mode: push\n"
    spec, lost = imported(text, "sparkrun", tmp_path)
    assert (spec.name, [one.user for one in spec.nodes]) == ("lab", ["nv", "nv"])
    assert lost == ["transfer_mode: has no key in cluster.yaml"]


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(["import", "gpu[01-02]", "--name", "lab"]) == 0
    assert [n.name for n in loaded(capsys.readouterr().out, tmp_path).nodes] == ["gpu01", "gpu02"]
    assert cli.run(["import", "gpu[01-02]", "-o", "cluster.yaml"]) == 2
    assert cli.run(["import", "gpu[01-02]", "-o", "cluster.yaml", "--yes"]) == 0
    capsys.readouterr()
    assert cli.run(["import", "gpu[01-02]", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["from"] == "slurm"
    assert said["not_carried_over"] == []
    assert cli.run(["import", "nowhere.ini"]) == 2
    assert "there is no such file" in capsys.readouterr().err
    assert cli.run(["import", "gpu[01-02]", "--from", "ray"]) == 2
    assert cli.run(["import", "?? ??"]) == 2
    assert "--from run_cluster|ray" in capsys.readouterr().err
