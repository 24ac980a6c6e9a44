"""What `render` writes: compared with golden files, checked by each platform's own tools.

`UPDATE_GOLDEN=1 pytest tests/clusterctl/test_render.py` writes tests/data/render again.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterctl import __version__, cli
from clusterctl.containers import docker_run_line
from clusterctl.errors import ConfigError
from clusterctl.launch import Place, container_for
from clusterctl.render import TARGETS, Asked, Rendered
from clusterctl.render.templates import shell_words
from clusterctl.spec import ClusterSpec, DevicesSpec, MountSpec, NetworkSpec, NodeSpec, ServeSpec
from tests.clusterctl.hosts import host_facts

GOLDEN = Path(__file__).parents[1] / "data" / "render"
TOOLS = Path(sys.executable).parent  # what the dev extra brings
HOSTILE = """/models/it's "$(reboot)"\n`reboot`; ${HOME} %h $$(X) é"""

PROD = ClusterSpec(
    name="prod",
    nodes=(
        NodeSpec("gpu01", "gpu01", user="root", cluster_address="10.0.0.1"),
        NodeSpec("gpu02", "gpu02", user="root", cluster_address="10.0.0.2"),
    ),
    head="gpu01",
    image="vllm/vllm-openai:v0.17.1",
    devices=DevicesSpec("gpu", 8),
    env={"NCCL_IB_HCA": "mlx5", "NOTE": "it's $(reboot)"},
    model_dirs=("/models",),
    mounts=(MountSpec("/scratch", "/scratch"),),
    hf_home="/data/hf",
    network=NetworkSpec(interface="eth0"),
)
LLAMA = ServeSpec("meta-llama/Llama-3.1-70B", "llama-3.1-70b", tp=8, pp=2, engine="vllm")
ASKED = {
    "ray": Asked(PROD, LLAMA),
    "mp": Asked(PROD, replace(LLAMA, executor="mp")),
    "native": Asked(PROD, replace(LLAMA, engine="native")),
    "alone": Asked(PROD),
}


def rendered(target: str, variant: str) -> Rendered:
    return TARGETS[target](ASKED[variant])


def whole(done: Rendered) -> str:
    return "".join(f"# === {file.name}\n{file.text}" for file in done.files)


@pytest.mark.parametrize("variant", ASKED)
@pytest.mark.parametrize("target", ["shell"])
def test_golden(target: str, variant: str) -> None:
    text = whole(rendered(target, variant)).replace(f"version={__version__}", "version=VERSION")
    begin, end = text.find("<<'END OF SUPERVISOR'\n"), text.find("END OF SUPERVISOR\n}")
    text = text[:begin] + "<<'END OF SUPERVISOR'\n...\n" + text[end:] if begin > 0 else text
    golden = GOLDEN / f"{target}-{variant}.txt"
    if "UPDATE_GOLDEN" in os.environ:
        golden.write_text(text)
    assert text == golden.read_text()


# --- shell ---------------------------------------------------------------------------------------


