"""Which sites take part: sites introduce themselves by name, since Flower's node ids are random in every run."""

import logging
import time
from collections.abc import Callable

import torch
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from common.errors import RoundError, UpdateError
from common.messages import Introduction, decode_introduction
from common.seeds import seed_of
from common.settings import Settings
from server.collect import collect, sort_out

log = logging.getLogger("fedreptile.server")

PAUSE = 1.0
"""Seconds between looks for new nodes."""


class Roster:
    """Node ids and introductions by site name."""

    def __init__(self) -> None:
        self.nodes: dict[str, int] = {}
        self.introductions: dict[str, Introduction] = {}
        self._refused: set[int] = set()

    def welcome(self, grid: Grid, deadline: float) -> None:
        """Ask nodes that are not known yet to introduce themselves; forget those that have left.

        A node that answers with an error or with the name of a site that is already here is
        logged and not asked again.
        """
        present = set(grid.get_node_ids())
        self.nodes = {name: node for name, node in self.nodes.items() if node in present}
        strangers = present - set(self.nodes.values()) - self._refused
        asked = {str(node): Message(RecordDict(), node, "query") for node in sorted(strangers)}
        if not asked:
            return
        replies = sort_out(asked, collect(grid, asked.values(), deadline))
        for key, error in replies.missing.items():
            log.warning("node %s did not introduce itself: %s", key, error)
            if error.cause != "no-reply":
                self._refused.add(int(key))
        for key, reply in replies.by_site.items():
            self._admit(int(key), reply)

    def _admit(self, node: int, reply: Message) -> None:
        try:
            introduction = decode_introduction(reply.content)
            if introduction.name in self.nodes:
                raise UpdateError(
                    "same-name", f"a site named {introduction.name!r} is already here; give each site a name of its own"
                )
        except UpdateError as error:
            log.warning("node %d is refused: %s", node, error)
            self._refused.add(node)
            return
        self.nodes[introduction.name] = node
        self.introductions[introduction.name] = introduction

    def wait_for(
        self,
        grid: Grid,
        count: int,
        deadline: float,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Wait until this many sites have introduced themselves.

        Raises:
            RoundError: if fewer have within ``deadline`` seconds; it names those that are here.
        """
        began = now()
        while True:
            self.welcome(grid, max(1.0, deadline - (now() - began)))
            if len(self.nodes) >= count:
                return
            if now() - began >= deadline:
                here = ", ".join(sorted(self.nodes)) or "none"
                raise RoundError(
                    f"{len(self.nodes)} of {count} sites joined within {deadline:g} s (here: {here}; refused: "
                    f"{len(self._refused)}); start the other sites, or lower outer.join-sites"
                )
            sleep(PAUSE)


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
