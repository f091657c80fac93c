"""A packed set: the inputs of many sites in one memory-mapped array, each site an index into it.

    inputs.npy   uint8 or uint16 [N, C, H, W], or float32 [N, F] with NaN for what is missing
    rows.npy     int64 [R]: row numbers of inputs.npy, cell after cell
    cells.npy    CELL [M]: where in rows.npy that begins which a site has of a class; it ends where the next one begins.
                 By site, in a site by class
    names.npy    str [S]: names of the sites, sorted
    classes.npy  str [C]: names of the classes, sorted
    sites.json   {"format": 3, "origin": ..., "inputs": path of inputs.npy from this folder}

A hundred thousand simulated sites cost their index only, of which 16 bytes a cell are mapped and not read; nothing is
copied until an episode is drawn, and one array serves any number of ways to deal it to sites. Numbers are standardised
with the statistics of the site's own rows, or of those in its cell of the class MEASURED_ON, which rows held back for
judging share with the site's others.
"""

import json
import os
import shutil
import tempfile
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.data.indexed import IndexedData, Numbers, Pixels, Standardisation
from common.errors import SiteDataError

FORMAT = 3
INDEX, ROWS, INPUTS = "sites.json", "rows.npy", "inputs.npy"
CELLS, NAMES, CLASSES = "cells.npy", "names.npy", "classes.npy"
CELL = np.dtype([("site", "<i4"), ("class", "<i4"), ("start", "<i8")])
"""Positions of the site's and the class's name, and of the first row number in rows.npy."""
MEASURED_ON = -1
"""In place of a class: the rows by which the site's numbers are standardised."""
AT_ONCE = 1 << 17
"""Row numbers that are checked together: reading them all through the map would count as memory in use."""

SiteRows = Mapping[str, Mapping[str, Sequence[int]]]
"""Site -> class -> row numbers."""
Cells = NDArray[np.void]


class PackedSet:
    """An opened packed set.

    Raises:
        SiteDataError: if a file is missing, damaged, or an index points outside its array.
    """

    def __init__(self, folder: Path) -> None:
        try:
            index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            _check_format(index["format"])
            self.names = _read_names(folder / NAMES)
            """Names of the sites, sorted; not to be changed."""
            self._classes = _read_names(folder / CLASSES)
            self._cells: Cells = _mapped(folder / CELLS)
            self._rows: NDArray[np.int64] = _mapped(folder / ROWS)
            self._inputs: Pixels | Numbers = _mapped(folder / index["inputs"])
            _check_inputs(self._inputs)
            _check_rows(folder / ROWS, self._rows, len(self._inputs))
            _check_cells(self._cells, self.names, self._classes, len(self._rows))
            self._first = np.searchsorted(self._cells["site"], np.arange(len(self.names) + 1))
        except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise SiteDataError(
                f"packed set {folder} is missing a file or damaged: {error}; delete the folder and make it again "
                "(fedreptile-sim data get)"
            ) from error

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self._inputs.shape[1:])

    def site(self, name: str, numeric: NDArray[np.bool_] | None = None) -> IndexedData:
        """Open one site. ``numeric`` [F] says which places of a vector are numbers; by default all are."""
        place = bisect_left(self.names, name)
        if self.names[place : place + 1] != [name]:
            raise SiteDataError(f"the packed set has no site {name!r}; it has {', '.join(self.names[:5])}, …")
        first, last = self._first[place : place + 2]
        own = self._cells[first : last + 1].tolist()  # with the next site's first cell, where this one's last ends
        bounds = [start for _, _, start in own]
        if last == len(self._cells):
            bounds.append(len(self._rows))
        cells = [self._rows[start:stop] for start, stop in pairwise(bounds)]
        measured = cells.pop(0) if cells and own[0][1] == MEASURED_ON else None
        names = [self._classes[number] for _, number, _ in own[: last - first] if number != MEASURED_ON]
        rows = dict(zip(names, cells, strict=True))
        if self._inputs.dtype != np.float32:
            return IndexedData(self._inputs, rows)
        if measured is None:
            measured = np.concatenate(cells)
        if numeric is None:
            numeric = np.ones(self.shape[0], bool)
        numbers = np.asarray(self._inputs[measured], np.float32)
        return IndexedData(self._inputs, rows, Standardisation.of(numbers, numeric))


@cache
def open_packed(folder: Path) -> PackedSet:
    """Open a packed set once in a process."""
    return PackedSet(folder)