def shellcheck(text: str, tmp_path: Path) -> None:
    script = tmp_path / "script.sh"
    script.write_text(text)
    subprocess.run(["bash", "-n", script], check=True)
    done = subprocess.run(
        [TOOLS / "shellcheck", "--shell", "bash", script],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("variant", ASKED)
def test_a_shell_takes_the_script(variant: str, tmp_path: Path) -> None:
    shellcheck(rendered("shell", variant).files[0].text, tmp_path)


def test_the_lines_are_those_of_up() -> None:
    """With everything declared, what is known of the hosts adds nothing."""
    seen = {
        node.name: Place(
            facts=replace(
                host_facts(node.name, node.cluster_address or ""), rdma_devices=("mlx5_0",)
            ),
            address=node.cluster_address or "",
            interface="eth0",
            home="/opt/clusterctl",
            state_dir="/var/lib/clusterctl/prod",
        )
        for node in PROD.nodes
    }
    text = rendered("shell", "ray").files[0].text.splitlines()
    for node in PROD.nodes:
        line = docker_run_line(container_for(PROD, node, seen[node.name], "10.0.0.1"))
        assert line in text
    assert TARGETS["shell"](replace(ASKED["ray"], places=seen)) == rendered("shell", "ray")


def test_what_is_not_declared_is_left_out_and_named() -> None:
    nodes = tuple(replace(node, user=None) for node in PROD.nodes)
    bare = replace(
        PROD, nodes=nodes, network=NetworkSpec(), hf_home=None, devices=DevicesSpec(), env={}
    )
    done = TARGETS["shell"](Asked(bare))
    assert done.left_out == (
        "NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME, TP_SOCKET_IFNAME, UCX_NET_DEVICES: declare "
        "network.interface",
        "--num-gpus, Ray counts them itself: declare devices: gpu:N or give --gpus-per-node",
        "the mount of the Hugging Face home: declare hf_home",
        "the mount that keeps compiled code: declare user: root, or use --live",
        "/dev/infiniband: declare NCCL_IB_HCA in env where there are RDMA adapters",
    )
    text = done.files[0].text
    for word in ("SOCKET_IFNAME=", "--num-gpus=", "target=/root", "infiniband,", "/cache,"):
        assert word not in text
    assert all(f"#   {what}" in text for what in done.left_out)
    assert "--gpus all" in text


def test_an_address_is_never_made_up() -> None:
    nodes = tuple(replace(node, cluster_address=None) for node in PROD.nodes)
    with pytest.raises(ConfigError, match="address of gpu01, gpu02 is not declared"):
        TARGETS["shell"](Asked(replace(PROD, nodes=nodes)))


def test_the_native_engine_without_ray_stays_on_one_node() -> None:
    with pytest.raises(ConfigError, match="executor mp of the native engine runs on one node"):
        TARGETS["shell"](Asked(PROD, replace(LLAMA, engine="native", executor="mp")))


def test_a_hostile_model_stays_one_word(tmp_path: Path) -> None:
    """The script runs with a docker that writes down what it is asked."""
    log = tmp_path / "log"
    docker = tmp_path / "bin" / "docker"
    docker.parent.mkdir()
    docker.write_text(f"#!/bin/sh\nfor word; do printf '%s\\0' \"$word\"; done >>{log}\n")
    docker.chmod(0o755)
    asked = Asked(PROD, replace(LLAMA, model=HOSTILE, extra=(HOSTILE,)))
    script = tmp_path / "prod.sh"
    script.write_text(TARGETS["shell"](asked).files[0].text)
    environment = {**os.environ, "PATH": f"{docker.parent}:{os.environ['PATH']}"}
    subprocess.run(["bash", script, "serve"], env=environment, check=True)
    words = log.read_bytes().decode().split("\0")
    assert words.count(HOSTILE) == 3
    shellcheck(script.read_text(), tmp_path)


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))))
def test_words_come_through_a_shell(words: list[str]) -> None:
    assert shlex.split(shell_words(words)) == words


def test_stand_ins_become_expansions() -> None:
    line = shell_words(["--address=\0head:6379", "a b", "\0head"], {"\0head": '"$HEAD"'})
    assert line == '--address="$HEAD":6379 \'a b\' "$HEAD"'


# --- the command ---------------------------------------------------------------------------------

YAML = """\
name: prod
head: gpu01
hosts:
  - {name: gpu01, cluster_address: 10.0.0.1}
  - {name: gpu02, cluster_address: 10.0.0.2}
hf_home: /data/hf
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "cluster.yaml").write_text(YAML)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_writes_a_file_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["render", "shell", "org/model", "--tp", "8", "--gpus-per-node", "8", "-o", "out.sh"]
    assert cli.run(line) == 0
    assert (folder / "out.sh").stat().st_mode & 0o777 == 0o755
    said = capsys.readouterr()
    assert said.out == "out.sh written\n"
    assert "warning: left out: /dev/infiniband" in said.err
    assert "--num-gpus=8" in (folder / "out.sh").read_text()
    assert cli.run(line) == 2
    assert cli.run([*line, "--yes"]) == 0


def test_the_command_as_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["render", "shell", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert sorted(said) == ["files", "left_out", "schema_version", "target"]
    assert list(said["files"]) == ["prod.sh"]


def test_an_unknown_target_lists_all(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["render", "helm"]) == 2
    assert "shell" in capsys.readouterr().err
