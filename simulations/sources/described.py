"""What the catalogue knows of a data set."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from common.errors import SourceError
from common.settings import DataSettings, Value
from simulations.sources.files import Entry, Files, Origin, packed_files, read_manifest
from simulations.sources.pool import Pool


@dataclass(frozen=True)
class CatalogueSet:
    """A data set: what it is, whose, under what terms, and how it is read."""

    name: str
    title: str
    kind: str
    """What an input is: "image", "vector" or "table"."""
    classes: int
    items: int
    natural: tuple[str, ...]
    """Attributes whose values are natural sites."""
    licence: str
    """In a word or two."""
    terms: str
    """Where the licence is stated, and what else is asked for."""
    cite: str
    origins: tuple[Origin, ...]
    """Empty: it is inside an installed package."""
    data: Mapping[str, Value]
    """The data settings that it is usually read with."""
    read: Callable[[Files, DataSettings], Pool]
    """From its files, in packed form or as downloaded, to a pool."""
    listing: Callable[[Path], Iterable[Entry]] = lambda folder: ()
    """From a mirror's folder of the set to its manifest (python -m simulations.sources.manifest)."""
    companions: tuple[str, ...] = ()
    """What may be named in data.beside."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """Items of each class, where there are few classes."""

    @property
    def sums(self) -> str:
        """Which files have sums to be checked by."""
        if not self.origins:
            return "installed"
        published = [entry for entry in read_manifest(self.name) if entry.origin]
        known = sum(bool(entry.sums) for entry in published)
        return f"of the packed form; of {known} of {len(published)} files of the origin, which its commit fixes"

    def in_mirror(self, mirror: Path) -> Files:
        return packed_files(self.name, mirror / self.name)

    def check(self, pool: Pool) -> None:
        """Raises SourceError if a pool has not the items and classes that the set has."""
        found = {name: pool.classes.count(name) for name in set(pool.classes)} if self.counts else {}
        if found != dict(self.counts):
            raise SourceError(
                f"{self.name} was read with {_listed(found)}; expected {_listed(self.counts)}; "
                "delete its downloads and fetch it again"
            )
        items, classes = len(pool.classes), len(set(pool.classes))
        if (items, classes) != (self.items, self.classes):
            raise SourceError(
                f"{self.name} was read with {items} items of {classes} classes; expected {self.items} "
                f"of {self.classes}; delete its downloads and fetch it again"
            )


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
