from __future__ import annotations

from pathlib import Path

import pytest

from engine.checkpoint import checkpoint_directory


def test_a_directory_is_its_own_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert checkpoint_directory(str(tmp_path / "model")) == tmp_path / "model"
    assert checkpoint_directory("model") == Path("model")
    assert checkpoint_directory("~/model") == tmp_path / "model"


@pytest.mark.parametrize("path", ["/no/such", "./no-such", "~/no-such"])
def test_a_path_that_is_not_there_is_no_hub_id(path: str) -> None:
    with pytest.raises(ValueError, match="there is no model directory .*no.such"):
        checkpoint_directory(path)
