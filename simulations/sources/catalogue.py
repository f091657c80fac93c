"""The data sets that ``fedreptile-sim data`` knows."""

from common.errors import SourceError
from simulations.sources.described import CatalogueSet
from simulations.sources.files import Origin
from simulations.sources.sets.boards import DEEPPCB
from simulations.sources.sets.digits import DIGITS
from simulations.sources.sets.omniglot import OMNIGLOT
from simulations.sources.sets.signs import SIGN_DIGITS
from simulations.sources.sets.steel import NEU_STEEL
from simulations.sources.sets.tables import GAS_DRIFT, HEART_DISEASE_HOSPITALS, STEEL_PLATES_FAULTS
from simulations.sources.sets.tiles import MAGNETIC_TILE
from simulations.sources.sets.xrays import CXR_PNEUMONIA, MEDNIST6

__all__ = ["CATALOGUE", "CatalogueSet", "Origin", "find_set"]

CATALOGUE = {
    found.name: found
    for found in (
        OMNIGLOT,
        NEU_STEEL,
        MAGNETIC_TILE,
        DEEPPCB,
        STEEL_PLATES_FAULTS,
        GAS_DRIFT,
        CXR_PNEUMONIA,
        MEDNIST6,
        HEART_DISEASE_HOSPITALS,
        SIGN_DIGITS,
        DIGITS,
    )
}
"""Name -> data set."""


def find_set(name: str) -> CatalogueSet:
    """Return a set by name. Raises SourceError, naming the known ones."""
    if name not in CATALOGUE:
        raise SourceError(f"unknown data set {name!r}; known are {', '.join(CATALOGUE)}")
    return CATALOGUE[name]
