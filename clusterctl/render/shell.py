"""Render target `shell`: the `docker run` lines of `up --dry-run`, and the serve line. PURE."""

from __future__ import annotations

from clusterctl.containers import HOME, docker_run_line
from clusterctl.launch import RAY_TOKEN, SUPERVISION, supervisor_files
from clusterctl.render import declared
from clusterctl.render.document import Asked, File, Rendered
from clusterctl.render.entry import engine_argv, members, wait_line
from clusterctl.render.templates import Verbatim, fill, shell_text, shell_words


def render(asked: Asked) -> Rendered:
    """One script: each host runs its part of it."""
    found = declared.containers(asked)
    spec = asked.spec
    text = fill(
        "shell.sh",
        shell_text,
        cluster=spec.name,
        head=spec.head,
        nodes=[_node(asked, found, node.name) for node in spec.nodes],
        serves=_serves(asked, found),
        model=asked.serve.model if asked.serve else None,
        left_out=found.left_out,
        supervisor=[
            {"name": name, "text": Verbatim(data.decode())}
            for name, data in supervisor_files().items()
        ],
        home=HOME,
        supervision=SUPERVISION,
        token_file=RAY_TOKEN,
    )
    return Rendered("shell", (File(f"{spec.name}.sh", text, 0o755),), found.left_out)


def _node(asked: Asked, found: declared.Containers, name: str) -> dict[str, object]:
    container = found.by_node[name]
    return {
        "name": name,
        "role": "head" if name == asked.spec.head else "worker",
        "address": found.places[name].address,
        "directories": found.directories_of(asked.spec, name),
        "container": container.name,
        "run": Verbatim(docker_run_line(container)),
    }


def _serves(asked: Asked, found: declared.Containers) -> list[dict[str, object]]:
    """One line on the head; or, without Ray, one on every node, the head's last."""
    if asked.serve is None:
        return []
    spec = asked.spec
    every = members(asked, found)
    serving = every if asked.without_ray else {spec.head: every[spec.head]}
    lines: list[dict[str, object]] = []
    for name, member in serving.items():
        inside = [found.by_node[name].name, *engine_argv(asked, member)]
        lines.append(
            {
                "name": name,
                "container": found.by_node[name].name,
                "wait": None if asked.without_ray else Verbatim(wait_line(len(spec.nodes))),
                "ray_address": None if asked.without_ray else f"{member.head}:{spec.ray.port}",
                "inside": shell_words(inside),
            }
        )
    return lines
