"""Templates filled in so that no value can become syntax: whatever a template prints is quoted for
the language that the template is written in, unless it is Verbatim."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from jinja2 import Environment, FunctionLoader, StrictUndefined

if TYPE_CHECKING:
    if sys.version_info >= (3, 11):
        from importlib.resources.abc import Traversable
    else:
        from importlib.abc import Traversable

Quote = Callable[[str], str]


class Verbatim(str):
    """Text that is already in the template's own language."""

    __slots__ = ()


def fill(template: str, quote: Quote, /, **values: Any) -> str:
    """The template `template`.j2 with `values`, each quoted by `quote`."""
    environment = Environment(
        loader=FunctionLoader(_read),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # HTML's rules; ours is `finalize`
        finalize=lambda value: _quoted(value, quote),
    )
    environment.filters["note"] = _note
    environment.filters["yaml"] = yaml_block
    environment.filters["verbatim"] = Verbatim
    text: str = environment.get_template(template).render(**values)
    return text


def _read(name: str) -> str:
    return template_directory().joinpath(f"{name}.j2").read_text(encoding="utf-8")


def template_directory() -> Traversable:
    """In the wheel inside the package, in a checkout beside it."""
    packaged: Traversable = files("clusterctl").joinpath("templates")
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "templates"


def _quoted(value: object, quote: Quote) -> object:
    return quote(value) if isinstance(value, str) and not isinstance(value, Verbatim) else value


def _note(text: object) -> Verbatim:
    """For comments: one line, whatever it holds."""
    return Verbatim(re.sub(r"[^ -~\u00a0-\u024f]", "?", str(text)))


def yaml_block(data: object, indent: int = 0) -> Verbatim:
    """Plain data in block style, `indent` columns in; a script stands as it is where YAML can."""
    text = yaml.dump(data, Dumper=_Blocks, sort_keys=False, allow_unicode=True, width=float("inf"))
    space = " " * indent
    return Verbatim("\n".join(space + line if line else "" for line in text.splitlines()))


class _Blocks(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = "|" if "\n" in text else None  # the emitter quotes what no block may hold
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Blocks.add_representer(str, _text)


# --- the languages -------------------------------------------------------------------------------


def shell_text(text: str) -> str:
    quoted = shlex.quote(text)
    return f"'{text}'" if quoted == text and text.startswith("=") else quoted  # zsh expands =name


def yaml_text(text: str) -> str:
    """A double-quoted scalar on one line."""
    dumped: str = yaml.dump(text, default_style='"', allow_unicode=True, width=float("inf"))
    return dumped.rstrip("\n")


def no_expansion(text: str) -> str:
    """For command, args and env of a pod: there the kubelet would replace `$(NAME)`."""
    return re.sub(r"\$(?:\$+|(?=\())", lambda match: 2 * match[0], text)


_C_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r", "%": "%%"}


def systemd_text(text: str) -> str:
    """A word of a unit file: C escapes, `%` for specifiers, `$` for variables."""
    if re.fullmatch(r"[\w@+=:,./-]+", text, re.ASCII):
        return text
    escaped = "".join(_C_ESCAPES.get(char) or _control(char) for char in text)
    return f'"{escaped.replace("$", "$$")}"'


def _control(char: str) -> str:
    return f"\\x{ord(char):02x}" if ord(char) < 32 or ord(char) == 127 else char


def shell_words(argv: Sequence[str], variables: Mapping[str, str] | None = None) -> Verbatim:
    """An argv as shell text. Each key of `variables` (which begins with NUL, so that no word can
    hold it by chance) becomes the expansion that stands for it."""
    return Verbatim(" ".join(_word(word, dict(variables or {})) for word in argv))


def _word(word: str, variables: Mapping[str, str]) -> str:
    for token, expansion in variables.items():
        if token in word:
            return expansion.join(
                _word(part, variables) if part else "" for part in word.split(token)
            )
    return shlex.quote(word)
