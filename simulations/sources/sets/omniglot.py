"""Omniglot (Lake, Salakhutdinov, Tenenbaum 2015): handwritten characters of 50 alphabets, each drawn by 20 people.

The catalogue's set is the background set and ten of the twenty evaluation alphabets: the other ten stay unseen. A class
is "ALPHABET/characterNN", as characters are numbered within their alphabet. Drawer numbers too name a person within an
alphabet only. Files have black ink on white paper; with data.invert ink is light on dark, as is usual.
"""

import csv
import io
import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.data.images import UnreadableImageError, read_image
from client.data.indexed import Pixels
from common.errors import SourceError
from common.settings import DataSettings
from simulations.sources.described import CatalogueSet
from simulations.sources.files import Entry, Files, Origin
from simulations.sources.manifest import file_entry
from simulations.sources.pool import Pool
from simulations.sources.sets.pictures import from_arrays, load_arrays, stacked

EVALUATION_DEV = frozenset(
    {
        "Angelic",
        "Atemayar_Qelisayer",
        "Aurek-Besh",
        "Avesta",
        "Keble",
        "Mongolian",
        "Oriya",
        "Sylheti",
        "Syriac_(Serto)",
        "ULOG",
    }
)
"""The ten alphabets of the evaluation set that results are judged on."""
SETS = ("background", "evaluation_dev")

UNREADABLE = (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""What Python's zipfile raises for archives that are damaged, encrypted or of a kind it does not know."""

_ENTRY = re.compile(r"[^/]+/([^/]+)/(character\d+)/\d+_(\d+)\.png")


@dataclass(frozen=True)
class Drawings:
    """Pictures [N, C, H, W], and of each its class "ALPHABET/characterNN" and drawer."""

    pixels: Pixels
    classes: list[str]
    drawers: list[str]


def _read(files: Files, data: DataSettings) -> Pool:
    if files.packed:
        return _pool({which: _packed(files, which, data) for which in SETS})
    archives = {entry.names.stem.removeprefix("images_"): entry for entry in files.entries}
    parts = {which: read_archive(files.read(entry), str(files.where(entry)), data) for which, entry in archives.items()}
    return _pool({"background": parts["background"], "evaluation_dev": _only(parts["evaluation"], EVALUATION_DEV)})


def _pool(parts: dict[str, Drawings]) -> Pool:
    classes = [name for part in parts.values() for name in part.classes]
    return Pool(
        np.concatenate([part.pixels for part in parts.values()]),
        tuple(classes),
        {
            "alphabet": tuple(name.partition("/")[0] for name in classes),
            "drawer": tuple(drawer for part in parts.values() for drawer in part.drawers),
            "set": tuple(which for which, part in parts.items() for _ in part.classes),
        },
    )


def read_archive(content: bytes, name: str, data: DataSettings) -> Drawings:
    """Read an archive as published: ``SET/ALPHABET/characterNN/NNNN_MM.png``, MM the drawer.

    Raises:
        SourceError: if it is not a zip archive, holds a damaged picture, or none in that layout.
    """
    pixels, classes, drawers = [], [], []
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as opened:
            for path in sorted(opened.namelist()):
                if match := _ENTRY.fullmatch(path):
                    alphabet, character, drawer = match.groups()
                    picture = io.BytesIO(opened.read(path))
                    pixels.append(read_image(picture, data.channels, data.size, bits=data.bits, invert=data.invert))
                    classes.append(f"{alphabet}/{character}")
                    drawers.append(str(int(drawer)))
    except (*UNREADABLE, UnreadableImageError) as error:
        raise SourceError(f"{name} cannot be read: {error}; delete it and fetch it again") from error
    if not pixels:
        raise SourceError(f"{name} holds no SET/ALPHABET/characterNN/NNNN_MM.png; it is not an Omniglot archive")
    return Drawings(stacked(pixels), classes, drawers)


def _packed(files: Files, which: str, data: DataSettings) -> Drawings:
    """Read ``SET.npz`` and ``SET_classes.csv``: shrunk drawings for size 28, else those of 105x105 pixels."""
    at = {entry.path: entry for entry in files.entries}
    arrays_entry, table = at[f"{which}.npz"], at[f"{which}_classes.csv"]
    stored = "images28" if data.size == 28 else "images105"
    arrays = load_arrays(files.read(arrays_entry), str(files.where(arrays_entry)), stored, "label", "drawer")
    names = {
        int(row["label"]): f"{row['alphabet']}/{row['character']}"
        for row in csv.DictReader(files.read(table).decode("utf-8").splitlines())
    }
    ink = arrays[stored] if data.size == 28 else (_unpacked(row) for row in arrays[stored])
    pixels = from_arrays((255 - drawing for drawing in ink), data)
    return Drawings(pixels, [names[int(label)] for label in arrays["label"]], [str(who) for who in arrays["drawer"]])


def _unpacked(bits: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a drawing [105, 105] from one bit a pixel: 255 where there is ink."""
    return np.unpackbits(bits)[: 105 * 105].reshape(105, 105) * np.uint8(255)


def _only(part: Drawings, alphabets: frozenset[str]) -> Drawings:
    kept = [row for row, name in enumerate(part.classes) if name.partition("/")[0] in alphabets]
    return Drawings(part.pixels[kept], [part.classes[row] for row in kept], [part.drawers[row] for row in kept])


def _listing(folder: Path) -> Iterator[Entry]:
    """The sums of the archives are those that torchvision publishes (MD5) and git's own."""
    for which in SETS:
        yield file_entry(folder, folder / f"{which}.npz")
        yield file_entry(folder, folder / f"{which}_classes.csv")
    for which, md5, blob in (
        ("background", "68d2efa1b9178cc56df9314c21c6e718", "71fd167eb6fdd312049395fbd247147a4b234231"),
        ("evaluation", "6b91aef0f799c5bb55b94e3f2daec811", "8ccde0ed1565641f1fa8c57cdc6ff634e15fc5c1"),
    ):
        yield Entry(sums={"md5": md5, "git-blob": blob}, origin=((0, f"python/images_{which}.zip"),))


OMNIGLOT = CatalogueSet(
    name="omniglot",
    title="Handwritten characters: 1241 of 1623, of 40 alphabets, each by 20 people, 105x105 black on white",
    kind="image",
    classes=1241,
    items=24820,
    natural=("alphabet",),
    licence="MIT",
    terms="File LICENSE of the repository (2015 Brenden Lake).",
    cite="Lake, Salakhutdinov, Tenenbaum, Human-level concept learning through probabilistic program induction, "
    "Science 350 (2015) 1332-1338",
    origins=(Origin("brendenlake/omniglot", "057f034baf2ecb8530bc5710e5a23584d2a519cc"),),
    data={"data.kind": "image", "data.channels": 1, "data.size": 28, "data.invert": True},
    read=_read,
    listing=_listing,
)
