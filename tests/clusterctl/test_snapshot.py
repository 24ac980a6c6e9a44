"""What `doctor` keeps: judged again it says the same, and it holds no secret."""

from __future__ import annotations

import io
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from clusterctl.doctor.bundle import bundle
from clusterctl.doctor.check import Evidence, Finding
from clusterctl.doctor.redaction import redact, secret_values
from clusterctl.doctor.snapshot import Snapshot, load, to_json
from clusterctl.errors import ConfigError
from clusterctl.facts.types import DockerContainer
from tests.clusterctl.test_checks import BOTH, ONE, SAMPLES, SPEC, TWO

LOST = Finding(
    "ssh.reach", "ssh-refused", "gpu03", "fail", "nothing listens", 0.9, Evidence("x", "f", 3)
)
SEEN = Snapshot(SPEC, {"gpu01": ONE.facts, "gpu02": TWO.facts}, (LOST,))


def saved(snapshot: Snapshot, folder: Path) -> Snapshot:
    file = folder / "facts.json"
    file.write_text(to_json(snapshot))
    return load(file)


def test_what_was_saved_is_read_back_whole(tmp_path: Path) -> None:
    assert saved(SEEN, tmp_path) == SEEN


@pytest.mark.parametrize("id", sorted(set(SAMPLES) - {"ray.port-range"}))  # no spec may say that
def test_what_was_saved_is_judged_the_same(id: str, tmp_path: Path) -> None:
    sample = SAMPLES[id]
    hosts = BOTH.hosts if sample.name else getattr(sample, "hosts", BOTH.hosts)
    facts = {name: host.facts for name, host in hosts.items()}
    if sample.name:
        facts[sample.name] = sample.facts  # type: ignore[union-attr]
    seen = Snapshot(sample.spec, facts)
    assert saved(seen, tmp_path).findings == seen.findings


@pytest.mark.parametrize("text", ["", "{}", '{"schema_version": 1, "facts": []}'])
def test_another_file_is_refused_by_name(text: str, tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"x\.json is no snapshot"):
        load(file)
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "absent")


# Planted wherever a cluster may hold one. Each has a form or a name, but for the last.
PLANTED = {
    "hub": "hf_AbCdEfGhIjKlMnOpQrStUv",
    "openai": "sk-proj-0123456789abcdefghij",
    "github": "ghp_0123456789abcdefghij0123",
    "aws": "AKIAIOSFODNN7EXAMPLE",
    "jwt": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abcDEF123",
    "key": "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEAx\n-----END RSA PRIVATE KEY-----",
    "proxy": "pr0xypassw0rd",
    "password": "tr0ub4dor3",
    "named": "s3cr3t-without-any-form",
    "ray": "0123456789abcdef" * 4,
}


def planted() -> tuple[Snapshot, dict[str, str]]:
    """In the environment of spec and node, a proxy's address, a container's labels, the kernel's
    log, a finding, and the logs."""
    env = {"X": PLANTED["openai"], "VLLM_ARGS": f"--api-key {PLANTED['password']}"}
    node = replace(SPEC.nodes[0], env={"MORE": f"WANDB_API_KEY={PLANTED['named']}"})
    spec = replace(SPEC, env=env, nodes=(node, *SPEC.nodes[1:]))
    proxy = f"http://alice:{PLANTED['proxy']}@proxy:3128"
    labels = {"registry.secret": PLANTED["named"], "note": PLANTED["github"]}
    one = DockerContainer("c", "x", "i", "running", labels)
    docker = replace(ONE.facts.docker, http_proxy=proxy, containers=(one,))
    facts = replace(ONE.facts, docker=docker, kernel_log=(f"oom-kill: --token {PLANTED['ray']}",))
    told = Finding(None, None, "gpu01", "fail", f"Authorization: Bearer {PLANTED['jwt']}")
    lines = [
        f"HF_TOKEN={PLANTED['hub']} vllm serve --api-key {PLANTED['password']}",
        f"AWS {PLANTED['aws']} {PLANTED['key']}",
        f'{{"password": "{PLANTED["password"]}", "url": "{proxy}"}}',
        f"export WANDB_API_KEY='{PLANTED['named']}'",
        f"RAY_AUTH_TOKEN: {PLANTED['ray']}",
        f"the cluster's own word is {PLANTED['ray']}",
        f"{PLANTED['openai']} {PLANTED['github']} {PLANTED['jwt']}",
    ]
    return Snapshot(spec, {"gpu01": facts}, (told,)), {"gpu01": "\n".join(lines)}


def test_no_planted_secret_is_in_a_bundle() -> None:
    snapshot, logs = planted()
    with tarfile.open(fileobj=io.BytesIO(bundle(snapshot, logs, [PLANTED["ray"]]))) as archive:
        files = {one.name: archive.extractfile(one).read().decode() for one in archive}  # type: ignore[union-attr]
    assert [name.partition("/")[2] for name in files] == [
        "versions.json",
        "facts.json",
        "findings.json",
        "logs/gpu01.log",
    ]
    left = [(n, kind) for n, text in files.items() for kind, s in PLANTED.items() if s in text]
    assert left == []
    assert "vllm serve" in files["clusterctl-bundle/logs/gpu01.log"]


def test_no_planted_secret_is_in_a_snapshot_and_it_is_still_one(tmp_path: Path) -> None:
    snapshot, _ = planted()
    text = to_json(snapshot)
    assert [kind for kind, secret in PLANTED.items() if secret in text] == []
    assert saved(snapshot, tmp_path).facts["gpu01"].host == snapshot.facts["gpu01"].host


@pytest.mark.parametrize(
    "text",
    [
        "GPU KV cache size: 643,232 tokens, Maximum concurrency for 40,960 tokens per request",
        '{"check": "ray.token", "cause": "ray-unauthenticated", "hf_token": false}',
        "no Hugging Face token: a gated model cannot be fetched",
        "tokenizer.json has 12 bytes",
        "http://10.0.0.1:8000/v1",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text


def test_secrets_of_an_environment_are_known_by_name() -> None:
    env = {"HF_TOKEN": "a", "MY_API_KEY": "b", "TOKENIZERS_PARALLELISM": "false", "PATH": "/bin"}
    assert secret_values(env) == ["a", "b"]
