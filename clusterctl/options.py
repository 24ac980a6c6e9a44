"""Option types shared by commands, and the one call that turns them into a ClusterSpec.

A command takes the types it needs:

    def status(config: ConfigFile = None, as_json: Json = False) -> None:
        spec = load_spec(config=config)

-v, -q and --no-color belong to every command; cli.py adds them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clusterctl import completion

if TYPE_CHECKING:
    from clusterctl.spec import ClusterSpec


def split_commas(values: list[str] | None) -> list[str]:
    """`--worker a,b --worker c` is a, b, c."""
    return [part.strip() for value in values or [] for part in value.split(",") if part.strip()]


ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config", "-f", metavar="FILE", help="cluster.yaml to read.", show_default=False
    ),
]
ConfigFileLong = Annotated[  # where -f means something else
    Path | None,
    typer.Option("--config", metavar="FILE", help="cluster.yaml to read.", show_default=False),
]
ClusterName = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        "-c",
        metavar="NAME",
        help="A cluster that `up` saved (see `ls`).",
        autocompletion=completion.clusters,
        show_default=False,
    ),
]
Head = Annotated[
    str | None,
    typer.Option(
        "--head", metavar="HOST", help="The head host, as [USER@]HOST[:PORT].", show_default=False
    ),
]
Workers = Annotated[
    list[str] | None,
    typer.Option(
        "--worker",
        metavar="HOST",
        help="A worker host; repeat it, or separate by commas.",
        callback=split_commas,
        show_default=False,
    ),
]
Hosts = Annotated[
    list[str] | None,
    typer.Option(
        "--hosts",
        metavar="GLOB",
        help="Only these nodes, by name or glob; repeat it, or separate by commas.",
        callback=split_commas,
        autocompletion=completion.hosts,
        show_default=False,
    ),
]
Image = Annotated[
    str | None,
    typer.Option(
        "--image",
        metavar="REFERENCE",
        help="The container image of every node.",
        show_default=False,
    ),
]
Watch = Annotated[
    bool,
    typer.Option(
        "--watch", "-w", help="Look again and again, until Ctrl-C; --json: a line a look."
    ),
]
ClusterTitle = Annotated[
    str | None,
    typer.Option(
        "--name", metavar="NAME", help="What the new cluster is called.", show_default=False
    ),
]
Devices = Annotated[
    str | None,
    typer.Option(
        "--devices",
        metavar="KIND[:N]",
        help="What a node gives: auto, gpu, gpu:N, gpu=4-7 (these) or cpu:N (N processes).",
        show_default=False,
    ),
]
ModelDirs = Annotated[
    list[str] | None,
    typer.Option(
        "--model-dir",
        metavar="DIR",
        help="Mount this directory of every host at the same path; repeat it, or use commas.",
        callback=split_commas,
        show_default=False,
    ),
]
Env = Annotated[
    list[str] | None,
    typer.Option(
        "--env",
        "-e",
        metavar="KEY=VALUE",
        help="An environment variable of every node, such as NCCL_IB_HCA=mlx5; repeat it.",
        show_default=False,
    ),
]
SshConfig = Annotated[
    str | None,
    typer.Option(
        "--ssh-config",
        metavar="FILE",
        help="Read this instead of ~/.ssh/config.",
        show_default=False,
    ),
]
ApiKeyFile = Annotated[
    Path | None,
    typer.Option(
        "--api-key-file",
        metavar="FILE",
        help="The API key. Else INFERCLUSTER_API_KEY; else the one the cluster keeps.",
        show_default=False,
    ),
]
CaFile = Annotated[
    Path | None,
    typer.Option(
        "--ca-file",
        metavar="FILE",
        help="Of an https URL: the authority (PEM) that signed its certificate.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before what cannot be undone.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and stop.")]
AcceptNewHostKeys = Annotated[
    bool,
    typer.Option(
        "--accept-new-host-keys", help="Trust and record the SSH keys of hosts never seen before."
    ),
]
Timeout = Annotated[
    float | None,
    typer.Option(
        "--timeout", metavar="SECONDS", min=0, help="How long to wait.", show_default=False
    ),
]
LockWait = Annotated[
    float | None,
    typer.Option(
        "--lock-wait",
        metavar="SECONDS",
        min=0,
        help="How long to wait for another run on this cluster to end.",
        show_default=False,
    ),
]
Verbose = Annotated[
    int,
    typer.Option(
        "--verbose",
        "-v",
        count=True,
        help="An error's traceback; -vv: also every command run on a host and every Docker call.",
        show_default=False,
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Results and errors only.")]
NoColor = Annotated[bool, typer.Option("--no-color", help="Plain text (NO_COLOR does the same).")]
HostArgument = Annotated[
    str, typer.Argument(metavar="HOST", help="A node's name.", autocompletion=completion.hosts)
]


def command_group(help_text: str) -> typer.Typer:
    """The Typer app of a command that has subcommands."""
    return typer.Typer(help=help_text, rich_markup_mode=None, add_completion=False)


def load_spec(
    *,
    config: Path | None = None,
    cluster: str | None = None,
    head: str | None = None,
    workers: Sequence[str] | None = None,
    name: str | None = None,
    image: str | None = None,
    devices: str | None = None,
    model_dirs: Sequence[str] | None = None,
    env: Sequence[str] | None = None,
    ssh_config: str | None = None,
    accept_new_host_keys: bool = False,
    port_offset: int | None = None,
    allow_public_address: bool = False,
) -> ClusterSpec:
    """The cluster that these flags mean. Raises ConfigError."""
    from clusterctl import config as configuration

    flags = configuration.Flags(
        cluster=cluster,
        config=config,
        head=head,
        workers=tuple(workers or ()),
        name=name,
        image=image,
        devices=devices,
        model_dirs=tuple(model_dirs or ()),
        env=tuple(env or ()),
        ssh_config=ssh_config,
        accept_new_host_keys=accept_new_host_keys or None,
        port_offset=port_offset,
        allow_public_address=allow_public_address,
    )
    return configuration.load_spec(flags).spec


def with_lock_wait(spec: ClusterSpec, seconds: float | None) -> ClusterSpec:
    if seconds is None:
        return spec
    return replace(spec, limits=replace(spec.limits, lock_wait=seconds))
