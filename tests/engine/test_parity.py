"""The command that compares the engine with transformers: its judgement, and its rows."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.engine.conftest import SCRIPTS, load_script


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ([1, 2, 3, 4], "equal"),
        ([1, 2, 9, 9], "near-tie"),
        ([1, 9, 3, 4], "wrong"),
        ([9, 2, 9, 4], "wrong"),
        ([1, 2, 3], "wrong"),
    ],
)
def test_a_text_may_part_only_where_two_logits_are_nearly_equal(
    answer: list[int], verdict: str
) -> None:
    script = load_script("parity")
    text = script.Text(prompt=[7], tokens=[1, 2, 3, 4], gaps=[0.5, 1e-4, 0.9e-4, 0.5])
    assert script.judge(text, answer) == verdict


@pytest.mark.timeout(900)
def test_quick_rows() -> None:
    parity([str(SCRIPTS / "parity"), "--quick"])


@pytest.mark.full
@pytest.mark.timeout(5400)
def test_every_row_on_every_executor() -> None:
    parity([str(SCRIPTS / "parity")])


def parity(command: list[str]) -> None:
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
