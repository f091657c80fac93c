"""A packed set: the inputs of many sites in one memory-mapped array, each site an index into it.

    inputs.npy   uint8 [N, C, H, W]
    rows.npy     int64: row numbers of inputs.npy, class after class
    sites.json   {"format": 1, "origin": ..., "sites": {site: {class: [start, stop] in rows.npy}}}

Thousands of simulated sites cost their index only; nothing is copied until an episode is drawn.
"""

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from client.data.folder import positions, unit_range
from client.data.images import Pixels
from common.errors import SiteDataError

FORMAT = 1
INDEX = "sites.json"

SiteRows = Mapping[str, Mapping[str, Sequence[int]]]
"""Site -> class -> row numbers."""


class PackedData:
    """One site of a packed set. Implements ``SiteData``."""

    def __init__(self, inputs: Pixels, rows: NDArray[np.int64], ranges: Mapping[str, tuple[int, int]]) -> None:
        self._inputs = inputs
        self._rows = rows
        self._ranges = ranges

    def classes(self) -> Sequence[str]:
        return sorted(self._ranges)

    def count(self, name: str) -> int:
        start, stop = self._ranges[name]
        return stop - start

    def inputs(self, name: str, rows: Sequence[int]) -> Tensor:
        start, stop = self._ranges[name]
        return unit_range(self._inputs[self._rows[start:stop][positions(rows, stop - start)]])


class PackedSet:
    """An opened packed set.

    Raises:
        SiteDataError: if a file is missing, damaged, or an index points outside its array.
    """

    def __init__(self, folder: Path) -> None:
        try:
            index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            self._inputs: Pixels = np.load(folder / "inputs.npy", mmap_mode="r", allow_pickle=False)
            self._rows: NDArray[np.int64] = np.load(folder / "rows.npy", mmap_mode="r", allow_pickle=False)
            self._sites: dict[str, dict[str, list[int]]] = index["sites"]
            _check(index["format"], self._inputs, self._rows, self._sites)
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
        """Shape [C, H, W] of one input."""
        return tuple(self._inputs.shape[1:])

    def site(self, name: str) -> PackedData:
        if name not in self._sites:
            raise SiteDataError(f"the packed set has no site {name!r}; it has {', '.join(self.names[:5])}, …")
        ranges = {label: (start, stop) for label, (start, stop) in self._sites[name].items()}
        return PackedData(self._inputs, self._rows, ranges)


@cache
def open_packed(folder: Path) -> PackedSet:
    """Open a packed set once in a process."""
    return PackedSet(folder)


def write_packed(folder: Path, inputs: Pixels, sites: SiteRows, origin: Mapping[str, Any]) -> None:
    """Write a packed set, whole or not at all; one that is there already, and whole, is left as it is."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        _write_files(scratch, inputs, sites, origin)
        if folder.is_dir() and not (folder / INDEX).exists():
            shutil.rmtree(folder)
        if not folder.exists():
            scratch.chmod(0o755)
            scratch.replace(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _write_files(scratch: Path, inputs: Pixels, sites: SiteRows, origin: Mapping[str, Any]) -> None:
    rows: list[int] = []
    index: dict[str, dict[str, list[int]]] = {}
    for site, by_class in sites.items():
        index[site] = {}
        for name, members in by_class.items():
            index[site][name] = [len(rows), len(rows) + len(members)]
            rows.extend(int(member) for member in members)
    np.save(scratch / "inputs.npy", inputs, allow_pickle=False)
    np.save(scratch / "rows.npy", np.array(rows, dtype=np.int64), allow_pickle=False)
    (scratch / INDEX).write_text(json.dumps({"format": FORMAT, "origin": origin, "sites": index}), encoding="utf-8")


def _check(
    version: int, inputs: Pixels, rows: NDArray[np.int64], sites: Mapping[str, Mapping[str, Sequence[int]]]
) -> None:
    if version != FORMAT:
        raise ValueError(f"its format is {version}; this version reads {FORMAT}")
    if inputs.dtype != np.uint8 or inputs.ndim != 4:
        raise ValueError(f"inputs.npy holds {inputs.dtype} of {inputs.ndim} dimensions; expected uint8 [N, C, H, W]")
    if rows.dtype != np.int64 or rows.ndim != 1 or (len(rows) and not 0 <= rows.min() <= rows.max() < len(inputs)):
        raise ValueError("rows.npy does not hold row numbers of inputs.npy")
    for site, by_class in sites.items():
        for name, (start, stop) in by_class.items():
            if not (type(start) is type(stop) is int and 0 <= start < stop <= len(rows)):
                raise ValueError(f"class {name!r} of site {site!r} is empty or lies outside rows.npy")
