"""How a simulation is worked on, chosen by what there is: processes, sites at a time, and on what they compute."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from common.errors import SettingsError
from common.settings import NETWORKS, Settings, Value, nearest

ON_A_PROCESSOR, ON_A_GPU = 10, 64
"""Sites that are handed out together: few, so that none waits long, and many, since each alone keeps a GPU waiting."""


@dataclass(frozen=True)
class Resources:
    """What a simulation may use of this machine."""

    workers: int = 0
    """Processes that adapt; 0: one a processor."""
    together: int = 0
    """Sites that are handed to a process, or stacked on a GPU, at a time; 0: as many as suit."""
    data_megabytes: int = 1000
    """Memory for data that sites have read, over all processes."""


def parse_resources(values: Mapping[str, Value]) -> Resources:
    """Read resources by their names with hyphens. Raises SettingsError for an unknown one, or one below its least."""
    least = {"workers": 0, "together": 0, "data-megabytes": 1}
    for key, value in values.items():
        if key not in least:
            raise SettingsError(f"--use {key}: unknown; the nearest valid one is {nearest(key, least)!r}")
        if type(value) is not int or value < least[key]:
            raise SettingsError(f"--use {key} is {value!r}; it must be a whole number of at least {least[key]}")
    return Resources(**{key.replace("-", "_"): int(value) for key, value in values.items()})


@dataclass(frozen=True)
class Choice:
    """How the batched engine works."""

    workers: int
    """Processes beside this one; 0: none."""
    together: int
    device: str
    reason: str
    gains: bool = True
    """Whether that is faster than one site after another by autograd."""


def choose(settings: Settings, nodes: int, node_config: Mapping[str, Value], resources: Resources) -> Choice:
    """Choose for a run over so many sites.

    Raises:
        SettingsError: if workers are asked for on a GPU, which one process keeps busy.
    """
    device = str(node_config.get("site-device", "cuda" if torch.cuda.is_available() else "cpu"))
    if device != "cpu":
        if resources.workers > 1:
            raise SettingsError(
                f"--use workers={resources.workers} with device {device!r}: one process keeps a GPU busy; leave workers"
            )
        together = resources.together or ON_A_GPU
        return Choice(0, together, device, f"{together} sites at once on {device}")
    asked = min(settings.outer.sites_per_round or nodes, nodes)
    workers = resources.workers or min(cores(), asked)
    together = resources.together or ON_A_PROCESSOR
    where = f"{workers} processes" if workers > 1 else "this process"
    written = settings.model.network in NETWORKS and settings.inner.precision == "full"
    how = (
        f"the layers of {settings.model.network!r} written out for a processor"
        if written
        else f"autograd, site after site, since {_unwritten(settings)}"
    )
    seen = "" if device == node_config.get("site-device") else "; there is no GPU that torch can use"
    return Choice(workers if workers > 1 else 0, together, device, f"{where}, {how}{seen}", written or workers > 1)


def _unwritten(settings: Settings) -> str:
    if settings.inner.precision != "full":
        return f"inner.precision is {settings.inner.precision!r}"
    return f"model.network {settings.model.network!r} is not one of the project's"


def cores() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
