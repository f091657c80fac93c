"""Sending messages to sites and waiting for their replies, but not for ever."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from flwr.app import Message
from flwr.serverapp import Grid

from common.errors import UpdateError

FIRST_PAUSE, LONGEST_PAUSE = 0.02, 1.0
"""Seconds between looks for replies: short at first, since simulated sites are fast."""


@dataclass(frozen=True)
class Replies:
    """What came back: contents by site, and for every other asked site the reason why not."""

    by_site: Mapping[str, Message]
    missing: Mapping[str, UpdateError]


def collect(
    grid: Grid,
    messages: Iterable[Message],
    deadline: float,
    now: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> list[Message]:
    """Send messages; return the replies that arrive within ``deadline`` seconds."""
    began, pause = now(), FIRST_PAUSE
    waiting = {message_id for message_id in grid.push_messages(list(messages)) if message_id}
    replies: list[Message] = []
    while waiting:
        arrived = list(grid.pull_messages(sorted(waiting)))
        replies += arrived
        waiting -= {reply.metadata.reply_to_message_id for reply in arrived}
        if now() - began >= deadline:
            break
        if waiting and not arrived:
            sleep(min(pause, max(0.0, deadline - (now() - began))))
            pause = min(2 * pause, LONGEST_PAUSE)
    return replies


def sort_out(asked: Mapping[str, Message], replies: Iterable[Message]) -> Replies:
    """Put replies to sites by the message they answer.

    The node id of a reply is not used: Flower sets it to the SuperLink's own when a node is lost.
    """
    site_of = {message.metadata.message_id: site for site, message in asked.items()}
    by_site: dict[str, Message] = {}
    missing: dict[str, UpdateError] = {}
    for reply in replies:
        site = site_of.get(reply.metadata.reply_to_message_id)
        if site is None:
            continue
        if reply.has_error():
            missing[site] = UpdateError("error-reply", f"code {reply.error.code}: {reply.error.reason}")
        else:
            by_site[site] = reply
    for site in asked.keys() - by_site.keys() - missing.keys():
        missing[site] = UpdateError("no-reply", "no reply within the deadline")
    return Replies(dict(sorted(by_site.items())), dict(sorted(missing.items())))
