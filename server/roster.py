"""Which sites take part: sites introduce themselves by name, since Flower's node ids are random in every run."""

import logging
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace

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
class Asking:
    """A node that was asked to introduce itself and has not answered yet."""

    node: int
    base: str
    """Digest of the question."""
    activated: str
    """When the node had been activated as it was asked, by Flower."""


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
        self.news = 0
        """Grows with every introduction that is taken up."""
        self._asked: dict[str, Asking] = {}
        """By the id of the message."""
        self._present: set[int] = set()
        """Nodes that were online when it was last looked."""
        self._here: list[str] | None = None
        """None: to be worked out anew."""
        self._versions: dict[tuple[tuple[str, str], ...], Mapping[str, str]] = {}
        """What sites have installed, kept once for all that have the same."""
        self._site_of: dict[int, str] = {}
        """Node id -> site that has taken part."""
        self._only = frozenset(only)
        self._trust = trust or NoKeys()
        self._now, self._tell, self._utc = now, tell, utc

    def takes_part(self, site: str) -> bool:
        return not self._only or site in self._only

    @property
    def here(self) -> list[str]:
        """The sites that are here and take part, by name: one list as long as they are the same, not to be changed."""
        if self._here is None:
            self._here = sorted(filter(self.takes_part, self.nodes))
        return self._here

    def free(self) -> list[str]:
        """Return those of them that are not busy."""
        return [site for site in self.here if site not in self.busy] if self.busy else self.here

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
        if present != self._present or self._asked or self.refused:
            self._present = present
            self._forget(grid)
            self._ask_strangers(grid)
            for asking, reply in self._answers(grid):
                self._admit(asking, reply)
        if self.busy:
            self._free_those_that_answered(grid)

    def _forget(self, grid: Grid) -> None:
        """Forget sites that left, and of nodes that left or started anew that they were asked or refused."""
        present = self._present
        for name in sorted(name for name, node in self.nodes.items() if node not in present):
            log.warning("site %s is not connected any more", name)
            self._leave(name)
            self.busy.pop(name, None)
        activated = self._activated(grid) if self._asked or self.refused else {}
        self._asked = {  # a node that started anew has lost what it was asked
            message_id: asking
            for message_id, asking in self._asked.items()
            if asking.node in present and activated.get(asking.node, "") == asking.activated
        }
        self.refused = {
            node: refusal
            for node, refusal in self.refused.items()
            if node in present and self._now() < refusal.until and activated.get(node, "") == refusal.activated
        }

    def _ask_strangers(self, grid: Grid) -> None:
        known = {asking.node for asking in self._asked.values()}
        strangers = sorted(self._present - set(self.nodes.values()) - self.refused.keys() - known)
        if not strangers:
            return
        content = self._trust.request(RecordDict(), NO_ROUND, "query")
        base, messages = base_of(content), [Message(content, node, "query") for node in strangers]
        grid.push_messages(messages)
        since = self._activated(grid)
        for message in messages:
            node = message.metadata.dst_node_id
            self._asked[message.metadata.message_id] = Asking(node, base, since.get(node, ""))

    def _leave(self, site: str) -> int:
        """Take a site off the list; return its node."""
        self._here = None
        return self.nodes.pop(site)

    def keep_busy(self, grid: Grid, messages: Mapping[str, set[str]], round_number: int, deadline: float) -> None:
        """Do not ask sites anything more until they have answered one of these messages, or their node has started
        anew, or they took far longer than ``deadline`` seconds."""
        activated = self._activated(grid) if messages else {}
        until = self._now() + BUSY_DEADLINES * deadline
        for site, ids in messages.items():
            self.busy[site] = Busy(frozenset(ids), round_number, activated.get(self.nodes[site], ""), until)

    def let_rest(self, grid: Grid, reasons: Mapping[str, str]) -> None:
        """Do not ask sites for a while that must not work now by their own policy. They stay expected."""
        activated = self._activated(grid) if reasons else {}
        for site, reason in reasons.items():
            node = self._leave(site)
            self._refuse(node, reason, activated.get(node, ""))

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
                self._take_up(introduction)
            except UpdateError as error:
                log.warning("the new introduction of site %s is not used: %s", site, error)

    def _answers(self, grid: Grid) -> Iterator[tuple[Asking, Message]]:
        """Yield the answers that are there, each with what was asked."""
        while self._asked and (replies := list(grid.pull_messages(self._asked.keys()))):
            for reply in replies:
                asking = self._asked.pop(reply.metadata.reply_to_message_id, None)
                if asking is not None:
                    yield asking, reply

    def _admit(self, asking: Asking, reply: Message) -> None:
        node = asking.node
        try:
            introduction = self._introduction(asking, reply)
            if introduction.name in self.nodes:
                raise UpdateError(
                    "same-name", f"a site named {introduction.name!r} is already here; give each site a name of its own"
                )
        except UpdateError as error:
            log.warning("node %d is refused: %s", node, error)
            self._refuse(node, str(error), asking.activated)
            return
        self.nodes[introduction.name] = node
        self._here = None
        self._site_of[node] = introduction.name
        self._take_up(introduction)
        if self.takes_part(introduction.name):
            self.expected.add(introduction.name)

    def _take_up(self, introduction: Introduction) -> None:
        same = tuple(introduction.versions.items())
        versions = self._versions.setdefault(same, introduction.versions)
        self.introductions[introduction.name] = replace(introduction, versions=versions)
        self.news += 1

    def _introduction(self, asking: Asking, reply: Message) -> Introduction:
        if reply.has_error():
            raise UpdateError("error-reply", f"code {reply.error.code}: {reply.error.reason}")
        introduction = decode_introduction(unsealed(reply.content))
        self._trust.check_name(asking.node, introduction.name)
        self._trust.answer(reply.content, introduction.name, NO_ROUND, "query", asking.base)
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
    if not settings.judge.held_out:
        return []
    order = sorted(names, key=lambda name: seed_of(settings.run.seed, "held-out", name))
    return sorted(order[: settings.judge.held_out])


def sample_sites(names: list[str], round_number: int, settings: Settings) -> list[str]:
    """Draw a round's sites uniformly without replacement, from a stream of their own; sorted by name."""
    count = settings.outer.sites_per_round or len(names)
    generator = torch.Generator().manual_seed(seed_of(settings.run.seed, "sites", round_number))
    order = torch.randperm(len(names), generator=generator)[:count].tolist()
    ordered = sorted(names)
    return sorted(ordered[i] for i in order)
