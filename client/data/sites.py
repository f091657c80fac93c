"""From a path to sites: a packed set, a folder of sites, or one site's own folder or file."""

from pathlib import Path

import numpy as np

from client.data.arrays import open_arrays, read_unlabelled_arrays
from client.data.folder import Progress, entries, open_folder, quiet, read_picture
from client.data.images import SUFFIXES
from client.data.indexed import IndexedData, Numbers, Pixels
from client.data.packed import INDEX, open_packed
from client.data.rotated import RotatedClasses
from client.data.table import numeric_places, open_table, read_unlabelled
from common.columns import parse_columns
from common.errors import SiteDataError
from common.learning.episode import SiteData
from common.settings import DataSettings

FILES = (".csv", ".npz")
"""What a site may be instead of a folder of class folders: a table or arrays."""


def site_names(path: Path) -> list[str]:
    """Return the names of the sites at a path, sorted.

    A folder with a ``sites.json`` is a packed set. Otherwise a site is a folder of class folders, or
    a .csv or .npz file, named like it without the ending; and the path is one such site or a folder of them.

    Raises:
        SiteDataError: if there is no site at the path.
    """
    if is_packed(path):
        return open_packed(path).names
    if is_one_site(path):
        return [path.stem if path.is_file() else path.name]
    return sorted(_sites_in(path))


def open_site_data(path: Path, name: str, data: DataSettings, cache: Path | None = None) -> SiteData:
    """Open the data of one site.

    Args:
        cache: folder that may keep decoded pictures for the next start; None keeps nothing.

    Raises:
        SiteDataError: if there is no such site or its data cannot be used.
    """
    if is_packed(path):
        packed = open_packed(path)
        if packed.shape != data.shape:
            raise SiteDataError(
                f"packed set {path} holds inputs of shape {packed.shape}; the settings ask for {data.shape}: "
                "set [data] to what is there, or pack the set anew"
            )
        numeric = numeric_places(parse_columns(data.columns)) if data.kind == "table" else None
        found: SiteData = packed.site(name, numeric)
    elif is_one_site(path):
        found = _open_one(path, data, cache, quiet)
    else:
        own = _sites_in(path)
        if name not in own:
            raise SiteDataError(f"{path} holds no site {name!r}; it holds {', '.join(sorted(own)[:5])}, …")
        found = open_own(own[name], data, cache)
    return RotatedClasses(found) if data.rotated_classes else found


def open_own(path: Path, data: DataSettings, cache: Path | None = None, progress: Progress = quiet) -> IndexedData:
    """Open one site's own folder of class folders, table or arrays.

    Args:
        cache: folder that may keep decoded pictures for the next start; None keeps nothing.
        progress: called with the pictures read and those to be read, of a folder.

    Raises:
        SiteDataError: if it cannot be read, or is not of the kind that the settings name.
    """
    if path.is_dir() and data.kind == "image" and not is_one_site(path):
        names = ", ".join(sorted(_sites_in(path))[:5])
        raise SiteDataError(f"{path} holds sites and not the class folders of one; give one of them: {names}")
    return _open_one(path, data, cache, progress)


def _open_one(path: Path, data: DataSettings, cache: Path | None, progress: Progress) -> IndexedData:
    """Open what is known to be one site: looking through all its folders again would cost as much as the cache does."""
    suffix = path.suffix.lower()
    if not path.exists():
        raise SiteDataError(f"there is no {path}; give a folder of class folders, a .csv table or an .npz file")
    fits = {"image": path.is_dir() or suffix == ".npz", "vector": suffix == ".npz", "table": suffix == ".csv"}
    if not fits[data.kind]:
        needed = {"image": "class folders or an .npz file", "vector": "an .npz file", "table": "a .csv file"}
        raise SiteDataError(
            f"{path} is not of the kind {data.kind!r} (data.kind), which needs {needed[data.kind]}; correct either"
        )
    if path.is_dir():
        return open_folder(path, data, cache, progress)
    return open_table(path, data) if suffix == ".csv" else open_arrays(path, data)


def read_new(path: Path, data: DataSettings) -> tuple[list[str], Pixels | Numbers]:
    """Read what is to be classified: a picture, a table or arrays. Returns what to call each input, and [N, *shape].

    Raises:
        SiteDataError: if it cannot be read.
    """
    suffix = path.suffix.lower()
    if data.kind == "table":
        return read_unlabelled(path, data)
    if data.kind == "vector" or suffix == ".npz":
        return read_unlabelled_arrays(path, data)
    return [str(path)], read_picture(path, data)[np.newaxis]


def is_packed(path: Path) -> bool:
    """Raises SiteDataError for a relative path or one that may not be looked at."""
    if not path.is_absolute():
        raise SiteDataError(
            f"the sites' path {path} is relative, but every process starts in another folder; give it from the root"
        )
    try:
        return (path / INDEX).exists()
    except OSError as error:
        raise SiteDataError(
            f"{path} cannot be read: {error.strerror}; give a folder that this user may read"
        ) from error


def is_one_site(path: Path) -> bool:
    """Return whether a path is one site: a file, or a folder whose folders are class folders rather than sites.

    Class folders hold pictures and no folders; beside them a folder of masks may well hold folders.
    """
    if path.is_file():
        return True
    found = [_holds(folder) for folder in _sites_in(path).values()]
    return any(pictures and not sites for pictures, sites in found) or not any(sites for _, sites in found)


def _holds(path: Path) -> tuple[bool, bool]:
    """Return whether a folder of a site, or of sites, holds pictures, and whether it holds what a site is made of."""
    children = entries(path) if path.is_dir() else [path]
    pictures = any(child.suffix.lower() in SUFFIXES and not child.is_dir() for child in children)
    return pictures, any(child.is_dir() or (_is_site_file(child) and not pictures) for child in children)


def _sites_in(path: Path) -> dict[str, Path]:
    if not path.is_dir():
        raise SiteDataError(
            f"there is no folder {path}; make it with 'fedreptile-sim data get', or set data.sites to a folder of sites"
        )
    found = [child for child in entries(path) if child.is_dir() or _is_site_file(child)]
    if not found:
        raise SiteDataError(
            f"{path} holds no site; each site is a folder of class folders with images, a .csv table or an .npz file"
        )
    named: dict[str, Path] = {}
    for child in found:
        name = child.name if child.is_dir() else child.stem
        if name in named:
            raise SiteDataError(f"{path} has two sites named {name!r}: {named[name].name} and {child.name}; rename one")
        named[name] = child
    return named


def _is_site_file(path: Path) -> bool:
    return path.suffix.lower() in FILES and path.is_file()
