"""What the gateway has seen of each site, for ``status``."""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SEEN = "seen.json"
"""In the folder of what only matters while the server runs."""
STRANGERS = ""
"""Under this name stands what was refused and is of no known site."""


@dataclass
class Seen:
    last: float = 0.0
    """Unix seconds of the last request that was let in."""
    requests: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    version: str = ""
    flower: str = ""
    refused: Counter[str] = field(default_factory=Counter)

    def as_json(self) -> dict[str, Any]:
        return {
            "last-seen": round(self.last, 1) or None,
            "requests": self.requests,
            "bytes-in": self.bytes_in,
            "bytes-out": self.bytes_out,
            "version": self.version,
            "flower": self.flower,
            "refused": dict(self.refused),
        }


class Book:
    """Counts since the gateway was started; when a site was last seen survives that."""

    def __init__(self, before: Mapping[str, Any]) -> None:
        """``before`` is what an earlier gateway wrote."""
        self._sites: dict[str, Seen] = {}
        for name, entry in before.items():
            if isinstance(entry, dict) and isinstance(entry.get("last-seen"), int | float):
                texts = [entry.get(key) for key in ("version", "flower")]
                version, flower = (text if isinstance(text, str) else "" for text in texts)
                self._sites[name] = Seen(entry["last-seen"], version=version, flower=flower)

    def of(self, site: str) -> Seen:
        return self._sites.setdefault(site, Seen())

    def met(self, site: str, version: str, flower: str) -> Seen:
        """Note that a site's request was let in."""
        seen = self.of(site)
        seen.last, seen.requests = time.time(), seen.requests + 1
        seen.version, seen.flower = version or seen.version, flower or seen.flower
        return seen

    def as_json(self) -> dict[str, Any]:
        return {name: seen.as_json() for name, seen in sorted(self._sites.items())}
