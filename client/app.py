"""The ClientApp that Flower starts for a message: a thin shim over ``client.site.Site``.

Importing this module does not import torch: Flower starts a process for every message, and the
site's work may be done elsewhere.
"""

import logging
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.outbound import Content, leave, leave_error
from client.settings import SiteSettings, parse_node_config
from common.log import show_log
from common.messages import decode_request
from common.settings import Settings, Value

if TYPE_CHECKING:
    from client.site import Site

log = logging.getLogger("fedreptile.client")

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Adapt to an episode of the site and reply with the update."""
    return answer(message, context, lambda site: site.train(decode_request(message.content, site.plan.agreed)))


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Judge adaptation on the site, before and after."""
    return answer(message, context, lambda site: site.evaluate(decode_request(message.content, site.plan.agreed)))


@app.query()
def introduce(message: Message, context: Context) -> Message:
    """Say who the site is and what it has."""
    return answer(message, context, lambda site: site.introduce())


@app.query("class_table")
def class_table(message: Message, context: Context) -> Message:
    """Reply with sums of embeddings by class name, if the site's settings allow it."""
    return answer(message, context, lambda site: site.class_table(decode_request(message.content, site.plan.agreed)))


def answer(message: Message, context: Context, work: Callable[["Site"], Content]) -> Message:
    """Do the work and let its result out through the one door; so too any error."""
    own: SiteSettings | None = None
    if "partition-id" not in context.node_config:
        show_log()  # of a site alone; thousands of simulated ones would drown the run's own
    try:
        own, site = _site(_frozen(context.node_config), _frozen(context.run_config))
        return leave(work(site), own, message)
    except Exception as error:
        log.exception("site %s could not answer %s", own.name if own else "?", message.metadata.message_type)
        return leave_error(error, own, message)


Frozen = tuple[tuple[str, Value], ...]


def _frozen(config: dict[str, Value]) -> Frozen:
    return tuple(sorted(config.items()))


@lru_cache(maxsize=4096)
def _site(node_config: Frozen, run_config: Frozen) -> tuple[SiteSettings, "Site"]:
    from client.site import Site  # here, because it imports torch

    settings = _settings(run_config)
    own = parse_node_config(dict(node_config), settings)
    return own, Site(own, settings)


@lru_cache(maxsize=4)
def _settings(run_config: Frozen) -> Settings:
    return Settings.from_flat(dict(run_config))
