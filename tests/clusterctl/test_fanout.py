import signal
import threading

import pytest

from clusterctl.errors import ClusterctlError, Unreachable
from clusterctl.fanout import Done, Failed, fan_out


def test_every_host_has_its_outcome_in_the_names_order() -> None:
    gone = Unreachable("gone", host="b")

    def call(name: str) -> str:
        if name == "b":
            raise gone
        return name.upper()

    outcomes = fan_out(["c", "b", "a"], call, limit=2)
    assert list(outcomes.items()) == [
        ("c", Done("c", "C")),
        ("b", Failed("b", gone)),
        ("a", Done("a", "A")),
    ]


def test_no_hosts_are_no_outcomes() -> None:
    assert fan_out([], str.upper, limit=4) == {}


def test_as_many_as_allowed_run_at_once_and_no_more() -> None:
    """Four meet at a barrier: fewer would never pass it, a fifth is counted."""
    barrier = threading.Barrier(4, timeout=20)
    lock, running, most = threading.Lock(), [0], [0]

    def call(_: str) -> None:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        barrier.wait()
        with lock:
            running[0] -= 1
        barrier.wait()

    outcomes = fan_out([str(n) for n in range(12)], call, limit=4)
    assert all(isinstance(outcome, Done) for outcome in outcomes.values())
    assert most[0] == 4


def test_a_fault_of_ours_is_raised_and_nothing_more_is_started() -> None:
    started: list[str] = []

    def call(name: str) -> None:
        started.append(name)
        raise ZeroDivisionError(name)

    with pytest.raises(ZeroDivisionError):
        fan_out([str(n) for n in range(100)], call, limit=1)
    assert started == ["0"]


def test_an_interrupt_does_not_wait_for_those_who_hang() -> None:
    forever = threading.Event()
    started: list[str] = []

    def call(name: str) -> None:
        started.append(name)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        forever.wait()

    with pytest.raises(KeyboardInterrupt):
        fan_out(["a", "b", "c"], call, limit=1)
    forever.set()
    assert started == ["a"]


def test_errors_are_values_only_when_they_are_ours() -> None:
    outcome = fan_out(["a"], lambda _: (_ for _ in ()).throw(ClusterctlError("no")), limit=1)["a"]
    assert isinstance(outcome, Failed)
    assert outcome.error.message == "no"
