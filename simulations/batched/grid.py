"""A Flower ``Grid`` whose messages are answered for many sites at a time."""

from collections import deque
from collections.abc import Iterable, Iterator, Set
from itertools import groupby

from flwr.app import Message

from client.app import reply
from simulations.batched.sites import TRAIN
from simulations.batched.workers import Staff, Task
from simulations.grid import SimulatedGrid

LIGHT = 200
"""Sites that are asked together for what is no training."""


class BatchedGrid(SimulatedGrid):
    """Has ``staff`` answer messages of one content for up to ``together`` sites at a time.

    Messages are handed out when a reply is first asked for. Replies come in the order of messages.
    """

    def __init__(self, staff: Staff, nodes: int, together: int) -> None:
        super().__init__(nodes)
        self._staff, self._together = staff, together
        self._handed: deque[Message] = deque()
        self._done: dict[str, Message] = {}

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return replies to some of these messages as soon as there are any; none if all were pulled before."""
        self._staff.add(list(self._tasks()))
        wanted = message_ids if isinstance(message_ids, Set) else set(message_ids)
        while not (ready := [key for key in self._done if key in wanted]):
            if not self._handed:
                return []
            for content in self._staff.next():
                message = self._handed.popleft()
                self._done[message.metadata.message_id] = reply(content, message)
        return [self._done.pop(key) for key in ready]

    def _tasks(self) -> Iterator[Task]:
        """Hand out what was pushed."""
        pushed = list(self._pushed.values())
        self._pushed.clear()
        self._handed += pushed
        for (kind, _), group in groupby(pushed, lambda message: (message.metadata.message_type, id(message.content))):
            messages = list(group)
            positions = [message.metadata.dst_node_id - self._nodes.start for message in messages]
            share = -(-len(positions) // self._staff.hands)
            for part in _parts(positions, min(share, self._together if kind == TRAIN else LIGHT)):
                yield Task(kind, messages[0].content, part)


def _parts(positions: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(positions), size):
        yield positions[start : start + size]
