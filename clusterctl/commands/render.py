"""clusterctl render: the same cluster and deployment for another platform."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from clusterctl import console
from clusterctl.commands.serve import checked_flags, deployment_name
from clusterctl.errors import ConfigError
from clusterctl.options import ClusterName, ConfigFile, Head, Image, Json, Workers, Yes, load_spec
from clusterctl.spec import ServeSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from clusterctl.launch import Place
    from clusterctl.render import Rendered
    from clusterctl.spec import ClusterSpec

STDOUT = "-"


def render(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="shell, compose, systemd, kuberay, lws, slurm or k8s-job (the collective check).",
        ),
    ],
    model: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="Without it the cluster alone.", show_default=False),
    ] = None,
    engine_flags: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="-- FLAG", help="After --: the engine's own flags.", show_default=False
        ),
    ] = None,
    engine: Annotated[
        Literal["vllm", "native"], typer.Option("--engine", help="native: this project's own.")
    ] = "vllm",
    tp: Annotated[
        int, typer.Option("--tp", metavar="N", min=1, help="Tensor parallel size.")
    ] = ServeSpec.tp,
    pp: Annotated[
        int, typer.Option("--pp", metavar="N", min=1, help="Pipeline parallel size.")
    ] = ServeSpec.pp,
    executor: Annotated[
        Literal["auto", "ray", "mp"],
        typer.Option("--executor", help="What carries the ranks; auto: ray over several nodes."),
    ] = "auto",
    dtype: Annotated[
        str, typer.Option("--dtype", metavar="DTYPE", help="Of weights and activations.")
    ] = ServeSpec.dtype,
    max_model_len: Annotated[
        int | None,
        typer.Option("--max-model-len", min=1, metavar="TOKENS", help="Longest request."),
    ] = None,
    served_model_name: Annotated[
        str | None,
        typer.Option(
            "--served-model-name", metavar="NAME", help="What clients call it; MODEL by default."
        ),
    ] = None,
    port: Annotated[int, typer.Option("--port", metavar="PORT", min=1, max=65535)] = ServeSpec.port,
    gpus_per_node: Annotated[
        int | None,
        typer.Option(
            "--gpus-per-node", metavar="N", min=1, help="Where cluster.yaml does not say it."
        ),
    ] = None,
    slurm_runtime: Annotated[
        Literal["pyxis", "apptainer", "modules"],
        typer.Option("--slurm-runtime", help="What a Slurm task runs in."),
    ] = "pyxis",
    slurm_module: Annotated[
        list[str] | None,
        typer.Option(
            "--slurm-module", metavar="NAME", help="With --slurm-runtime modules; repeat it."
        ),
    ] = None,
    live: Annotated[
        bool, typer.Option("--live", help="Ask the hosts for what cluster.yaml does not say.")
    ] = False,
    output: Annotated[
        str,
        typer.Option("--output", "-o", metavar="FILE|DIR", help="-: stdout. A DIR for many files."),
    ] = STDOUT,
    head: Head = None,
    worker: Workers = None,
    image: Image = None,
    config: ConfigFile = None,
    cluster: ClusterName = None,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Write the cluster, and a deployment on it, as scripts or manifests of another platform.

    \b
      clusterctl render shell
      clusterctl render shell meta-llama/Llama-3.1-70B --tp 8 --pp 2 -o llama.sh
      clusterctl render lws meta-llama/Llama-3.1-70B --tp 8 --pp 2 --gpus-per-node 8
    """
    from clusterctl.render import TARGETS, Asked

    if target not in TARGETS:
        raise ConfigError(f"no target {target!r}", hint=f"one of {', '.join(TARGETS)}")
    spec = load_spec(config=config, cluster=cluster, head=head, workers=worker, image=image)
    serve = None
    if model is not None:
        serve = ServeSpec(
            model=model,
            name=deployment_name(model),
            tp=tp,
            pp=pp,
            engine=engine,
            executor=executor,
            dtype=dtype,
            max_model_len=max_model_len,
            served_model_name=served_model_name,
            port=port,
            extra=checked_flags(engine_flags or []),
        )
    places = seen_places(spec) if live else None
    modules = tuple(slurm_module or ())
    asked = Asked(spec, serve, gpus_per_node, places, slurm=slurm_runtime, modules=modules)
    done = TARGETS[target](asked)
    if output != STDOUT:
        write(done, Path(output), yes=yes)
    show(done, output, as_json=as_json)


def seen_places(spec: ClusterSpec) -> Mapping[str, Place]:
    """The hosts as `up --dry-run` sees them."""
    from clusterctl import planning
    from clusterctl.session import Session

    with (
        console.progress() as report,
        Session.connect(spec, report=report) as session,
        planning.left_behind(session, report) as leaving,
    ):
        return planning.prospect(session, report, leaving).places


def write(done: Rendered, to: Path, *, yes: bool) -> None:
    single = len(done.files) == 1 and not to.is_dir()
    paths = {to if single else to / file.name: file for file in done.files}
    there = [path for path in paths if path.exists()]
    if there and not yes:
        raise ConfigError(f"{there[0]} is there already", hint="--yes replaces it")
    for path, file in paths.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(file.text, encoding="utf-8")
        path.chmod(file.mode)


def show(done: Rendered, output: str, *, as_json: bool) -> None:
    if as_json:
        console.json(
            {
                "schema_version": console.SCHEMA_VERSION,
                "target": done.target,
                "files": {file.name: file.text for file in done.files},
                "left_out": list(done.left_out),
            }
        )
        return
    for what in done.left_out:
        console.warn(f"left out: {what}")
    for file in done.files if output == STDOUT else ():
        if len(done.files) > 1:
            console.line(f"# === {file.name}")
        console.line(file.text.rstrip("\n"))
    if output != STDOUT:
        console.line(f"{output} written")
