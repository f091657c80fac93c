"""Waiting for replies, but not for ever, and knowing who is missing."""

from flwr.app import Error, Message, RecordDict

from server.collect import collect, sort_out
from tests.server.scripted import Answer, Clock, ScriptedGrid


def messages(grid: ScriptedGrid, *nodes: int) -> dict[str, Message]:
    return {f"site-{node}": Message(RecordDict(), node, "train") for node in nodes}


def at_once(message: Message) -> RecordDict:
    return RecordDict()


def after(calls: int) -> Answer:
    left = [calls]

    def answer(message: Message) -> RecordDict | None:
        left[0] -= 1
        return RecordDict() if left[0] < 0 else None

    return answer


def test_all_replies_are_returned_as_soon_as_they_are_there() -> None:
    grid, clock = ScriptedGrid({1: at_once, 2: after(3)}), Clock()
    asked = messages(grid, 1, 2)
    replies = collect(grid, asked.values(), 100.0, clock.now, clock.sleep)
    found = sort_out(asked, replies)
    assert set(found.by_site) == {"site-1", "site-2"} and not found.missing
    assert clock.time < 1


def test_a_site_that_never_answers_is_named_after_the_deadline() -> None:
    grid, clock = ScriptedGrid({1: at_once, 2: lambda message: None}), Clock()
    asked = messages(grid, 1, 2)
    replies = collect(grid, asked.values(), 30.0, clock.now, clock.sleep)
    found = sort_out(asked, replies)
    assert set(found.by_site) == {"site-1"}
    assert found.missing["site-2"].cause == "no-reply"
    assert 30 <= clock.time < 32


def test_an_error_is_put_to_the_site_that_was_asked_even_if_flower_says_it_comes_from_the_superlink() -> None:
    grid, clock = ScriptedGrid({1: at_once, 2: lambda message: Error(5, "node lost")}), Clock()
    grid.lost_nodes_reply_as_superlink = True
    asked = messages(grid, 1, 2)
    found = sort_out(asked, collect(grid, asked.values(), 30.0, clock.now, clock.sleep))
    assert found.missing["site-2"].cause == "error-reply" and "node lost" in str(found.missing["site-2"])


def test_a_reply_to_something_else_is_passed_over() -> None:
    grid = ScriptedGrid({1: at_once})
    earlier, asked = messages(grid, 1), messages(grid, 1)
    late = collect(grid, earlier.values(), 1.0)
    grid.push_messages(asked.values())
    found = sort_out(asked, late)
    assert not found.by_site and set(found.missing) == {"site-1"}


def test_asking_nobody_returns_at_once() -> None:
    clock = Clock()
    assert collect(ScriptedGrid({}), [], 30.0, clock.now, clock.sleep) == []
    assert clock.time < 1
