"""clusterctl serve: a model over the cluster, ready when a real token came back."""

from __future__ import annotations

import os
import re
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

import typer

from clusterctl import console
from clusterctl.errors import ConfigError
from clusterctl.options import ClusterName, ConfigFile, DryRun, Json, load_spec
from clusterctl.serving.phases import BLOCK_TOKENS
from clusterctl.spec import ServeSpec, TlsSpec
from clusterctl.transport.base import shell_line

if TYPE_CHECKING:
    from clusterctl.deploy import Served
    from clusterctl.keys import ApiKey
    from clusterctl.serving.plan import ServePlan
    from clusterctl.serving.records import Deployment


def serve(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A directory, at the same path on every host, or a Hub id."
        ),
    ],
    engine_flags: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="-- FLAG", help="After --: the engine's own flags.", show_default=False
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="Of the deployment; from the model's name."),
    ] = None,
    tp: Annotated[
        int | None,
        typer.Option("--tp", metavar="N", min=1, help="Tensor parallel size; the plan's."),
    ] = None,
    pp: Annotated[
        int | None,
        typer.Option("--pp", metavar="N", min=1, help="Pipeline parallel size; the plan's."),
    ] = None,
    dp: Annotated[
        int, typer.Option("--dp", metavar="N", min=1, help="Replicas behind one address.")
    ] = ServeSpec.dp,
    ep: Annotated[
        bool, typer.Option("--ep", help="Experts whole on the ranks, not in slices.")
    ] = ServeSpec.ep,
    dcp: Annotated[
        int,
        typer.Option(
            "--dcp", metavar="N", min=1, help="Tensor ranks that share a token's cache (vLLM)."
        ),
    ] = ServeSpec.dcp,
    engine: Annotated[
        Literal["auto", "native", "vllm"],
        typer.Option("--engine", help="What serves; auto: vLLM where the image has it, on GPUs."),
    ] = ServeSpec.engine,
    executor: Annotated[
        Literal["auto", "ray", "mp", "inproc"],
        typer.Option("--executor", help="What carries the ranks."),
    ] = ServeSpec.executor,
    dtype: Annotated[
        str, typer.Option("--dtype", metavar="DTYPE", help="Of weights and activations.")
    ] = (ServeSpec.dtype),
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
    host: Annotated[
        str | None,
        typer.Option(
            "--host", metavar="ADDRESS", help="Where the API listens; the head's private address."
        ),
    ] = None,
    port: Annotated[int, typer.Option("--port", metavar="PORT", min=1, max=65535)] = ServeSpec.port,
    expose: Annotated[
        bool,
        typer.Option("--expose", help="Listen on all addresses of the head, public ones too."),
    ] = ServeSpec.expose,
    tls_cert: Annotated[
        Path | None,
        typer.Option(
            "--tls-cert",
            metavar="FILE",
            help="Serve https: the certificate (PEM), its issuers' behind it.",
        ),
    ] = None,
    tls_key: Annotated[
        Path | None,
        typer.Option("--tls-key", metavar="FILE", help="The private key (PEM) of --tls-cert."),
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            "--api-key-file",
            metavar="FILE",
            help="The API key. Else INFERCLUSTER_API_KEY; else one is generated.",
        ),
    ] = None,
    api_key_prompt: Annotated[
        bool, typer.Option("--api-key-prompt", help="Ask for the API key.")
    ] = False,
    allow_tcp: Annotated[
        bool,
        typer.Option("--allow-tcp", help="Tensor ranks of several nodes may speak TCP: slow."),
    ] = ServeSpec.allow_tcp,
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout",
            metavar="SECONDS",
            min=0,
            show_default="no limit",
            help="How long to wait in all, even for what still moves.",
        ),
    ] = ServeSpec.timeout,
    stall_timeout: Annotated[
        float,
        typer.Option(
            "--stall-timeout",
            metavar="SECONDS",
            min=10,
            help="How long nothing may move before a token: log, bytes, CPU time of any rank.",
        ),
    ] = ServeSpec.stall_timeout,
    liveness_deadline: Annotated[
        float | None,
        typer.Option(
            "--liveness-deadline",
            metavar="SECONDS",
            min=1,
            show_default="30, or limits: in cluster.yaml",
            help="Without a token for so long it counts as hung, and begins anew; four times as "
            "long while its ranks compute.",
        ),
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Return when the engine has been started.")
    ] = False,
    dry_run: DryRun = False,
    config: ConfigFile = None,
    cluster: ClusterName = None,
    as_json: Json = False,
) -> None:
    """Serve a model over the cluster; ready when a real token has come back.

    \b
      clusterctl serve /models/SmolLM2-135M-Instruct --pp 2
      clusterctl serve meta-llama/Llama-3.1-70B --tp 8 --pp 2 -- --max-num-seqs 128
      clusterctl serve meta-llama/Llama-3.1-70B --engine vllm --executor mp --tp 8 --pp 2 --dry-run
    """
    from clusterctl import certificate, deploy, keys
    from clusterctl.runlog import recorded
    from clusterctl.session import Session

    spec = load_spec(config=config, cluster=cluster)
    ask = (lambda: console.ask_secret("API key")) if api_key_prompt else None
    key = keys.resolve(api_key_file, os.environ, ask)
    asked = ServeSpec(
        model=model,
        name=name or deployment_name(model),
        tp=tp or ServeSpec.tp,
        pp=pp or ServeSpec.pp,
        open_sizes=open_sizes(tp, pp),
        dp=dp,
        ep=ep,
        dcp=dcp,
        engine=engine,
        executor=executor,
        dtype=dtype,
        max_model_len=max_model_len,
        served_model_name=served_model_name,
        host=host,
        port=port,
        expose=expose,
        tls=certificate.load(tls_cert, tls_key, datetime.now(timezone.utc)),
        api_key=key.secret if key else None,
        timeout=timeout,
        stall_timeout=stall_timeout,
        allow_tcp=allow_tcp,
        liveness_deadline=liveness_deadline or spec.limits.liveness_deadline,
        extra=checked_flags(engine_flags or []),
    )
    try:
        with console.progress() as report, Session.connect(spec, report=report) as session:
            if dry_run:
                planned = deploy.plan_serve(session, asked, report=report)
            else:
                with recorded(session, "serve", report) as run:
                    run.what, run.hosts = f"{asked.name}: {asked.model}", [spec.head]
                    served = deploy.serve(session, asked, detach=detach, report=report)
    except KeyboardInterrupt:
        console.note(
            f"no longer following; if the engine has started, it goes on. "
            f"clusterctl ps shows it, clusterctl stop {asked.name} ends it"
        )
        raise
    if dry_run:
        show_plan(planned, as_json=as_json)
        return
    show(asked, served, key or served.generated, tls_cert, as_json=as_json)
    console.timeline(report.stages, run.before.stages if run.before else ())


