"""Runs on a host with Python 3.7 or newer, nothing else: listens for its peers, then tries them.

Lines of JSON over stdin and stdout; the end of stdin ends it.

    -> {"name": NAME, "address": IP, "ports": [PORT, ...]}
    <- {"ports": {PORT: "ours" | "taken" | ERROR}, "tcp": PORT, "udp": PORT}
    -> [{"name": NAME, "address": IP, "ports": [...], "tcp": PORT, "udp": PORT, "mtu": N}, ...]
    <- [{"peer": NAME, "tcp": {PORT: "ok" | "other NAME" | ERROR}, "sent": N, "came": N,
         "largest": BYTES or null, "announced": BYTES or null, "mbit": N or null}, ...]

`tcp` and `udp` are ports that the system chose. `largest`: IPv4 bytes that came through whole;
`announced`: the path's MTU as a router told it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

CONNECT_S = 4.0  # a lost SYN is sent again after 1 s and 3 s
LATE = f"no answer within {CONNECT_S:.0f} s"
ECHO_S = 0.5
QUIET_S = 1.0  # after the last packet was sent
PACKETS = 100
PACE_S = 0.003
BULK_S = 0.4
BULK_BYTES = 16 << 20
SMALLEST = 576  # what every IPv4 host takes
HEADERS = 28  # IPv4 and UDP

# Linux, linux/in.h: Python has no names for them.
IP_MTU_DISCOVER, IP_MTU = 10, 14
DO, PROBE = 2, 3


def main() -> None:
    me = json.loads(sys.stdin.buffer.readline())
    opened = {port: listen(me["address"], port) for port in me["ports"]}
    bulk = socket.socket()
    bulk.bind((me["address"], 0))
    bulk.listen(64)
    echo = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    echo.bind((me["address"], 0))
    for _, listener in opened.values():
        if listener is not None:
            serve(greet, listener, me["name"])
    serve(swallow, bulk, me["name"])
    serve(answer_packets, echo)
    ports = {port: how for port, (how, _) in opened.items()}
    say({"ports": ports, "tcp": bulk.getsockname()[1], "udp": echo.getsockname()[1]})
    peers = json.loads(sys.stdin.buffer.readline() or "[]")
    greetings = greeted(peers)
    say([tried(peer, greetings[peer["name"]]) for peer in peers])
    sys.stdin.buffer.read()


def say(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def serve(work: Callable[..., None], *arguments: object) -> None:
    threading.Thread(target=work, args=arguments, daemon=True).start()


def listen(address: str, port: int) -> tuple[str, socket.socket | None]:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address, port))
        listener.listen(64)
    except OSError as error:
        listener.close()
        return ("taken" if error.errno == errno.EADDRINUSE else str(error)), None
    return "ours", listener


def greet(listener: socket.socket, name: str) -> None:
    while True:
        caller, _ = listener.accept()
        with caller, contextlib.suppress(OSError):  # the caller has gone: it says why
            caller.sendall(name.encode() + b"\n")


def swallow(listener: socket.socket, name: str) -> None:
    while True:
        caller, _ = listener.accept()
        serve(swallow_one, caller, name)


def swallow_one(caller: socket.socket, name: str) -> None:
    """Greet; then count what comes and say it, with the seconds from its first byte to its last."""
    with caller:
        try:
            caller.sendall(name.encode() + b"\n")
            caller.settimeout(CONNECT_S)
            count, began = len(caller.recv(1 << 16)), time.monotonic()
            while True:
                data = caller.recv(1 << 20)
                if not data:
                    break
                count += len(data)
            caller.sendall(json.dumps([count, time.monotonic() - began]).encode() + b"\n")
        except OSError:
            pass  # the sender measures by what we say, and we say nothing


def answer_packets(echo: socket.socket) -> None:
    while True:
        data, sender = echo.recvfrom(1 << 16)
        with contextlib.suppress(OSError):  # a firewall's own refusal to send: it counts as lost
            echo.sendto(data[:8], sender)


def greeted(peers: Sequence[dict[str, Any]]) -> dict[str, dict[int, str]]:
    """All ports of all peers at once: one that drops what comes costs its patience but once."""
    answers: dict[str, dict[int, str]] = {peer["name"]: {} for peer in peers}

    def ask(peer: dict[str, Any], port: int) -> None:
        said = greeting(peer, port)
        if said == LATE:  # a lossy way may lose all SYNs of a connection; a firewall, of all
            said = greeting(peer, port)
        answers[peer["name"]][port] = said

    asking = [
        threading.Thread(target=ask, args=(peer, port), daemon=True)
        for peer in peers
        for port in [*peer["ports"], peer["tcp"]]
    ]
    for one in asking:
        one.start()
    for one in asking:
        one.join()
    return answers


def tried(peer: dict[str, Any], tcp: dict[int, str]) -> dict[str, Any]:
    came = loss(peer)
    largest = announced = mbit = None
    if came:
        largest = largest_packet(peer)
        if largest < peer["mtu"]:
            announced = path_mtu(peer)
    if tcp[peer["tcp"]] == "ok":
        mbit = speed(peer)
    return {
        "peer": peer["name"],
        "tcp": tcp,
        "sent": PACKETS,
        "came": came,
        "largest": largest,
        "announced": announced,
        "mbit": mbit,
    }


def greeting(peer: dict[str, Any], port: int) -> str:
    """A port on which something of the host's own listens need not greet."""
    try:
        with socket.create_connection((peer["address"], port), timeout=CONNECT_S) as way:
            if port in peer["taken"]:
                return "ok"
            with way.makefile("rb") as lines:
                name = lines.readline().decode(errors="replace").strip()
    except socket.timeout:  # noqa: UP041  (TimeoutError since Python 3.10 only)
        return LATE
    except OSError as error:
        return error.strerror or str(error)
    return "ok" if name == peer["name"] else "other " + name


