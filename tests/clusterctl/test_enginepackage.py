"""The engine package as data, its delivery into a container, and the check before it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from clusterctl import enginepackage
from clusterctl.containers import ContainerSpec
from clusterctl.enginepackage import TORCH_ONLY, EnginePackage, check, deliver, load, requirements
from clusterctl.errors import PreflightFailed
from clusterctl.serving.requirements import (
    PROBE,
    FoundPython,
    Requirement,
    declared,
    satisfies,
    unmet,
)
from tests.fakes import FakeRuntime, Says, writes

PACKAGE = EnginePackage((("engine/__init__.py", b""), ("engine/core.py", b"x = 1\n")))


def running(runtime: FakeRuntime) -> str:
    container_id = runtime.create(ContainerSpec("clusterctl-c-gpu01", "image", ("true",)))
    runtime.start(container_id)
    runtime.calls.clear()
    return container_id


def test_the_installed_package_is_found_without_importing_it() -> None:
    code = (
        "import sys; from clusterctl.enginepackage import load;"
        "names = [name for name, _ in load().files];"
        "assert 'engine/sanity.py' in names and 'engine/executor/base.py' in names, names;"
        "assert not any('__pycache__' in n for n in names), names;"
        "assert not {'engine', 'torch', 'docker', 'paramiko'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_delivered_package_runs_where_torch_is_never_imported(tmp_path: Path) -> None:
    for path, data in load().files:
        target = tmp_path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-m", "engine.sanity", "--help"],
        env={"PYTHONPATH": str(tmp_path)},
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--nproc-per-node" in done.stdout


def test_the_name_follows_the_content() -> None:
    other = EnginePackage((*PACKAGE.files[:1], ("engine/core.py", b"x = 2\n")))
    assert PACKAGE.name == EnginePackage(PACKAGE.files).name != other.name
    assert PACKAGE.name.startswith(f"engine-{enginepackage.__version__}-")


def test_delivery_puts_the_files_once() -> None:
    runtime = FakeRuntime(images=["image"])
    container_id = running(runtime)
    directory = deliver(runtime, container_id, PACKAGE)
    assert directory == f"/opt/clusterctl/{PACKAGE.name}"
    assert sorted(runtime.boxes[container_id].files) == [
        f"{directory}/complete",
        f"{directory}/engine/__init__.py",
        f"{directory}/engine/core.py",
    ]
    runtime.calls.clear()
    assert deliver(runtime, container_id, PACKAGE) == directory
    assert writes(runtime) == []


def test_a_delivery_that_broke_off_is_repeated() -> None:
    runtime = FakeRuntime(images=["image"])
    container_id = running(runtime)
    directory = deliver(runtime, container_id, PACKAGE)
    del runtime.boxes[container_id].files[f"{directory}/complete"]
    del runtime.boxes[container_id].files[f"{directory}/engine/core.py"]
    deliver(runtime, container_id, PACKAGE)
    assert f"{directory}/engine/core.py" in runtime.boxes[container_id].files


def probe_says(reply: str | Says) -> tuple[FakeRuntime, str]:
    runtime = FakeRuntime("gpu02", images=["image"], replies={"python3": reply})
    return runtime, running(runtime)


def test_a_container_with_all_packages_passes() -> None:
    reply = json.dumps({"python": "3.12.4", "packages": {"torch": "2.13.0+cpu"}})
    check(*probe_says(reply), TORCH_ONLY, image="image")


def test_a_container_without_torch_is_refused_by_name() -> None:
    reply = json.dumps({"python": "3.9.1", "packages": {"torch": None}})
    with pytest.raises(PreflightFailed) as caught:
        check(*probe_says(reply), TORCH_ONLY, image="image")
    assert caught.value.host == "gpu02"
    assert caught.value.message == (
        "image image cannot run the engine: "
        "Python 3.9.1 (needed: >=3.10,<3.14); torch is not installed"
    )


def test_a_container_without_python_is_refused() -> None:
    with pytest.raises(PreflightFailed, match="python3 does not run in image image: not found"):
        check(*probe_says(Says(stderr="not found", exit_code=127)), TORCH_ONLY, image="image")


def test_the_probe_reads_real_metadata() -> None:
    said = subprocess.run(
        [sys.executable, "-c", PROBE, "typer", "no-such-package"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found = FoundPython(**json.loads(said))
    assert found.packages["typer"] is not None
    assert found.packages["no-such-package"] is None
    assert satisfies(found.python, ">=3.10")


def test_the_engine_extra_is_the_list_of_requirements() -> None:
    names = [need.name for need in requirements(ray=True)]
    assert {"torch", "ray", "safetensors", "tokenizers", "transformers", "fastapi"} <= set(names)
    assert [name for name in names if name != "ray"] == [n.name for n in requirements(ray=False)]


def test_requires_dist_lines_are_read() -> None:
    lines = [
        "typer>=0.16",
        "torch<2.15,>=2.11; extra == 'engine'",
        'numpy; extra == "engine"',
        "pytest>=8; extra == 'dev'",
    ]
    assert declared(lines) == (Requirement("torch", "<2.15,>=2.11"), Requirement("numpy"))


@pytest.mark.parametrize(
    ("version", "bounds", "fits"),
    [
        ("2.13.0+cpu", ">=2.11,<2.15", True),
        ("2.11.0a0+git", ">=2.11,<2.15", True),
        ("2.15.0", ">=2.11,<2.15", False),
        ("2.9.1", ">=2.11", False),
        ("0.4.5", ">=0.4.5", True),
        ("1", "", True),
    ],
)
def test_version_bounds(version: str, bounds: str, fits: bool) -> None:
    assert satisfies(version, bounds) is fits


def test_versions_out_of_range_are_named_with_the_range() -> None:
    found = FoundPython("3.11.2", {"torch": "2.9.1", "numpy": "2.0"})
    wanted = (Requirement("torch", ">=2.11,<2.15"), Requirement("numpy"))
    assert unmet(found, wanted) == ("torch 2.9.1 (needed: >=2.11,<2.15)",)
