"""DeepPCB (Tang, He, Huang, Yang 2019): defects of printed circuit boards, each beside the faultless template.

The origin's pictures are 640x640, black and white, with a box around each defect. An item is the 64x64 pixels around
the centre of a box; where that reaches over the edge, the picture's outermost pixels are repeated.
"""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from common.errors import SourceError
from common.settings import DataSettings
from simulations.sources.described import CatalogueSet
from simulations.sources.files import Entry, Files, Origin
from simulations.sources.manifest import file_entry
from simulations.sources.pool import Pool
from simulations.sources.sets.pictures import from_arrays, load_arrays

CLASSES = ("open", "short", "mousebite", "spur", "copper", "pin-hole")
CROP = 64

Bits = NDArray[np.uint8]
"""0 dark, 1 bright."""


def _read(files: Files, data: DataSettings) -> Pool:
    """Read the crops; with data.beside = "template" each with the template's crop as a channel of its own."""
    tests, templates, labels, lines, pictures = _packed(files) if files.packed else _cut(files)
    pixels = from_arrays((crop * np.uint8(255) for crop in tests), data)
    if data.beside:
        grey = DataSettings(size=data.size, bits=data.bits)
        pixels = np.concatenate([pixels, from_arrays((crop * np.uint8(255) for crop in templates), grey)], axis=1)
    return Pool(
        pixels, tuple(CLASSES[label - 1] for label in labels), {"line": tuple(lines), "picture": tuple(pictures)}
    )


Crops = tuple[Bits, Bits, Sequence[int], Sequence[str], Sequence[str]]
"""Test crops, template crops, labels, lines and pictures; crops of one picture may overlap."""


def _packed(files: Files) -> Crops:
    (entry,) = files.entries
    arrays = load_arrays(files.read(entry), str(files.where(entry)), "test", "template", "label", "group", "image")
    tests, templates = (np.unpackbits(arrays[key], axis=1).reshape(-1, CROP, CROP) for key in ("test", "template"))
    lines, pictures = [f"{group:05d}" for group in arrays["group"]], [f"{image:08d}" for image in arrays["image"]]
    return tests, templates, arrays["label"].tolist(), lines, pictures


def _cut(files: Files) -> Crops:
    tests, templates, labels, lines, pictures = [], [], [], [], []
    at = {entry.names.name: entry for entry in files.entries}
    for entry in files.entries:
        if entry.names.suffix != ".txt":
            continue
        test, template = (_board(files, at[f"{entry.names.stem}_{which}.jpg"]) for which in ("test", "temp"))
        for *box, label in _annotations(files, entry):
            tests.append(crop(test, box))
            templates.append(crop(template, box))
            labels.append(label)
            lines.append(entry.names.parent.name.removesuffix("_not"))
            pictures.append(entry.names.stem)
    return np.stack(tests), np.stack(templates), labels, lines, pictures


def crop(board: Bits, box: Sequence[int]) -> Bits:
    """Return the 64x64 pixels around the centre, rounded to even, of a box (x1, y1, x2, y2)."""
    left, top = (round((box[axis] + box[axis + 2]) / 2) - CROP // 2 for axis in (0, 1))
    return np.pad(board, CROP, mode="edge")[top + CROP : top + 2 * CROP, left + CROP : left + 2 * CROP]


def _board(files: Files, entry: Entry) -> Bits:
    try:
        with Image.open(io.BytesIO(files.read(entry)), formats=("JPEG",)) as image:
            return (np.asarray(image.convert("L")) > 127).astype(np.uint8)
    except (OSError, UnidentifiedImageError) as error:
        raise SourceError(f"{files.where(entry)} is not a picture: {error}; delete it and fetch it again") from error


def _annotations(files: Files, entry: Entry) -> Iterator[list[int]]:
    """Yield x1, y1, x2, y2 and type (1 to 6) of each line."""
    for line in files.read(entry).decode("ascii", "replace").splitlines():
        words = line.replace(",", " ").split()
        if not words:
            continue
        if len(words) != 5 or not all(word.isdecimal() for word in words) or not 1 <= int(words[4]) <= len(CLASSES):
            raise SourceError(
                f"{files.where(entry)} has the line {line!r}; expected x1 y1 x2 y2 and a type of 1 to 6; "
                "delete it and fetch it again"
            )
        yield [int(word) for word in words]


def _listing(folder: Path) -> Iterator[Entry]:
    yield file_entry(folder, folder / "crops.npz")
    with np.load(folder / "crops.npz", allow_pickle=False) as arrays:
        boards = sorted(set(zip(arrays["group"].tolist(), arrays["image"].tolist(), strict=True)))
    for group, image in boards:
        line = f"PCBData/group{group:05d}/{group:05d}"
        yield Entry(origin=((0, f"{line}_not/{image:08d}.txt"),))
        for which in ("test", "temp"):
            yield Entry(origin=((0, f"{line}/{image:08d}_{which}.jpg"),))


DEEPPCB = CatalogueSet(
    name="deeppcb",
    title="Defects of printed circuit boards (DeepPCB): 7133 crops of 6 board lines with their templates, 64x64",
    kind="image",
    classes=6,
    items=7133,
    natural=("line",),
    licence="MIT",
    terms="File LICENSE (MIT, 2018 tangsanli5201); its README asks for research use only. Some defects are drawn in.",
    cite="Tang, He, Huang, Yang, Online PCB Defect Detector On A New PCB Defect Dataset (2019)",
    origins=(Origin("tangsanli5201/DeepPCB", "08e98c4db5922613fb97176eb3d6497d48260cb1"),),
    data={"data.kind": "image", "data.channels": 1, "data.size": 64},
    read=_read,
    listing=_listing,
    companions=("template",),
    counts={"open": 1361, "short": 1057, "mousebite": 1460, "spur": 1175, "copper": 1063, "pin-hole": 1017},
)
