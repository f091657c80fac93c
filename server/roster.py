"""Which sites take part: sites introduce themselves by name, since Flower's node ids are random in every run."""

import logging
import math
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import torch
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from common.errors import PolicyRefusal, RoundError, UpdateError
from common.messages import Introduction, decode_introduction
from common.seeds import seed_of
from common.settings import Settings
from common.trust.seals import unsealed
from server.collect import Asked, collect, sort_out
from server.trust import NoKeys, Trust, base_of

log = logging.getLogger("fedreptile.server")

PAUSE = 0.5
"""Seconds between looks for new nodes."""
NO_ROUND = 0
"""Introductions belong to a run and to none of its rounds."""
ASK_AGAIN = 60.0
"""Seconds after which a refused node is asked again."""
REST = 300.0
"""The same for a site outside its hours of work."""
DAY = 86400.0
BUSY_DEADLINES = 10.0
"""So many times its deadline a busy site has before it is asked again: its answer may have been lost for good."""


@dataclass(frozen=True)
class Refusal:
    """A node that is not asked for a while."""

    reason: str
    until: float
    """On the roster's clock."""
    activated: str
    """When the node was last activated, by Flower: one that starts anew is asked at once."""
    site: str
    """Whose node it is, if it has taken part; else empty."""

    @property
    def rests(self) -> bool:
        """Whether its own policy forbids it to work for now, which is no fault."""
        return bool(PolicyRefusal.passing(self.reason))


@dataclass(frozen=True)
class Busy:
    """A site that has not answered in time and may still be at work."""

    messages: frozenset[str]
    """Ids of what it was asked."""
    round: int
    activated: str
    """When its node was last activated, by Flower."""
    until: float
    """On the roster's clock."""


