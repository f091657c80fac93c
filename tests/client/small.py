"""A small plan, a site on it, data whose every picture is known, and messages as the server sends them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from torch import Tensor

from client.settings import SiteSettings, parse_node_config
from client.site import Site
from common.messages import Request, encode_request
from common.plan import plan_for
from common.settings import Settings, Value, flatten

SMALL: dict[str, Value] = {
    "data.size": 8,
    "model.width": 4,
    "episode.way": 3,
    "episode.shot": 4,
    "episode.query": 5,
    "inner.steps": 2,
    "judge.episodes": 2,
    "judge.shot": 3,
}
SITE_NODE, SERVER_NODE = 7, 1


def settings_with(**changes: Value) -> Settings:
    """Return small settings; ``episode__way=2`` sets ``episode.way``."""
    return Settings.from_flat({**SMALL, **{key.replace("__", ".").replace("_", "-"): v for key, v in changes.items()}})


def site_on(sites: Path, settings: Settings, name: str = "site-0", **own: Value) -> Site:
    """Return a site of a packed set or a folder of sites."""
    return Site(own_settings(name, str(sites), **own), settings)


def own_settings(name: str, data: str, **own: Value) -> SiteSettings:
    """Return a site's own settings; ``max_way=2`` is the node config key ``site-max-way``."""
    keys = {f"site-{key}".replace("_", "-"): value for key, value in own.items()}
    return parse_node_config({"site-name": name, "site-data": data, **keys}, Settings())


def first_request(settings: Settings, round_number: int = 1, *, judge: bool = False) -> Request:
    """Return a request with the params and slots that a run starts from, read-only as Flower delivers them."""
    plan = plan_for(settings)
    params, slots = plan.params.pack(plan.initial).numpy(), plan.slots.pack(plan.initial_slots).numpy()
    params.setflags(write=False)
    slots.setflags(write=False)
    return Request(round_number, params, slots, judge)


def message_of(kind: str, content: RecordDict | None = None) -> Message:
    """Return a message from the server to the site."""
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, SERVER_NODE
    message = Message(content or RecordDict(), SITE_NODE, kind)
    message.metadata.__dict__["_message_id"] = "asked"
    return message


def asking(kind: str, settings: Settings, *, judge: bool = False) -> Message:
    """Return the server's message of a kind, with the first request of a run."""
    return message_of(kind, encode_request(first_request(settings, judge=judge), plan_for(settings).agreed.digest))


def context_of(node_config: Mapping[str, Value], settings: Settings) -> Context:
    return Context(1, SITE_NODE, dict(node_config), RecordDict(), flatten(settings))


class NumberedData:
    """Input r of class i has the value (100 i + r) / 1000 in every pixel, and what was asked for is on record."""

    def __init__(self, counts: Mapping[str, int], size: int = 8) -> None:
        self.counts = dict(counts)
        self.size = size
        self.asked: list[tuple[str, int]] = []

    def classes(self) -> Sequence[str]:
        return sorted(self.counts)

    def count(self, name: str) -> int:
        return self.counts[name]

    def inputs(self, name: str, rows: Sequence[int]) -> Tensor:
        self.asked += [(name, row) for row in rows]
        values = torch.tensor([self.value(name, row) for row in rows], dtype=torch.float32)
        return values.view(-1, 1, 1, 1).expand(-1, 1, self.size, self.size).clone()

    def value(self, name: str, row: int) -> float:
        if not 0 <= row < self.counts[name]:
            raise IndexError(row)
        return (100 * self.classes().index(name) + row) / 1000


def rows_in(inputs: Tensor) -> set[int]:
    """Return the numbers 100 i + r of inputs of ``NumberedData``."""
    return {int(number) for number in np.rint(inputs[:, 0, 0, 0].numpy() * 1000)}
