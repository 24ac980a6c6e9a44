"""What `render` writes: compared with golden files, checked by each platform's own tools.

`UPDATE_GOLDEN=1 pytest tests/clusterctl/test_render.py` writes tests/data/render again.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from clusterctl import __version__, cli
from clusterctl.containers import docker_run_line
from clusterctl.errors import ConfigError
from clusterctl.launch import Place, container_for
from clusterctl.render import TARGETS, Asked, Rendered
from clusterctl.render.templates import shell_words
from clusterctl.secret import Secret
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


CANNOT = {("kuberay", "mp"), ("lws", "alone")}
PAIRS = [(target, one) for target in TARGETS for one in ASKED if (target, one) not in CANNOT]


def need(package: str) -> None:
    """A Debian package, by which the platform's own tool checks what we wrote."""
    installed = subprocess.run(["dpkg", "-s", package], capture_output=True, check=False)
    if installed.returncode != 0:
        if os.geteuid() != 0:
            pytest.skip(f"{package} is not installed, and only root can do that")
        install = ["apt-get", "install", "-q", "-y", "--no-install-recommends", package]
        subprocess.run(["apt-get", "update", "-q"], check=True, capture_output=True)
        subprocess.run(install, check=True, capture_output=True)


def rendered(target: str, variant: str) -> Rendered:
    return TARGETS[target](ASKED[variant])


def whole(done: Rendered) -> str:
    return "".join(f"# === {file.name}\n{file.text}" for file in done.files)


@pytest.mark.parametrize(("target", "variant"), PAIRS)
def test_golden(target: str, variant: str) -> None:
    text = whole(rendered(target, variant)).replace(f"version={__version__}", "version=VERSION")
    text = re.sub(r"(?s)(\nsupervisor\(\) \{\n).*(END OF FILE\n\}\n)", r"\1...\n\2", text)
    if target == "k8s-job":
        code, _, rest = text.partition("\n---\n")
        text = code[: code.index("data:")] + "data: ...\n---\n" + rest
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
        [TOOLS / "shellcheck", "--shell", "bash", "--severity", "warning", script],
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


# --- compose and systemd -------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ASKED)
def test_compose_takes_the_file(variant: str, tmp_path: Path) -> None:
    configuration = compose_config(rendered("compose", variant).files[0].text, tmp_path)
    assert configuration["services"]["gpu02"]["image"] == PROD.image


