"""Waiting for replies, but not for ever, and knowing who is missing."""

from collections.abc import Iterable

from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo

from common.errors import UpdateError
from server.collect import Asked, collect, in_order, sort_out
from tests.server.scripted import Answer, Clock, ScriptedGrid


def messages(grid: ScriptedGrid, *nodes: int) -> Asked:
    return Asked({f"site-{node}": Message(RecordDict(), node, "train") for node in nodes})


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
    replies = collect(grid, asked, 100.0, 0, clock.now, clock.sleep)
    found = sort_out(asked, replies)
    assert set(found.by_site) == {"site-1", "site-2"} and not found.missing
    assert clock.time < 1


def test_a_site_that_never_answers_is_named_after_the_deadline() -> None:
    grid, clock = ScriptedGrid({1: at_once, 2: lambda message: None}), Clock()
    asked = messages(grid, 1, 2)
    replies = collect(grid, asked, 30.0, 0, clock.now, clock.sleep)
    found = sort_out(asked, replies)
    assert set(found.by_site) == {"site-1"}
    assert found.missing["site-2"].cause == "no-reply"
    assert 30 <= clock.time < 32


def test_an_error_is_put_to_the_site_that_was_asked_even_if_flower_says_it_comes_from_the_superlink() -> None:
    grid, clock = ScriptedGrid({1: at_once, 2: lambda message: Error(5, "node lost")}), Clock()
    grid.lost_nodes_reply_as_superlink = True
    asked = messages(grid, 1, 2)
    found = sort_out(asked, collect(grid, asked, 30.0, 0, clock.now, clock.sleep))
    assert found.missing["site-2"].cause == "error-reply" and "node lost" in str(found.missing["site-2"])


def test_a_reply_to_something_else_is_passed_over() -> None:
    grid = ScriptedGrid({1: at_once})
    earlier, asked = messages(grid, 1), messages(grid, 1)
    late = list(collect(grid, earlier, 1.0))
    grid.push_messages(asked.messages())
    found = sort_out(asked, late)
    assert not found.by_site and set(found.missing) == {"site-1"}


def test_asking_nobody_returns_at_once() -> None:
    clock = Clock()
    assert list(collect(ScriptedGrid({}), Asked({}), 30.0, 0, clock.now, clock.sleep)) == []
    assert clock.time < 1


class Restarting(ScriptedGrid):
    """A grid whose nodes can be lost and come back; a node answers only what it was asked since it last started."""

    def __init__(self, answers: dict[int, Answer], clock: Clock) -> None:
        super().__init__(answers)
        self.clock = clock
        self.sent_at: dict[str, float] = {}
        self.back_at: dict[int, float] = {}
        """Node -> when it starts anew; what it was asked before is forgotten."""

    def get_nodes(self) -> list[NodeInfo]:
        return [
            NodeInfo(node_id=node, last_activated_at="2" if self.clock.time >= self.back_at.get(node, 1e9) else "1")
            for node in self.answers
            if not self._away(node)
        ]

    def _away(self, node: int) -> bool:
        return False

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        kept = [m for m in message_ids if self._remembers(m)]
        return super().pull_messages(kept)

    def _remembers(self, message_id: str) -> bool:
        message = self._open[message_id]
        back = self.back_at.get(message.metadata.dst_node_id)
        return back is None or self.sent_at[message_id] >= back

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = list(super().push_messages(messages))
        self.sent_at |= dict.fromkeys(ids, self.clock.time)
        return ids


def test_a_site_whose_node_started_anew_is_asked_again_and_its_answer_counts_once() -> None:
    clock = Clock()
    grid = Restarting({1: at_once, 2: at_once}, clock)
    grid.back_at[2] = 8.0
    asked = messages(grid, 1, 2)
    found = sort_out(asked, collect(grid, asked, 100.0, 0, clock.now, clock.sleep))
    assert set(found.by_site) == {"site-1", "site-2"} and not found.missing
    assert asked.tries("site-2") == 2 and asked.tries("site-1") == 1
    assert clock.time < 20


def test_a_lost_node_that_comes_back_is_asked_again() -> None:
    clock = Clock()
    left = [Error(5, "node lost"), Error(8, "app lost")]
    grid = Restarting({1: lambda message: left.pop() if left else RecordDict()}, clock)
    asked = messages(grid, 1)
    found = sort_out(asked, collect(grid, asked, 100.0, 0, clock.now, clock.sleep))
    assert set(found.by_site) == {"site-1"} and asked.tries("site-1") == 3


def test_a_reply_that_was_announced_and_never_came_is_asked_for_again() -> None:
    clock = Clock()
    left = [Error(3, "Reply message objects are unavailable.")]
    grid = Restarting({1: lambda message: left.pop() if left else RecordDict()}, clock)
    asked = messages(grid, 1)
    found = sort_out(asked, collect(grid, asked, 100.0, 0, clock.now, clock.sleep))
    assert set(found.by_site) == {"site-1"} and asked.tries("site-1") == 2


