"""What a node's container says about deployments. Standard library only; sent over stdin.

    python3 - list ROOT SECONDS [NAME ...]  deployments under ROOT: their files, and whether each
                                            gives a token within SECONDS (0: not asked)
    python3 - tail ROOT NAME OFFSET         the state, and the log from byte OFFSET on ("end": none)
    python3 - ranks OWNER                   processes of this node whose environment says
                                            ENGINE_DEPLOYMENT=OWNER
    python3 - port HOST PORT                whether HOST:PORT can be bound

Each answers with one JSON value. API keys are read here, from their files, and shown nowhere.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

TAIL_BYTES = 256 * 1024
NODE_MARK = "RAY_TMPDIR"  # tells the nodes of `up --local` apart, which share one machine
JsonObject = dict[str, Any]


def opener(certificate: str) -> urllib.request.OpenerDirector:
    """`certificate` (PEM): who has its key is the one meant, whatever names it bears; it must not
    have run out. A proxy in the container's environment is for the outside, never for its own
    address."""
    direct = urllib.request.ProxyHandler({})
    if not certificate:
        return urllib.request.build_opener(direct)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(cadata=certificate)
    return urllib.request.build_opener(direct, urllib.request.HTTPSHandler(context=context))


def read_json(path: Path) -> JsonObject | None:
    """None while the file is absent or only partly written."""
    try:
        content: JsonObject = json.loads(path.read_bytes())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return content


def list_deployments(root: str, seconds: str, *names: str) -> list[JsonObject]:
    directories = sorted(spec.parent for spec in Path(root).glob("*/spec.json"))
    records = [record(path) for path in directories if not names or path.name in names]
    probes = [threading.Thread(target=probe, args=(one, float(seconds))) for one in records]
    for thread in probes:
        thread.start()
    for thread in probes:
        thread.join()
    return records


def record(directory: Path) -> JsonObject:
    spec = read_json(directory / "spec.json") or {}
    return {
        "name": directory.name,
        "generation": spec.get("generation"),
        "stop": spec.get("stop", False),
        "state": read_json(directory / "state.json"),
        "info": read_json(directory / "info.json"),
        "token": None,
        "listening": None,
        "detail": "",
    }


def probe(found: JsonObject, seconds: float) -> None:
    """Ask a running deployment for one token. One that has not loaded yet does not listen."""
    state, info = found["state"], found["info"]
    if not seconds or not info or not state or state["state"] not in ("starting", "running"):
        return
    found["listening"] = True
    try:
        by = opener(info.get("certificate", ""))
        found["token"] = one_token(by, info["url"], key_of(info), seconds)
    except (OSError, http.client.HTTPException, ValueError, LookupError) as error:
        found["token"], found["detail"] = False, why(error)
        reason = getattr(error, "reason", error)
        found["listening"] = not isinstance(reason, ConnectionRefusedError)


def key_of(info: JsonObject) -> str:
    return Path(info["api_key_file"]).read_text(encoding="utf-8").strip()


def one_token(by: urllib.request.OpenerDirector, url: str, key: str, seconds: float) -> bool:
    """Whether a completion with at least one token comes back from the OpenAI API at `url`."""
    model = ask(by, f"{url}/models", key, seconds)["data"][0]["id"]
    body = {"model": model, "prompt": "Hello", "max_tokens": 1, "temperature": 0}
    answer = ask(by, f"{url}/completions", key, seconds, json.dumps(body).encode())
    tokens: int = answer["usage"]["completion_tokens"]
    return tokens >= 1 and len(answer["choices"]) == 1


def ask(
    by: urllib.request.OpenerDirector,
    url: str,
    key: str,
    seconds: float,
    body: bytes | None = None,
) -> Any:
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    request = urllib.request.Request(url, data=body, headers=headers)
    with by.open(request, timeout=seconds) as response:
        return json.load(response)


def why(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code}: {said(error.read().decode(errors='replace'))}"
    reason = getattr(error, "reason", error)
    return f"{type(reason).__name__}: {reason}"


def said(body: str) -> str:
    """The first line of an error's message, or of what came instead of one."""
    try:
        text: str = json.loads(body)["error"]["message"]
    except (ValueError, LookupError, TypeError):
        text = body
    return text.strip().partition("\n")[0]


def tail(root: str, name: str, offset: str) -> JsonObject:
    directory = Path(root) / name
    start, data = read_from(directory / "log", offset)
    return {
        "state": read_json(directory / "state.json"),
        "offset": start + len(data),
        "text": data.decode(errors="replace"),
    }


def read_from(log: Path, offset: str) -> tuple[int, bytes]:
    """Whole lines from `offset` on. A log that has become shorter was begun anew."""
    size = log.stat().st_size if log.exists() else 0
    if offset == "end" or not size:
        return size, b""
    start = int(offset) if int(offset) <= size else 0
    with log.open("rb") as file:
        file.seek(start)
        data = file.read(TAIL_BYTES)
    return start, data[: data.rfind(b"\n") + 1]


def ranks(owner: str) -> list[int] | None:
    """Process ids; None where a system does not show its processes' environments."""
    marks = {f"ENGINE_DEPLOYMENT={owner}".encode()}
    if NODE_MARK in os.environ:
        marks.add(f"{NODE_MARK}={os.environ[NODE_MARK]}".encode())
    if not Path("/proc/self/environ").exists():
        return None
    processes = [path for path in Path("/proc").iterdir() if path.name.isdigit()]
    return sorted(int(path.name) for path in processes if marks <= set(environment(path)))


def environment(process: Path) -> list[bytes]:
    try:
        return (process / "environ").read_bytes().split(b"\0")
    except OSError:  # it has just ended, or belongs to somebody else
        return []


def port(host: str, number: str) -> bool:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, int(number)))
        except OSError:
            return False
    return True


VERBS = {"list": list_deployments, "tail": tail, "ranks": ranks, "port": port}


def main(verb: str, *args: str) -> int:
    json.dump(VERBS[verb](*args), sys.stdout)  # type: ignore[operator]
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
