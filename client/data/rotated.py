"""Turned copies of classes as classes of their own (Santoro et al. 2016; the Reptile paper's Omniglot training)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from common.learning.episode import SiteData

TURNS = {"": 0, " @90": 1, " @180": 2, " @270": 3}


class RotatedClasses:
    """Each class of a site four times, turned by 0, 90, 180 and 270 degrees. Implements ``SiteData``."""

    def __init__(self, data: SiteData) -> None:
        self.upright = data
        self._sources = {name + suffix: (name, turn) for name in data.classes() for suffix, turn in TURNS.items()}

    def classes(self) -> Sequence[str]:
        return sorted(self._sources)

    def count(self, name: str) -> int:
        return self.upright.count(self._sources[name][0])

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the inputs take, if that is known."""
        return getattr(self.upright, "nbytes", 0)

    def inputs(self, name: str, rows: Sequence[int]) -> Tensor:
        source, turn = self._sources[name]
        return torch.rot90(self.upright.inputs(source, rows), turn, (2, 3))
