"""The files of a data set, as its manifest lists them, in a mirror or as downloaded from the origin.

``manifests/NAME.csv`` has one row a file:

    path      where it is in the packed form, which a mirror holds; empty: only at the origin
    bytes     its size; empty: not known
    sums      kind:hexadecimal, spaces between; empty: not known
    origin    N:PATH, the number of the origin in the catalogue and the path there, alternatives with | between;
              empty: only in the packed form, which is then our own and not the origin's files

A row with both is the same file in both places. Further columns are for the set's reader.
"""

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from urllib.parse import quote

from common.errors import SourceError
from simulations.sources.download import Remote, verify

MANIFESTS = Path(__file__).with_name("manifests")
COLUMNS = ("path", "bytes", "sums", "origin")
RAW = "https://raw.githubusercontent.com"


@dataclass(frozen=True)
class Origin:
    """A public repository at one commit, which fixes every byte of it."""

    repository: str
    commit: str

    def url(self, path: str) -> str:
        return f"{RAW}/{self.repository}/{self.commit}/{quote(path)}"

    @property
    def folder(self) -> str:
        """Folder that its files lie in below a set's downloads."""
        return f"{self.repository.partition('/')[2]}@{self.commit[:12]}"


@dataclass(frozen=True)
class Entry:
    """A row of a manifest."""

    path: str = ""
    size: int = 0
    sums: Mapping[str, str] = field(default_factory=dict)
    origin: tuple[tuple[int, str], ...] = ()
    more: Mapping[str, str] = field(default_factory=dict)

    @property
    def names(self) -> Path:
        """The path that says what the file is: in the packed form, else at the origin."""
        return Path(self.path or self.origin[0][1])


@dataclass(frozen=True)
class Files:
    """The files of a set in one place."""

    folder: Path
    entries: tuple[Entry, ...]
    origins: tuple[Origin, ...] = ()
    """Empty for the packed form."""

    @property
    def packed(self) -> bool:
        return not self.origins

    def where(self, entry: Entry) -> Path:
        if self.packed:
            return self.folder / entry.path
        number, path = entry.origin[0]
        return self.folder / self.origins[number].folder / path

    def read(self, entry: Entry) -> bytes:
        """Return a file's content. Raises SourceError if it cannot be read or is not what the manifest says."""
        path = self.where(entry)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise SourceError(
                f"{path} cannot be read: {error.strerror}; complete the mirror, or delete {self.folder} and fetch again"
            ) from error
        if wrong := verify(content, entry.size, entry.sums):
            raise SourceError(f"{path} is damaged or not the published file: {wrong}; delete it and fetch it again")
        return content

    def complete(self) -> bool:
        """Return whether all files are there; not whether they are right."""
        return all(self.where(entry).is_file() for entry in self.entries)

    def any_there(self) -> bool:
        return any(self.where(entry).is_file() for entry in self.entries)

    def remotes(self) -> list[Remote]:
        """Return what to download, and to where."""
        return [
            Remote(
                tuple(self.origins[number].url(path) for number, path in entry.origin),
                self.where(entry),
                entry.size,
                entry.sums,
            )
            for entry in self.entries
        ]


def packed_files(name: str, folder: Path) -> Files:
    """Return the files of a set's packed form, which a mirror holds."""
    return Files(folder, tuple(entry for entry in read_manifest(name) if entry.path))


def origin_files(name: str, folder: Path, origins: tuple[Origin, ...]) -> Files:
    """Return the files of a set as downloaded from its origin."""
    return Files(folder, tuple(entry for entry in read_manifest(name) if entry.origin), origins)


@cache
def read_manifest(name: str) -> tuple[Entry, ...]:
    with (MANIFESTS / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return tuple(_entry(row) for row in csv.DictReader(file))


def write_manifest(name: str, entries: tuple[Entry, ...]) -> Path:
    """Write a manifest, sorted."""
    path = MANIFESTS / f"{name}.csv"
    more = sorted({column for entry in entries for column in entry.more})
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*COLUMNS, *more])
        for entry in sorted(entries, key=lambda entry: (entry.path, entry.origin)):
            sums = " ".join(f"{kind}:{value}" for kind, value in entry.sums.items())
            origin = "|".join(f"{number}:{place}" for number, place in entry.origin)
            writer.writerow([entry.path, entry.size or "", sums, origin, *(entry.more.get(key, "") for key in more)])
    return path


def _entry(row: dict[str, str]) -> Entry:
    path, size, sums, origin = (row.pop(column) for column in COLUMNS)
    return Entry(
        path,
        int(size or 0),
        dict(_pair(word) for word in sums.split()),
        tuple((int(number), place) for number, place in map(_pair, origin.split("|") if origin else [])),
        row,
    )


def _pair(word: str) -> tuple[str, str]:
    before, _, after = word.partition(":")
    return before, after
