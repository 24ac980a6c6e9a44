"""Events in, the rows and stage times to show out."""

from __future__ import annotations

from clusterctl.events import Event, Stage
from clusterctl.progress import TELL_EVERY_S, Board


def test_board_keeps_the_newest_step_of_each_host() -> None:
    board = Board()
    board.update(Event("begin", "pull", "image", host="a"), 1.0)
    board.update(Event("progress", "pull", host="a", done=5, total=10), 3.0)
    board.update(Event("done", "connect", host="b"), 4.0)
    rows, left_out = board.shown(limit=5)
    assert [(row.host, row.step, row.message, row.state, row.since) for row in rows] == [
        ("a", "pull", "image", "running", 1.0),
        ("b", "connect", "", "done", 4.0),
    ]
    assert (rows[0].done, rows[0].total, left_out) == (5, 10, 0)
    assert board.stages() == [Stage("pull", 2.0, {"a": 2.0}), Stage("connect", 0.0, {"b": 0.0})]


def test_a_step_lasts_from_its_first_host_to_its_last() -> None:
    board = Board()
    board.update(Event("begin", "formation"), 1.0)
    board.update(Event("begin", "formation", host="b"), 1.5)
    for host, ended in (("a", 2.0), ("b", 4.25)):
        board.update(Event("done", "formation", host=host), ended)
    assert board.stages() == [Stage("formation", 3.25, {"b": 2.75, "a": 1.0})]


def test_a_remark_is_no_step_and_belongs_to_the_one_that_it_is_about() -> None:
    board = Board()
    board.update(Event("note", "serve", "started"), 1.0)
    board.update(Event("begin", "loading"), 2.0)
    board.update(Event("warn", "loading", "slow"), 5.0)
    board.update(Event("note", "serve", "ready"), 9.0)
    assert board.stages() == [Stage("loading", 3.0)]


def test_board_shows_hosts_at_work_first() -> None:
    board = Board()
    for number in range(9):
        kind = "begin" if number == 8 else "done"
        board.update(Event(kind, "facts", host=f"h{number}"), 0.0)  # type: ignore[arg-type]
    rows, left_out = board.shown(limit=3)
    assert [row.host for row in rows] == ["h8", "h0", "h1"]
    assert left_out == 6


def test_progress_is_told_now_and_then() -> None:
    board = Board()
    event = Event("progress", "pull", "1 GB", host="a")
    told = [board.due(event, now) for now in (0.0, 1.0, TELL_EVERY_S, TELL_EVERY_S + 1)]
    assert told == [True, False, True, False]
    assert board.due(Event("done", "pull", host="a"), 1.0)
