"""The bugs that compact engines really had, each with tests that would catch it, as
docs/engine-bugs.md names them. In the long run each bug is put back into a copy of the engine, and
its test must fail."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from shutil import copytree

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "engine-bugs.md"


@dataclass(frozen=True)
class Mutation:
    """`right` stands once in engine/`file`; with `wrong` in its place the engine has the bug, and
    `test` fails."""

    bug: int
    file: str
    right: str
    wrong: str
    test: str


SCHEDULER = "test_scheduler.py::"
MUTATIONS = (
    Mutation(
        1,
        "kv_cache.py",
        "self._match(tokens, (num_tokens - 1) // self.block_size)",
        "self._match(tokens, num_tokens // self.block_size)",
        SCHEDULER + "test_bug_a_prompt_that_is_wholly_known_schedules_no_token",
    ),
    Mutation(
        2,
        "scheduler.py",
        """\
            if request.request_id not in self._running and not self._admit(request):
                break
            count = min(request.behind, limit)
""",
        """\
            count = min(request.behind, limit)
            if request.request_id not in self._running and not self._admit(request):
                break
""",
        SCHEDULER + "test_bug_sizes_are_taken_before_the_cache_was_asked",
    ),
    Mutation(
        3,
        "scheduler.py",
        "        shares.append(Share(request, count, sample))\n",
        "        shares.append(Share(request, count, sample))\n"
        "        self.kv_cache.publish(\n"
        "            request.request_id, request.tokens, request.num_scheduled\n"
        "        )\n",
        SCHEDULER + "test_bug_a_block_is_shared_while_a_step_still_computes_it",
    ),
    Mutation(
        4,
        "scheduler.py",
        "used = self.kv_cache.blocks_for(request.num_scheduled)",
        "used = None",
        SCHEDULER + "test_bug_a_chunk_attends_beyond_itself",
    ),
    Mutation(
        5,
        "scheduler.py",
        "        request.num_computed = request.num_scheduled = 0\n",
        "",
        SCHEDULER + "test_bug_a_preempted_request_comes_back_with_stale_blocks",
    ),
    Mutation(
        6,
        "scheduler.py",
        "self.kv_cache.grow(request.request_id, request.num_scheduled + 1)",
        "self.kv_cache.grow(request.request_id, request.num_scheduled)",
        SCHEDULER + "test_bug_off_by_one_at_the_edge_of_a_block",
    ),
    Mutation(
        7,
        "scheduler.py",
        "            start=start,\n",
        "            start=start + 1,\n",
        SCHEDULER + "test_bug_decode_positions_start_after_the_prompt",
    ),
    Mutation(
        8,
        "core.py",
        'int(min(self._executor.collective("measure_kv_blocks")))',
        'int(max(self._executor.collective("measure_kv_blocks")))',
        "test_core.py::test_bug_ranks_compute_different_numbers_of_blocks",
    ),
    Mutation(
        9,
        "config.py",
        "set(range(64, most, 32)) | {most}",
        "set(range(64, most + 1, 32))",
        "test_core.py::test_bug_the_largest_batch_has_no_graph",
    ),
    Mutation(
        10,
        "scheduler.py",
        "if room < (request.sampling.max_tokens or 1):",
        "if room < 1:",
        SCHEDULER + "test_prompt_and_max_tokens_beyond_max_model_len_are_refused",
    ),
    Mutation(
        11,
        "layers/embedding.py",
        "embedded.masked_fill(foreign.unsqueeze(-1), 0)",
        "embedded",
        "test_layers.py::test_a_vocabulary_that_does_not_divide_is_padded",
    ),
    Mutation(
        12,
        "layers/linear.py",
        "return output if self.bias is None else output + self.bias",
        "return output if self.bias is None else output + self.bias * self.tp.size",
        "test_layers.py::test_column_then_row_is_the_whole_mlp",
    ),
    Mutation(
        13,
        "layers/norm.py",
        "total = hidden if delta is None else hidden + delta",
        "total = hidden if delta is None else hidden.add_(delta)",
        "test_layers.py::test_bug_the_norm_changes_the_stream_in_place",
    ),
    Mutation(
        13,
        "kernels/cpu.py",
        "total = x if delta is None else torch.empty_like(x)",
        "total = x",
        "test_layers.py::test_bug_the_norm_changes_the_stream_in_place",
    ),
    Mutation(
        14,
        "scheduler.py",
        "token_ids=_token_ids(request, start, request.num_scheduled)",
        "token_ids=_token_ids(request, request.num_scheduled - 1, request.num_scheduled)",
        SCHEDULER + "test_bug_a_preempted_request_sends_only_its_last_token",
    ),
    Mutation(
        15,
        "scheduler.py",
        "        if request.in_flight:\n            return\n        self.kv_cache.release",
        "        self.kv_cache.release",
        SCHEDULER + "test_bug_a_finished_request_in_the_step_ahead_loses_its_blocks",
    ),
    Mutation(
        16,
        "scheduler.py",
        "if request.finish_reason is not None:  # it ended while this step was running",
        "if False:",
        SCHEDULER + "test_bug_abort_and_finish_in_the_same_step_free_twice",
    ),
    Mutation(
        17,
        "kv_cache.py",
        "            if not self._owners[block]:\n                self._free[block] = None\n",
        "            self._free[block] = None\n",
        SCHEDULER + "test_blocks_are_conserved_and_every_request_gets_its_tokens",
    ),
    Mutation(
        18,
        "scheduler.py",
        "for request in list(self._running.values()):\n            if not seats:",
        "for request in sorted(self._running.values(), key=id, reverse=True):\n"
        "            if not seats:",
        SCHEDULER + "test_bug_the_order_of_a_batch_is_the_order_of_arrival",
    ),
    Mutation(
        18,
        "layers/sampler.py",
        'return random.Random(f"{source}/{request.num_generated}").random()',
        "return random.random()",
        "test_runner.py::test_every_cut_draws_the_same_seeded_tokens",
    ),
    Mutation(
        19,
        "layers/embedding.py",
        "self.tp.all_gather(logits, dim=-1)[:, : self.vocab]",
        "self.tp.all_gather(logits, dim=0).reshape(len(hidden), -1)[:, : self.vocab]",
        "test_layers.py::test_a_vocabulary_that_does_not_divide_is_padded",
    ),
    Mutation(
        21,
        "executor/worker.py",
        "        self._runner = None\n        close_torch_parallel()\n",
        "        close_torch_parallel()\n        self._runner = None\n",
        "test_communicators.py::test_bug_graphs_outlive_their_process_group",
    ),
    Mutation(
        22,
        "weights.py",
        "part = stored[shard.index[::turn]]",
        "part = stored[:][shard.index[::turn]]",
        "test_weights.py::test_bug_a_rank_reads_whole_files",
    ),
)


def rows() -> list[tuple[int, list[str]]]:
    """Number and tests of each row of the page."""
    lines = [line for line in PAGE.read_text().splitlines() if re.match(r"\| \d+ \|", line)]
    return [(int(line.split("|")[1]), re.findall(r"`(tests/[^`]+)`", line)) for line in lines]


def test_each_of_the_bugs_names_tests_and_they_exist() -> None:
    numbers = [number for number, _ in rows()]
    assert numbers == list(range(1, 23))
    for number, tests in rows():
        assert tests, f"bug {number} has no test"
        for test in tests:
            path, _, name = test.partition("::")
            functions = [
                node.name
                for node in ast.walk(ast.parse((ROOT / path).read_text()))
                if isinstance(node, ast.FunctionDef)
            ]
            assert name in functions, test


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: f"{m.bug}-{Path(m.file).stem}")
def test_what_is_put_back_has_its_place_and_its_row(mutation: Mutation) -> None:
    assert (ROOT / "engine" / mutation.file).read_text().count(mutation.right) == 1
    tests = dict(rows())[mutation.bug]
    assert f"tests/engine/{mutation.test}" in tests


@pytest.mark.full
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: f"{m.bug}-{Path(m.file).stem}")
def test_a_bug_put_back_is_caught(mutation: Mutation, tmp_path: Path) -> None:
    copytree(ROOT / "engine", tmp_path / "engine")
    for name in ("tests", "scripts", "pyproject.toml"):
        (tmp_path / name).symlink_to(ROOT / name)
    assert run(mutation.test, tmp_path).returncode == 0  # without the bug it passes
    file = tmp_path / "engine" / mutation.file
    file.write_text(file.read_text().replace(mutation.right, mutation.wrong))
    done = run(mutation.test, tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert " failed" in done.stdout


def run(test: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """In `directory`, whose engine comes first on the path."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    environment = {**os.environ, "PYTHONPATH": str(directory), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [*command, f"tests/engine/{test}"],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
