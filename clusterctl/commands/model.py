"""clusterctl model: the same model on every node, whole and proved."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clusterctl import completion, console, keys
from clusterctl.options import (
    ClusterName,
    ConfigFile,
    Hosts,
    Json,
    Yes,
    command_group,
    load_spec,
)
from clusterctl.secret import Secret

if TYPE_CHECKING:
    from clusterctl.transfer.models import Listed, Pushed, Verified

app = command_group("Bring a model onto every node, prove that all are equal, list, remove.")

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A model's directory, or ORGANISATION/NAME of a Hub.")
]
To = Annotated[
    str | None,
    typer.Option(
        "--to",
        metavar="PATH",
        help="The model's absolute path on every node. Default: below the first of model_dirs, or "
        "the Hugging Face cache.",
        show_default=False,
    ),
]
Source = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="NODE",
        help="The node that has it. Default: this machine.",
        autocompletion=completion.hosts,
        show_default=False,
    ),
]
HelperImage = Annotated[
    str | None,
    typer.Option(
        "--helper-image",
        metavar="REFERENCE",
        help="An image with Python that is on the hosts; it runs the helpers. Default: the "
        "cluster's.",
        show_default=False,
    ),
]
Port = Annotated[
    int,
    typer.Option(
        "--port", metavar="PORT", min=0, help="Where hosts serve each other; 0: any free one."
    ),
]


@app.command()
def push(
    model: Model,
    config: ConfigFile = None,
    cluster: ClusterName = None,
    hosts: Hosts = None,
    source: Source = None,
    to: To = None,
    helper_image: HelperImage = None,
    port: Port = 0,
    checksum: Annotated[
        bool,
        typer.Option("--checksum", help="Read what is there, rather than trust size and time."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Copy a model onto every node, each host passing it on to the next.

    A run that broke off goes on where it was; what is there already is not moved again.
    """
    from clusterctl.hostfilter import choose_nodes
    from clusterctl.session import Session
    from clusterctl.transfer import models

    spec = load_spec(config=config, cluster=cluster)
    options = models.Options(helper_image or spec.image, port, checksum)
    names = with_source(choose_nodes(spec, hosts), source)
    with (
        console.progress() as report,
        Session.connect(spec, names=names, report=report, partial=True) as session,
    ):
        done = models.push(session, model, options, report, source=source, to=to)
    show_pushed(done, as_json=as_json)


def with_source(names: list[str], source: str | None) -> list[str]:
    """Who has it takes part, whatever --hosts says."""
    return names if source is None or source in names else [*names, source]


def show_pushed(done: Pushed, *, as_json: bool, image: str | None = None) -> None:
    """Of a model, or of this image. Ends with the exit code of the first thing to fix, where a
    host failed."""
    from clusterctl.session import all_failures
    from clusterctl.transfer.meter import size_text

    if as_json:
        console.json(pushed_document(done))
    else:
        console.table(
            ("NODE", "STATE", "RECEIVED", "PASSED ON", "IMAGE" if image else "PATH"),
            [
                (
                    node,
                    one.state,
                    size_text(one.received + one.fed),
                    size_text(one.sent),
                    image or _path(done, node),
                )
                for node, one in done.arrivals.items()
            ],
        )
    if done.failures:
        error = all_failures(done.failures)
        if not as_json:
            console.error(error)
        raise typer.Exit(error.exit_code)


def _path(done: Pushed, node: str) -> str:
    """A host that was never reached has not said where its home is."""
    return done.place.path(node) if node in done.place.parents else "-"


def pushed_document(done: Pushed) -> dict[str, object]:
    return {
        "schema_version": console.SCHEMA_VERSION,
        "paths": list(done.place.paths),
        "bytes": done.size,
        "nodes": [
            {
                "name": node,
                "state": one.state,
                "received_bytes": one.received,
                "fed_bytes": one.fed,
                "sent_bytes": one.sent,
                "error": one.error.message if one.error else None,
            }
            for node, one in done.arrivals.items()
        ],
    }


@app.command()
def pull(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="ORGANISATION/NAME of the Hub.")],
    config: ConfigFile = None,
    cluster: ClusterName = None,
    hosts: Hosts = None,
    on: Annotated[
        str | None,
        typer.Option(
            "--on",
            metavar="NODE",
            help="The node that downloads it. Default: the head.",
            autocompletion=completion.hosts,
            show_default=False,
        ),
    ] = None,
    revision: Annotated[
        str, typer.Option("--revision", metavar="REV", help="A branch, tag or commit.")
    ] = "main",
    include: Annotated[
        list[str] | None,
        typer.Option("--include", metavar="GLOB", help="Only these files; repeat it."),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option("--exclude", metavar="GLOB", help="Not these files; repeat it."),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            "--hf-token-file",
            metavar="FILE",
            help="The Hub's token. Default: $HF_TOKEN.",
            show_default=False,
        ),
    ] = None,
    helper_image: HelperImage = None,
    port: Port = 0,
    as_json: Json = False,
) -> None:
    """Download a model of the Hub on one node, into its Hugging Face cache, and pass it on.

    $HF_ENDPOINT names another Hub. The token goes over stdin, and is in no command line.
    """
    import os

    from clusterctl.hostfilter import choose_nodes
    from clusterctl.session import Session
    from clusterctl.transfer import models

    spec = load_spec(config=config, cluster=cluster)
    names = choose_nodes(spec, hosts)
    (downloads,) = (
        choose_nodes(spec, [on]) if on else [spec.head if spec.head in names else names[0]]
    )
    wanted = models.Wanted(
        model,
        revision,
        tuple(include or ()),
        tuple(exclude or ()),
        os.environ.get("HF_ENDPOINT"),
        hub_token(token_file, os.environ),
    )
    options = models.Options(helper_image or spec.image, port)
    with (
        console.progress() as report,
        Session.connect(spec, names=[*names, downloads], report=report, partial=True) as session,
    ):
        done = models.pull(session, wanted, options, report, on=downloads)
    show_pushed(done, as_json=as_json)


