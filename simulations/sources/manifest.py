"""Makes the manifests: ``python -m simulations.sources.manifest MIRROR [NAME ...]`` lists what a mirror holds."""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from simulations.sources.download import digest
from simulations.sources.files import Entry, write_manifest


def file_entry(
    folder: Path, path: Path, *origin: tuple[int, str], more: Mapping[str, str] = MappingProxyType({})
) -> Entry:
    """Return the entry of a file of the packed form, which its origin has too if that is given."""
    content = path.read_bytes()
    return Entry(path.relative_to(folder).as_posix(), len(content), {"sha256": digest(content, "sha256")}, origin, more)


def files_below(folder: Path, below: str) -> Iterator[Path]:
    """Yield the files below a folder in a fixed order."""
    yield from sorted(path for path in (folder / below).rglob("*") if path.is_file())


def main(mirror: Path, names: list[str]) -> None:
    from simulations.sources.catalogue import CATALOGUE

    for name in names or list(CATALOGUE):
        if CATALOGUE[name].origins:
            print(write_manifest(name, tuple(CATALOGUE[name].listing(mirror / name))))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