def test_a_lost_node_is_not_waited_for_long_when_enough_others_have_answered() -> None:
    clock = Clock()

    class Gone(Restarting):
        def _away(self, node: int) -> bool:
            return node == 2

    grid = Gone({1: at_once, 2: lambda message: Error(5, "node lost")}, clock)
    asked = messages(grid, 1, 2)
    found = sort_out(asked, collect(grid, asked, 600.0, 1, clock.now, clock.sleep))
    assert set(found.by_site) == {"site-1"} and "node lost" in str(found.missing["site-2"])
    assert 30 <= clock.time < 40
    assert asked.tries("site-2") == 1


def test_a_lost_node_is_waited_for_to_the_deadline_when_too_few_others_have_answered() -> None:
    clock = Clock()

    class Back(Restarting):
        def _away(self, node: int) -> bool:
            return node == 2 and self.clock.time < 200

    first = [Error(5, "node lost")]
    grid = Back({1: at_once, 2: lambda message: first.pop() if first else RecordDict()}, clock)
    asked = messages(grid, 1, 2)
    found = sort_out(asked, collect(grid, asked, 600.0, 2, clock.now, clock.sleep))
    assert set(found.by_site) == {"site-1", "site-2"} and 200 <= clock.time < 220


def test_a_node_that_is_lost_again_and_again_is_given_up() -> None:
    clock = Clock()
    grid = Restarting({1: lambda message: Error(8, "app lost")}, clock)
    asked = messages(grid, 1)
    found = sort_out(asked, collect(grid, asked, 600.0, 1, clock.now, clock.sleep))
    assert "app lost" in str(found.missing["site-1"]) and asked.tries("site-1") == 20


def test_of_two_answers_of_a_site_the_first_counts() -> None:
    grid = ScriptedGrid({1: at_once})
    asked = messages(grid, 1)
    first, *_ = collect(grid, asked, 1.0)
    second = Message(RecordDict({"x": ConfigRecord({})}), reply_to=asked.messages()[0])
    assert sort_out(asked, [first, second]).by_site["site-1"] is first


def test_an_error_after_an_answer_does_not_take_it_back() -> None:
    grid = ScriptedGrid({1: at_once})
    asked = messages(grid, 1)
    (answer,) = collect(grid, asked, 1.0)
    found = sort_out(asked, [answer, Message(Error(2, "late"), reply_to=asked.messages()[0])])
    assert found.by_site["site-1"] is answer and not found.missing


def test_an_error_and_an_answer_of_a_site_that_come_together_are_an_answer() -> None:
    class Both(ScriptedGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            (message,) = (self._open[message_id] for message_id in message_ids)
            return [Message(Error(2, "broken"), reply_to=message), Message(RecordDict(), reply_to=message)]

    grid = Both({1: at_once})
    asked = messages(grid, 1)
    (answer,) = collect(grid, asked, 1.0)
    assert not answer.has_error()


# One after another


def test_replies_are_there_as_they_come_and_not_when_the_last_has() -> None:
    answered: list[int] = []

    def answer(message: Message) -> RecordDict:
        answered.append(message.metadata.dst_node_id)
        return RecordDict()

    class OneByOne(ScriptedGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            return super().pull_messages(list(message_ids)[:1])

    grid = OneByOne({1: answer, 2: answer, 3: answer})
    replies = collect(grid, messages(grid, 1, 2, 3), 1.0)
    assert answered == []
    next(replies)
    assert answered == [1]
    next(replies)
    assert answered == [1, 2]


def replied(*nodes: int) -> tuple[Asked, dict[int, Message]]:
    """Return what was asked of sites, and a reply of each."""
    grid = ScriptedGrid(dict.fromkeys(nodes, at_once))
    asked = messages(grid, *nodes)
    grid.push_messages(asked.messages())
    sent = zip(nodes, asked.messages(), strict=True)
    return asked, {node: Message(RecordDict(), reply_to=message) for node, message in sent}


def test_a_site_s_turn_comes_when_all_before_it_have_answered() -> None:
    asked, reply = replied(1, 2, 3, 4)
    given: list[int] = []

    def coming() -> Iterable[Message]:
        for node in (2, 1, 4, 3):
            given.append(node)
            yield reply[node]

    turns = [(site, tuple(given)) for site, _ in in_order(asked, coming())]
    assert turns == [("site-1", (2, 1)), ("site-2", (2, 1)), ("site-3", (2, 1, 4, 3)), ("site-4", (2, 1, 4, 3))]


def test_sites_after_one_that_never_answers_have_their_turn_at_the_end() -> None:
    asked, reply = replied(1, 2, 3)
    found = dict(in_order(asked, [reply[3], reply[2]]))
    assert list(found) == ["site-1", "site-2", "site-3"]
    assert isinstance(found["site-1"], UpdateError) and found["site-1"].cause == "no-reply"
    assert found["site-2"] is reply[2] and found["site-3"] is reply[3]


def test_every_site_has_one_turn_whatever_comes_after_it() -> None:
    asked, reply = replied(1, 2)
    late = Message(Error(2, "late"), reply_to=asked.messages()[0])
    stranger = replied(1)[1][1]
    stranger.metadata.__dict__["_reply_to_message_id"] = "another"
    found = list(in_order(asked, [stranger, reply[1], late, reply[2], reply[1], late]))
    assert found == [("site-1", reply[1]), ("site-2", reply[2])]
