"""Radiology pictures: chest X-rays of two hospitals, and six kinds of picture. Not for clinical use."""

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import SourceError
from common.settings import DataSettings
from simulations.sources.described import CatalogueSet
from simulations.sources.files import MANIFESTS, Entry, Files, Origin
from simulations.sources.manifest import file_entry, files_below
from simulations.sources.pool import Pool
from simulations.sources.sets.pictures import from_arrays, labelled_by_folder, load_arrays, read_pictures

NORMAL_PNEUMONIA = ("normal", "pneumonia")
NIH_FOLDERS = {"No_findings": "normal", "Pneumonia": "pneumonia"}
CHOSEN = MANIFESTS / "guangzhou28_train.txt"
"""First 16 digits of the SHA-256 of each training picture that the packed form has taken, in its order."""


def _read(files: Files, data: DataSettings) -> Pool:
    """Read Guangzhou's arrays (28x28, children), then the NIH's pictures (adults).

    The packed form holds the NIH's pictures as JPEG of 192x192, the origin as PNG of 1024x1024: pixels differ a little.
    ``patient`` is empty for Guangzhou, ``split`` for the NIH.
    """
    (arrays_entry,) = (entry for entry in files.entries if entry.names.suffix == ".npz")
    nih = tuple(entry for entry in files.entries if entry.names.suffix in (".jpg", ".png"))
    arrays = load_arrays(files.read(arrays_entry), str(files.where(arrays_entry)), *_ARRAYS)
    train = slice(None) if files.packed else _chosen(arrays["train_images"], str(files.where(arrays_entry)))
    images = np.concatenate([arrays["train_images"][train], arrays["val_images"]])
    labels = np.concatenate([arrays["train_labels"][train].ravel(), arrays["val_labels"].ravel()])
    trained = len(images) - len(arrays["val_images"])
    folders = [entry.names.parent.name for entry in nih]
    return Pool(
        np.concatenate([from_arrays(images, data), read_pictures(files, nih, data)]),
        (*(NORMAL_PNEUMONIA[label] for label in labels), *(NIH_FOLDERS.get(name, name) for name in folders)),
        {
            "hospital": ("guangzhou",) * len(images) + ("nih",) * len(nih),
            "patient": ("",) * len(images) + tuple(entry.names.stem.partition("_")[0] for entry in nih),
            "split": ("train",) * trained + ("val",) * (len(images) - trained) + ("",) * len(nih),
        },
    )


_ARRAYS = ("train_images", "train_labels", "val_images", "val_labels")


def _chosen(images: NDArray[np.uint8], name: str) -> list[int]:
    """Return the rows of the training pictures that the packed form holds. Raises SourceError if one is missing."""
    rows = {_mark(image): row for row, image in reversed(list(enumerate(images)))}
    try:
        return [rows[mark] for mark in CHOSEN.read_text(encoding="ascii").split()]
    except KeyError as error:
        raise SourceError(
            f"{name} lacks the training picture whose SHA-256 begins with {error.args[0]}; it is not the published "
            "file: delete it and fetch it again"
        ) from error


def _mark(image: NDArray[Any]) -> str:
    return sha256(np.ascontiguousarray(image).tobytes()).hexdigest()[:16]


def _listing(folder: Path) -> Iterator[Entry]:
    with np.load(folder / "guangzhou28.npz", allow_pickle=False) as arrays:
        CHOSEN.write_text("".join(f"{_mark(image)}\n" for image in arrays["train_images"]), encoding="ascii")
    yield file_entry(folder, folder / "guangzhou28.npz")
    yield Entry(origin=((0, "data/pneumoniamnist.npz"),))
    published = {name: theirs for theirs, name in NIH_FOLDERS.items()}
    for path in files_below(folder, "nih192"):
        yield file_entry(folder, path)
        yield Entry(origin=((1, f"Dataset/{published[path.parent.name]}/{path.stem}.png"),))


CXR_PNEUMONIA = CatalogueSet(
    name="cxr_pneumonia",
    title="Chest X-rays, normal or pneumonia: 1300 of children at 28x28 (Guangzhou), 400 of adults at 192x192 (NIH)",
    kind="image",
    classes=2,
    items=1700,
    natural=("hospital",),
    licence="CC BY 4.0; NIH: unrestricted",
    terms="Guangzhou: PneumoniaMNIST, CC BY 4.0. NIH ChestX-ray8: unrestricted, but link the original download site, "
    "acknowledge the NIH Clinical Center and cite; labels mined from reports, noisy. Not for clinical use.",
    cite="Yang et al., MedMNIST v2, Scientific Data (2023); Kermany et al., Cell (2018); "
    "Wang et al., ChestX-ray8, CVPR 2017",
    origins=(
        Origin("varun19424/pneumonia_mnist", "9361a718d67e8a40f1ef8929db8c5682add8bd70"),
        Origin("muhammedtalo/COVID-19", "ee3e2cffc0824711bed675275506b26f19be7198"),
    ),
    data={"data.kind": "image", "data.channels": 1, "data.size": 28},
    read=_read,
    listing=_listing,
    counts={"normal": 388 + 135 + 200, "pneumonia": 388 + 389 + 200},
)


def _mednist_listing(folder: Path) -> Iterator[Entry]:
    for path in files_below(folder, "."):
        if path.suffix == ".jpeg":
            yield file_entry(folder, path, (0, f"resized/{path.parent.name}/{path.name}"))


MEDNIST6 = CatalogueSet(
    name="mednist6",
    title="Six kinds of radiology picture (MedNIST): 1800 of 58954, 64x64 grey; easy, for smoke tests only",
    kind="image",
    classes=6,
    items=1800,
    natural=(),
    licence="CC BY-SA 4.0",
    terms="None in the repository; upstream: made available by Dr. Bradley J. Erickson, Department of Radiology, Mayo "
    "Clinic, under CC BY-SA 4.0; acknowledge the source. Not for clinical use.",
    cite="MedNIST, gathered from TCIA, the RSNA Bone Age Challenge and the NIH Chest X-ray data set",
    origins=(Origin("apolanco3225/Medical-MNIST-Classification", "a8942eefd6e75f8c34e88fcf2c41faa279aad346"),),
    data={"data.kind": "image", "data.channels": 1, "data.size": 64},
    read=labelled_by_folder,
    listing=_mednist_listing,
    counts=dict.fromkeys(("AbdomenCT", "BreastMRI", "CXR", "ChestCT", "Hand", "HeadCT"), 300),
)