def packets_to(peer: dict[str, Any], discover: int) -> socket.socket:
    way = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    way.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, discover)
    way.settimeout(ECHO_S)
    way.connect((peer["address"], peer["udp"]))
    return way


def loss(peer: dict[str, Any]) -> int:
    """How many of PACKETS small ones came back."""
    seen: set[int] = set()
    all_sent = threading.Event()
    with packets_to(peer, DO) as way:
        reader = threading.Thread(target=collect, args=(way, seen, all_sent), daemon=True)
        reader.start()
        for number in range(PACKETS):
            with contextlib.suppress(OSError):  # no route: it does not come back
                way.send(struct.pack("!Q", number))
            time.sleep(PACE_S)
        all_sent.set()
        reader.join()
    return len(seen)


def collect(way: socket.socket, seen: set[int], all_sent: threading.Event) -> None:
    """Until all came, or nothing more for QUIET_S: on a busy host sending takes its time."""
    quiet_since = time.monotonic()
    while len(seen) < PACKETS:
        try:
            seen.add(struct.unpack("!Q", way.recv(64))[0])
            quiet_since = time.monotonic()
        except OSError:
            if not all_sent.wait(PACE_S):
                quiet_since = time.monotonic()
        if time.monotonic() - quiet_since > QUIET_S:
            return


def largest_packet(peer: dict[str, Any]) -> int:
    """By halving, between SMALLEST and the interface's own MTU."""
    low, high = SMALLEST, int(peer["mtu"])
    with packets_to(peer, PROBE) as way:
        if passes(way, high):
            return high
        while high - low > 1:
            middle = (low + high) // 2
            if passes(way, middle):
                low = middle
            else:
                high = middle
    return low


def passes(way: socket.socket, size: int) -> bool:
    for attempt in range(3):
        mark = struct.pack("!II", size, attempt)
        try:
            way.send(mark + bytes(size - HEADERS - len(mark)))
            while True:
                if way.recv(64)[:4] == mark[:4]:
                    return True
        except OSError:
            continue  # no answer, or an error that an earlier packet left behind
    return False


def path_mtu(peer: dict[str, Any]) -> int | None:
    """What the kernel has learnt of the path, having sent what is too large for it."""
    with packets_to(peer, DO) as way:
        for _ in range(2):
            try:
                way.send(bytes(peer["mtu"] - HEADERS))
                way.recv(64)
            except OSError:
                pass  # too large, or lost: what was learnt is read below
        learnt = way.getsockopt(socket.IPPROTO_IP, IP_MTU)
    return learnt if learnt < peer["mtu"] else None


def speed(peer: dict[str, Any]) -> float | None:
    """Megabits a second of one TCP stream, as the receiver saw it; None where it broke off."""
    try:
        target = (peer["address"], peer["tcp"])
        with socket.create_connection(target, timeout=CONNECT_S) as way, way.makefile("rb") as said:
            said.readline()
            block, sent, deadline = bytes(1 << 16), 0, time.monotonic() + BULK_S
            while sent < BULK_BYTES and time.monotonic() < deadline:
                way.sendall(block)
                sent += len(block)
            way.shutdown(socket.SHUT_WR)
            count, seconds = json.loads(said.readline() or "[0, 0]")
    except OSError:
        return None
    return round(count * 8 / 1e6 / seconds, 1) if seconds else None


if __name__ == "__main__":
    main()
