"""A site's own settings, which the run cannot override. They come from the node config that the site starts with."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from client.door.policy import Policy, policy_of
from common.errors import SettingsError
from common.paths import default_sites
from common.settings import Settings, Value, nearest
from common.trust.kit import Kit

PARTITION_KEYS = frozenset({"partition-id", "num-partitions"})


@dataclass(frozen=True)
class SiteSettings:
    """Node config keys are these names with ``site-`` before them (``OWN``), and those of ``POLICY``."""

    name: str
    """The name under which the site takes part; unique in the federation."""
    data: str
    """Absolute path: the site's folder of class folders, or a set that holds the site by its name."""
    device: str = "cpu"
    """Where torch computes: 'cpu', 'cuda', 'cuda:1', …"""
    threads: int = 1
    """Threads of one adaptation. One gives the same bits on every machine of a kind."""
    cache: str = ""
    """Absolute folder that keeps decoded pictures for the next start; empty: the data home's; 'off': none is kept."""
    ledger: str = ""
    """Absolute folder of the ledger of what leaves; empty: there is none, as in a simulation."""
    policy: Policy = field(default_factory=Policy)
    """What may leave and how much may be asked. An enrolled site has it from its policy.toml, others from the keys
    below."""


OWN = {f"site-{name}": name for name in ("name", "data", "device", "threads", "cache", "ledger")}
"""Node config key -> field."""
POLICY = {
    "site-class-names": "classes.names",
    "site-class-tables": "classes.tables",
    "site-min-count": "classes.minimum",
    "site-max-way": "limits.way",
    "site-max-shot": "limits.shot",
    "site-max-steps": "limits.steps",
}
"""Node config key -> key of the policy: what a simulation or a SuperNode without a site's folder can set of it."""


def parse_node_config(node_config: Mapping[str, Value], run: Settings) -> SiteSettings:
    """Read a site's settings.

    A simulated node has ``partition-id`` instead of a name and data: it is the site of that
    position, in the order of names, among those at the run's ``data.sites``.

    Raises:
        SettingsError: for unknown keys, missing ones, or values of the wrong type.
    """
    own = {key: value for key, value in node_config.items() if key not in PARTITION_KEYS}
    if unknown := [key for key in own if key not in OWN | POLICY]:
        wanted = nearest(unknown[0], OWN | POLICY)
        raise SettingsError(f"unknown node config key {unknown[0]!r}; the nearest valid one is {wanted!r}")
    values: dict[str, Any] = {OWN[key]: value for key, value in own.items() if key in OWN}
    if "partition-id" in node_config and "name" not in values:
        values = _simulated(node_config["partition-id"], run) | values
    for needed in ("name", "data"):
        if not values.get(needed):
            raise SettingsError(
                f"the node config has no site-{needed}; start the SuperNode with "
                '--node-config \'site-name="line-3" site-data="/data/line-3"\''
            )
    kinds = {item.name: item.type for item in dataclasses.fields(SiteSettings)}
    for name, value in values.items():
        if type(value) is not kinds[name]:
            raise SettingsError(f"node config site-{name} is {value!r}; it must be of type {kinds[name]}")
    if values.get("threads", 1) < 1:
        raise SettingsError(f"node config site-threads is {values['threads']}; it must be at least 1")
    return SiteSettings(**values, policy=_policy({key: value for key, value in own.items() if key in POLICY}))


def settings_of(kit: Kit) -> Settings:
    """Return the settings that a kit agrees on. Raises SettingsError if this version does not know them."""
    return Settings.from_flat(dict(kit.settings))


def _simulated(position: Value, run: Settings) -> dict[str, Any]:
    from client.data.sites import site_names  # here, because it needs torch, which the ClientApp imports late

    path = Path(run.data.sites) if run.data.sites else default_sites()
    names = site_names(path)
    if type(position) is not int:
        raise SettingsError(f"partition-id is {position!r}; it must be a whole number")
    if not 0 <= position < len(names):
        raise SettingsError(f"partition-id is {position}, but {path} holds {len(names)} sites, 0 to {len(names) - 1}")
    return {"name": names[position], "data": str(path)}


def _policy(own: Mapping[str, Value]) -> Policy:
    tree: dict[str, dict[str, Value]] = {}
    for key, value in own.items():
        section, name = POLICY[key].split(".")
        tree.setdefault(section, {})[name] = value
        try:
            policy_of({section: {name: value}})
        except SettingsError as error:
            raise SettingsError(f"node config {key} is {value!r}, which a site's policy refuses: {error}") from error
    return policy_of(tree)
