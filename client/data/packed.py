"""A packed set: the inputs of many sites in one memory-mapped array, each site an index into it.

    inputs.npy   uint8 or uint16 [N, C, H, W], or float32 [N, F] with NaN for what is missing
    rows.npy     int64: row numbers of inputs.npy, class after class
    sites.json   {"format": 2, "origin": ..., "inputs": path of inputs.npy from this folder,
                  "sites": {site: {class: [start, stop] in rows.npy}},
                  "measured-on": {site: [start, stop] in rows.npy}}

Thousands of simulated sites cost their index only; nothing is copied until an episode is drawn, and one
array serves any number of ways to deal it to sites. Numbers are standardised with the statistics of the
site's own rows, or of those under "measured-on", which rows held back for judging share with the site's others.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.data.indexed import IndexedData, Numbers, Pixels, Standardisation
from common.errors import SiteDataError

FORMAT = 2
INDEX, ROWS, INPUTS = "sites.json", "rows.npy", "inputs.npy"

SiteRows = Mapping[str, Mapping[str, Sequence[int]]]
"""Site -> class -> row numbers."""
Ranges = Mapping[str, Sequence[int]]
"""Class or site -> start and stop in rows.npy."""


class PackedSet:
    """An opened packed set.

    Raises:
        SiteDataError: if a file is missing, damaged, or an index points outside its array.
    """

    def __init__(self, folder: Path) -> None:
        try:
            index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            _check_format(index["format"])
            self._rows: NDArray[np.int64] = np.load(folder / ROWS, mmap_mode="r", allow_pickle=False)
            self._inputs: Pixels | Numbers = np.load(folder / index["inputs"], mmap_mode="r", allow_pickle=False)
            self._sites: Mapping[str, Ranges] = index["sites"]
            self._measured_on: Ranges = index["measured-on"]
            _check(self._inputs, self._rows, {**self._sites, "measured-on": self._measured_on})
        except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise SiteDataError(
                f"packed set {folder} is missing a file or damaged: {error}; delete the folder and make it again "
                "(fedreptile-sim data get)"
            ) from error

    @property
    def names(self) -> list[str]:
        return sorted(self._sites)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self._inputs.shape[1:])

    def site(self, name: str, numeric: NDArray[np.bool_] | None = None) -> IndexedData:
        """Open one site. ``numeric`` [F] says which places of a vector are numbers; by default all are."""
        if name not in self._sites:
            raise SiteDataError(f"the packed set has no site {name!r}; it has {', '.join(self.names[:5])}, …")
        rows = {label: self._rows[start:stop] for label, (start, stop) in self._sites[name].items()}
        if self._inputs.dtype != np.float32:
            return IndexedData(self._inputs, rows)
        start, stop = self._measured_on.get(name, (0, 0))
        own = self._rows[start:stop] if stop > start else np.concatenate(list(rows.values()))
        if numeric is None:
            numeric = np.ones(self.shape[0], bool)
        return IndexedData(self._inputs, rows, Standardisation.of(self._inputs[own], numeric))


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
    rows: list[int] = []

    def added(members: Sequence[int]) -> list[int]:
        rows.extend(int(member) for member in members)
        return [len(rows) - len(members), len(rows)]

    index = {site: {name: added(members) for name, members in by_class.items()} for site, by_class in sites.items()}
    measured = {site: added(members) for site, members in measured_on.items()}
    if isinstance(inputs, Path):
        where = _from_here(inputs.resolve(), scratch.resolve())
    else:
        where = INPUTS
        np.save(scratch / INPUTS, inputs, allow_pickle=False)
    np.save(scratch / ROWS, np.array(rows, dtype=np.int64), allow_pickle=False)
    described = {"format": FORMAT, "origin": origin, "inputs": where, "sites": index, "measured-on": measured}
    (scratch / INDEX).write_text(json.dumps(described), encoding="utf-8")


def _from_here(path: Path, folder: Path) -> str:
    """Return a path as seen from a folder; on another drive, from its root."""
    try:
        return os.path.relpath(path, folder).replace(os.sep, "/")
    except ValueError:
        return path.as_posix()


def _check_format(version: int) -> None:
    if version != FORMAT:
        raise ValueError(f"its format is {version}; this version reads {FORMAT}")


def _check(inputs: Pixels | Numbers, rows: NDArray[np.int64], sites: Mapping[str, Ranges]) -> None:
    images = inputs.dtype in (np.uint8, np.uint16) and inputs.ndim == 4
    if not images and not (inputs.dtype == np.float32 and inputs.ndim == 2):
        raise ValueError(
            f"{INPUTS} holds {inputs.dtype} of {inputs.ndim} dimensions; expected uint8 or uint16 [N, C, H, W], "
            "or float32 [N, F]"
        )
    if rows.dtype != np.int64 or rows.ndim != 1 or (len(rows) and not 0 <= rows.min() <= rows.max() < len(inputs)):
        raise ValueError(f"{ROWS} does not hold row numbers of {INPUTS}")
    for site, by_class in sites.items():
        for name, (start, stop) in by_class.items():
            if not (type(start) is type(stop) is int and 0 <= start < stop <= len(rows)):
                raise ValueError(f"class {name!r} of site {site!r} is empty or lies outside {ROWS}")
