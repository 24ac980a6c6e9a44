"""The Typer app: a lazy table of commands, and the one place where an error becomes text."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import groupby, takewhile
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from clusterctl import __version__, console, options
from clusterctl.errors import EXIT_INTERRUPTED, EXIT_OK, ClusterctlError, ConfigError
from clusterctl.trace import TRACE_FILE

PROGRAMS = ("clusterctl", "infercluster")
CLUSTER, MODELS, NODES, SETUP = "Cluster", "Models", "Inside the nodes", "Configuration"

EPILOG = (
    "Exit codes: 0 ok, 1 failed, 2 usage or configuration, 3 host unreachable, "
    "4 preflight failed, 5 not ready in time, 6 lock held, 130 interrupted."
)


@dataclass(frozen=True)
class Entry:
    """One line of the table. `target` is "module:function", or "module:app" for a group.

    `passthrough`: what follows the first argument is somebody else's command line, dashes included.
    """

    target: str
    help: str
    section: str
    passthrough: bool = False


COMMANDS: Mapping[str, Entry] = {
    "up": Entry(
        "clusterctl.commands.up:up",
        "Form the cluster, or bring it to what its file says now; keep what is right already.",
        CLUSTER,
    ),
    "status": Entry(
        "clusterctl.commands.status:status",
        "Show every node and deployment as seen now, and whether all is verified.",
        CLUSTER,
    ),
    "sanity": Entry(
        "clusterctl.commands.sanity:sanity",
        "Check collectives over all devices, and name the rank that does not answer.",
        CLUSTER,
    ),
    "doctor": Entry(
        "clusterctl.commands.doctor:doctor",
        "Find what will fail on the hosts, or has failed, with its cause and its fix.",
        CLUSTER,
    ),
    "topology": Entry(
        "clusterctl.commands.topology:topology",
        "Show hosts, GPUs, adapters, the networks that join them, and the bandwidth measured last.",
        CLUSTER,
    ),
    "diff": Entry(
        "clusterctl.commands.diff:diff",
        "Show what has drifted since `up`: image, environment, flags, driver, weights.",
        CLUSTER,
    ),
    "audit": Entry(
        "clusterctl.commands.audit:audit",
        "Show who did what to the hosts of the cluster, when, and how it ended.",
        CLUSTER,
    ),
    "timeline": Entry(
        "clusterctl.commands.timeline:timeline",
        "Show how long each stage of the last `up` and `serve` took, beside the run before it.",
        CLUSTER,
    ),
    "ports": Entry(
        "clusterctl.commands.ports:ports",
        "Show which ports must be open between which hosts, as a table or as firewall rules.",
        CLUSTER,
    ),
    "down": Entry(
        "clusterctl.commands.down:down",
        "End deployments, Ray and all containers of the cluster, and see that none is left.",
        CLUSTER,
    ),
    "serve": Entry(
        "clusterctl.commands.serve:serve",
        "Serve a model over the cluster; ready when a real token has come back.",
        MODELS,
    ),
    "plan": Entry(
        "clusterctl.commands.plan:plan",
        "Say which tp, pp and dp suit a model on these GPUs, whether it fits, and what that gives.",
        MODELS,
    ),
    "ps": Entry(
        "clusterctl.commands.ps:ps",
        "List deployments; one is ready only if a token came back just now.",
        MODELS,
    ),
    "chat": Entry(
        "clusterctl.commands.chat:chat",
        "Talk to a deployment, or to any OpenAI API, from this terminal.",
        MODELS,
    ),
    "bench": Entry(
        "clusterctl.commands.bench:bench",
        "Measure time to first token, time per token and tokens a second at rising concurrency.",
        MODELS,
    ),
    "tunnel": Entry(
        "clusterctl.commands.tunnel:tunnel",
        "Bring the API of deployments and Ray's dashboard to this machine, over SSH.",
        MODELS,
    ),
    "stop": Entry(
        "clusterctl.commands.stop:stop",
        "End a deployment, and prove that nothing of it is left.",
        MODELS,
    ),
    "model": Entry(
        "clusterctl.commands.model:app",
        "Bring a model onto every node, prove that all are equal, list, remove.",
        MODELS,
    ),
    "image": Entry(
        "clusterctl.commands.image:app",
        "Bring the image onto every node, with a registry or without, and compare what it holds.",
        MODELS,
    ),
    "logs": Entry(
        "clusterctl.commands.logs:logs",
        "Show the nodes' logs, merged behind each node's name.",
        NODES,
    ),
    "exec": Entry(
        "clusterctl.commands.exec:exec_",
        "Run a command in a node's container; its exit code becomes ours.",
        NODES,
        passthrough=True,
    ),
    "shell": Entry("clusterctl.commands.shell:shell", "Open a shell in a node's container.", NODES),
    "init": Entry(
        "clusterctl.commands.init:init",
        "Write a commented cluster.yaml from what the hosts say about themselves.",
        SETUP,
    ),
    "import": Entry(
        "clusterctl.commands.import_:import_",
        "Make a cluster.yaml of what another tool knows, and say what could not be carried over.",
        SETUP,
    ),
    "render": Entry(
        "clusterctl.commands.render:render",
        "Write the cluster, and a deployment on it, as scripts or manifests of another platform.",
        SETUP,
    ),
    "config": Entry(
        "clusterctl.commands.config:app",
        "Show the merged configuration, the origin of each value, or the JSON Schema.",
        SETUP,
    ),
    "use": Entry("clusterctl.commands.use:use", "Make a saved cluster the current one.", SETUP),
    "ls": Entry(
        "clusterctl.commands.ls:ls",
        "List the clusters that `up` or `adopt` saved, and which is current.",
        SETUP,
    ),
    "adopt": Entry(
        "clusterctl.commands.adopt:adopt",
        "Learn a running cluster from its head host, save it here and make it current.",
        SETUP,
    ),
    "version": Entry("clusterctl.commands.version:version", "Print the versions in use.", SETUP),
}


class LazyGroup(TyperGroup):
    """Helps, completes and suggests from the table; a module is imported when its command runs."""

    def __init__(self, **attrs: Any) -> None:
        super().__init__(**attrs)
        for name, entry in COMMANDS.items():
            self.add_command(TyperCommand(name, help=entry.help, rich_markup_mode=None))

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, stub, rest = super().resolve_command(ctx, args)
        return name, load(name) if name else stub, rest

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        for section, names in groupby(COMMANDS, key=lambda name: COMMANDS[name].section):
            with formatter.section(section):
                formatter.write_dl([(name, COMMANDS[name].help) for name in names])


def load(name: str) -> Any:
    """Import a command's module and make a Typer command of what it defines."""
    entry = COMMANDS[name]
    module, _, attribute = entry.target.partition(":")
    target = getattr(import_module(module), attribute)
    if isinstance(target, typer.Typer):
        command = get_command(target)
    else:
        command = as_command(target, interspersed=not entry.passthrough)
    command.name = name
    add_output_options(command)
    return command


