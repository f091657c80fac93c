"""Flower ``Grid``s over simulated sites on this machine."""

import copy
import itertools
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Set
from functools import cached_property

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from common.settings import Value

SERVER_NODE = 1
"""Flower's node id of the SuperLink."""
RUN = 1
NOTHING: Mapping[str, Value] = {}


class SimulatedGrid(Grid):
    """Nodes with the ids after the server's, in the order of their sites' positions.

    Replies stream: a message is worked on when its reply is asked for, in the order in which messages were pushed.
    """

    def __init__(self, nodes: int) -> None:
        # Message() asks for the identity of the task it is built in; there is no public way to set it.
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = RUN, RUN, SERVER_NODE
        self._nodes = range(SERVER_NODE + 1, SERVER_NODE + 1 + nodes)
        self._run = Run.create_empty(RUN)
        self._numbers = itertools.count(1)
        self._pushed: dict[str, Message] = {}
        """By message id."""

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
        return list(self._nodes)

    def get_nodes(self) -> Iterable[NodeInfo]:
        return self._infos

    @cached_property
    def _infos(self) -> list[NodeInfo]:
        return [NodeInfo(node_id=node) for node in self._nodes]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages; those to unknown nodes are dropped, and their ids are missing from the result."""
        ids = []
        for message in messages:
            if message.metadata.dst_node_id not in self._nodes:
                continue
            message_id = str(next(self._numbers))
            message.metadata.__dict__["_message_id"] = message_id
            self._pushed[message_id] = message
            ids.append(message_id)
        return ids

    @abstractmethod
    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return replies to some of these messages, the earliest first; none if all were pulled before."""

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        waiting = list(self.push_messages(messages))
        replies: list[Message] = []
        while arrived := list(self.pull_messages(waiting)):
            replies += arrived
        return replies


class InProcessGrid(SimulatedGrid):
    """Has an unmodified ClientApp answer one message after another in this process.

    Nodes have the partition ids 0 to N - 1, and the rest of their node config in common.
    """

    def __init__(
        self, client: ClientApp, nodes: int, run_config: Mapping[str, Value], node_config: Mapping[str, Value] = NOTHING
    ) -> None:
        super().__init__(nodes)
        self._client = client
        self._run_config, self._node_config = dict(run_config), node_config
        self._contexts: dict[int, Context] = {}

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Work on the earliest of these messages that is still queued, and return its reply."""
        wanted = message_ids if isinstance(message_ids, Set) else set(message_ids)
        message_id = next((pushed for pushed in self._pushed if pushed in wanted), None)
        return [] if message_id is None else [self._execute(self._pushed.pop(message_id))]

    def _execute(self, message: Message) -> Message:
        # Messages of a round share one RecordDict; a client gets a copy of its own to change as it likes.
        own = copy.copy(message)
        own.content = RecordDict(dict(message.content))
        try:
            return self._client(own, self._context(message.metadata.dst_node_id))
        except Exception as error:  # noqa: BLE001 - as in Flower, a failing client fails alone
            return Message(Error(2, f"{type(error).__name__} in the ClientApp"), reply_to=message)

    def _context(self, node: int) -> Context:
        if node not in self._contexts:
            position = node - self._nodes.start
            own = {**self._node_config, "partition-id": position, "num-partitions": len(self._nodes)}
            self._contexts[node] = Context(RUN, node, own, RecordDict(), self._run_config)
        return self._contexts[node]
