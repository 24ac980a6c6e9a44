"""What may be loaded when: each in a fresh interpreter."""

from __future__ import annotations

import subprocess
import sys

TORCH_FREE = [
    "engine",
    "engine.config",
    "engine.sampling_params",
    "engine.request",
    "engine.step",
    "engine.shapes",
    "engine.kv_cache",
    "engine.scheduler",
    "engine.detokenizer",
    "engine.executor",
    "engine.executor.mp",
    "engine.executor.placement",
    "engine.core",
    "engine.server.flags",
    "engine.__main__",
]
HEAVY = ("torch", "ray", "fastapi", "uvicorn", "transformers", "pydantic")


def loaded_by(code: str) -> set[str]:
    report = f"{code}\nimport sys\nprint(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", report], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_the_scheduling_half_and_the_driver_load_nothing_heavy() -> None:
    assert loaded_by(f"import {', '.join(TORCH_FREE)}") == set()


def test_offline_use_needs_neither_ray_nor_fastapi() -> None:
    assert loaded_by("from engine import LLM, SamplingParams, EngineConfig") == set()
    assert loaded_by("import engine.executor.inproc, engine.tokenizer") <= {"torch"}


def test_the_offline_path_is_whole_where_ray_and_fastapi_are_not_installed() -> None:
    hide = "import sys\nsys.modules.update(dict.fromkeys(['ray', 'fastapi', 'uvicorn']))"
    path = "from engine import LLM\nimport engine.executor.inproc, engine.runner, engine.tokenizer"
    code = f"{hide}\n{path}\ntry:\n    import fastapi\nexcept ImportError:\n    print('hidden')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "hidden\n"


def test_public_names() -> None:
    import engine

    assert sorted(engine.__all__) == ["EngineConfig", "LLM", "SamplingParams"]
    assert all(hasattr(engine, name) for name in engine.__all__)
    assert not hasattr(engine, "Scheduler")
