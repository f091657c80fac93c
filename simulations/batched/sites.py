"""What the sites of a simulation answer, many at a time: in this process or in a worker's."""

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar, cast

from flwr.app import Error, RecordDict
from torch import Tensor

from client.data.sites import site_names
from client.settings import SiteSettings, parse_node_config
from client.site import Site, Work
from client.worker.inside import answered
from client.worker.work import work
from common.learning.params import Manifest, Params
from common.learning.reptile import Adapted
from common.learning.threads import threads
from common.messages import Flat, Request, Update, decode_request
from common.paths import default_sites
from common.settings import Settings, Value
from common.trust.seals import unsealed
from simulations.batched.many import adapt_many

Made = TypeVar("Made")
TRAIN = "train"
PARTS = 4
"""Params and slots of a request, unpacked and packed again."""
MOST_OPEN = 1024
"""Sites that stay open, whatever memory their data take."""


class FastSite(Site):
    """A site whose adaptations, those that judge among them, are done by ``adapt_one``, and which shares with others
    what all are sent."""

    def __init__(self, site: SiteSettings, settings: Settings, sent: "Sent") -> None:
        super().__init__(site, settings)
        self._sent = sent

    def _unpacked(self, layout: Manifest, flat: Flat) -> dict[str, Tensor]:
        return self._sent.made(flat, lambda: super(FastSite, self)._unpacked(layout, flat))

    def _packed(self, layout: Manifest, params: Params) -> Tensor:
        return self._sent.made(params, lambda: super(FastSite, self)._packed(layout, params))


class Sent:
    """What was made of the last request's arrays, once for all sites. No site changes it."""

    def __init__(self) -> None:
        self._made: OrderedDict[int, tuple[object, object]] = OrderedDict()

    def made(self, source: object, make: Callable[[], Made]) -> Made:
        """Return what is made of an array or of params, of each in one way only."""
        found = self._made.get(id(source))
        if found is None:
            found = self._made[id(source)] = source, make()
            while len(self._made) > PARTS:
                self._made.popitem(last=False)
        return cast(Made, found[1])


class Sites:
    """The sites of a simulation by position, in the order of their names. Each is opened when it is first asked.

    Args:
        node_config: what their node config has in common.
        data_bytes: memory for what they have read; beyond it those that were not asked for longest are closed. Packed
            sets are mapped and not read, so their sites take none.
    """

    def __init__(self, settings: Settings, node_config: Mapping[str, Value], data_bytes: int) -> None:
        self._settings, self._data_bytes = settings, data_bytes
        path = Path(settings.data.sites) if settings.data.sites else default_sites()
        self._names = site_names(path)
        self._node_config = {**node_config, "site-data": str(path)}
        self._open: OrderedDict[int, tuple[SiteSettings, Site]] = OrderedDict()
        self._sent = Sent()
        self._read: dict[int, int] = {}
        """Position -> bytes of what an open site has read, of those that have read any."""
        self._asked: tuple[RecordDict, Request] | None = None

    @property
    def open(self) -> int:
        """How many are open."""
        return len(self._open)

    def answer(self, kind: str, content: RecordDict, positions: Sequence[int]) -> list[RecordDict | Error]:
        """Answer a message for each of some sites; one that cannot gives an error, and the others go on."""
        if kind == TRAIN:
            answers = self._trained(content, positions)
        else:
            answers = [
                answered(partial(self._opened, position), kind, lambda site: work(site, kind, unsealed(content)))
                for position in positions
            ]
        self._close(positions)
        return answers

    def _trained(self, content: RecordDict, positions: Sequence[int]) -> list[RecordDict | Error]:
        """Prepare all, adapt all at once, reply for each; each is said to have taken its share of the time."""
        began = time.monotonic()
        works = {position: self._prepared(content, position) for position in positions}
        ready = {position: found for position, found in works.items() if isinstance(found, Work)}
        adapted: dict[int, Adapted] = {}
        if ready:
            with threads(next(iter(self._open.values()))[0].threads):
                try:
                    adapted = dict(zip(ready, adapt_many(list(ready.values())), strict=True))
                except Exception:  # noqa: BLE001 - one of them failed: each alone, from the start of its random streams
                    adapted = {}

        def replied(position: int, site: Site) -> tuple[Update, int]:
            found = works[position]
            if isinstance(found, Exception):
                raise found
            if position not in adapted:
                found = site.prepare(found.request)
            done = adapted[position] if adapted else site.adapt(found)
            share = (time.monotonic() - began) / len(positions)
            return site.reply(replace(found, began=time.monotonic() - share), done), found.request.round

        return [answered(partial(self._opened, position), TRAIN, partial(replied, position)) for position in positions]

    def _prepared(self, content: RecordDict, position: int) -> Work | Exception:
        try:
            _, site = self._opened(position)
            if self._asked is None or self._asked[0] is not content:
                self._asked = content, decode_request(unsealed(content), site.plan.agreed)
            return site.prepare(self._asked[1])
        except Exception as error:  # noqa: BLE001 - a failing site fails alone, when it replies
            return error

    def _opened(self, position: int) -> tuple[SiteSettings, Site]:
        found = self._open.get(position)
        if found is None:
            own = parse_node_config({**self._node_config, "site-name": self._names[position]}, self._settings)
            found = self._open[position] = own, FastSite(own, self._settings, self._sent)
        self._open.move_to_end(position)
        return found

    def _close(self, positions: Sequence[int]) -> None:
        """Close those that were not asked for longest, if sites have read too much; some have just been asked."""
        for position in positions:
            if position in self._open and (size := self._open[position][1].data_bytes):
                self._read[position] = size
        while self._open and (len(self._open) > MOST_OPEN or sum(self._read.values()) > self._data_bytes):
            self._read.pop(self._open.popitem(last=False)[0], None)