def compose_config(text: str, folder: Path) -> dict[str, Any]:
    need("docker-compose")
    (folder / "compose.yaml").write_text(text)
    for secret in ("ray_token", "secrets.env"):
        (folder / secret).touch(0o600)
    line = ["docker-compose", "-f", "compose.yaml", "--profile", "gpu01", "--profile", "gpu02"]
    done = subprocess.run(
        [*line, "config"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = yaml.safe_load(done.stdout)
    return found


def test_compose_keeps_what_is_hostile(tmp_path: Path) -> None:
    spec = replace(PROD, env={"NOTE": HOSTILE})
    asked = Asked(spec, replace(LLAMA, model=HOSTILE))
    service = compose_config(TARGETS["compose"](asked).files[0].text, tmp_path)["services"]["gpu01"]
    # `config` doubles the dollars again: its output is a compose file too
    assert service["environment"]["NOTE"].replace("$$", "$") == HOSTILE
    script = service["command"][0].replace("$$", "$")
    assert shlex.quote(HOSTILE) in script


@pytest.mark.parametrize("variant", ASKED)
def test_systemd_takes_the_units(variant: str, tmp_path: Path) -> None:
    verify_units(rendered("systemd", variant), tmp_path)


def verify_units(done: Rendered, folder: Path) -> None:
    need("systemd")
    for file in done.files:
        path = folder / file.name
        path.parent.mkdir(exist_ok=True)
        path.write_text(file.text)
        if path.suffix == ".sh":
            shellcheck(file.text, folder)
            continue
        checked = subprocess.run(
            ["systemd-analyze", "verify", path], capture_output=True, text=True, check=False
        )
        # What this machine's own units lack is not ours.
        ours = [line for line in checked.stderr.splitlines() if str(folder) in line]
        assert ours == []
        assert checked.returncode == 0, checked.stderr


def test_systemd_keeps_what_is_hostile(tmp_path: Path) -> None:
    spec = replace(PROD, env={"NOTE": HOSTILE})
    done = TARGETS["systemd"](Asked(spec, replace(LLAMA, model=HOSTILE)))
    verify_units(done, tmp_path)
    (start,) = [ln for ln in done.files[0].text.splitlines() if ln.startswith("ExecStart=")]
    word = r"""NOTE=/models/it's \"$$(reboot)\"\n`reboot`; $${HOME} %%h $$$$(X) é"""
    assert f'"{word}"' in start


# --- Kubernetes ----------------------------------------------------------------------------------

SCHEMAS = Path(__file__).parents[3] / "shared" / "data" / "schemas"
DEFINITIONS = {
    "RayCluster": "ray.io_rayclusters.yaml",
    "RayService": "ray.io_rayservices.yaml",
    "RayJob": "ray.io_rayjobs.yaml",
    "LeaderWorkerSet": "leaderworkerset.x-k8s.io_leaderworkersets.yaml",
}


@cache
def custom_schema(kind: str, version: str) -> dict[str, Any]:
    path = SCHEMAS / DEFINITIONS[kind]
    if not path.exists():
        pytest.skip(f"the published definition of {kind} is not at {path}")
    definition = yaml.load(path.read_text(), Loader=yaml.CSafeLoader)
    found = {one["name"]: one for one in definition["spec"]["versions"]}
    schema: dict[str, Any] = found[version]["schema"]["openAPIV3Schema"]
    return closed(schema)


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """The API server drops keys that it does not know; here they are refused."""
    for below in schema.get("properties", {}).values():
        closed(below)
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            closed(schema[key])
    if "properties" in schema and "x-kubernetes-preserve-unknown-fields" not in schema:
        schema.setdefault("additionalProperties", False)
        if schema.get("additionalProperties") is False:
            for key in ("apiVersion", "kind", "metadata"):
                schema["properties"].setdefault(key, {})
    return schema


def valid(text: str) -> list[dict[str, Any]]:
    manifests = list(yaml.safe_load_all(text))
    for one in manifests:
        if one["kind"] in DEFINITIONS:
            version = one["apiVersion"].partition("/")[2]
            jsonschema.validate(one, custom_schema(one["kind"], version))
        else:
            kubernetes_validate.validate(one, "1.31", strict=True)
    return manifests


@pytest.mark.parametrize(
    ("target", "variant"), [pair for pair in PAIRS if pair[0] in ("kuberay", "lws", "k8s-job")]
)
def test_kubernetes_takes_the_manifests(target: str, variant: str) -> None:
    valid(rendered(target, variant).files[0].text)


def test_the_check_of_a_schema_would_fail() -> None:
    (first, *_) = yaml.safe_load_all(rendered("lws", "ray").files[0].text)
    first["spec"]["leaderWorkerTemplate"]["sise"] = 3
    with pytest.raises(jsonschema.ValidationError, match="sise"):
        jsonschema.validate(first, custom_schema("LeaderWorkerSet", "v1"))


def test_kinds_of_kuberay() -> None:
    kinds = {
        variant: [one["kind"] for one in valid(rendered("kuberay", variant).files[0].text)]
        for variant in ("alone", "ray", "native")
    }
    assert kinds == {
        "alone": ["RayCluster"],
        "ray": ["RayService"],
        "native": ["RayJob", "Service"],
    }


def test_manifests_keep_what_is_hostile(tmp_path: Path) -> None:
    """As the kubelet would hand it to the container: `$$` is `$`, `$(NAME)` of nothing stays."""
    spec = replace(PROD, env={"NOTE": HOSTILE})
    (lws, _) = valid(TARGETS["lws"](Asked(spec, replace(LLAMA, model=HOSTILE))).files[0].text)
    pod = lws["spec"]["leaderWorkerTemplate"]["leaderTemplate"]["spec"]["containers"][0]
    (note,) = [one["value"] for one in pod["env"] if one["name"] == "NOTE"]
    assert expanded(note) == HOSTILE
    script = expanded(pod["command"][2])
    assert shlex.quote(HOSTILE) in script
    shellcheck(f"#!/usr/bin/env bash\n{script}", tmp_path)


def expanded(text: str) -> str:
    """Kubernetes' third_party/forked/golang/expansion, without variables."""
    assert not re.search(r"(?<!\$)(\$\$)*\$\(", text), "the kubelet would look for a variable"
    return text.replace("$$", "$")


def test_no_secret_is_in_any_target() -> None:
    """They are named, never held."""
    key = Secret("planted-in-the-api-key")
    for target, variant in PAIRS:
        asked = ASKED[variant]
        if asked.serve is not None:
            asked = replace(asked, serve=replace(asked.serve, api_key=key))
        assert "planted" not in whole(TARGETS[target](asked))


def test_what_pods_have_no_place_for_is_said() -> None:
    nodes = (replace(PROD.nodes[0], env={"X": "1"}), PROD.nodes[1])
    serve = replace(LLAMA, extra=("--max-num-seqs", "8", "odd"), port=9)
    asked = Asked(replace(PROD, nodes=nodes), serve)
    assert TARGETS["kuberay"](asked).left_out == (
        "env of gpu01 alone: all pods of a group are alike",
        "network.interface eth0: it is the hosts', pods have their own",
        "the RDMA device plugin's resource, whose name is the cluster's own: add it",
        "the API key: Ray Serve's ingress asks for none; put a gateway that does before it",
        "port 9: Ray Serve listens on 8000",
        "odd: not a flag with a name",
    )


def test_a_number_of_gpus_is_never_made_up() -> None:
    for target in ("lws", "kuberay", "k8s-job", "slurm"):
        with pytest.raises(ConfigError, match="how many GPUs a node has is not declared"):
            TARGETS[target](Asked(replace(PROD, devices=DevicesSpec()), LLAMA))


# --- Slurm ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ASKED)
@pytest.mark.parametrize("runtime", ["pyxis", "apptainer", "modules"])
def test_a_shell_takes_the_batch_script(variant: str, runtime: Any, tmp_path: Path) -> None:
    asked = replace(ASKED[variant], slurm=runtime, modules=("cuda/12.8", "it's"))
    text = TARGETS["slurm"](asked).files[0].text
    shellcheck(text, tmp_path)
    assert ("module load cuda/12.8\nmodule load 'it'\"'\"'s'\n" in text) == (runtime == "modules")


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
