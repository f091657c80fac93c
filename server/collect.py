"""Sending messages to sites and waiting for their replies, but not for ever; asking again what was lost on the way."""

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from flwr.app import Message
from flwr.serverapp import Grid

from common.errors import UpdateError

FIRST_PAUSE, LONGEST_PAUSE = 0.02, 1.0
"""Seconds between looks for replies: short at first, since simulated sites are fast."""
LOOK_AT_NODES = 5.0
"""Seconds between looks whether the node of a silent site was lost and came back."""
GRACE = 30.0
"""Seconds that a lost node is waited for when enough others have answered."""
MOST_TRIES = 20
"""Messages to one site for one answer, so that a node that comes and goes all the time cannot make work for ever."""

REPLY_LOST, NODE_LOST, APP_LOST = 3, 5, 8
"""Flower's error codes for a reply that was announced and whose content never came, such as when the network was cut
in between, for a node without heartbeat, and for an app process that ended without a reply."""


class Asked:
    """What was asked of whom. A site has several messages if the first was lost on the way; one answer counts."""

    def __init__(self, messages: Mapping[str, Message]) -> None:
        self._tries = {site: [message] for site, message in messages.items()}
        self._site_of: dict[str, str] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._tries)

    def __len__(self) -> int:
        return len(self._tries)

    def messages(self) -> list[Message]:
        """Return the first message to each site."""
        return [tries[0] for tries in self._tries.values()]

    def tries(self, site: str) -> int:
        return len(self._tries[site])

    def node(self, site: str) -> int:
        return self._tries[site][0].metadata.dst_node_id

    def again(self, site: str) -> Message:
        """Return a new message that asks the same; a site that has the answer already gives it again."""
        first = self._tries[site][0]
        message = Message(
            first.content, first.metadata.dst_node_id, first.metadata.message_type, group_id=first.metadata.group_id
        )
        self._tries[site].append(message)
        return message

    def ids(self, site: str) -> set[str]:
        """Return the ids of all messages to a site."""
        return {message.metadata.message_id for message in self._tries[site]}

    def site_of(self, reply: Message) -> str | None:
        """Return which site a reply is from, by the message that it answers; None if it answers none of these.

        The node id of a reply is not used: Flower sets it to the SuperLink's own when a node is lost.
        """
        answered = reply.metadata.reply_to_message_id
        if answered not in self._site_of:  # messages get their ids when they are sent
            self._site_of = {message_id: site for site in self._tries for message_id in self.ids(site)}
        return self._site_of.get(answered)


@dataclass(frozen=True)
class Replies:
    """What came back: contents by site, and for every other asked site the reason why not."""

    by_site: Mapping[str, Message]
    missing: Mapping[str, UpdateError]


def collect(
    grid: Grid,
    asked: Asked,
    deadline: float,
    enough: int = 0,
    now: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Message]:
    """Send messages; yield the replies that arrive within ``deadline`` seconds as they come, none twice from one site.

    A site whose node restarted, or was lost and is back, is asked again: Flower delivers a message once only.
    Nothing is sent before the first reply is asked for, and no reply is kept, so that memory does not grow with sites.

    Args:
        enough: with so many answers, lost nodes are waited for ``GRACE`` seconds only.
    """
    if not asked:
        return
    began, pause = now(), FIRST_PAUSE
    nodes, looked = Nodes(grid, asked), began
    # A dict for its order; its keys are what the grid is asked for, so that a look costs no copy of all ids.
    waiting = dict.fromkeys(filter(None, grid.push_messages(asked.messages())))
    lost: dict[str, Message] = {}
    answers, progress = 0, began
    while waiting or lost:
        quiet = True
        # Those without error first: of two answers of one site they count.
        for reply in sorted(grid.pull_messages(waiting.keys()), key=Message.has_error) if waiting else ():
            quiet, progress = False, now()
            site = asked.site_of(reply)
            if site is None or reply.metadata.reply_to_message_id not in waiting:
                continue
            del waiting[reply.metadata.reply_to_message_id]
            if _says_lost(reply):
                lost[site] = reply
                continue
            for message_id in asked.ids(site):
                waiting.pop(message_id, None)
            lost.pop(site, None)
            answers += 1
            yield reply
        if now() - began >= deadline or (not waiting and answers >= enough and now() - progress >= GRACE):
            break
        if now() - looked >= LOOK_AT_NODES:
            looked = now()
            waiting |= dict.fromkeys(_ask_again(grid, asked, waiting, lost, nodes))
        if (waiting or lost) and quiet:
            sleep(min(pause, max(0.0, deadline - (now() - began))))
            pause = min(2 * pause, LONGEST_PAUSE)
    yield from lost.values()


def _says_lost(reply: Message) -> bool:
    return reply.has_error() and reply.error.code in (REPLY_LOST, NODE_LOST, APP_LOST)


class Nodes:
    """Which nodes of those that were asked are online, and which have started again since they were last looked at."""

    def __init__(self, grid: Grid, asked: Asked) -> None:
        self._grid = grid
        self._asked = {asked.node(site) for site in asked}
        self._since = self._look()

    def _look(self) -> dict[int, str]:
        nodes = self._grid.get_nodes()
        return {node.node_id: node.last_activated_at for node in nodes if node.node_id in self._asked}

    def changes(self) -> tuple[set[int], set[int]]:
        """Return the nodes that are online, and those of them that started anew since the last call."""
        found = self._look()
        new = {node for node, since in found.items() if self._since.get(node) != since}
        self._since |= found
        return set(found), new


def _ask_again(grid: Grid, asked: Asked, waiting: Collection[str], lost: dict[str, Message], nodes: Nodes) -> list[str]:
    """Ask sites again whose message was lost and whose node is there; return the ids of the new messages."""
    online, restarted = nodes.changes()
    silent = {site for site in asked if not asked.ids(site).isdisjoint(waiting)}
    sites = {site for site in silent if asked.node(site) in restarted}
    sites |= {site for site in lost if asked.node(site) in online}
    sites = {site for site in sites if asked.tries(site) < MOST_TRIES}
    if not sites:
        return []
    for site in sites:
        lost.pop(site, None)
    return [message_id for message_id in grid.push_messages([asked.again(s) for s in sorted(sites)]) if message_id]


def in_order(asked: Asked, replies: Iterable[Message]) -> Iterator[tuple[str, Message | UpdateError]]:
    """Yield every asked site once, in the order of names, with its reply or why there is none.

    A site's turn comes as soon as all before it have answered; what comes earlier is held back until then. Of several
    replies from one site the first that is no error counts, if it comes before its turn does.
    """
    names = sorted(asked)
    turn = 0
    held: dict[str, Message] = {}
    for reply in replies:
        site = asked.site_of(reply)
        if site is not None and (site not in held or held[site].has_error()):
            held[site] = reply
        while turn < len(names) and names[turn] in held:
            yield names[turn], _answer(held.pop(names[turn]))
            turn += 1
    for site in names[turn:]:
        yield site, _answer(held.pop(site)) if site in held else UpdateError("no-reply", "no reply within the deadline")


def _answer(reply: Message) -> Message | UpdateError:
    if reply.has_error():
        return UpdateError("error-reply", f"code {reply.error.code}: {reply.error.reason}")
    return reply


def sort_out(asked: Asked, replies: Iterable[Message]) -> Replies:
    """Return what came back when all has; see ``in_order``."""
    found = list(in_order(asked, replies))
    return Replies(
        {site: answer for site, answer in found if isinstance(answer, Message)},
        {site: answer for site, answer in found if isinstance(answer, UpdateError)},
    )
