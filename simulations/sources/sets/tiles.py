"""Magnetic tile defects (Huang, Qiu, Guo, Wang, Yuan 2020): photographs of motor magnets, each with a mask.

The same spot of a tile was taken under several lights; ``tile_group``, a guess from the numbers of the pictures made
when the set was packed, says which pictures belong together. No split should divide a group.
"""

import csv
from collections.abc import Iterator
from pathlib import Path

from common.settings import DataSettings
from simulations.sources.described import CatalogueSet
from simulations.sources.files import Entry, Files, Origin
from simulations.sources.manifest import file_entry, files_below
from simulations.sources.pool import Pool
from simulations.sources.sets.pictures import read_pictures


def _read(files: Files, data: DataSettings) -> Pool:
    """Read the pictures; with data.beside = "mask" each with its mask, white where the defect is."""
    pictures = tuple(entry for entry in files.entries if entry.names.suffix == ".jpg")
    masks = {entry.names.stem: entry for entry in files.entries if entry.names.suffix == ".png"}
    return Pool(
        read_pictures(files, pictures, data, beside=lambda entry: masks[entry.names.stem]),
        tuple(entry.path.split("/")[1] for entry in pictures),
        {
            "exposure": tuple(entry.names.name.removeprefix("exp").partition("_")[0] for entry in pictures),
            "tile_group": tuple(entry.more["tile_group"] for entry in pictures),
        },
    )


def _listing(folder: Path) -> Iterator[Entry]:
    """The pictures are the origin's files; whether the masks were written anew is not recorded."""
    with (folder / "items.csv").open(encoding="utf-8") as file:
        groups = {row["name"]: row["tile_group"] for row in csv.DictReader(file)}
    for path in files_below(folder, "images"):
        published = (0, f"MT_{path.parent.name}/Imgs/{path.name}")
        yield file_entry(folder, path, published, more={"tile_group": groups[path.stem]})
    for path in files_below(folder, "masks"):
        yield file_entry(folder, path)
        yield Entry(origin=((0, f"MT_{path.parent.name}/Imgs/{path.name}"),))


MAGNETIC_TILE = CatalogueSet(
    name="magnetic_tile",
    title="Defects of magnetic tiles: 369 of 1344 photographs with masks, 200 to 600 pixels a side, grey",
    kind="image",
    classes=6,
    items=369,
    natural=("exposure",),
    licence="not stated",
    terms="No licence file; README: welcome to use, and to cite the paper if used in research.",
    cite="Huang, Qiu, Guo, Wang, Yuan, Surface defect saliency of magnetic tile, The Visual Computer (2020)",
    # The repository's name ends with a full stop.
    origins=(Origin("abin24/Magnetic-tile-defect-datasets.", "cc4eb530b57b9cb7225bf76023873043ffd50655"),),
    data={"data.kind": "image", "data.channels": 1, "data.size": 64},
    read=_read,
    listing=_listing,
    companions=("mask",),
    counts={"Blowhole": 71, "Break": 54, "Crack": 37, "Fray": 20, "Free": 120, "Uneven": 67},
)
