"""The command that compares the engine with transformers: its judgement, and its rows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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


def test_every_way_to_run_every_architecture_is_a_row() -> None:
    script = load_script("parity")
    cases = script.all_cases()
    assert len(cases) == len(set(cases))
    for name in load_script("tiny_llama").FAMILIES:
        for dtype in ("float32", "bfloat16", "float16"):
            for executor in ("inproc", "mp", "ray"):
                cuts = [
                    (case.tp, case.pp)
                    for case in cases
                    if (case.model, case.dtype, case.executor) == (name, dtype, executor)
                    and not case.whole_experts
                ]
                assert sorted(cuts) == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert {case.model for case in cases if case.whole_experts} == {"mixtral", "qwen3_moe"}


def test_what_was_not_run_is_told_so_and_what_failed_too() -> None:
    script = load_script("parity")
    wanted = [one for one in script.all_cases() if (one.model, one.tp, one.pp) == ("gpt2", 2, 1)]
    ran = {
        wanted[0]: script.Result(1.0, (4,), equal=15, near_ties=1, made_with="engine abc123"),
        wanted[1]: script.Result(1.0, (4,), error=0.5, tolerance=0.08, made_with="engine def456"),
    }
    page = script.page(wanted, ran)
    assert (
        "| gpt2 | float32 | 2 | 1 |  | 4 | ok 15/16 (1 near-ties) | *not run* | *not run* |" in page
    )
    assert "| gpt2 | bfloat16 | 2 | 1 |  | 4 | **FAILED** 5.0e-01 | *not run* |" in page
    assert "**1 of 2 rows pass.** 7 were not run." in page
    assert "- 1 rows: engine abc123\n- 1 rows: engine def456\n" in page


def test_rows_of_the_commits_that_count_are_taken_from_the_record(tmp_path: Path) -> None:
    script = load_script("parity")
    first, second = script.all_cases()[:2]
    record = tmp_path / "rows.jsonl"
    script.remember(record, "old", first, script.Result(1.0, (4,), equal=8, made_with="torch"))
    script.remember(record, "new", second, script.Result(1.0, (4,), equal=8, made_with="torch"))
    assert list(script.recorded(record, ["new"])) == [second]
    both = script.recorded(record, ["new", "old"])
    assert [both[one].made_with for one in (first, second)] == [
        "engine old, torch",
        "engine new, torch",
    ]


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
