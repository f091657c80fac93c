"""A message answered in the process that Flower starts for it: simulations, and SuperNodes that nobody enrolled."""

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

from flwr.app import Context, Error, Message, RecordDict

from client.door.outbound import Asked, Content, door_of, refuse
from client.settings import SiteSettings, parse_node_config
from client.site import Site
from client.worker.work import layout_of, work
from common.log import show_log
from common.settings import Settings, Value
from common.trust.seals import unsealed

log = logging.getLogger("fedreptile.client")

Frozen = tuple[tuple[str, Value], ...]


def work_inside(message: Message, context: Context) -> RecordDict | Error:
    """Do the work and let its result out through the door; so too any error."""
    if "partition-id" not in context.node_config:
        show_log()  # of a site alone; thousands of simulated ones would drown the run's own
    return answered(
        lambda: _site(_frozen(context.node_config), _frozen(context.run_config)),
        message.metadata.message_type,
        lambda site: work(site, message.metadata.message_type, unsealed(message.content)),
    )


def answered(
    opened: Callable[[], tuple[SiteSettings, Site]], kind: str, worked: Callable[[Site], tuple[Content, int]]
) -> RecordDict | Error:
    """Open a site, have it work, and let the result out through its door; so too any error.

    Args:
        kind: the type of the message that is answered.
        worked: returns the answer and the round that was asked about.
    """
    own: SiteSettings | None = None
    asked = Asked(kind)
    try:
        own, site = opened()
        content, number = worked(site)
        asked = replace(asked, round=number, layout=layout_of(site))
        with door_of(own) as door:
            return door.leave(content, asked)
    except Exception as error:
        log.error("site %s could not answer %s", own.name if own else "?", kind, exc_info=error)
        return refuse(error, own, asked)


def _frozen(config: dict[str, Value]) -> Frozen:
    return tuple(sorted(config.items()))


@lru_cache(maxsize=4096)
def _site(node_config: Frozen, run_config: Frozen) -> tuple[SiteSettings, Site]:
    settings = _settings(run_config)
    own = parse_node_config(dict(node_config), settings)
    return own, Site(own, settings)


@lru_cache(maxsize=4)
def _settings(run_config: Frozen) -> Settings:
    return Settings.from_flat(dict(run_config))
