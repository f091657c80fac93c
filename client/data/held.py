"""Which samples of a site are never trained on, so that models can be judged on them: decided by content alone."""

import hashlib
import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from client.data.indexed import IndexedData, positions
from client.data.rotated import RotatedClasses
from common.learning.episode import SiteData

FEW = 20
"""Samples up to which a class has few."""
BATCH = 64
"""Samples that are looked at together."""


class Part:
    """Some rows of each class of a site's data; a class without rows is left out. Implements ``SiteData``."""

    def __init__(self, data: SiteData, rows: Mapping[str, Sequence[int]]) -> None:
        self._data = data
        self.rows = {name: tuple(kept) for name, kept in rows.items() if kept}

    def classes(self) -> Sequence[str]:
        return sorted(self.rows)

    def count(self, name: str) -> int:
        return len(self.rows[name])

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the inputs take, if that is known; the part that is held back shares them."""
        return getattr(self._data, "nbytes", 0)

    def inputs(self, name: str, rows: Sequence[int]) -> Tensor:
        kept = self.rows[name]
        return self._data.inputs(name, [kept[row] for row in positions(rows, len(kept))])


def apart(data: SiteData, share: float) -> tuple[SiteData, SiteData]:
    """Divide a site's samples into those to train on and those held back.

    A sample is held back if the SHA-256 of its content, as a fraction of its range, is below ``share``. So the choice
    stays the same when others are added, and copies of one sample lie on one side. Of a class with FEW samples chance
    could take most of them that way: of those no more than their share is held back, the lowest fractions first, which
    may change as the class grows. The part that is held back lists only classes that have such a sample; each class
    keeps one to train on.

    Args:
        share: 0 to below 1; 0 holds nothing back and returns the data themselves.
    """
    if not share:
        return data, Part(data, {})
    if isinstance(data, RotatedClasses):  # a picture and its turned copies lie on one side
        train, held = apart(data.upright, share)
        return RotatedClasses(train), RotatedClasses(held)
    training: dict[str, list[int]] = {}
    back: dict[str, list[int]] = {}
    for name in data.classes():
        found = fractions(data, name)
        bound = min(share, max(found))
        if len(found) <= FEW:
            bound = min(bound, sorted(found)[min(math.ceil(share * len(found)), len(found) - 1)])
        training[name] = [row for row, fraction in enumerate(found) if fraction >= bound]
        back[name] = [row for row, fraction in enumerate(found) if fraction < bound]
    return Part(data, training), Part(data, back)


def fractions(data: SiteData, name: str) -> list[float]:
    """Return for each sample of a class a number in [0, 1) that its content alone decides."""
    count, found = data.count(name), list[float]()
    for start in range(0, count, BATCH):
        rows = range(start, min(start + BATCH, count))
        # Numbers as they were read: standardised ones change with every sample that is added.
        whole = data.content(name, rows) if isinstance(data, IndexedData) else data.inputs(name, rows).numpy()
        found += [_fraction(sample.tobytes()) for sample in whole]
    return found


def _fraction(content: bytes) -> float:
    return int.from_bytes(hashlib.sha256(content).digest()[:6], "big") / 2**48
