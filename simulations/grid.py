"""A Flower ``Grid`` that runs an unmodified ClientApp for every message in this process."""

import copy
import itertools
from collections.abc import Iterable, Mapping

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from common.settings import Value

SERVER_NODE = 1
"""Flower's node id of the SuperLink."""
RUN = 1
NOTHING: Mapping[str, Value] = {}


class InProcessGrid(Grid):
    """N simulated nodes with the partition ids 0 to N - 1, and the rest of their node config in common.

    A message is worked on when its reply is first asked for, one message a call, in the order in
    which messages were pushed; so replies stream and nothing is kept twice.
    """

    def __init__(
        self, client: ClientApp, nodes: int, run_config: Mapping[str, Value], node_config: Mapping[str, Value] = NOTHING
    ) -> None:
        # Message() asks for the identity of the task it is built in; there is no public way to set it.
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = RUN, RUN, SERVER_NODE
        self._client = client
        self._run = Run.create_empty(RUN)
        self._numbers = itertools.count(1)
        self._pushed: dict[str, Message] = {}
        self._contexts = {
            SERVER_NODE + 1 + i: Context(
                RUN,
                SERVER_NODE + 1 + i,
                {**node_config, "partition-id": i, "num-partitions": nodes},
                RecordDict(),
                dict(run_config),
            )
            for i in range(nodes)
        }

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> Iterable[int]:
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages; those to unknown nodes are dropped, and their ids are missing from the result."""
        ids = []
        for message in messages:
            if message.metadata.dst_node_id not in self._contexts:
                continue
            message_id = str(next(self._numbers))
            message.metadata.__dict__["_message_id"] = message_id
            self._pushed[message_id] = message
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Work on the earliest of these messages that is still queued, and return its reply."""
        wanted = set(message_ids)
        message_id = next((pushed for pushed in self._pushed if pushed in wanted), None)
        return [] if message_id is None else [self._execute(self._pushed.pop(message_id))]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        waiting = list(self.push_messages(messages))
        return [reply for _ in waiting for reply in self.pull_messages(waiting)]

    def _execute(self, message: Message) -> Message:
        # Messages of a round share one RecordDict; a client gets a copy of its own to change as it likes.
        own = copy.copy(message)
        own.content = RecordDict(dict(message.content))
        try:
            return self._client(own, self._contexts[message.metadata.dst_node_id])
        except Exception as error:  # noqa: BLE001 - as in Flower, a failing client fails alone
            return Message(Error(2, f"{type(error).__name__} in the ClientApp"), reply_to=message)
