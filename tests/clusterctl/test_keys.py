"""Where a deployment's API key comes from."""

from __future__ import annotations

from pathlib import Path

import pytest

from clusterctl import keys
from clusterctl.errors import ConfigError
from clusterctl.secret import Secret


def test_a_file_wins_over_prompt_and_environment(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("sk-file\n")
    key = keys.resolve(file, {keys.VARIABLE: "sk-env"}, lambda: Secret("sk-typed"))
    assert key is not None
    assert (key.secret.reveal(), key.origin) == ("sk-file", "file")
    assert key.for_shell == f"$(cat {file})"


def test_a_prompt_wins_over_the_environment() -> None:
    key = keys.resolve(None, {keys.VARIABLE: "sk-env"}, lambda: Secret("sk-typed"))
    assert key is not None
    assert (key.secret.reveal(), key.for_shell) == ("sk-typed", "$API_KEY")


def test_the_environment_is_read() -> None:
    key = keys.resolve(None, {keys.VARIABLE: "sk-env"}, None)
    assert key is not None
    assert (key.secret.reveal(), key.for_shell) == ("sk-env", "$INFERCLUSTER_API_KEY")


def test_nothing_given_is_nothing() -> None:
    assert keys.resolve(None, {}, None) is None


def test_an_empty_or_absent_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(ConfigError, match="is empty"):
        keys.resolve(tmp_path / "empty", {}, None)
    with pytest.raises(ConfigError, match="cannot read"):
        keys.resolve(tmp_path / "absent", {}, None)


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(ConfigError, match="no API key was typed"):
        keys.resolve(None, {}, lambda: None)


def test_generated_keys_differ_and_are_private(tmp_path: Path) -> None:
    env = {"XDG_CONFIG_HOME": str(tmp_path)}
    first = keys.generate("lab", "tiny", env)
    second = keys.generate("lab", "tiny", env)
    assert first.secret != second.secret
    assert second.file == tmp_path / "infercluster/keys/lab-tiny"
    assert second.file.read_text() == second.secret.reveal() + "\n"
    assert second.file.stat().st_mode & 0o777 == 0o600
    assert sorted(second.file.parent.iterdir()) == [second.file]
    assert "sk-" not in repr(second)