def hub_token(file: Path | None, environment: Mapping[str, str]) -> Secret | None:
    if file is not None:
        return keys.read(file)
    text = environment.get("HF_TOKEN", "").strip()
    return Secret(text) if text else None


@app.command()
def verify(
    model: Model,
    config: ConfigFile = None,
    cluster: ClusterName = None,
    hosts: Hosts = None,
    to: To = None,
    helper_image: HelperImage = None,
    as_json: Json = False,
) -> None:
    """Read every byte of a model on every node, and name each file that is not equal."""
    from clusterctl.hostfilter import choose_nodes
    from clusterctl.session import Session
    from clusterctl.transfer import models

    spec = load_spec(config=config, cluster=cluster)
    options = models.Options(helper_image or spec.image)
    names = choose_nodes(spec, hosts)
    with (
        console.progress() as report,
        Session.connect(spec, names=names, report=report) as session,
    ):
        done = models.verify(session, model, options, report, to=to)
    show_verified(done, as_json=as_json)
    raise typer.Exit(1 if done.faults else 0)


def show_verified(done: Verified, *, as_json: bool) -> None:
    from dataclasses import asdict

    from clusterctl.transfer.meter import size_text

    if as_json:
        console.json(
            {
                "schema_version": console.SCHEMA_VERSION,
                "paths": list(done.place.paths),
                "equal": not done.faults,
                "nodes": list(done.nodes),
                "files": done.files,
                "bytes": done.size,
                "faults": [asdict(fault) for fault in done.faults],
            }
        )
    elif done.faults:
        rows = [(fault.node, fault.path or "-", fault.message) for fault in done.faults]
        console.table(("NODE", "FILE", "WHAT IS WRONG"), rows)
    else:
        said = f"{done.files} files, {size_text(done.size)}, equal on {', '.join(done.nodes)}"
        console.line(f"{' and '.join(done.place.paths)}: {said}")


@app.command()
def ls(
    config: ConfigFile = None,
    cluster: ClusterName = None,
    hosts: Hosts = None,
    helper_image: HelperImage = None,
    as_json: Json = False,
) -> None:
    """List the models in model_dirs and the Hugging Face caches, and on which nodes they are."""
    from dataclasses import asdict

    from clusterctl.hostfilter import choose_nodes
    from clusterctl.session import Session
    from clusterctl.transfer import models

    spec = load_spec(config=config, cluster=cluster)
    names = choose_nodes(spec, hosts)
    with (
        console.progress() as report,
        Session.connect(spec, names=names, report=report, partial=True) as session,
    ):
        found = models.listed(session, models.Options(helper_image or spec.image), report)
    if as_json:
        records = [asdict(one) for one in found]
        unreachable = {name: error.message for name, error in session.failures.items()}
        console.json(
            {
                "schema_version": console.SCHEMA_VERSION,
                "models": records,
                "unreachable": unreachable,
            }
        )
    else:
        grouped = models.nodes_of(found)
        console.table(
            ("MODEL", "SIZE", "STATE", "NODES"),
            [(name, *_where(names, grouped[name])) for name in sorted(grouped)],
        )
        for error in session.failures.values():
            console.warn(f"{error.host}: {error.message}")
    if session.failures:
        raise typer.Exit(next(iter(session.failures.values())).exit_code)


def _where(names: list[str], found: list[Listed]) -> tuple[str, str, str]:
    """Size, state and nodes of one model; where the nodes differ, each stands with its own."""
    from clusterctl.transfer.meter import size_text

    sizes = dict.fromkeys(size_text(one.size) for one in found)
    states = dict.fromkeys(one.state for one in found)
    missing = [name for name in names if name not in {one.node for one in found}]
    if len(sizes) == len(states) == 1:
        nodes = "all" if not missing else ", ".join(one.node for one in found)
        return next(iter(sizes)), next(iter(states)), nodes
    said = ", ".join(f"{one.node}: {size_text(one.size)} {one.state}" for one in found)
    return "differs", "differs", said


@app.command()
def rm(
    model: Model,
    config: ConfigFile = None,
    cluster: ClusterName = None,
    hosts: Hosts = None,
    to: To = None,
    helper_image: HelperImage = None,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Remove a model from every node, and what is on its way there."""
    from clusterctl.errors import ClusterctlError
    from clusterctl.hostfilter import choose_nodes
    from clusterctl.session import Session
    from clusterctl.transfer import models

    spec = load_spec(config=config, cluster=cluster)
    names = choose_nodes(spec, hosts)
    if not yes and not console.confirm(f"remove {to or model} from {', '.join(names)}?"):
        raise ClusterctlError("nothing was removed", hint="--yes says so without being asked")
    options = models.Options(helper_image or spec.image)
    with (
        console.progress() as report,
        Session.connect(spec, names=names, report=report) as session,
    ):
        place, removed = models.remove(session, model, options, report, to=to)
    if as_json:
        records = [
            {"name": node, "path": place.path(node), "removed": was}
            for node, was in removed.items()
        ]
        console.json({"schema_version": console.SCHEMA_VERSION, "nodes": records})
        return
    rows = [
        (node, "removed" if was else "was not there", place.path(node))
        for node, was in removed.items()
    ]
    console.table(("NODE", "STATE", "PATH"), rows)
