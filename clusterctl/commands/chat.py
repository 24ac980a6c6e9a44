"""clusterctl chat: a conversation with a served model."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clusterctl import console
from clusterctl.options import ApiKeyFile, CaFile, ClusterName, ConfigFile, load_spec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from clusterctl.apiclient import ApiClient


def chat(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="[URL|NAME]", help="Any OpenAI API, or a deployment; the only one by default."
        ),
    ] = None,
    message: Annotated[
        str | None,
        typer.Option("--message", "-m", metavar="TEXT", help="Ask this, and end."),
    ] = None,
    system: Annotated[
        str | None, typer.Option("--system", metavar="TEXT", help="How the model is to behave.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="NAME", help="Of several; the first one by default."),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", metavar="T", min=0, help="The server's own.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", metavar="N", min=1, help="Of one answer.")
    ] = None,
    api_key_file: ApiKeyFile = None,
    ca_file: CaFile = None,
    config: ConfigFile = None,
    cluster: ClusterName = None,
) -> None:
    """Talk to a deployment, or to any OpenAI API, from this terminal.

    A line in, its answer as it comes. Ctrl-C ends an answer, Ctrl-D the talk.

    \b
      clusterctl chat
      clusterctl chat smollm2 -m "Why is the sky blue?"
      clusterctl chat http://gpu01:8000 < questions.txt
    """
    from clusterctl import endpoint, keys
    from clusterctl.events import silent

    key = keys.resolve(api_key_file, os.environ, None)
    params: dict[str, Any] = {"temperature": temperature, "max_tokens": max_tokens}
    with endpoint.api(
        target,
        key.secret if key else None,
        lambda: load_spec(config=config, cluster=cluster),
        silent,
        ca_file,
    ) as (client, first):
        lines = [message] if message is not None else asked()
        given = {name: value for name, value in params.items() if value is not None}
        converse(client, model or first, system, lines, given)


def asked() -> Iterator[str]:
    """Lines that say something; asked for with a prompt where somebody types them."""
    while (line := console.ask_line("> ")) is not None:
        if line.strip():
            yield line.strip()


def converse(
    client: ApiClient,
    model: str,
    system: str | None,
    lines: Iterable[str],
    params: Mapping[str, Any],
) -> None:
    """Each answer is written as it comes, and remembered; a cut off one as far as it came."""
    messages = [{"role": "system", "content": system}] if system else []
    for line in lines:
        messages.append({"role": "user", "content": line})
        answer = ""
        try:
            for piece in client.chat(model, messages, **params):
                answer += piece.text
                console.write(piece.text)
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
        console.line()
        messages.append({"role": "assistant", "content": answer})
