"""`clusterctl doctor --logs`: what it takes, what it prints, how it ends."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SAID = "ValueError: No available memory for the cache blocks. Try increasing"
HEALTHY = "INFO:     Application startup complete.\n"


def doctor(*args: str, stdin: bytes = b"") -> tuple[int, str]:
    argv = [sys.executable, "-m", "clusterctl", "doctor", *args]
    done = subprocess.run(argv, input=stdin, capture_output=True, timeout=120)
    assert b"Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout.decode()


def document(*args: str, stdin: bytes = b"") -> tuple[int, dict[str, Any]]:
    code, text = doctor("--json", *args, stdin=stdin)
    said: dict[str, Any] = json.loads(text)
    return code, said


def test_a_failure_has_the_shape_that_is_promised(tmp_path: Path) -> None:
    log = tmp_path / "rank0.log"
    log.write_text(f"INFO 01-01 00:00:00 loading\n{SAID}\n")
    code, said = document("--logs", str(log))
    assert code == 1
    assert list(said) == ["schema_version", "findings"]
    assert said["schema_version"] == 1
    (found,) = said["findings"]
    keys = "check cause host verdict message confidence evidence values fix"
    assert list(found) == keys.split()
    assert (found["check"], found["cause"], found["verdict"]) == (
        None,
        "kv-cache-no-memory",
        "fail",
    )
    assert found["evidence"] == {"file": str(log), "line": 2, "text": SAID}
    assert found["fix"]


@pytest.mark.parametrize("content", [b"", b"\n", HEALTHY.encode(), os.urandom(1 << 20)])
def test_nothing_is_found_in_healthy_empty_and_binary_files(tmp_path: Path, content: bytes) -> None:
    log = tmp_path / "a.log"
    log.write_bytes(content)
    assert document("--logs", str(log)) == (0, {"schema_version": 1, "findings": []})


def test_a_directory_stdin_and_several_files_are_the_logs_of_one_failure(tmp_path: Path) -> None:
    deep = tmp_path / "gpu02" / "logs"
    deep.mkdir(parents=True)
    (tmp_path / "rank0.log").write_text(HEALTHY)
    (deep / "rank1.log.gz").write_bytes(gzip.compress(SAID.encode()))
    (deep / "core").write_bytes(b"\0\1" * 5000)
    for args, stdin in (
        (["--logs", str(tmp_path)], b""),
        (["--logs", "-"], SAID.encode()),
        (["--logs", str(tmp_path / "rank0.log"), "--logs", str(deep)], b""),
    ):
        code, said = document(*args, stdin=stdin)
        assert (code, said["findings"][0]["cause"]) == (1, "kv-cache-no-memory"), args


def test_a_failure_of_unknown_cause_is_not_taken_for_success(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_text("strange.OddError: 7\n")
    code, said = document("--logs", str(log))
    assert (code, said["findings"][0]["verdict"], said["findings"][0]["cause"]) == (
        1,
        "unknown",
        None,
    )


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    cut = tmp_path / "cut.log.gz"
    cut.write_bytes(gzip.compress(os.urandom(9000))[:5000])
    code, said = document("--logs", str(cut))
    assert (code, said["error"]["code"]) == (2, "config")
    assert said["error"]["message"].startswith(f"{cut} cannot be read: ")
    code, said = document("--logs", str(tmp_path / "absent"))
    assert (code, said["error"]["message"]) == (2, f"there is no log {tmp_path}/absent")


def test_people_are_shown_cause_proof_confidence_and_fix(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_text(SAID)
    _, text = doctor("--logs", str(log))
    shown = " ".join(text.split())
    assert shown.startswith("VERDICT HOST CAUSE FINDING fail - kv-cache-no-memory ")
    for part in ("(confidence 0.9)", SAID, "fix (cluster):"):
        assert part in shown


def test_a_cause_is_explained_with_links() -> None:
    _, text = doctor("--explain", "kv-cache-max-len")
    assert "possible: longest length, in tokens, that the cache holds" in text
    assert "https://docs.vllm.ai/" in text
    _, said = document("--explain", "kv-cache-max-len")
    assert set(said["causes"][0]["captures"]) == {"length", "possible"}


@pytest.mark.parametrize("option", ["--bundle", "--save"])
def test_a_target_that_cannot_be_written_is_refused_at_once(tmp_path: Path, option: str) -> None:
    for target, why in ((tmp_path, "is a directory"), (tmp_path / "a/b", "does not exist")):
        code, said = document("--head", "host.invalid", option, str(target))
        assert (code, said["error"]["code"]) == (2, "config")
        assert why in said["error"]["message"]
    assert list(tmp_path.iterdir()) == []