def open_sizes(tp: int | None, pp: int | None) -> frozenset[Literal["tp", "pp"]]:
    """Those that the plan may choose."""
    asked: dict[Literal["tp", "pp"], int | None] = {"tp": tp, "pp": pp}
    return frozenset(name for name, size in asked.items() if size is None)


def deployment_name(model: str) -> str:
    """`meta-llama/Llama-3.1-8B` is llama-3.1-8b."""
    base = model.rstrip("/").rpartition("/")[2]
    return re.sub(r"[^a-z0-9.-]+", "-", base.lower()).strip("-.") or "model"


# Where the API is and what opens it is ours to know: readiness and liveness go there.
OURS = {
    "--host": "--host or --expose",
    "--port": "--port",
    "--api-key": "--api-key-file: a command line can be read by everybody on the host",
    "--ssl-certfile": "--tls-cert",
    "--ssl-keyfile": "--tls-key",
}


def checked_flags(flags: list[str]) -> tuple[str, ...]:
    if flags and not flags[0].startswith("-"):
        raise ConfigError(
            f"unexpected argument {flags[0]!r}", hint="the engine's own flags go after --"
        )
    for flag in flags:
        if ours := OURS.get(flag.partition("=")[0]):
            raise ConfigError(f"{flag.partition('=')[0]} after --", hint=f"before it: {ours}")
    return tuple(flags)


