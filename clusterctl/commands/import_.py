"""clusterctl import: cluster.yaml from what another tool knows."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from clusterctl import console
from clusterctl.errors import ConfigError
from clusterctl.options import Json, Yes

STDIO = "-"


def import_(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...", help="A file, - for stdin, or the text itself; several are joined."
        ),
    ],
    kind: Annotated[
        str | None,
        typer.Option("--from", metavar="KIND", help="What it is, where that is not recognised."),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Of the cluster.")
    ] = None,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", help="-: stdout.")
    ] = STDIO,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Make a cluster.yaml of what another tool knows, and say what could not be carried over.

    \b
      clusterctl import 'gpu[01-04,07]'
      clusterctl import run_cluster_lines.txt -o cluster.yaml
      clusterctl import inventory.ini --from ansible

    Read are run_cluster.sh lines (head and workers), Ray's cluster YAML (provider local), Ansible
    inventories (INI, YAML), Slurm nodelists, the .env of spark-vllm-docker and sparkrun's clusters.
    """
    from clusterctl.foreign import KINDS, convert, kind_of

    if kind is not None and kind not in KINDS:
        raise ConfigError(f"no kind {kind!r}", hint=f"one of {', '.join(KINDS)}")
    text = "\n".join(map(source_text, sources))
    found = kind or kind_of(text)
    draft = convert(text, found)
    if name is not None:
        draft.data["name"] = name
    result = draft.text()
    if output != STDIO:
        write(result, Path(output), yes=yes)
    if as_json:
        console.json(
            {
                "schema_version": console.SCHEMA_VERSION,
                "from": found,
                "cluster": draft.data,
                "not_carried_over": draft.lost,
            }
        )
        return
    for lost in draft.lost:
        console.warn(f"not carried over: {lost}")
    console.line(f"{output} written" if output != STDIO else result.rstrip("\n"))


def source_text(source: str) -> str:
    if source == STDIO:
        return sys.stdin.read()
    path = Path(source)
    looks_like_text = " " in source or "\n" in source or "[" in source
    if not path.is_file() and ("/" in source or path.suffix) and not looks_like_text:
        raise ConfigError(f"{source}: there is no such file")
    return path.read_text(encoding="utf-8") if path.is_file() else source


def write(text: str, to: Path, *, yes: bool) -> None:
    if to.exists() and not yes:
        raise ConfigError(f"{to} is there already", hint="--yes replaces it")
    to.write_text(text, encoding="utf-8")