def as_command(function: Callable[..., Any], *, interspersed: bool = True) -> Any:
    app = typer.Typer(rich_markup_mode=None, add_completion=False)
    app.command(context_settings={"allow_interspersed_args": interspersed})(function)
    return get_command(app)


def add_output_options(command: Any) -> None:
    """-v, -q and --no-color are every command's: none has to declare them."""
    if isinstance(command, TyperGroup):
        for child in command.commands.values():
            add_output_options(child)
        return
    act = command.callback

    def configured(*, verbose: int, quiet: bool, no_color: bool, **rest: Any) -> Any:
        console.configure(verbosity=verbose, quiet=quiet, no_color=no_color)
        if verbose > 1:
            os.environ.setdefault(TRACE_FILE, "/dev/stderr")
        return act(**rest)

    command.callback = configured
    command.params.extend(as_command(output_options).params)


def output_options(
    verbose: options.Verbose = 0, quiet: options.Quiet = False, no_color: options.NoColor = False
) -> None:
    """Only its parameters matter."""


def print_version(wanted: bool) -> None:
    if wanted:
        console.line(f"clusterctl {__version__}")
        raise typer.Exit


app = typer.Typer(cls=LazyGroup, rich_markup_mode=None, invoke_without_command=True)


@app.callback(epilog=EPILOG)
def root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=print_version, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """From a list of machines to a verified inference cluster and a served model.

    \b
      clusterctl up --head gpu01 --worker gpu02
      clusterctl serve meta-llama/Llama-3.1-70B --tp 8 --pp 2
    """
    if context.invoked_subcommand is None:
        console.line(context.get_help())


class UsageError(ConfigError):
    """The command line cannot be read."""

    code = "usage"


class Bug(ClusterctlError):
    """An exception that nothing in clusterctl expected."""

    code = "bug"


def main() -> None:
    """Both entry points. Ends the process with the documented code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    called_as = Path(sys.argv[0]).name
    code = run(sys.argv[1:], program=called_as if called_as in PROGRAMS else PROGRAMS[0])
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has gone; without this the interpreter's own flush complains at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def run(args: Sequence[str], *, program: str = PROGRAMS[0]) -> int:
    """Run one command line; its exit code. Every error becomes text here and nowhere else."""
    try:
        return get_command(app).main(list(args), program, standalone_mode=False) or EXIT_OK
    except ClusterctlError as error:
        failure = error
    except typer.TyperException as error:
        failure = usage_error(error)
    except (typer.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the boundary: what nobody expected is a bug
        failure = bug(error)
    console.error(failure, as_json=asks_json(args))
    return failure.exit_code


def usage_error(error: typer.TyperException) -> ClusterctlError:
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "clusterctl"
    return UsageError(error.format_message(), hint=f"{command} --help")


def bug(cause: Exception) -> ClusterctlError:
    failure = Bug(
        f"this is a bug: {type(cause).__name__}: {cause}",
        hint="run it again with -v and report what it prints",
    )
    failure.__cause__ = cause
    return failure


def asks_json(args: Sequence[str]) -> bool:
    """Whether --json stands on our side of the command line, readable or not."""
    return "--json" in takewhile(lambda arg: arg != "--", args)
