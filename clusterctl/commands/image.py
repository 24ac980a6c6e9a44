"""clusterctl image: the same image on every node."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from clusterctl import console
from clusterctl.commands.model import HelperImage, Port, Source, show_pushed, with_source
from clusterctl.errors import ConfigError
from clusterctl.options import ClusterName, ConfigFile, Hosts, Json, command_group, load_spec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from clusterctl.doctor.image import ImageContents

app = command_group(
    "Bring the image onto every node, with a registry or without, and compare what it holds."
)

Reference = Annotated[
    str | None,
    typer.Argument(
        metavar="[IMAGE]", help="The image. Default: the cluster's.", show_default=False
    ),
]


@app.command()
def push(
    image: Reference = None,
    config: ConfigFile = None,
    cluster: ClusterName = None,
    hosts: Hosts = None,
    source: Source = None,
    helper_image: HelperImage = None,
    port: Port = 0,
    as_json: Json = False,
) -> None:
    """Copy an image from this machine's Docker, or a node's, into every node's, without a registry.

    Each host passes it on to the next; a host that has this very image is left alone.
    """
    from clusterctl.hostfilter import choose_nodes
    from clusterctl.session import Session
    from clusterctl.transfer import images, models

    spec = load_spec(config=config, cluster=cluster)
    options = models.Options(helper_image or spec.image, port)
    names = with_source(choose_nodes(spec, hosts), source)
    with (
        console.progress() as report,
        Session.connect(spec, names=names, report=report, partial=True) as session,
    ):
        done = images.push(session, image or spec.image, options, report, source=source)
    show_pushed(done, as_json=as_json, image=image or spec.image)


@app.command()
def build(
    base: Annotated[
        str | None,
        typer.Option("--from", metavar="IMAGE", help="Without Ray. Default: the cluster's image."),
    ] = None,
    tag: Annotated[
        str | None, typer.Option("--tag", metavar="IMAGE", help="Of the new image; from its base.")
    ] = None,
    ray: Annotated[
        str | None, typer.Option("--ray", metavar="VERSION", help="Default: the one we test with.")
    ] = None,
    build_arg: Annotated[
        list[str] | None,
        typer.Option(
            "--build-arg", metavar="NAME=VALUE", help="For pip: PIP_INDEX_URL=...; repeat."
        ),
    ] = None,
    config: ConfigFile = None,
    cluster: ClusterName = None,
    helper_image: HelperImage = None,
    port: Port = 0,
    as_json: Json = False,
) -> None:
    """Add Ray to an image that lacks it (stock vLLM images do), and bring it onto every node.

    Built on the head and passed on, so that it is the same image everywhere; refused when it is
    not its base with Ray and nothing else.

    \b
      clusterctl image build --from vllm/vllm-openai:v0.19.1
    """
    from dataclasses import asdict

    from clusterctl import imagebuild
    from clusterctl.launch import proxy_environment
    from clusterctl.session import Session
    from clusterctl.transfer import models

    spec = load_spec(config=config, cluster=cluster)
    base, ray = base or spec.image, ray or imagebuild.RAY
    name = tag or imagebuild.tag_for(base, ray)
    arguments = {**proxy_environment(spec), **parsed_arguments(build_arg or [])}
    options = models.Options(helper_image or spec.image, port)
    with (
        console.progress() as report,
        Session.connect(spec, report=report) as session,
    ):
        done = imagebuild.build(session, base, name, ray, arguments, options, report)
    if as_json:
        held = {"tag": done.tag, **asdict(done.contents)}
        console.json({"schema_version": console.SCHEMA_VERSION, **held})
        return
    console.line(f"{done.tag}: {done.contents}")
    if done.pushed is not None:
        show_pushed(done.pushed, as_json=False, image=done.tag)
    console.line(f"set `image: {done.tag}` in cluster.yaml, then: clusterctl up")


def parsed_arguments(given: list[str]) -> dict[str, str]:
    for one in given:
        if "=" not in one:
            raise ConfigError(f"--build-arg {one!r} is not NAME=VALUE")
    return {name: value for name, _, value in (one.partition("=") for one in given)}


@app.command()
def pull(
    image: Reference = None,
    config: ConfigFile = None,
    cluster: ClusterName = None,
    hosts: Hosts = None,
    as_json: Json = False,
) -> None:
    """Pull an image from its registry on every node at once."""
    from clusterctl import images
    from clusterctl.hostfilter import choose_nodes
    from clusterctl.session import Session
    from clusterctl.transfer.images import image_ids

    spec = load_spec(config=config, cluster=cluster)
    names, wanted = choose_nodes(spec, hosts), image or spec.image
    with (
        console.progress() as report,
        Session.connect(spec, names=names, report=report) as session,
    ):
        images.pull(session, wanted, names, report)
        ids = image_ids(session, wanted)
    if as_json:
        nodes = [{"name": node, "id": found} for node, found in ids.items()]
        document = {"schema_version": console.SCHEMA_VERSION, "image": wanted, "nodes": nodes}
        console.json(document)
        return
    console.table(("NODE", "IMAGE"), [(node, _short(found)) for node, found in ids.items()])


@app.command()
def verify(
    image: Reference = None,
    config: ConfigFile = None,
    cluster: ClusterName = None,
    hosts: Hosts = None,
    as_json: Json = False,
) -> None:
    """Compare an image over all nodes: its id, and its Python, Ray, torch, vLLM and NCCL."""
    from dataclasses import asdict

    from clusterctl import images
    from clusterctl.hostfilter import choose_nodes
    from clusterctl.journal import Journal
    from clusterctl.session import Session
    from clusterctl.transfer.images import image_ids

    spec = load_spec(config=config, cluster=cluster)
    names, wanted = choose_nodes(spec, hosts), image or spec.image
    with Session.connect(spec, names=names) as session:
        ids = image_ids(session, wanted)
        there = [node for node, found in ids.items() if found is not None]
        held = images.contents(session, wanted, there, Journal())
    equal = len(set(ids.values())) == 1 and len(there) == len(names)
    if as_json:
        nodes = [
            {"name": node, "id": ids[node], **(asdict(held[node]) if node in held else {})}
            for node in ids
        ]
        console.json(
            {
                "schema_version": console.SCHEMA_VERSION,
                "image": wanted,
                "equal": equal,
                "nodes": nodes,
            }
        )
    else:
        show_held(ids, held)
        said = "equal on all nodes" if equal else "NOT equal on all nodes"
        console.line(f"{wanted}: {said}")
    raise typer.Exit(0 if equal else 1)


def show_held(ids: Mapping[str, str | None], held: Mapping[str, ImageContents]) -> None:
    columns = ("NODE", "IMAGE", "PYTHON", "RAY", "TORCH", "VLLM", "NCCL")
    rows = []
    for node, found in ids.items():
        one = held.get(node)
        versions = (one.python, one.ray, one.torch, one.vllm, one.nccl) if one else (None,) * 5
        rows.append((node, _short(found), *(version or "-" for version in versions)))
    console.table(columns, rows)


def _short(image_id: str | None) -> str:
    return "absent" if image_id is None else image_id.removeprefix("sha256:")[:12]
