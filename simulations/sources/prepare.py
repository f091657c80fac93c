"""From a data set's name to packed sites on disk: mirror first, then the origin, then an installed package."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from client.data.packed import INDEX, write_packed
from common.errors import SourceError
from common.paths import data_home
from simulations.sources import digits, omniglot
from simulations.sources.download import Progress, UnreachableError
from simulations.sources.omniglot import Drawings

log = logging.getLogger("fedreptile.data")

PARTS = {"omniglot": ("background", "evaluation_dev"), "digits": ("digits-0-to-4", "digits-5-to-9")}
"""Data set -> names of the folders with the sites to train on and to judge on."""
NAMES = tuple(PARTS)
MIRROR_VARIABLE = "FEDREPTILE_DATA_MIRROR"


@dataclass(frozen=True)
class Prepared:
    """Packed sets to train on and to judge on."""

    name: str
    train: Path
    judge: Path


def prepare(name: str, mirror: Path | None = None, progress: Progress = lambda done, total: None) -> Prepared:
    """Return the packed sites of a data set, made on first use.

    Args:
        mirror: a folder that holds ``NAME/…``; by default what ``FEDREPTILE_DATA_MIRROR`` names, or
            a folder ``shared/data`` beside the checkout.

    Raises:
        SourceError: if the set is unknown, a checksum is wrong, or no source can be reached.
    """
    if name not in NAMES:
        raise SourceError(f"unknown data set {name!r}; known are {', '.join(NAMES)}")
    prepared = Prepared(name, *(data_home() / "data" / name / part for part in PARTS[name]))
    if (prepared.train / INDEX).exists() and (prepared.judge / INDEX).exists():
        return prepared
    train, judge = digits.from_scikit_learn() if name == "digits" else _omniglot(mirror, progress)
    for folder, drawings in ((prepared.train, train), (prepared.judge, judge)):
        if not (folder / INDEX).exists():
            write_packed(folder, drawings.images, drawings.sites, {"name": name})
    return prepared


def prepare_or_digits(name: str, mirror: Path | None = None, progress: Progress = lambda done, total: None) -> Prepared:
    """Like ``prepare``, but fall back to scikit-learn's digits, saying so, when nothing can be reached.

    A source that was reached and has a wrong checksum is an error, not a reason to fall back.
    """
    try:
        return prepare(name, mirror, progress)
    except UnreachableError as error:
        log.warning("%s", error)
        log.warning("using scikit-learn's handwritten digits instead of %s: other data, other figures", name)
        return prepare("digits")


def find_mirror(given: Path | None) -> Path | None:
    """Return the mirror to look in. Raises SourceError if one was named and is not a folder."""
    named = given or (Path(variable) if (variable := os.environ.get(MIRROR_VARIABLE)) else None)
    if named is not None:
        if not named.is_dir():
            raise SourceError(f"the data mirror {named} is not a folder; correct --data-mirror or {MIRROR_VARIABLE}")
        return named.resolve()
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    return beside if beside.is_dir() else None


def _omniglot(mirror: Path | None, progress: Progress) -> tuple[Drawings, Drawings]:
    found = find_mirror(mirror)
    drawings = omniglot.from_mirror(found) if found else None
    if drawings is None and mirror is not None:
        raise SourceError(f"{mirror} holds no omniglot folder with images_background.zip and images_evaluation.zip")
    return drawings or omniglot.from_origin(data_home() / "downloads" / "omniglot", progress)
