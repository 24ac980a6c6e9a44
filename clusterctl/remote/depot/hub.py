"""A model of a Hub, fetched by huggingface_hub in a process of its own.

The token goes in by stdin: it stands in no command line and in no environment.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .failures import Failure

# Answers with two lines: {"total": bytes}, and at the end {"revision": COMMIT}.
CHILD = """
import json, os, sys
asked = json.loads(sys.stdin.readline())
model, revision = asked["model"], asked["revision"]
def say(**words):
    print(json.dumps(words), flush=True)
if asked["endpoint"]:
    os.environ["HF_ENDPOINT"] = asked["endpoint"]
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.utils import filter_repo_objects
token = asked["token"] or False
chosen = {"allow_patterns": asked["include"] or None, "ignore_patterns": asked["exclude"] or None}
info = HfApi(token=token).model_info(model, revision=revision, files_metadata=True)
sizes = {one.rfilename: one.size or 0 for one in info.siblings}
say(total=sum(sizes[name] for name in filter_repo_objects(sizes, **chosen)))
where = {"revision": revision, "cache_dir": asked["cache"], "token": token}
say(revision=os.path.basename(snapshot_download(model, **where, **chosen)))
"""
ABSENT = "No module named 'huggingface_hub'"


def download(asked: dict[str, Any], on_total: Callable[[int], None]) -> str:
    """`asked`: model, revision, cache (a directory), include, exclude, endpoint, token. The commit
    that was fetched. Raises Failure where the bytes, told to `on_total`, do not fit."""
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin
    assert process.stdout
    assert process.stderr
    process.stdin.write(json.dumps(asked) + "\n")
    process.stdin.close()
    with process:
        answers = []
        try:
            for line in process.stdout:
                answers.append(json.loads(line))
                if "total" in answers[-1]:
                    on_total(int(answers[-1]["total"]))
        except Failure:
            process.kill()
            raise
        said = process.stderr.read()
    if process.returncode:
        raise _failed(said, asked["model"])
    return str(answers[-1]["revision"])


def fetched(cache: Path) -> int:
    """Bytes that have come so far, unfinished files among them."""
    blobs = (path for path in cache.rglob("blobs/*") if path.is_file())
    return sum(path.stat().st_size for path in blobs)


def refuse_full(directory: Path, missing: int) -> None:
    space = os.statvfs(directory)
    free = space.f_bavail * space.f_frsize
    if missing > free:
        text = f"{directory.parent} needs {missing:,} bytes and has {free:,} free"
        raise Failure(text, "disk")


def _failed(said: str, model: str) -> Failure:
    if ABSENT in said:
        return Failure("the image has no huggingface_hub", "hub")
    last = next((line for line in reversed(said.splitlines()) if line.strip()), "no word")
    return Failure(f"downloading {model}: {last.strip()}", "hub")
