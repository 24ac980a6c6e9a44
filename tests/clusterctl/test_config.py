"""cluster.yaml, flags and environment: what they mean, what is refused, and with which words."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from textwrap import dedent

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clusterctl.config import (
    Flags,
    Loaded,
    explained,
    load_flags,
    load_spec,
    schema,
    spec_from_dict,
    spec_to_dict,
    spec_to_yaml,
)
from clusterctl.config.document import dump_document, parse_document
from clusterctl.config.hostlist import expand, parse_host
from clusterctl.errors import ConfigError
from clusterctl.spec import (
    DEFAULT_IMAGE,
    ClusterSpec,
    DevicesSpec,
    LimitsSpec,
    MountSpec,
    NetworkSpec,
    NodeSpec,
    ProxySpec,
    RaySpec,
    SshSpec,
)


def load(
    directory: Path,
    text: str | None,
    flags: Flags | None = None,
    env: Mapping[str, str] | None = None,
) -> Loaded:
    """Load `text` as ./cluster.yaml (None: there is none), with a config directory of its own."""
    if text is not None:
        (directory / "cluster.yaml").write_text(dedent(text))
    return load_spec(
        flags or Flags(), {"XDG_CONFIG_HOME": str(directory / "xdg"), **(env or {})}, directory
    )


def refusal(directory: Path, text: str | None, **more: object) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(directory, text, **more)  # type: ignore[arg-type]
    return caught.value


class TestFile:
    def test_a_list_of_names_is_a_cluster(self, tmp_path: Path) -> None:
        spec = load(tmp_path, "hosts: [gpu01, gpu02]").spec
        assert spec == ClusterSpec(
            name="gpu01",
            nodes=(NodeSpec("gpu01", "gpu01"), NodeSpec("gpu02", "gpu02")),
            head="gpu01",
            image=DEFAULT_IMAGE,
        )

    def test_every_key(self, tmp_path: Path) -> None:
        spec = load(
            tmp_path,
            """\
            name: llama
            head: b
            image: registry:5000/team/image:1
            devices: {kind: gpu, count: 4}
            x-note: anything
            hosts:
              - name: a
                address: 10.0.0.1
                user: alice
                port: 2222
                identity: keys/id
                cluster_address: 192.168.0.1
                labels: {rack: r1}
                env: {NCCL_IB_HCA: mlx5_0}
                devices: cpu:2
              - bob@b:22
            env: {NCCL_DEBUG: INFO, OMP_NUM_THREADS: 4}
            model_dirs: [/models]
            mounts: ["/data:/data:ro", "/scratch:/tmp/scratch"]
            hf_home: /cache/hf
            network: {interface: eth1, subnet: 192.168.0.0/24, allow_public_address: true}
            ray: {port: 7000, insecure: true, object_store_memory: 100000000}
            proxies: {http: "http://proxy:3128", no_proxy: "localhost,.lan"}
            limits: {parallel_hosts: 8, connect_timeout: 3}
            ssh: {config: ssh_config, known_hosts: /etc/known, accept_new_host_keys: true}
            docker_socket: /run/user/1000/podman.sock
            runtime: docker
            """,
        ).spec
        assert spec == ClusterSpec(
            name="llama",
            head="b",
            image="registry:5000/team/image:1",
            devices=DevicesSpec("gpu", 4),
            nodes=(
                NodeSpec(
                    "a",
                    "10.0.0.1",
                    "alice",
                    2222,
                    str(tmp_path / "keys/id"),
                    "192.168.0.1",
                    {"rack": "r1"},
                    {"NCCL_IB_HCA": "mlx5_0"},
                    DevicesSpec("cpu", 2),
                ),
                NodeSpec("b", "b", "bob", 22),
            ),
            env={"NCCL_DEBUG": "INFO", "OMP_NUM_THREADS": "4"},
            model_dirs=("/models",),
            mounts=(MountSpec("/data", "/data", True), MountSpec("/scratch", "/tmp/scratch")),
            hf_home="/cache/hf",
            network=NetworkSpec("eth1", "192.168.0.0/24", True),
            ray=RaySpec(port=7000, insecure=True, object_store_memory=100_000_000),
            proxies=ProxySpec("http://proxy:3128", None, "localhost,.lan"),
            limits=LimitsSpec(parallel_hosts=8, connect_timeout=3.0),
            ssh=SshSpec(str(tmp_path / "ssh_config"), "/etc/known", True),
            docker_socket="/run/user/1000/podman.sock",
        )

    def test_keys_without_a_value_are_keys_not_given(self, tmp_path: Path) -> None:
        assert load(tmp_path, "hosts: [a]\nimage:\nnetwork:\n").spec.image == DEFAULT_IMAGE

    def test_anchors_may_live_under_x_keys(self, tmp_path: Path) -> None:
        spec = load(
            tmp_path,
            """\
            x-big: &big {user: root, devices: "gpu:8"}
            hosts:
              - {<<: *big, name: a}
              - {<<: *big, name: b, user: alice}
            """,
        ).spec
        assert [(n.user, n.devices) for n in spec.nodes] == [
            ("root", DevicesSpec("gpu", 8)),
            ("alice", DevicesSpec("gpu", 8)),
        ]

    @pytest.mark.parametrize(
        "written",
        [
            *("cpu", "cpu:2", "{kind: cpu, count: 2}", "auto", "gpu:1", "gpu=4-6,0"),
            *("{kind: gpu, indices: [0, 4, 5, 6]}", "{kind: gpu, count: 4, indices: [6, 5, 4, 0]}"),
        ],
    )
    def test_forms_of_devices(self, tmp_path: Path, written: str) -> None:
        meant = {
            "cpu": DevicesSpec("cpu"),
            "auto": DevicesSpec("auto"),
            "gpu:1": DevicesSpec("gpu", 1),
        }
        others = DevicesSpec("cpu", 2) if "cpu" in written else DevicesSpec("gpu", 4, (0, 4, 5, 6))
        spec = load(tmp_path, f"hosts: [a]\ndevices: {written}").spec
        assert spec.devices == meant.get(written, others)

    def test_json_is_yaml_beyond_16_bits_too(self, tmp_path: Path) -> None:
        text = json.dumps({"hosts": ["a"], "env": {"NOTE": "é 模 \U0001f4a3"}})
        assert load(tmp_path, text).spec.env == {"NOTE": "é 模 \U0001f4a3"}
        error = refusal(tmp_path, 'hosts: [a]\nenv: {NOTE: "\\ud83d"}')
        assert error.message == "cluster.yaml:2: half a character (a lone surrogate)"

    def test_a_long_value_is_not_shown_whole(self, tmp_path: Path) -> None:
        error = refusal(tmp_path, f"hosts: [a]\nimage: '{' ' * 10_000}'")
        assert error.message.endswith("... (10,002 characters)")
        assert len(error.message) < 250

    def test_a_second_cluster_on_the_same_hosts(self, tmp_path: Path) -> None:
        """Ports that are set stay; what was saved is not moved once more."""
        loaded = load(tmp_path, "hosts: [a]\nray: {port: 7000, port_offset: 1000}")
        ray = loaded.spec.ray
        assert (ray.port, ray.node_manager_port, ray.dashboard_port) == (7000, 7380, 9265)
        assert (ray.min_worker_port, ray.max_worker_port) == (11002, 11999)
        assert loaded.origins["ray.dashboard_port"].where == "cluster.yaml:2"
        saved = spec_to_yaml(loaded.spec)
        assert load(tmp_path, saved, Flags(port_offset=1000)).spec.ray == ray
        flag = load(tmp_path, "hosts: [a]", Flags(port_offset=1000))
        assert flag.origins["ray.port"].where == "--port-offset"


# What is wrong in the file -> the error's message, and its hint
REFUSED = {
    "unknown key": (
        "name: x\nimgae: y\nhosts: [a]",
        "cluster.yaml:2: unknown key 'imgae'",
        "did you mean 'image'?",
    ),
    "unknown key of a section": (
        "hosts: [a]\nray:\n  prot: 1",
        "cluster.yaml:3: unknown key 'ray.prot'",
        "did you mean 'port'?",
    ),
    "unknown key of a host": (
        "hosts:\n  - name: a\n    adress: b",
        "cluster.yaml:3: unknown key 'hosts[0].adress'",
        "did you mean 'address'?",
    ),
    "nothing near": (
        "hosts: [a]\nproxies: {zzz: 1}",
        "cluster.yaml:2: unknown key 'proxies.zzz'",
        "known keys here: http, https, no_proxy",
    ),
    "text for a number": (
        "hosts: [a]\nray:\n  port: '6379'",
        "cluster.yaml:3: ray.port should be a valid integer, not '6379'",
        None,
    ),
    "a yes that is no boolean": (
        "hosts: [a]\nray: {insecure: yes}",
        "cluster.yaml:2: ray.insecure should be a valid boolean, not 'yes'",
        None,
    ),
    "a port out of range": (
        "hosts:\n- {name: a, port: 70000}",
        "cluster.yaml:2: hosts[0].port should be less than or equal to 65535, not 70000",
        None,
    ),
    "a list for a mapping": (
        "hosts: [a]\nenv: [A=1]",
        "cluster.yaml:2: env should be a mapping, not ['A=1']",
        None,
    ),
    "text for a section": (
        "hosts: [a]\nnetwork: eth0",
        "cluster.yaml:2: network should be a mapping, not 'eth0'",
        None,
    ),
    "a host that a shell would run": (
        "hosts:\n  - $(reboot)",
        "cluster.yaml:2: hosts[0].name may hold letters, digits, '_', '.' and '-', begins with a "
        "letter or digit, and is at most 63 long: '$(reboot)'\n"
        "cluster.yaml:2: hosts[0].address must be a host name, an address or an ssh alias, without "
        "'-' in front, blanks, quotes or any of $\\;&<>|(){}: '$(reboot)'",
        None,
    ),
    "an address that ssh would take for an option": (
        "hosts:\n  - {name: a, address: -oProxyCommand=x}",
        "cluster.yaml:2: hosts[0].address must be a host name, an address or an ssh alias, without "
        "'-' in front, blanks, quotes or any of $\\;&<>|(){}: '-oProxyCommand=x'",
        None,
    ),
    "a port that is none": (
        "hosts: [a:ssh]",
        "cluster.yaml:1: hosts[0].port should be a valid integer, not 'ssh'",
        None,
    ),
    "a host without a name": (
        "hosts:\n- name: a\n- user: b",
        "cluster.yaml:3: hosts[1].name is missing",
        None,
    ),
    "a host that is a number": (
        "hosts:\n- 5",
        "cluster.yaml:2: a host is a name or a mapping, not 5",
        None,
    ),
    "hosts that are no list": ("hosts: gpu01", "cluster.yaml:1: hosts must be a list", None),
    "no hosts": (
        "name: x",
        "cluster.yaml: hosts must hold at least one",
        None,
    ),
    "a relative model directory": (
        "hosts: [a]\nmodel_dirs:\n  - models",
        "cluster.yaml:3: model_dirs[0] must be an absolute path on the hosts, without ':': "
        "'models'",
        None,
    ),
    "the root as a model directory": (
        "hosts: [a]\nmodel_dirs: [/]",
        "cluster.yaml:2: model_dirs[0] must be an absolute path on the hosts, without ':': '/'",
        None,
    ),
    "a mount of a relative path": (
        "hosts: [a]\nmounts: [data:/data]",
        "cluster.yaml:2: mounts[0] must be SOURCE:TARGET or SOURCE:TARGET:ro, both absolute paths: "
        "'data:/data'",
        None,
    ),
    "a variable's name": (
        "hosts: [a]\nenv: {1A: x}",
        "cluster.yaml:2: env.1A must be a variable's name: letters, digits and '_', no digit in "
        "front: '1A'",
        None,
    ),
    "a float in the environment": (
        "hosts: [a]\nenv:\n  V: 1.10",
        "cluster.yaml:3: env.V must be text: put it in quotes: 1.1",
        None,
    ),
    "a subnet": (
        "hosts: [a]\nnetwork: {subnet: 10.0.0.1/24}",
        "cluster.yaml:2: network.subnet 10.0.0.1/24 has host bits set: '10.0.0.1/24'",
        None,
    ),
    "two ports alike": (
        "hosts: [a]\nray: {port: 8265}",
        "cluster.yaml:2: ray port and dashboard_port are both 8265: a mapping",
        None,
    ),
    "a port among the workers'": (
        "hosts: [a]\nray: {port: 10500}",
        "cluster.yaml:2: ray port 10500 lies among the worker ports: a mapping",
        None,
    ),
    "a count of nothing": (
        "hosts: [a]\ndevices: {count: 2}",
        "cluster.yaml:2: devices count needs a kind: gpu or cpu: a mapping",
        None,
    ),
    "GPUs of no GPU host": (
        "hosts: [a]\ndevices: cpu=0",
        "cluster.yaml:2: devices indices are of GPUs: kind gpu: 'cpu=0'",
        None,
    ),
    "a GPU twice": (
        "hosts: [a]\ndevices: gpu=0,0",
        "cluster.yaml:2: devices indices name a GPU twice: 'gpu=0,0'",
        None,
    ),
    "a GPU that is no number": (
        "hosts: [a]\ndevices: gpu=0,x",
        "cluster.yaml:2: devices.indices[1] should be a valid integer, not 'x'",
        None,
    ),
    "another count": (
        "hosts: [a]\ndevices: {kind: gpu, count: 3, indices: [1]}",
        "cluster.yaml:2: devices count is 3, and indices name 1: a mapping",
        None,
    ),
    "a kind of devices": (
        "hosts: [a]\ndevices: tpu",
        "cluster.yaml:2: devices.kind should be 'auto', 'gpu' or 'cpu', not 'tpu'",
        None,
    ),
    "a head that is no host": (
        "head: gpu3\nhosts: [gpu01, gpu02, gpu03]",
        "cluster.yaml:1: the head 'gpu3' is not among the hosts",
        "did you mean 'gpu03'?",
    ),
    "a host given twice": (
        "hosts:\n- a\n- b\n- {name: a, address: c}",
        "cluster.yaml:4: the host name a is given twice",
        None,
    ),
    "one address under two names": (
        "hosts:\n- {name: a, address: x}\n- {name: b, address: x}",
        "cluster.yaml:3: two hosts have the address x port 22",
        None,
    ),
    "one cluster address twice": (
        "hosts:\n- {name: a, cluster_address: 10.0.0.1}\n- {name: b, cluster_address: 10.0.0.1}",
        "cluster.yaml:3: two hosts have the cluster address 10.0.0.1",
        None,
    ),
    "a key given twice": (
        "name: a\nname: b",
        "cluster.yaml:2: the key 'name' is given twice",
        None,
    ),
    "broken YAML": (
        "name: [a\nhosts: b",
        "cluster.yaml:2: expected ',' or ']', but got ':'",
        None,
    ),
    "a tag": (
        "name: !!python/name:os.system x",
        "cluster.yaml:1: the YAML tag tag:yaml.org,2002:python/name:os.system is not understood",
        None,
    ),
    "a list at the top": ("- a", "cluster.yaml:1: a mapping of keys was expected at the top", None),
    "a range backwards": (
        "hosts: ['gpu[3-1]']",
        "cluster.yaml:1: gpu[3-1]: the range [3-1] runs backwards",
        None,
    ),
    "ranges that do not pair": (
        "hosts:\n- {name: 'gpu[1-3]', address: '10.0.0.[1-2]'}",
        "cluster.yaml:2: address '10.0.0.[1-2]' stands for 2 hosts, not for 3",
        None,
    ),
    "a variable in brackets": (
        "hosts: [${H}]",
        "cluster.yaml:1: expected ',' or ']', but got '{'",
        'inside [...] and {...}, write "${VAR}" in quotes',
    ),
    "an unset variable": (
        "hosts: [a]\nimage: ${IMAGE_HERE}",
        "cluster.yaml:2: the environment variable IMAGE_HERE is not set",
        "export IMAGE_HERE=..., or give a default: ${IMAGE_HERE:-value}",
    ),
    "a variable that is none": (
        "hosts: [a]\nimage: ${a b}",
        "cluster.yaml:2: '${a b}' is not a variable",
        "write $${ for a literal ${",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_file_and_line(tmp_path: Path, case: str) -> None:
    text, message, hint = REFUSED[case]
    error = refusal(tmp_path, text)
    assert (error.message, error.hint) == (message, hint)


def test_every_fault_is_named_at_once(tmp_path: Path) -> None:
    error = refusal(tmp_path, "hosts: [a]\nimgae: x\nray: {port: none}\nhf_home: relative")
    assert [line.partition(": ")[0] for line in error.message.splitlines()] == [
        "cluster.yaml:4",
        "cluster.yaml:3",
        "cluster.yaml:2",
    ]


@pytest.mark.parametrize("name", ["HF_TOKEN", "VLLM_API_KEY", "AWS_SECRET_ACCESS_KEY", "PASSWORD"])
def test_secrets_are_refused_where_docker_inspect_would_show_them(
    tmp_path: Path, name: str
) -> None:
    error = refusal(tmp_path, f"hosts: [a]\nenv:\n  {name}: s3cret")
    assert error.message.startswith(f"cluster.yaml:3: env.{name} looks like a secret")
    assert "s3cret" not in error.message


@pytest.mark.parametrize("name", ["TOKENIZERS_PARALLELISM", "HF_TOKEN_PATH", "VLLM_USE_V1"])
def test_names_that_only_sound_secret_are_taken(tmp_path: Path, name: str) -> None:
    assert load(tmp_path, f"hosts: [a]\nenv: {{{name}: 'x'}}").spec.env == {name: "x"}


def test_a_proxy_with_a_password_is_refused(tmp_path: Path) -> None:
    error = refusal(tmp_path, "hosts: [a]\nproxies:\n  http: http://u:p4ss@proxy:3128")
    assert error.message.startswith("cluster.yaml:3: proxies.http holds a password")


class TestVariables:
    def test_replaced_where_set_and_typed_afterwards(self, tmp_path: Path) -> None:
        text = (
            "hosts:\n- ${H}\nray:\n  port: ${P}\nenv: {A: '${P}', B: '${N:-}', C: '$${H}', D: $H}"
        )
        spec = load(tmp_path, text, env={"H": "gpu07", "P": "7000"}).spec
        assert spec.head == "gpu07"
        assert spec.ray.port == 7000
        assert spec.env == {"A": "7000", "B": "", "C": "${H}", "D": "$H"}

    def test_the_default_stands_for_unset_and_empty(self, tmp_path: Path) -> None:
        text = "hosts: [a]\nimage: ${IMG:-one:1}"
        assert load(tmp_path, text, env={"IMG": ""}).spec.image == "one:1"
        assert load(tmp_path, text, env={"IMG": "two:2"}).spec.image == "two:2"


class TestHosts:
    def test_ranges(self) -> None:
        assert expand("gpu[08-10]") == ["gpu08", "gpu09", "gpu10"]
        assert expand("r[1-2]n[1-2]") == ["r1n1", "r1n2", "r2n1", "r2n2"]
        assert expand("plain") == ["plain"]

    @pytest.mark.parametrize(
        ("text", "entry"),
        [
            ("gpu01", {"name": "gpu01", "address": "gpu01"}),
            ("a@gpu01:22", {"name": "gpu01", "address": "gpu01", "user": "a", "port": 22}),
            ("fe80::1", {"name": "fe80--1", "address": "fe80::1"}),
            ("[fe80::1]:22", {"name": "fe80--1", "address": "fe80::1", "port": 22}),
            ("a@b@c", {"name": "c", "address": "c", "user": "a@b"}),
        ],
    )
    def test_short_form(self, text: str, entry: dict[str, object]) -> None:
        assert parse_host(text) == entry

    def test_ranges_in_a_mapping_go_side_by_side(self, tmp_path: Path) -> None:
        spec = load(tmp_path, "hosts:\n- {name: 'g[09-10]', address: '10.0.0.[1-2]', user: x}").spec
        assert spec.nodes == (
            NodeSpec("g09", "10.0.0.1", "x"),
            NodeSpec("g10", "10.0.0.2", "x"),
        )

    def test_two_hundred_hosts(self, tmp_path: Path) -> None:
        nodes = load(tmp_path, "hosts: ['gpu[001-200]']").spec.nodes
        assert (len(nodes), nodes[0].name, nodes[-1].name) == (200, "gpu001", "gpu200")


class TestFlags:
    def test_no_file_at_all(self, tmp_path: Path) -> None:
        loaded = load(tmp_path, None, Flags(head="alice@a:2222", workers=("b", "c[1-2]")))
        assert loaded.file is None
        assert loaded.spec.name == loaded.spec.head == "a"
        assert loaded.spec.nodes == (
            NodeSpec("a", "a", "alice", 2222),
            NodeSpec("b", "b"),
            NodeSpec("c1", "c1"),
            NodeSpec("c2", "c2"),
        )

    def test_flag_over_environment_over_file_over_default(self, tmp_path: Path) -> None:
        file = "hosts: [a]\nimage: file:1\ndevices: cpu:1\nhf_home: /file"
        env = {"INFERCLUSTER_IMAGE": "env:1", "INFERCLUSTER_DEVICES": "cpu:2"}
        loaded = load(tmp_path, file, Flags(image="flag:1"), env)
        assert (loaded.spec.image, loaded.spec.devices) == ("flag:1", DevicesSpec("cpu", 2))
        assert {
            key: loaded.origins[key].where
            for key in ("image", "devices.count", "hf_home", "ray.port", "network.subnet")
        } == {
            "image": "--image",
            "devices.count": "INFERCLUSTER_DEVICES",
            "hf_home": "cluster.yaml:4",
            "ray.port": "default",
            "network.subnet": "by up",
        }

    def test_mounts_and_variables_without_a_file(self, tmp_path: Path) -> None:
        flags = Flags(head="a", model_dirs=("/models", "/data"), env=("NCCL_DEBUG=INFO", "A=b=c"))
        spec = load(tmp_path, None, flags).spec
        assert spec.model_dirs == ("/models", "/data")
        assert spec.env == {"NCCL_DEBUG": "INFO", "A": "b=c"}

    def test_a_variable_of_a_flag_joins_those_of_the_file(self, tmp_path: Path) -> None:
        file = "hosts: [a]\nenv: {NCCL_DEBUG: INFO, KEPT: '1'}"
        spec = load(tmp_path, file, Flags(env=("NCCL_DEBUG=WARN",))).spec
        assert spec.env == {"NCCL_DEBUG": "WARN", "KEPT": "1"}

    def test_a_variable_without_a_value_is_refused(self, tmp_path: Path) -> None:
        error = refusal(tmp_path, "hosts: [a]", flags=Flags(env=("NCCL_DEBUG",)))
        assert error.message == "--env NCCL_DEBUG: there is no value"
        assert error.hint == "--env NCCL_DEBUG=VALUE"

    def test_a_fault_in_a_flag_names_the_flag(self, tmp_path: Path) -> None:
        error = refusal(tmp_path, "hosts: [a]", flags=Flags(devices="tpu"))
        assert (
            error.message == "--devices: devices.kind should be 'auto', 'gpu' or 'cpu', not 'tpu'"
        )
        error = refusal(tmp_path, None, flags=Flags(head="a", workers=("b c",)))
        assert error.message.startswith("--worker: hosts[1].name may hold")

    def test_hosts_of_flags_keep_what_the_file_says_of_them(self, tmp_path: Path) -> None:
        file = "hosts:\n- {name: a, user: root}\n- {name: b, port: 2222}\n- c"
        spec = load(tmp_path, file, Flags(head="b", workers=("d",))).spec
        assert spec.nodes == (NodeSpec("b", "b", port=2222), NodeSpec("d", "d"))

    def test_head_alone_picks_among_the_files_hosts(self, tmp_path: Path) -> None:
        spec = load(tmp_path, "name: n\nhosts: [a, b]", Flags(head="b")).spec
        assert (spec.head, [node.name for node in spec.nodes]) == ("b", ["a", "b"])
        error = refusal(tmp_path, "hosts: [gpu1, gpu2]", flags=Flags(head="gpu3"))
        assert error.message == "--head: the head 'gpu3' is not among the hosts"

    def test_worker_needs_head(self, tmp_path: Path) -> None:
        assert (
            refusal(tmp_path, None, flags=Flags(workers=("b",))).message == "--worker needs --head"
        )

    def test_one_head(self, tmp_path: Path) -> None:
        error = refusal(tmp_path, None, flags=Flags(head="g[1-2]"))
        assert error.message == "--head: 'g[1-2]' stands for 2 hosts"

    def test_files_named_by_flags_are_meant_from_here(self, tmp_path: Path) -> None:
        spec = load(tmp_path, None, Flags(head="a", ssh_config="conf")).spec
        assert spec.ssh.config == str(tmp_path / "conf")

    def test_load_flags_reads_no_file(self, tmp_path: Path) -> None:
        (tmp_path / "cluster.yaml").write_text("hosts: [other]\nimage: other:1")
        spec = load_flags(Flags(head="a"), {}, tmp_path).spec
        assert spec == ClusterSpec("a", (NodeSpec("a", "a"),), "a")


class TestWhichFile:
    def test_none(self, tmp_path: Path) -> None:
        error = refusal(tmp_path, None)
        assert error.message == (
            "no cluster: there is no cluster.yaml here and none was saved as the current one"
        )
        assert error.hint is not None
        assert "up --head HOST --worker HOST" in error.hint

    def test_named_by_flag_or_variable(self, tmp_path: Path) -> None:
        (tmp_path / "other.yaml").write_text("hosts: [x]")
        here = "hosts: [a]"
        assert load(tmp_path, here, Flags(config=Path("other.yaml"))).spec.head == "x"
        assert load(tmp_path, here, env={"INFERCLUSTER_CONFIG": "other.yaml"}).spec.head == "x"

    def test_missing(self, tmp_path: Path) -> None:
        error = refusal(tmp_path, None, flags=Flags(config=Path("no.yaml")))
        assert error.message == f"{tmp_path}/no.yaml: No such file or directory"

    def test_two_at_once(self, tmp_path: Path) -> None:
        error = refusal(tmp_path, None, flags=Flags(config=Path("c"), cluster="d"))
        assert error.message == "--cluster and --config name two clusters"


# Text that YAML, our dialect or the interpolation could take for something else
texts = st.one_of(
    st.sampled_from(
        ["", "1", "1.10", "true", "null", "~", "no", "012", "${X}", "$${", "a: b", "#"]
    ),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20),
)


@settings(deadline=None)
@given(st.dictionaries(texts, st.one_of(texts, st.integers(), st.booleans(), st.lists(texts))))
def test_dumped_text_is_read_back_equal(data: dict[str, object]) -> None:
    assert parse_document(dump_document(data), {}, file="f").data == data


names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,20}", fullmatch=True)
variables = st.dictionaries(
    st.from_regex(r"[A-Z][A-Z0-9_]{0,8}X", fullmatch=True), texts, max_size=3
)
paths = st.from_regex(r"/[a-z][a-z/]{0,10}", fullmatch=True)
ports = st.integers(1, 6000)
devices = st.one_of(
    st.just(DevicesSpec("gpu", 2, (1, 3))),
    st.builds(DevicesSpec, st.sampled_from(["gpu", "cpu"]), st.none() | st.integers(1, 16)),
    st.just(DevicesSpec()),
)
nodes = st.builds(
    NodeSpec,
    name=names,
    address=names,
    user=st.none() | names,
    port=st.none() | ports,
    identity=st.none() | paths,
    cluster_address=st.none() | st.ip_addresses().map(str),
    labels=st.dictionaries(texts, texts, max_size=2),
    env=variables,
    devices=st.none() | devices,
)


@st.composite
def specs(draw: st.DrawFn) -> ClusterSpec:
    members = draw(
        st.lists(
            nodes,
            min_size=1,
            max_size=4,
            unique_by=(
                lambda n: n.name,
                lambda n: n.address,
                lambda n: n.cluster_address or n.name,
            ),
        )
    )
    return ClusterSpec(
        name=draw(names),
        nodes=tuple(members),
        head=draw(st.sampled_from(members)).name,
        devices=draw(devices),
        env=draw(variables),
        model_dirs=tuple(draw(st.lists(paths, max_size=2))),
        mounts=tuple(draw(st.lists(st.builds(MountSpec, paths, paths, st.booleans()), max_size=2))),
        hf_home=draw(st.none() | paths),
        network=draw(
            st.builds(NetworkSpec, st.none() | st.just("eth0"), st.none() | st.just("10.0.0.0/8"))
        ),
        ray=draw(st.builds(RaySpec, port=ports, insecure=st.booleans())),
        limits=draw(st.builds(LimitsSpec, connect_timeout=st.floats(0.1, 1e6))),
        runtime=draw(st.sampled_from(["docker", "process"])),
    )


@settings(deadline=None)
@given(specs())
def test_a_spec_survives_as_data_and_as_yaml(spec: ClusterSpec) -> None:
    assert spec_from_dict(json.loads(json.dumps(spec_to_dict(spec)))) == spec
    document = parse_document(spec_to_yaml(spec), {}, file="f")
    assert spec_from_dict(document.data) == spec


def test_show_names_every_value_and_its_origin(tmp_path: Path) -> None:
    rows = explained(load(tmp_path, "hosts:\n- {name: a, port: 22}\nenv: {A: b}"))
    assert ("hosts[0].port", "22", "cluster.yaml:2") in rows
    assert ("env.A", "b", "cluster.yaml:3") in rows
    assert ("network.subnet", "-", "by up") in rows
    assert ("ray.port", "6379", "default") in rows


def test_every_field_of_a_spec_can_be_written() -> None:
    """A field that is added to a spec is added to the file's schema too."""
    pairs = {
        schema.Cluster: ClusterSpec,
        schema.Host: NodeSpec,
        schema.Devices: DevicesSpec,
        schema.Network: NetworkSpec,
        schema.Ray: RaySpec,
        schema.Proxies: ProxySpec,
        schema.Limits: LimitsSpec,
        schema.Ssh: SshSpec,
    }
    for model, spec in pairs.items():
        known = {"hosts" if field.name == "nodes" else field.name for field in fields(spec)}
        assert set(model.model_fields) - {"port_offset"} == known


class TestJsonSchema:
    def test_says_what_the_loader_says(self) -> None:
        document = schema.json_schema()
        assert document["required"] == ["hosts"]
        assert document["additionalProperties"] is False
        properties = document["properties"]
        assert isinstance(properties, dict)
        assert set(properties) == set(schema.Cluster.model_fields)
        assert properties["image"]["default"] == DEFAULT_IMAGE

    def test_hosts_and_devices_have_a_short_form(self) -> None:
        definitions = schema.json_schema()["$defs"]
        assert isinstance(definitions, dict)
        for name in ("Host", "Devices"):
            assert definitions[name]["anyOf"][0] == {"type": "string"}

    def test_a_host_needs_a_name_alone_and_may_be_a_range(self) -> None:
        definitions = schema.json_schema()["$defs"]
        assert isinstance(definitions, dict)
        host = definitions["Host"]["anyOf"][1]
        assert host["required"] == ["name"]
        assert "pattern" not in host["properties"]["name"]

    def test_every_pattern_has_words(self) -> None:
        patterns = re.findall(r'"pattern": ("(?:[^"\\]|\\.)*")', json.dumps(schema.json_schema()))
        assert {json.loads(text) for text in patterns} <= set(schema.IN_WORDS)