def write_packed(
    folder: Path,
    inputs: Pixels | Numbers | Path,
    sites: SiteRows,
    origin: Mapping[str, Any],
    measured_on: Mapping[str, Sequence[int]] | None = None,
) -> None:
    """Write a packed set, whole or not at all; one that is there already, and whole, is left as it is.

    Args:
        inputs: the array, or the path of one in another folder, which is then pointed at and not copied.
        measured_on: the rows whose statistics standardise a site's numbers; default: the site's own.
    """
    with whole_folder(folder) as scratch:
        _write_files(scratch, inputs, sites, origin, measured_on or {})
        if folder.is_dir() and not (folder / INDEX).exists():
            shutil.rmtree(folder)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Give a folder to write into, which becomes ``folder`` if all went well and that is not there yet."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield scratch
        if not folder.exists():
            scratch.chmod(0o755)
            scratch.replace(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _write_files(
    scratch: Path,
    inputs: Pixels | Numbers | Path,
    sites: SiteRows,
    origin: Mapping[str, Any],
    measured_on: Mapping[str, Sequence[int]],
) -> None:
    names, classes = sorted(sites), sorted(set().union(*sites.values()))
    numbers = {name: number for number, name in enumerate(classes)}
    found = [
        (site, number, members)
        for site, name in enumerate(names)
        for number, members in _cells_of(sites[name], numbers, measured_on.get(name, ()))
    ]
    sizes = np.fromiter((len(members) for _, _, members in found), np.int64, len(found))
    cells = np.empty(len(found), CELL)
    cells["site"] = [site for site, _, _ in found]
    cells["class"] = [number for _, number, _ in found]
    cells["start"] = np.cumsum(sizes) - sizes
    rows = np.fromiter(chain.from_iterable(members for _, _, members in found), np.int64, sizes.sum())
    if isinstance(inputs, Path):
        where = _from_here(inputs.resolve(), scratch.resolve())
    else:
        where = INPUTS
        np.save(scratch / INPUTS, inputs, allow_pickle=False)
    for file, array in ((ROWS, rows), (CELLS, cells), (NAMES, np.array(names, str)), (CLASSES, np.array(classes, str))):
        np.save(scratch / file, array, allow_pickle=False)
    described = {"format": FORMAT, "origin": origin, "inputs": where}
    (scratch / INDEX).write_text(json.dumps(described), encoding="utf-8")


def _cells_of(
    own: Mapping[str, Sequence[int]], numbers: Mapping[str, int], measured_on: Sequence[int]
) -> list[tuple[int, Sequence[int]]]:
    """Return the classes of a site by number, with their rows."""
    cells = sorted((numbers[name], members) for name, members in own.items())
    return [(MEASURED_ON, measured_on), *cells] if len(measured_on) else cells


def _from_here(path: Path, folder: Path) -> str:
    """Return a path as seen from a folder; on another drive, from its root."""
    try:
        return os.path.relpath(path, folder).replace(os.sep, "/")
    except ValueError:
        return path.as_posix()


def _check_format(version: int) -> None:
    if version != FORMAT:
        raise ValueError(f"its format is {version}; this version reads {FORMAT}")


def _mapped(file: Path) -> NDArray[Any]:
    """Map an array into memory. As a plain array: a part of a ``memmap`` costs ten times as much."""
    return np.asarray(np.load(file, mmap_mode="r", allow_pickle=False))


def _read_names(file: Path) -> list[str]:
    found = _mapped(file)
    if found.dtype.kind != "U" or found.ndim != 1:
        raise ValueError(f"{file.name} holds {found.dtype} of {found.ndim} dimensions; expected text of one")
    try:
        names: list[str] = found.tolist()
    except SystemError as error:  # what numpy lets through to Python's own text
        raise ValueError(f"{file.name} holds what is no text") from error
    if not all(name < following for name, following in pairwise(names)):
        raise ValueError(f"{file.name} is not sorted, or holds a name twice")
    return names


def _check_inputs(inputs: Pixels | Numbers) -> None:
    images = inputs.dtype in (np.uint8, np.uint16) and inputs.ndim == 4
    if not images and not (inputs.dtype == np.float32 and inputs.ndim == 2):
        raise ValueError(
            f"{INPUTS} holds {inputs.dtype} of {inputs.ndim} dimensions; expected uint8 or uint16 [N, C, H, W], "
            "or float32 [N, F]"
        )


def _check_rows(file: Path, rows: NDArray[np.int64], inputs: int) -> None:
    fits = rows.dtype == np.int64 and rows.ndim == 1
    header = file.stat().st_size - rows.nbytes
    for start in range(0, len(rows) if fits else 0, AT_ONCE):
        some = np.fromfile(file, np.int64, AT_ONCE, offset=header + 8 * start)
        fits = fits and bool(0 <= some.min() <= some.max() < inputs)
    if not fits:
        raise ValueError(f"{ROWS} does not hold row numbers of {INPUTS}")


def _check_cells(cells: Cells, names: Sequence[str], classes: Sequence[str], rows: int) -> None:
    if cells.dtype != CELL or cells.ndim != 1:
        raise ValueError(f"{CELLS} holds {cells.dtype} of {cells.ndim} dimensions; expected {CELL} of one")
    if not len(cells):
        return
    site, number, start = cells["site"], cells["class"], cells["start"]
    if not (site[0] >= 0 and site[-1] < len(names) and MEASURED_ON <= number.min() <= number.max() < len(classes)):
        raise ValueError(f"{CELLS} points at a site or class that has no name")
    if not ((site[1:] > site[:-1]) | ((site[1:] == site[:-1]) & (number[1:] > number[:-1]))).all():
        raise ValueError(f"{CELLS} is not sorted, or a site has a class twice")
    if not (start[0] >= 0 and start[-1] < rows and (start[1:] > start[:-1]).all()):
        raise ValueError(f"a class of a site in {CELLS} is empty or lies outside {ROWS}")
