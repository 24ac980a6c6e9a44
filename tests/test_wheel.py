"""The wheel, in an environment that has nothing else: what a user gets from pip."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from clusterctl import __version__

ROOT = Path(__file__).resolve().parent.parent

pytestmark = [pytest.mark.full, pytest.mark.timeout(900)]


def run(*argv: str | Path, cwd: Path) -> str:
    done = subprocess.run([*map(str, argv)], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder, ROOT, cwd=folder)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """The bin folder of a fresh environment that holds the wheel and what it asks for."""
    folder = wheel.parent / "venv"
    run(sys.executable, "-m", "venv", folder, cwd=wheel.parent)
    run(folder / "bin" / "pip", "install", "--quiet", wheel, cwd=wheel.parent)
    return folder / "bin"


@pytest.mark.parametrize("program", ["clusterctl", "infercluster"])
def test_both_names_answer(installed: Path, tmp_path: Path, program: str) -> None:
    assert "Usage: " + program in run(installed / program, "--help", cwd=tmp_path)
    assert __version__ in run(installed / program, "version", cwd=tmp_path)


def test_templates_travel(installed: Path, tmp_path: Path) -> None:
    """Every file of templates/ can be found where the package was installed."""
    probe = (
        "from importlib.resources import files;"
        "root = files('clusterctl') / 'templates';"
        "print(*sorted(item.name for item in root.iterdir()))"
    )
    there = run(installed / "python", "-c", probe, cwd=tmp_path).split()
    assert there == sorted(path.name for path in (ROOT / "templates").iterdir())


def test_no_torch_and_no_ray(installed: Path, tmp_path: Path) -> None:
    probe = (
        "import importlib.util as u, clusterctl, engine;"
        "print([name for name in ('torch', 'ray', 'fastapi') if u.find_spec(name)])"
    )
    assert run(installed / "python", "-c", probe, cwd=tmp_path) == "[]\n"


def test_engine_package_can_be_delivered(installed: Path, tmp_path: Path) -> None:
    """`serve` copies the engine's files from where they are installed."""
    probe = (
        "from importlib.resources import files;"
        "print(sum(1 for item in files('engine').iterdir() if item.name.endswith('.py')))"
    )
    here = len(list((ROOT / "engine").glob("*.py")))
    assert run(installed / "python", "-c", probe, cwd=tmp_path) == f"{here}\n"


def test_commands_in_a_folder_without_a_cluster(installed: Path, tmp_path: Path) -> None:
    """Every command's own help can be shown: nothing it imports is missing from the wheel."""
    probe = (
        "from clusterctl import cli;"
        "print([name for name in cli.COMMANDS if not cli.load(name).help])"
    )
    assert run(installed / "python", "-c", probe, cwd=tmp_path) == "[]\n"
