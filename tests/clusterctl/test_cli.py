"""The command table, and the one place where an error becomes text, hint and exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Annotated

import pytest
import typer

from clusterctl import cli, console
from clusterctl.errors import (
    ConfigError,
    LockHeld,
    NotReady,
    PreflightFailed,
    Unreachable,
)
from clusterctl.options import Json, Workers, command_group
from clusterctl.trace import TRACE_FILE

HEAVY = ("docker", "jinja2", "paramiko", "pydantic", "ray", "rich", "torch", "yaml")

ERRORS = {
    "config": ConfigError("line 3: no such key: hots", hint="did you mean hosts?"),
    "unreachable": Unreachable("timed out", host="gpu03", hint="ssh gpu03"),
    "preflight": PreflightFailed("no ray in the image", host="gpu01"),
    "not-ready": NotReady("2/3 nodes"),
    "lock": LockHeld("held by ann"),
    "interrupt": KeyboardInterrupt(),
    "abort": typer.Abort(),
    "bug": ZeroDivisionError("division by zero"),
}


def fail(kind: str, as_json: Json = False) -> None:
    """Fail."""
    raise ERRORS[kind]


def echo(command: Annotated[list[str], typer.Argument()], workers: Workers = None) -> int:
    """Say it again."""
    console.line(" ".join([*command, *(f"<{worker}>" for worker in workers or ())]))
    return 7


group = command_group("A group.")


@group.callback()
def group_root() -> None: ...


@group.command()
def inner() -> None:
    """Inside."""
    console.note("noted")
    console.line("inner")


@pytest.fixture(autouse=True)
def _commands(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(
        cli,
        "COMMANDS",
        {
            **cli.COMMANDS,
            "fail": cli.Entry(f"{__name__}:fail", "Fail.", "Test"),
            "echo": cli.Entry(f"{__name__}:echo", "Say it again.", "Test", passthrough=True),
            "plain": cli.Entry(f"{__name__}:echo", "Say it again.", "Test"),
            "group": cli.Entry(f"{__name__}:group", "A group.", "Test"),
            "broken": cli.Entry("clusterctl.no_such_module:x", "Not importable.", "Test"),
        },
    )
    yield
    console.configure()


@pytest.mark.parametrize(
    ("kind", "code", "text"),
    [
        (
            "config",
            2,
            "error: line 3: no such key: hots\nfix: did you mean hosts?\n",
        ),
        ("unreachable", 3, "error: gpu03: timed out\nfix: ssh gpu03\n"),
        ("preflight", 4, "error: gpu01: no ray in the image\n"),
        ("not-ready", 5, "error: 2/3 nodes\n"),
        ("lock", 6, "error: held by ann\n"),
        ("interrupt", 130, ""),
        ("abort", 130, ""),
    ],
)
def test_error_is_text_hint_and_code(
    kind: str, code: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["fail", kind]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == text


def test_error_is_one_json_object_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["fail", "unreachable", "--json"]) == 3
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {
        "schema_version": 1,
        "error": {
            "code": "unreachable",
            "message": "timed out",
            "host": "gpu03",
            "hint": "ssh gpu03",
        },
    }
    assert captured.err == ""


def test_unexpected_exception_is_called_a_bug(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["fail", "bug"]) == 1
    assert capsys.readouterr().err == (
        "error: this is a bug: ZeroDivisionError: division by zero\n"
        "fix: run it again with -v and report what it prints\n"
    )


def test_verbose_adds_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    cli.run(["fail", "bug", "-v"])
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert "in fail" in shown
    assert shown.index("Traceback") < shown.index("error: this is a bug")


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (
            ["fial"],
            "error: No such command 'fial'. Did you mean 'fail'?\nfix: clusterctl --help\n",
        ),
        (
            ["fail", "x", "--zzz"],
            "error: No such option: --zzz\nfix: clusterctl fail --help\n",
        ),
        (["fail"], "error: Missing argument 'kind'.\nfix: clusterctl fail --help\n"),
        (["group"], "error: Missing command.\nfix: clusterctl group --help\n"),
    ],
)
def test_usage_error_names_the_help_to_read(
    args: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(args) == 2
    assert capsys.readouterr().err == text


def test_usage_error_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["fail", "--json", "--bogus"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "usage"


def test_json_after_two_dashes_is_not_ours() -> None:
    assert cli.asks_json(["exec", "gpu01", "--json"])
    assert not cli.asks_json(["exec", "gpu01", "--", "ls", "--json"])


def test_twice_verbose_traces_to_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TRACE_FILE, "")  # so that it is gone again after the test
    monkeypatch.delenv(TRACE_FILE)
    assert cli.run(["group", "inner", "-v"]) == 0
    assert TRACE_FILE not in os.environ
    assert cli.run(["group", "inner", "-vv"]) == 0
    assert os.environ[TRACE_FILE] == "/dev/stderr"


def test_commands_return_their_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["plain", "hello", "--worker", "a,b", "--worker", "c"]) == 7
    assert capsys.readouterr().out == "hello <a> <b> <c>\n"


def test_passthrough_leaves_dashes_to_the_other_program(
    capsys: pytest.CaptureFixture[str],
) -> None:
    cli.run(["echo", "--worker", "a", "ls", "-l", "--worker", "b"])
    assert capsys.readouterr().out == "ls -l --worker b <a>\n"


def test_group_commands_take_the_output_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["group", "inner", "-q"]) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("inner\n", "")


def test_bare_command_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([]) == 0
    assert "Exit codes: 0 ok" in capsys.readouterr().out
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("clusterctl ")


def test_help_lists_from_the_table_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """`broken` cannot be imported, yet it is listed; and it alone fails when it runs."""
    assert cli.run(["--help"]) == 0
    assert "broken  Not importable." in capsys.readouterr().out
    assert cli.run(["broken"]) == 1


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_table_matches_the_commands(name: str) -> None:
    """The line in the table is the first line of the command's own help."""
    assert (cli.load(name).help or "").splitlines()[0] == cli.COMMANDS[name].help


def test_help_imports_nothing_heavy() -> None:
    probe = (
        "import sys; from clusterctl import cli; code = cli.run(['--help']);"
        f"print(code, sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert "Usage:" in done.stdout
    assert done.stderr == "0 []\n"


def test_reader_that_leaves_early_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "clusterctl", "--help"],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(write)
    assert done.stderr == ""


def test_sigterm_ends_the_run_in_order() -> None:
    """`finally` blocks run, so locks and temporary files go."""
    probe = (
        "import os, signal, sys; from clusterctl import cli\n"
        "def stop(args, **_):\n"
        "    try: os.kill(os.getpid(), signal.SIGTERM)\n"
        "    finally: print('undone', flush=True)\n"
        "cli.run = stop; cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (143, "undone\n")
