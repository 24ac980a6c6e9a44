"""Rules of the house that no linter knows."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from clusterctl import cli

ROOT = Path(__file__).resolve().parent.parent
BANNED = {"utils.py", "util.py", "helpers.py", "common.py", "misc.py", "manager.py", "managers.py"}
HANDWRITTEN = sorted(path for path in ROOT.rglob("*.md") if ".venv" not in path.parts)


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def loaded_after(statement: str) -> set[str]:
    """Top-level modules in a fresh interpreter after `statement`."""
    probe = f"import sys; {statement}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_command_page_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/docs", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_is_documented(name: str) -> None:
    assert f"## clusterctl {name}\n" in (ROOT / "docs" / "cli.md").read_text()


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_no_two_options_of_a_command_share_a_name(name: str) -> None:
    command = cli.load(name)
    for one in [command, *getattr(command, "commands", {}).values()]:
        names = [word for param in one.params for word in (*param.opts, *param.secondary_opts)]
        assert sorted(names) == sorted(set(names))


def test_every_command_file_is_in_the_table() -> None:
    files = {path.stem for path in (ROOT / "clusterctl" / "commands").glob("[a-z]*.py")}
    modules = {entry.target.partition(":")[0] for entry in cli.COMMANDS.values()}
    assert files == {module.rpartition(".")[2] for module in modules}


def test_names_say_what_is_in_them() -> None:
    found = [path for path in sources("clusterctl", "engine", "tests") if path.name in BANNED]
    assert found == []


def test_changelog_has_a_place_for_the_next_line() -> None:
    assert "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("page", HANDWRITTEN, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?://|mailto:|#)([^)#\s]+)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_clusterctl_needs_no_engine_libraries() -> None:
    loaded = loaded_after("import clusterctl, clusterctl.cli")
    assert not loaded & {"torch", "ray", "transformers", "engine"}


@pytest.mark.parametrize(
    "module",
    ["config", "kv_cache", "request", "sampling_params", "scheduler", "shapes", "step"],
)
def test_scheduler_half_of_engine_loads_no_torch(module: str) -> None:
    """import-linter sees no import that a lazy `engine/__init__` makes at run time."""
    assert "torch" not in loaded_after(f"import engine.{module}")


def test_engine_itself_is_light() -> None:
    assert not loaded_after("import engine") & {"torch", "ray", "fastapi", "transformers"}
