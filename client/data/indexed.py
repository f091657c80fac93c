"""What every reader ends in: one array of inputs, and the rows of each class in it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Pixels = NDArray[np.uint8] | NDArray[np.uint16]
Numbers = NDArray[np.float32] | NDArray[np.float64]


@dataclass(frozen=True)
class Standardisation:
    """Mean and standard deviation of each feature [F]: a site's own, of all its inputs, whatever their class.

    Places that are not numbers (one-hot values) have mean 0 and deviation 1. A missing number (NaN) becomes 0,
    which is the site's mean.
    """

    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]
    """1 for a number that never varies, infinite for one that the site never has."""

    @classmethod
    def of(cls, inputs: Numbers, numeric: NDArray[np.bool_]) -> "Standardisation":
        """Measure inputs [n, F]; ``numeric`` [F] says which places are numbers. A constant one is only shifted."""
        known = np.isfinite(inputs)
        counts = known.sum(0).clip(min=1)
        values = np.where(known, inputs, 0).astype(np.float64)
        mean = values.sum(0) / counts
        deviation = np.sqrt((np.where(known, values - mean, 0) ** 2).sum(0) / counts)
        deviation = np.where(deviation > 1e-12 * np.abs(mean), deviation, 1)
        deviation[~known.any(0)] = np.inf  # of what the site has never seen, nothing can be said
        return cls(np.where(numeric, mean, 0), np.where(numeric, deviation, 1))

    def apply(self, inputs: Numbers) -> Tensor:
        """Return inputs [n, F] standardised, missing ones as 0."""
        standardised = (inputs.astype(np.float64) - self.mean) / self.deviation
        return torch.from_numpy(np.nan_to_num(standardised, nan=0.0, posinf=0.0, neginf=0.0).astype(np.float32))

    def undo(self, inputs: Tensor) -> Numbers:
        """Return standardised inputs [n, F] as they were read, for people to look at."""
        with np.errstate(invalid="ignore"):  # 0 times infinity is not a number, and is meant to be
            return np.asarray(inputs.numpy() * self.deviation + self.mean)


@dataclass(frozen=True)
class Skipped:
    """Something of a site's data that cannot be used: a file, a row or a value."""

    where: str
    """The file, and the row or column in it."""
    reason: str


class IndexedData:
    """Inputs [N, *shape] with the rows of each class. Implements ``SiteData``; copies only what is asked for.

    uint8 and uint16 are grey levels, which come out in [0, 1]; floats are numbers, which come out standardised.
    """

    def __init__(
        self,
        inputs: Pixels | Numbers,
        rows: Mapping[str, NDArray[np.int64]],
        standardisation: Standardisation | None = None,
        skipped: Sequence[Skipped] = (),
        sources: Sequence[str] = (),
    ) -> None:
        self._inputs = inputs
        self._rows = rows
        self.standardisation = standardisation
        self.skipped = tuple(skipped)
        self._sources = sources

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the inputs take; none if they are mapped from a file."""
        mapped = isinstance(self._inputs, np.memmap) or isinstance(self._inputs.base, np.memmap)
        return 0 if mapped else self._inputs.nbytes

    def only(self, names: Sequence[str]) -> "IndexedData":
        """Return the same with some of the classes."""
        rows = {name: self._rows[name] for name in names}
        return IndexedData(self._inputs, rows, self.standardisation, self.skipped, self._sources)

    def classes(self) -> Sequence[str]:
        return sorted(self._rows)

    def count(self, name: str) -> int:
        return len(self._rows[name])

    def inputs(self, name: str, rows: Sequence[int]) -> Tensor:
        return as_input(self.content(name, rows), self.standardisation)

    def content(self, name: str, rows: Sequence[int]) -> Pixels | Numbers:
        """Return inputs of a class as they were read [len(rows), *shape]."""
        return self._inputs[self._rows[name][positions(rows, self.count(name))]]

    def source(self, name: str, row: int) -> str:
        """Return what to call an input of a class: the path of a picture, else its place in the class."""
        place = int(self._rows[name][positions([row], self.count(name))[0]])
        return self._sources[place] if self._sources else f"{name}, number {row + 1}"


def as_input(values: Pixels | Numbers, standardisation: Standardisation | None) -> Tensor:
    """Turn what was read into float32 inputs: grey levels into [0, 1], numbers standardised."""
    if values.dtype.kind == "u":
        most = np.float32(255 if values.dtype == np.uint8 else 65535)
        return torch.from_numpy(values.astype(np.float32) / most)
    if standardisation is None:
        raise ValueError("numbers need a standardisation")
    return standardisation.apply(values.astype(np.float64))


def positions(rows: Sequence[int], count: int) -> list[int]:
    """Return rows as a list. Raises IndexError unless each is 0 to count - 1."""
    if wrong := [row for row in rows if not 0 <= row < count]:
        raise IndexError(f"row {wrong[0]} of a class with {count} inputs")
    return list(rows)
