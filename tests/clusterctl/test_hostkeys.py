import base64
import subprocess
from pathlib import Path

import pytest

from clusterctl.transport import hostkeys
from clusterctl.transport.hostkeys import HostKey, judge, key_types, parse_known_hosts


def key(name: str, kind: str = "ssh-ed25519") -> HostKey:
    return HostKey(kind, base64.b64encode(name.encode()).decode())


A, B, RSA = key("a"), key("b"), key("r", "ssh-rsa")
FILE = f"""
# a comment
gpu01,10.0.0.1 ssh-ed25519 {A.base64} somebody@somewhere
this line is broken
[gpu01]:2222 ssh-ed25519 {B.base64}
broken ssh-ed25519 n@t-base64
*.lab,!bad.lab ssh-ed25519 {A.base64}
@revoked * ssh-ed25519 {key("stolen").base64}
@cert-authority *.corp ssh-ed25519 {A.base64}
both.corp ssh-ed25519 {B.base64}
multi ssh-ed25519 {A.base64}
multi ssh-rsa {RSA.base64}
"""
ENTRIES = parse_known_hosts(FILE, "kh")


@pytest.mark.parametrize(
    ("host", "port", "shown", "verdict", "lines"),
    [
        ("gpu01", 22, A, "known", ["kh:3"]),
        ("GPU01", 22, A, "known", ["kh:3"]),
        ("10.0.0.1", 22, A, "known", ["kh:3"]),
        ("gpu01", 22, B, "changed", ["kh:3"]),
        ("gpu01", 2222, B, "known", ["kh:5"]),
        ("gpu01", 2222, A, "changed", ["kh:5"]),
        ("10.0.0.1", 2222, A, "known", ["kh:3"]),
        ("gpu02", 22, A, "unknown", []),
        ("x.lab", 22, A, "known", ["kh:7"]),
        ("bad.lab", 22, A, "unknown", []),
        ("gpu01", 22, key("stolen"), "revoked", ["kh:8"]),
        ("gpu01", 2222, key("stolen"), "revoked", ["kh:8"]),
        ("x.corp", 22, B, "certificate-only", ["kh:9"]),
        ("both.corp", 22, B, "known", ["kh:10"]),
        ("multi", 22, RSA, "known", ["kh:12"]),
        ("gpu01", 22, RSA, "changed", ["kh:3"]),
    ],
)
def test_judge(host: str, port: int, shown: HostKey, verdict: str, lines: list[str]) -> None:
    judgement = judge(ENTRIES, host, port, shown)
    assert (judgement.verdict, [line.where for line in judgement.lines]) == (verdict, lines)


def test_types_on_record_leave_authorities_and_revoked_keys_out() -> None:
    assert key_types(ENTRIES, "multi", 22) == ["ssh-ed25519", "ssh-rsa"]
    assert key_types(ENTRIES, "x.corp", 22) == []


def test_names_hashed_by_ssh_keygen_are_found(tmp_path: Path) -> None:
    public = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", public], check=True)
    kind, text, *_ = Path(f"{public}.pub").read_text().split()
    file = tmp_path / "known_hosts"
    file.write_text(f"gpu01 {kind} {text}\n[gpu01]:2222 {kind} {text}\n")
    subprocess.run(["ssh-keygen", "-H", "-f", file], check=True, capture_output=True)
    assert "gpu01" not in file.read_text()
    entries = hostkeys.load([str(file)])
    assert judge(entries, "gpu01", 22, HostKey(kind, text)).verdict == "known"
    assert judge(entries, "gpu01", 2222, HostKey(kind, text)).verdict == "known"
    assert judge(entries, "gpu02", 22, HostKey(kind, text)).verdict == "unknown"


def test_the_fingerprint_is_the_one_that_ssh_keygen_shows(tmp_path: Path) -> None:
    public = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", public], check=True)
    kind, text, *_ = Path(f"{public}.pub").read_text().split()
    shown = subprocess.run(["ssh-keygen", "-l", "-f", public], capture_output=True, text=True)
    assert HostKey(kind, text).fingerprint == shown.stdout.split()[1]


def test_a_new_key_is_appended_on_a_line_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "new" / "known_hosts"
    hostkeys.append(str(file), "gpu01", 22, A)
    with file.open("a") as out:
        out.write("# no line end")
    hostkeys.append(str(file), "gpu01", 2222, B)
    assert file.read_text() == (
        f"gpu01 ssh-ed25519 {A.base64}\n# no line end\n[gpu01]:2222 ssh-ed25519 {B.base64}\n"
    )
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700


def test_files_that_are_not_there_say_nothing(tmp_path: Path) -> None:
    assert hostkeys.load([str(tmp_path / "absent")]) == []
