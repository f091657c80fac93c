"""Which sites take part: sites introduce themselves by name, since Flower's node ids are random in every run."""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from common.errors import RoundError, UpdateError
from common.messages import Introduction, decode_introduction
from common.seeds import seed_of
from common.settings import Settings

log = logging.getLogger("fedreptile.server")

PAUSE = 0.5
"""Seconds between looks for new nodes."""
ASK_AGAIN = 60.0
"""Seconds after which a refused node is asked again."""


@dataclass(frozen=True)
class Refusal:
    reason: str
    since: float


class Roster:
    """Node ids and introductions by site name."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.nodes: dict[str, int] = {}
        self.introductions: dict[str, Introduction] = {}
        self.refused: dict[int, Refusal] = {}
        self._asked: dict[str, Message] = {}
        self._now = now

    def welcome(self, grid: Grid) -> None:
        """Ask new nodes to introduce themselves, admit those that have answered, forget those that left.

        Never waits: a node that is slow to answer is admitted when its answer is there. One that
        answered with an error, or with the name of a site that is already here, is logged and asked
        again after a while, since Flower does not say when a site was mended and restarted.
        """
        present = set(grid.get_node_ids())
        self.nodes = {name: node for name, node in self.nodes.items() if node in present}
        self._asked = {key: message for key, message in self._asked.items() if int(key) in present}
        self.refused = {
            node: refusal
            for node, refusal in self.refused.items()
            if node in present and self._now() - refusal.since < ASK_AGAIN
        }
        strangers = present - set(self.nodes.values()) - self.refused.keys() - {int(key) for key in self._asked}
        asked = {str(node): Message(RecordDict(), node, "query") for node in sorted(strangers)}
        grid.push_messages(asked.values())
        self._asked |= asked
        for key, reply in self._answers(grid):
            self._admit(int(key), reply)

    @property
    def waiting(self) -> bool:
        """Whether a node has been asked and has not answered yet."""
        return bool(self._asked)

    def _answers(self, grid: Grid) -> Iterator[tuple[str, Message]]:
        """Yield the answers that are there, by node id."""
        key_of = {message.metadata.message_id: key for key, message in self._asked.items()}
        while self._asked and (
            replies := list(grid.pull_messages([m.metadata.message_id for m in self._asked.values()]))
        ):
            for reply in replies:
                key = key_of.get(reply.metadata.reply_to_message_id)
                if key is not None:
                    del self._asked[key]
                    yield key, reply

    def _admit(self, node: int, reply: Message) -> None:
        try:
            if reply.has_error():
                raise UpdateError("error-reply", f"code {reply.error.code}: {reply.error.reason}")
            introduction = decode_introduction(reply.content)
            if introduction.name in self.nodes:
                raise UpdateError(
                    "same-name", f"a site named {introduction.name!r} is already here; give each site a name of its own"
                )
        except UpdateError as error:
            log.warning("node %d is refused: %s", node, error)
            self.refused[node] = Refusal(str(error), self._now())
            return
        self.nodes[introduction.name] = node
        self.introductions[introduction.name] = introduction

    def wait_for(self, grid: Grid, count: int, deadline: float, sleep: Callable[[float], None] = time.sleep) -> None:
        """Wait until this many sites have introduced themselves.

        Raises:
            RoundError: if fewer have within ``deadline`` seconds, or if as many nodes are here and
                some are refused; it names the sites that are here and the reasons of the others.
        """
        began = self._now()
        while True:
            self.welcome(grid)
            if len(self.nodes) >= count:
                return
            hopeless = not self._asked and len(self.nodes) + len(self.refused) >= count
            if hopeless or self._now() - began >= deadline:
                raise RoundError(self._too_few(count, self._now() - began))
            sleep(PAUSE)

    def _too_few(self, count: int, seconds: float) -> str:
        here = ", ".join(sorted(self.nodes)) or "none"
        reasons = sorted({refusal.reason for refusal in self.refused.values()})
        refused = f"; {len(self.refused)} node(s) refused: {' | '.join(reasons)}" if reasons else ""
        return (
            f"{len(self.nodes)} of {count} sites joined within {seconds:.0f} s (here: {here}{refused}); "
            "start or mend the other sites, or lower outer.join-sites"
        )


def held_out(names: list[str], settings: Settings) -> list[str]:
    """Return the sites that are only judged: ``judge.held-out`` of them, the same for a seed and set of names."""
    order = sorted(names, key=lambda name: seed_of(settings.run.seed, "held-out", name))
    return sorted(order[: settings.judge.held_out])


def sample_sites(names: list[str], round_number: int, settings: Settings) -> list[str]:
    """Draw a round's sites uniformly without replacement, from a stream of their own; sorted by name."""
    count = settings.outer.sites_per_round or len(names)
    generator = torch.Generator().manual_seed(seed_of(settings.run.seed, "sites", round_number))
    order = torch.randperm(len(names), generator=generator).tolist()
    return sorted(sorted(names)[i] for i in order[:count])