def plan_document(plan: ServePlan) -> dict[str, Any]:
    """What runs where and why; no secret is in it, for the engine gets its key from a file."""
    placement = plan.placement
    return {
        "engine": placement.engine,
        "engine_reason": placement.why_engine,
        "executor": placement.executor,
        "executor_reason": placement.why_executor,
        "processes": [
            {"node": node, **asdict(process)} for node, process in plan.processes.items()
        ],
        "files": dict(plan.files),
    }


def show_plan(plan: ServePlan, *, as_json: bool) -> None:
    if as_json:
        console.json({"schema_version": console.SCHEMA_VERSION, **plan_document(plan)})
        return
    show_choice(plan)
    for path, content in plan.files.items():
        console.line(f"\n# {plan.placement.nodes[0]}: {path}\n{content}")
    for node, process in plan.processes.items():
        secrets = [f'{name}="$(cat {file})"' for name, file in process.env_files.items()]
        env = shell_line([f"{name}={value}" for name, value in process.env.items()])
        console.line(f"\n# {node}")
        console.line(" ".join(["env", *secrets, env, shell_line(process.argv)]))


def show_choice(plan: ServePlan) -> None:
    placement = plan.placement
    console.line(f"engine:   {placement.engine} ({placement.why_engine})")
    console.line(f"executor: {placement.executor} ({placement.why_executor})")


def show(
    asked: ServeSpec,
    served: Served,
    key: ApiKey | None,
    tls_cert: Path | None,
    *,
    as_json: bool,
) -> None:
    deployment = served.deployment
    if as_json:
        extra = {
            "kv_cache_tokens": deployment.kv_cache_tokens,
            "transports": list(deployment.transports),
            "api_key_file": str(key.file) if key and key.file else None,
        }
        record = deployment.document() | plan_document(served.plan) | extra
        console.json({"schema_version": console.SCHEMA_VERSION, "deployment": record})
        return
    console.line(f"{deployment.name}: {deployment.state}, {deployment.url}")
    show_choice(served.plan)
    if deployment.transports:
        console.line(f"ranks:    {', '.join(deployment.transports)}")
    if (tokens := deployment.kv_cache_tokens) is not None:
        blocks = f"{tokens // BLOCK_TOKENS:,} blocks x {BLOCK_TOKENS}"
        console.line(f"KV cache: {tokens:,} tokens = {blocks}{foretold(deployment)}")
    if served.generated is not None:
        console.line(f"API key: {served.generated.secret.reveal()}")
        console.line(f"         generated, shown this once, kept in {served.generated.file}")
    if asked.tls is not None and (note := names_note(asked.tls, deployment.url)):
        console.note(note)
    if key is not None:
        console.line(curl_line(asked, deployment.url, key, tls_cert))


def foretold(deployment: Deployment) -> str:
    """` (predicted 36,784: +0.0%)`; empty where nothing was."""
    said = deployment.prediction
    if said is None or said["difference"] is None:
        return ""
    return f" (predicted {said['kv_cache_tokens']:,}: {said['difference']:+.1%})"


def curl_line(asked: ServeSpec, url: str, key: ApiKey, tls_cert: Path | None = None) -> str:
    model = asked.served_model_name or asked.model
    body = f'{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
    return (
        f"curl {curl_target(asked, url, tls_cert)}/chat/completions "
        f'-H "Authorization: Bearer {key.for_shell}" '
        f"-H 'Content-Type: application/json' -d '{body}'"
    )


def names_note(tls: TlsSpec, url: str) -> str | None:
    """Where clients that check names, as all do, would refuse the URL as it is."""
    host = urlsplit(url).hostname
    if host in tls.names:
        return None
    names = ", ".join(tls.names) or "no host at all"
    return f"the certificate speaks for {names}, not for {host}: clients must call it by its name"


def curl_target(asked: ServeSpec, url: str, tls_cert: Path | None) -> str:
    """The URL, and how curl comes to trust whom it finds there: by a name that the certificate
    bears, wherever that leads."""
    if asked.tls is None or tls_cert is None:
        return url
    from clusterctl.certificate import name_for

    at = urlsplit(url)
    trusting = f"--cacert {shell_line([str(tls_cert.absolute())])}"
    name = name_for(asked.tls, at.hostname or "")
    if name in (None, at.hostname):
        return f"{trusting} {url}"
    there = f"{name}:{at.port}"
    return f"{trusting} --resolve {there}:{at.hostname} https://{there}{at.path}"