class Roster:
    """Node ids and introductions by site name; who is busy, who rests, and who left.

    Args:
        only: names of the sites that take part; none: all. The others introduce themselves and are asked nothing else.
        tell: is told what is waited for; empty: nothing any more.
        utc: seconds since 1970; sites may send so many bytes a day, in UTC.
    """

    def __init__(
        self,
        trust: Trust | None = None,
        now: Callable[[], float] = time.monotonic,
        tell: Callable[[str], None] = lambda text: None,
        utc: Callable[[], float] = time.time,
        only: Collection[str] = (),
    ) -> None:
        self.nodes: dict[str, int] = {}
        self.introductions: dict[str, Introduction] = {}
        self.refused: dict[int, Refusal] = {}
        self.busy: dict[str, Busy] = {}
        self.expected: set[str] = set(only)
        """Sites that have taken part and are not given up."""
        self._asked: dict[str, Message] = {}
        self._since: dict[str, str] = {}
        """Node id -> when it had been activated as it was asked, by Flower."""
        self._site_of: dict[int, str] = {}
        """Node id -> site that has taken part."""
        self._only = frozenset(only)
        self._trust = trust or NoKeys()
        self._now, self._tell, self._utc = now, tell, utc

    def takes_part(self, site: str) -> bool:
        return not self._only or site in self._only

    @property
    def here(self) -> list[str]:
        """The sites that are here and take part, by name."""
        return sorted(filter(self.takes_part, self.nodes))

    def free(self) -> list[str]:
        """Return those of them that are not busy."""
        return [site for site in self.here if site not in self.busy]

    def absent(self) -> dict[str, str]:
        """Return the expected sites that cannot be asked, and why."""
        busy = {site: f"still at work on round {busy.round}" for site, busy in sorted(self.busy.items())}
        refused = {refusal.site: refusal.reason for refusal in self.refused.values()}
        away = sorted(self.expected - self.nodes.keys())
        return busy | {site: refused.get(site, "not connected") for site in away}

    def welcome(self, grid: Grid) -> None:
        """Ask new nodes to introduce themselves, admit those that have answered, forget those that left.

        Never waits: a node that is slow to answer is admitted when its answer is there. One that
        answered with an error, or with the name of a site that is already here, is logged and asked
        again after a while, since Flower does not say when a site was mended and restarted.
        """
        present = set(grid.get_node_ids())
        for name in sorted(name for name, node in self.nodes.items() if node not in present):
            log.warning("site %s is not connected any more", name)
            del self.nodes[name]
            self.busy.pop(name, None)
        activated = self._activated(grid) if self._asked else {}  # a node that started anew has lost what it was asked
        self._asked = {
            key: message
            for key, message in self._asked.items()
            if int(key) in present and activated.get(int(key), "") == self._since[key]
        }
        if self.refused:
            activated = activated or self._activated(grid)
            self.refused = {
                node: refusal
                for node, refusal in self.refused.items()
                if node in present and self._now() < refusal.until and activated.get(node, "") == refusal.activated
            }
        strangers = present - set(self.nodes.values()) - self.refused.keys() - {int(key) for key in self._asked}
        if strangers:
            content = self._trust.request(RecordDict(), NO_ROUND, "query")
            asked = {str(node): Message(content, node, "query") for node in sorted(strangers)}
            grid.push_messages(list(asked.values()))
            self._asked |= asked
            since = self._activated(grid)
            self._since |= {key: since.get(int(key), "") for key in asked}
        for key, reply in self._answers(grid):
            self._admit(int(key), reply)
        if self.busy:
            self._free_those_that_answered(grid)

    def keep_busy(self, grid: Grid, site: str, messages: set[str], round_number: int, deadline: float) -> None:
        """Do not ask a site anything more until it has answered, or its node has started anew, or it took far longer
        than ``deadline`` seconds."""
        activated = self._activated(grid).get(self.nodes[site], "")
        until = self._now() + BUSY_DEADLINES * deadline
        self.busy[site] = Busy(frozenset(messages), round_number, activated, until)

    def let_rest(self, grid: Grid, site: str, reason: str) -> None:
        """Do not ask a site for a while that must not work now by its own policy. It stays expected."""
        node = self.nodes.pop(site)
        self._refuse(node, reason, self._activated(grid).get(node, ""))

    def _refuse(self, node: int, reason: str, activated: str) -> None:
        clause = PolicyRefusal.passing(reason)
        seconds = {"hours.work": REST, "traffic.bytes-a-day": DAY - self._utc() % DAY}.get(clause, ASK_AGAIN)
        self.refused[node] = Refusal(reason, self._now() + seconds, activated, self._site_of.get(node, ""))

    def _free_those_that_answered(self, grid: Grid) -> None:
        activated = self._activated(grid)
        for site, busy in list(self.busy.items()):
            if self._now() >= busy.until:
                log.warning("site %s has not answered to round %d and is asked again", site, busy.round)
                del self.busy[site]
                continue
            answered = list(grid.pull_messages(sorted(busy.messages)))
            if answered or activated.get(self.nodes[site], "") != busy.activated:
                log.info("site %s is free again; its late answer to round %d is not used", site, busy.round)
                del self.busy[site]
                self.expected.add(site)

    def _activated(self, grid: Grid) -> dict[int, str]:
        return {node.node_id: node.last_activated_at for node in grid.get_nodes()}

    @property
    def waiting(self) -> bool:
        """Whether a node has been asked and has not answered yet."""
        return bool(self._asked)

    def ask_anew(self, grid: Grid, deadline: float) -> None:
        """Have all sites that are here introduce themselves again; one that does not keeps its last introduction."""
        content = self._trust.request(RecordDict(), NO_ROUND, "query")
        idle = {site: node for site, node in self.nodes.items() if site not in self.busy}
        asked = Asked({site: Message(content, node, "query") for site, node in sorted(idle.items())})
        for site, reply in sort_out(asked, collect(grid, asked, deadline)).by_site.items():
            try:
                introduction = decode_introduction(unsealed(reply.content))
                self._trust.answer(reply.content, site, NO_ROUND, "query", base_of(content))
                if introduction.name != site:
                    raise UpdateError("wrong-name", f"site {site!r} now says that it is {introduction.name!r}")
                self.introductions[site] = introduction
            except UpdateError as error:
                log.warning("the new introduction of site %s is not used: %s", site, error)

    def _answers(self, grid: Grid) -> Iterator[tuple[str, Message]]:
        """Yield the answers that are there, by node id."""
        key_of = {message.metadata.message_id: key for key, message in self._asked.items()}
        while self._asked and (
            replies := list(grid.pull_messages([m.metadata.message_id for m in self._asked.values()]))
        ):
            for reply in replies:
                key = key_of.get(reply.metadata.reply_to_message_id)
                if key is not None:
                    yield key, reply
                    del self._asked[key]

    def _admit(self, node: int, reply: Message) -> None:
        try:
            introduction = self._introduction(node, reply)
            if introduction.name in self.nodes:
                raise UpdateError(
                    "same-name", f"a site named {introduction.name!r} is already here; give each site a name of its own"
                )
        except UpdateError as error:
            log.warning("node %d is refused: %s", node, error)
            self._refuse(node, str(error), self._since[str(node)])
            return
        self.nodes[introduction.name] = node
        self._site_of[node] = introduction.name
        self.introductions[introduction.name] = introduction
        if self.takes_part(introduction.name):
            self.expected.add(introduction.name)

    def _introduction(self, node: int, reply: Message) -> Introduction:
        if reply.has_error():
            raise UpdateError("error-reply", f"code {reply.error.code}: {reply.error.reason}")
        introduction = decode_introduction(unsealed(reply.content))
        self._trust.check_name(node, introduction.name)
        base = base_of(self._asked[str(node)].content)
        self._trust.answer(reply.content, introduction.name, NO_ROUND, "query", base)
        return introduction

    def wait_for(self, grid: Grid, count: int, deadline: float, sleep: Callable[[float], None] = time.sleep) -> None:
        """Wait until this many sites have introduced themselves; for ever if only those are missing that rest.

        Raises:
            RoundError: if fewer have within ``deadline`` seconds, or if as many nodes are here and
                some are refused; it names the sites that are here and the reasons of the others.
        """
        began = self._now()
        while True:
            self.welcome(grid)
            here = len(self.here)
            if here >= count:
                return self._tell("")
            known = here + len(self.refused)
            resting = here + sum(refusal.rests for refusal in self.refused.values())
            hopeless = not self._asked and known >= count
            if resting < count and (hopeless or self._now() - began >= deadline):
                raise RoundError(self._too_few(count, self._now() - began))
            self._tell(self._missing(f"{count - here} more site(s)"))
            sleep(PAUSE)

    def wait_for_share(
        self, grid: Grid, share: float, deadline: float, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        """Wait until that share of the expected sites is here and free, at least one, or ``deadline`` seconds are over.

        Sites that do not come back in that time are not expected any more, so that they are waited for once only.
        Those that rest by their own policy are waited for until they may work again.
        """
        began = self._now()
        while True:
            self.welcome(grid)
            needed = max(1, math.ceil(share * len(self.expected)))
            if len(self.free()) >= needed:
                return self._tell("")
            resting = {refusal.site for refusal in self.refused.values() if refusal.rests} & self.expected
            late = self._now() - began >= deadline
            if late and len(self.free()) + len(resting) < needed:
                gone = {site: why for site, why in self.absent().items() if site not in resting}
                log.warning("gone on without: %s", "; ".join(f"{site} ({why})" for site, why in gone.items()))
                self.expected = set(self.free()) | resting
                if not resting:
                    return self._tell("")
            self._tell(self._missing(f"{needed - len(self.free())} more site(s)"))
            sleep(PAUSE)

    def _missing(self, what: str) -> str:
        """Return in a sentence what is waited for, and why who is known is not there."""
        reasons = {f"node {node}": refusal.reason for node, refusal in self.refused.items() if not refusal.site}
        reasons |= self.absent()
        return f"waiting for {what}" + "".join(f"; {site}: {why}" for site, why in reasons.items())

    def _too_few(self, count: int, seconds: float) -> str:
        here = ", ".join(self.here) or "none"
        reasons = sorted({refusal.reason for refusal in self.refused.values()})
        refused = f"; {len(self.refused)} node(s) refused: {' | '.join(reasons)}" if reasons else ""
        return (
            f"{len(self.here)} of {count} sites joined within {seconds:.0f} s (here: {here}{refused}); "
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
