"""From a data set's name to its pool on disk: from a mirror, from the origin, or from an installed package."""

import json
import os
from hashlib import sha256
from pathlib import Path

from common.errors import SettingsError, SourceError
from common.paths import data_home
from common.settings import DataSettings
from simulations.sources.catalogue import CatalogueSet, find_set
from simulations.sources.download import Progress, fetch_all, quiet
from simulations.sources.files import Files, origin_files
from simulations.sources.pool import write_pool

MIRROR_VARIABLE = "FEDREPTILE_DATA_MIRROR"


def prepare(name: str, data: DataSettings, mirror: Path | None = None, progress: Progress = quiet) -> Path:
    """Return the folder of a data set's pool, made on first use.

    Args:
        data: how its items are read; of the set's own kind.
        mirror: a folder that holds ``NAME/…``; by default what ``FEDREPTILE_DATA_MIRROR`` names, or a folder
            ``shared/data`` beside the checkout. A mirror holds the packed form, or a copy of ``downloads/NAME``.

    Raises:
        UnreachableError: if there is no mirror of it and its origin cannot be reached.
        SettingsError: if the set cannot be read as ``data`` says.
        SourceError: if the set is unknown, or its files are missing, damaged or not the published ones.
    """
    chosen = find_set(name)
    _check(chosen, data)
    folder = pools() / f"{name}-{key(data)}"
    if not folder.exists():
        files = find_files(chosen, mirror)
        if not files.packed:
            fetch_all(files.remotes(), progress)
        pool = chosen.read(files, data)
        if data.label == chosen.data.get("data.label", data.label):
            chosen.check(pool)
        origins = [f"{origin.repository}@{origin.commit}" for origin in chosen.origins]
        write_pool(folder, pool, {"set": name, "read-from": str(files.folder), "origins": origins, **vars(data)})
    return folder


def pools() -> Path:
    """Return the folder of all pools, each named ``SET-KEY``."""
    return data_home() / "pools"


def key(data: DataSettings) -> str:
    """Return a short name of how inputs are read: what changes one of them changes it."""
    if data.kind == "vector":
        return str(data.size)
    if data.kind == "table":
        return sha256(json.dumps([data.label, data.columns]).encode()).hexdigest()[:8]
    beside = "".join(f"+{word}" for word in data.beside.split())
    bits = "-16bit" if data.bits == 16 else ""
    return f"{data.channels}{beside}x{data.size}{bits}{'-inverted' if data.invert else ''}"


def find_files(chosen: CatalogueSet, mirror: Path | None) -> Files:
    """Return where a set's files are: in a mirror, or where they are downloaded to, whether they are there or not.

    Raises:
        SourceError: if a mirror was named that is not a folder, or one was given that does not hold the set.
    """
    if not chosen.origins:
        return Files(Path(), ())
    downloads = origin_files(chosen.name, data_home() / "downloads" / chosen.name, chosen.origins)
    if (found := find_mirror(mirror)) is None:
        return downloads
    packed = chosen.in_mirror(found)
    copied = origin_files(chosen.name, found / chosen.name, chosen.origins)
    for files in (packed, copied):
        if files.any_there():
            return files
    if mirror is not None:
        raise SourceError(
            f"{mirror} does not hold {chosen.name}: there is no {packed.where(packed.entries[0])}, nor a copy of the "
            "downloads; correct --data-mirror, or leave it away to fetch from the origin"
        )
    return downloads


def find_mirror(given: Path | None) -> Path | None:
    """Return the mirror to look in. Raises SourceError if one was named and is not a folder."""
    named = given or (Path(variable) if (variable := os.environ.get(MIRROR_VARIABLE)) else None)
    if named is not None:
        if not named.is_dir():
            raise SourceError(f"the data mirror {named} is not a folder; correct --data-mirror or {MIRROR_VARIABLE}")
        return named.resolve()
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    return beside if beside.is_dir() else None


def _check(chosen: CatalogueSet, data: DataSettings) -> None:
    if data.kind != chosen.kind:
        raise SettingsError(
            f"data.kind is {data.kind!r}; {chosen.name} has {chosen.kind!r}: leave it to the set, or choose another"
        )
    named = data.beside.split()
    wrong = [word for word in named if word not in chosen.companions or named.count(word) > 1]
    if wrong:
        can = f"lies only {', '.join(chosen.companions)}, to be named once" if chosen.companions else "lies nothing"
        raise SettingsError(f"data.beside names {wrong[0]!r}; beside pictures of {chosen.name} {can}")
