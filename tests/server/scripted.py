"""A grid whose sites answer what a test tells them to, and a small plan."""

import itertools
from collections.abc import Callable, Iterable

import numpy as np
from flwr.app import Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from common.messages import Introduction, Update, encode_introduction, encode_update
from common.plan import Plan, plan_for
from common.settings import Settings, Value

Answer = Callable[[Message], RecordDict | Error | None]
"""What a site says to a message; None: nothing, ever."""

SMALL: dict[str, Value] = {"model.width": 2, "data.size": 8, "run.rounds": 10, "episode.way": 2, "outer.anneal": False}


class ScriptedGrid(Grid):
    """Node ids are given, answers are scripted; replies come when asked for."""

    def __init__(self, answers: dict[int, Answer]) -> None:
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
        self.answers = answers
        self.sent: list[Message] = []
        self.lost_nodes_reply_as_superlink = False
        self._numbers = itertools.count()
        self._open: dict[str, Message] = {}

    def set_run(self, run: Run) -> None: ...

    @property
    def run(self) -> Run:
        return Run.create_empty(1)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> Iterable[int]:
        return list(self.answers)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            message_id = f"m{next(self._numbers)}"
            message.metadata.__dict__["_message_id"] = message_id
            self.sent.append(message)
            self._open[message_id] = message
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = []
        for message_id in message_ids:
            message = self._open[message_id]
            answer = self.answers[message.metadata.dst_node_id](message)
            if answer is None:
                continue
            del self._open[message_id]
            reply = Message(answer, reply_to=message)
            if self.lost_nodes_reply_as_superlink and reply.has_error():
                reply.metadata.__dict__["_src_node_id"] = 1
            replies.append(reply)
        return replies

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return self.pull_messages(list(self.push_messages(messages)))


def small_plan(**changes: Value) -> Plan:
    keys = {key.replace("__", ".").replace("_", "-"): value for key, value in changes.items()}
    return plan_for(Settings.from_flat({**SMALL, **keys}))


def introduction(name: str) -> RecordDict:
    return encode_introduction(Introduction(name, {"a": 3, "b": 4}, "cpu", {"torch": "2"}))


def site(name: str, plan: Plan, delta: float = 1.0, examples: float = 4.0) -> Answer:
    """A site that introduces itself and answers training with a constant update."""

    def answer(message: Message) -> RecordDict:
        if message.metadata.message_type == "query":
            return introduction(name)
        values = np.full(plan.agreed.update, delta, plan.agreed.dtype)
        return encode_update(Update(values, np.empty(0, plan.agreed.dtype), {"num-examples": examples}))

    return answer


class Clock:
    """Time that passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        self.time += 0.001
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds
