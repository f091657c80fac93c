"""Omniglot (Lake, Salakhutdinov, Tenenbaum 2015): 1623 handwritten characters of 50 alphabets, each drawn by 20 people.

An alphabet is a site, a character a class. Pixels are 28x28, averaged over areas, 255 = full ink.
Licence of the data: MIT (brendenlake/omniglot).
"""

import csv
import io
import re
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from client.data.images import Pixels, UnreadableImageError, read_image
from client.data.packed import SiteRows
from common.errors import SourceError
from simulations.sources.download import Progress, Remote, fetch, verify

SIZE = 28
ORIGIN = "https://raw.githubusercontent.com/brendenlake/omniglot/057f034baf2ecb8530bc5710e5a23584d2a519cc/python"

ARCHIVES = {
    "background": Remote(
        f"{ORIGIN}/images_background.zip",
        {"md5": "68d2efa1b9178cc56df9314c21c6e718", "git-blob": "71fd167eb6fdd312049395fbd247147a4b234231"},
    ),
    "evaluation": Remote(
        f"{ORIGIN}/images_evaluation.zip",
        {"md5": "6b91aef0f799c5bb55b94e3f2daec811", "git-blob": "8ccde0ed1565641f1fa8c57cdc6ff634e15fc5c1"},
    ),
}

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
"""The ten alphabets of the evaluation set that results are judged on; the other ten stay unseen."""

PACKED_SUMS = {
    "background.npz": "532b1007f34686b2a6626a563e4d3b92765ddacf38f915aed962d8e7e5f880cd",
    "background_classes.csv": "9dfc8f506d26eb1cc03a7fb61062efa4ec0954ac6914e50407168b49865f9c47",
    "evaluation_dev.npz": "87ab18064f9194e65cd8e0d7bd99a0379e8918df5a3c6b7dea11a930c6abe920",
    "evaluation_dev_classes.csv": "d3025e121fb44b0fa06153e75cf951b512b12e1ca1ad3af25e517a33e205fd31",
}
"""SHA-256 of the packed form that a mirror may hold."""

UNREADABLE = (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""What Python's zipfile raises for archives that are damaged, encrypted or of a kind it does not know."""

_ENTRY = re.compile(r"[^/]+/([^/]+)/(character\d+)/\d+_\d+\.png")


@dataclass(frozen=True)
class Drawings:
    """Images uint8 [N, 1, 28, 28] and, by alphabet and character, the rows that show it."""

    images: Pixels
    sites: SiteRows

    def only(self, alphabets: Iterable[str]) -> "Drawings":
        """Return the drawings of some alphabets (the images are shared)."""
        wanted = set(alphabets)
        return Drawings(self.images, {name: rows for name, rows in self.sites.items() if name in wanted})


def from_archive(archive: Path) -> Drawings:
    """Read an archive as published: ``SET/ALPHABET/characterNN/NNNN_MM.png``, ink black on white.

    Raises:
        SourceError: if it is not a zip archive, holds a damaged picture, or none in that layout.
    """
    images: list[Pixels] = []
    sites: dict[str, dict[str, list[int]]] = {}
    try:
        with zipfile.ZipFile(archive) as opened:
            for name in sorted(opened.namelist()):
                if match := _ENTRY.fullmatch(name):
                    alphabet, character = match.groups()
                    sites.setdefault(alphabet, {}).setdefault(character, []).append(len(images))
                    images.append(read_image(io.BytesIO(opened.read(name)), 1, SIZE, invert=True))
    except (*UNREADABLE, UnreadableImageError) as error:
        raise SourceError(f"{archive} cannot be read: {error}; delete it and fetch it again") from error
    if not images:
        raise SourceError(f"{archive} holds no SET/ALPHABET/characterNN/NNNN_MM.png; it is not an Omniglot archive")
    return Drawings(np.stack(images), sites)


def from_packed(folder: Path, part: str) -> Drawings:
    """Read ``PART.npz`` (arrays ``images28`` and ``label``) and ``PART_classes.csv`` of a mirror.

    Raises:
        SourceError: if a file is missing, does not have its sum, or lacks an array.
    """
    arrays, table = folder / f"{part}.npz", folder / f"{part}_classes.csv"
    try:
        for file in (arrays, table):
            verify(file, {"sha256": PACKED_SUMS[file.name]})
        with np.load(arrays, allow_pickle=False) as opened:
            images, labels = opened["images28"][:, None], opened["label"]
        rows = list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))
    except (OSError, KeyError, ValueError) as error:
        raise SourceError(f"{folder} does not hold a packed {part} set that can be read: {error}") from error
    sites: dict[str, dict[str, list[int]]] = {}
    for row in rows:
        members = np.flatnonzero(labels == int(row["label"])).tolist()
        sites.setdefault(row["alphabet"], {})[row["character"]] = members
    return Drawings(images, sites)


def from_mirror(mirror: Path) -> tuple[Drawings, Drawings] | None:
    """Return background and evaluation_dev from a mirror's ``omniglot`` folder, packed or archives; None if absent."""
    folder = mirror / "omniglot"
    if all((folder / name).exists() for name in PACKED_SUMS):
        return from_packed(folder, "background"), from_packed(folder, "evaluation_dev")
    archives = {part: folder / f"images_{part}.zip" for part in ARCHIVES}
    if not all(path.exists() for path in archives.values()):
        return None
    for part, path in archives.items():
        verify(path, ARCHIVES[part].sums)
    return from_archive(archives["background"]), from_archive(archives["evaluation"]).only(EVALUATION_DEV)


def from_origin(downloads: Path, progress: Progress) -> tuple[Drawings, Drawings]:
    """Fetch the two archives, unless they are in ``downloads`` already, and read them."""
    paths = {}
    for part, remote in ARCHIVES.items():
        paths[part] = downloads / f"images_{part}.zip"
        if paths[part].exists():
            verify(paths[part], remote.sums)
        else:
            fetch(remote, paths[part], progress)
    return from_archive(paths["background"]), from_archive(paths["evaluation"]).only(EVALUATION_DEV)
