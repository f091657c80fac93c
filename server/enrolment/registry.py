"""The sites of a federation: approved with their keys, or revoked. One JSON file, replaced as a whole. Torch-free."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from common.deployment.lock import hold
from common.errors import TrustError
from common.paths import write_atomically

FORMAT = "1"
PATIENCE = 30.0
"""Seconds that a change waits for another one."""


@dataclass(frozen=True)
class Enrolled:
    """An approved site."""

    node_key: str
    """Its SuperNode's public key as Flower sends it in a header: base64 of PEM bytes."""
    signing_key: str
    """Ed25519 public key, raw bytes in hexadecimal."""
    serials: tuple[str, ...]
    """Serial numbers of its certificates that are good, hexadecimal; two while one is being renewed."""
    expires: str
    """When the newest certificate ends: ISO 8601, UTC."""
    approved: str
    node_id: int = 0
    """Flower's id of its SuperNode; 0 until it is registered."""
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Registry:
    sites: Mapping[str, Enrolled] = field(default_factory=dict)
    revoked: Mapping[str, str] = field(default_factory=dict)
    """Serial number, hexadecimal -> when, which site and why."""
    barred: Mapping[str, str] = field(default_factory=dict)
    """Node and signing keys of revoked sites, written as in ``Enrolled`` -> the site. None is ever approved again."""

    def name_of_node(self, node_id: int) -> str | None:
        return next((name for name, site in self.sites.items() if site.node_id == node_id), None)


def read_registry(path: Path) -> Registry:
    """Raises TrustError if the file is damaged. A missing file is an empty registry."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if found["format"] != FORMAT:
            raise ValueError(f"its format is {found['format']!r}; this version reads {FORMAT!r}")
        sites = {
            name: Enrolled(**{**values, "serials": tuple(values["serials"]), "labels": tuple(values["labels"])})
            for name, values in found["sites"].items()
        }
        return Registry(sites, dict(found["revoked"]), dict(found.get("barred", {})))
    except FileNotFoundError:
        return Registry()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TrustError(f"{path} cannot be read as the list of sites: {error}; restore it from a backup") from error


def write_registry(path: Path, registry: Registry) -> None:
    """Write the registry, whole or not at all. What reads it first and changes it must use ``update_registry``."""
    sites = {name: asdict(site) for name, site in sorted(registry.sites.items())}
    known = {"format": FORMAT, "sites": sites, "revoked": dict(registry.revoked), "barred": dict(registry.barred)}
    write_atomically(path, json.dumps(known, indent=1).encode(), 0o600)


def update_registry(path: Path, change: Callable[[Registry], Registry]) -> Registry:
    """Read the registry, change it and write it, while no other process does: no approval or revocation is lost.

    Raises:
        TrustError: if it cannot be read; and what ``change`` raises. The file then stays as it was.
    """
    lock = path.with_name(f".{path.name}.lock")
    try:
        file = hold(lock, PATIENCE)
    except OSError as error:
        raise TrustError(
            f"{lock} cannot be made: {error.strerror or error}; is the federation's folder yours?"
        ) from error
    if file is None:
        raise TrustError(f"another process has held {lock} for {PATIENCE:.0f} s; wait for it, or end it")
    with file:
        changed = change(read_registry(path))
        write_registry(path, changed)
    return changed
