"""clusterctl bench: how fast a deployment, or any OpenAI API, answers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clusterctl import console
from clusterctl.errors import ClusterctlError, ConfigError
from clusterctl.events import Event
from clusterctl.options import ApiKeyFile, CaFile, ClusterName, ConfigFile, Json, load_spec

if TYPE_CHECKING:
    from clusterctl.benchmark import Level
    from clusterctl.events import Report

COLUMNS = ("AT ONCE", "REQUESTS", "FAILED", "TOK/S", "TTFT p50", "p99", "TPOT p50", "p99", "TIME")


def bench(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="[URL|NAME]", help="Any OpenAI API, or a deployment; the only one by default."
        ),
    ] = None,
    concurrency: Annotated[
        str, typer.Option("--concurrency", metavar="N,N", help="Requests at once, in turn.")
    ] = "1,4,16",
    requests: Annotated[
        int, typer.Option("--requests", metavar="N", min=1, help="At each concurrency.")
    ] = 32,
    input_words: Annotated[
        int, typer.Option("--input-words", metavar="N", min=1, help="Of each random prompt.")
    ] = 128,
    output_tokens: Annotated[
        int, typer.Option("--output-tokens", metavar="N", min=1, help="Of each answer.")
    ] = 64,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="NAME", help="Of several; the first one by default."),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Write a .png or .svg.", show_default=False),
    ] = None,
    api_key_file: ApiKeyFile = None,
    ca_file: CaFile = None,
    config: ConfigFile = None,
    cluster: ClusterName = None,
    as_json: Json = False,
) -> None:
    """Measure time to first token, time per token and tokens a second at rising concurrency.

    Prompts are random words and answers do not end early, so that all levels do the same work.

    \b
      clusterctl bench --concurrency 1,8,32
      clusterctl bench http://gpu01:8000/v1 --output-tokens 256 --json
    """
    from clusterctl import benchmark, endpoint, keys
    from clusterctl.planner.picture import check_target

    if plot is not None:
        check_target(plot)
    work = benchmark.Workload(counts(concurrency), requests, input_words, output_tokens)
    key = keys.resolve(api_key_file, os.environ, None)
    with (
        console.progress() as report,
        endpoint.api(
            target,
            key.secret if key else None,
            lambda: load_spec(config=config, cluster=cluster),
            report,
            ca_file,
        ) as (client, first),
    ):
        served = model or first
        levels = benchmark.run(client, served, work, told=lambda one: tell(one, report))
        url = client.url
    if plot is not None:
        from clusterctl.benchpicture import draw

        draw(plot, served, levels)
        console.note(f"{plot} written")
    if as_json:
        found = benchmark.document(url, served, work, levels)
        console.json({"schema_version": console.SCHEMA_VERSION, **found})
    else:
        console.table(COLUMNS, [cells(one) for one in levels])
    if failed := [one for one in levels if one.failed]:
        raise ClusterctlError(
            f"{sum(one.failed for one in failed)} requests failed, the first at "
            f"{failed[0].concurrency} at once: {failed[0].error}"
        )


def counts(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise ConfigError(f"--concurrency {text}: numbers of 1 or more, such as 1,8,32")
    return tuple(int(part) for part in parts)


def tell(level: Level, report: Report) -> None:
    said = f"{level.output_tokens_per_s:.1f} tokens/s"
    report(Event("note", "bench", f"{level.concurrency} at once: {said}"))


def cells(level: Level) -> tuple[str, ...]:
    return (
        str(level.concurrency),
        str(level.requests),
        str(level.failed),
        f"{level.output_tokens_per_s:.1f}",
        milliseconds(level.ttft_p50),
        milliseconds(level.ttft_p99),
        milliseconds(level.tpot_p50),
        milliseconds(level.tpot_p99),
        f"{level.seconds:.1f} s",
    )


def milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.0f} ms"
