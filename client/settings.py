"""A site's own settings, which the run cannot override. They come from the node config that the site starts with."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from common.errors import SettingsError
from common.paths import default_sites
from common.settings import Settings, Value, nearest

LEAST = {"threads": 1, "min_count": 1, "max_way": 2, "max_shot": 0, "max_steps": 0}
"""Smallest values that make sense; a ``max_way`` of 0 is allowed too and means no limit."""

PARTITION_KEYS = frozenset({"partition-id", "num-partitions"})


@dataclass(frozen=True)
class SiteSettings:
    """Node config keys are these names with ``site-`` before them and hyphens: ``site-min-count=20``."""

    name: str
    """The name under which the site takes part; unique in the federation."""
    data: str
    """Absolute path: the site's folder of class folders, or a set that holds the site by its name."""
    device: str = "cpu"
    """Where torch computes: 'cpu', 'cuda', 'cuda:1', …"""
    threads: int = 1
    """Threads of one adaptation. One gives the same bits on every machine of a kind."""
    class_tables: bool = False
    """Whether sums of embeddings by class name may leave."""
    min_count: int = 5
    """The least number of inputs of a class for its sum to leave: the sum of one is that one's embedding."""
    class_names: bool = True
    """Whether class names and counts may leave (introduction, per-class results)."""
    max_way: int = 0
    """Classes per episode at most; 0 as the run says."""
    max_shot: int = 0
    """Support inputs per class at most; 0 as the run says."""
    max_steps: int = 0
    """Inner steps at most; 0 as the run says."""
    cache: str = ""
    """Absolute folder that keeps decoded pictures for the next start; empty: the data home's; 'off': none is kept."""
    log: str = ""
    """Absolute path of a file that gets one JSON line for everything that leaves; empty: Python's log only."""


def parse_node_config(node_config: Mapping[str, Value], run: Settings) -> SiteSettings:
    """Read a site's settings.

    A simulated node has ``partition-id`` instead of a name and data: it is the site of that
    position, in the order of names, among those at the run's ``data.sites``.

    Raises:
        SettingsError: for unknown keys, missing ones, or values of the wrong type.
    """
    own = {key: value for key, value in node_config.items() if key not in PARTITION_KEYS}
    values = {_field(key): value for key, value in own.items()}
    if "partition-id" in node_config and "name" not in values:
        from client.data.sites import site_names  # here, because it needs torch, which the ClientApp imports late

        path = Path(run.data.sites) if run.data.sites else default_sites()
        names, position = site_names(path), node_config["partition-id"]
        if type(position) is not int:
            raise SettingsError(f"partition-id is {position!r}; it must be a whole number")
        if not 0 <= position < len(names):
            raise SettingsError(
                f"partition-id is {position}, but {path} holds {len(names)} sites, 0 to {len(names) - 1}"
            )
        values = {"name": names[position], "data": str(path), **values}
    for needed in ("name", "data"):
        if not values.get(needed):
            raise SettingsError(
                f"the node config has no site-{needed}; start the SuperNode with "
                '--node-config \'site-name="line-3" site-data="/data/line-3"\''
            )
    kinds = {item.name: item.type for item in dataclasses.fields(SiteSettings)}
    for name, value in values.items():
        if type(value) is not kinds[name]:
            raise SettingsError(
                f"node config site-{name.replace('_', '-')} is {value!r}; it must be of type {kinds[name]}"
            )
    for name, least in LEAST.items():
        value = values.get(name, least)
        if isinstance(value, int) and value < least and not (name == "max_way" and value == 0):
            raise SettingsError(f"node config site-{name.replace('_', '-')} is {value}; it must be at least {least}")
    return SiteSettings(**values)  # type: ignore[arg-type]


def _field(key: str) -> str:
    names = {f"site-{item.name}".replace("_", "-"): item.name for item in dataclasses.fields(SiteSettings)}
    if key not in names:
        raise SettingsError(f"unknown node config key {key!r}; the nearest valid one is {nearest(key, names)!r}")
    return names[key]
