"""A site's data as people have it: one folder a class, image files in it."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from client.data.images import SUFFIXES, Pixels, UnreadableImageError, read_image
from common.errors import SiteDataError
from common.settings import DataSettings


@dataclass(frozen=True)
class Corrupt:
    """A file that was skipped, and why."""

    path: Path
    reason: str


class FolderData:
    """Images of a site, read once into memory as uint8. Implements ``SiteData``."""

    def __init__(self, images: dict[str, Pixels], corrupt: tuple[Corrupt, ...] = ()) -> None:
        self._images = images
        self.corrupt = corrupt

    def classes(self) -> Sequence[str]:
        return sorted(self._images)

    def count(self, name: str) -> int:
        return len(self._images[name])

    def inputs(self, name: str, rows: Sequence[int]) -> Tensor:
        return unit_range(self._images[name][positions(rows, self.count(name))])


def positions(rows: Sequence[int], count: int) -> list[int]:
    """Return rows as a list. Raises IndexError unless each is 0 to count - 1."""
    if wrong := [row for row in rows if not 0 <= row < count]:
        raise IndexError(f"row {wrong[0]} of a class with {count} inputs")
    return list(rows)


def unit_range(pixels: Pixels) -> Tensor:
    """Turn uint8 [n, C, H, W] into float32 in [0, 1]."""
    return torch.from_numpy(pixels.astype(np.float32) / np.float32(255))


def open_folder(folder: Path, data: DataSettings) -> FolderData:
    """Read a folder of class folders.

    Files that are not images by their name, and names that begin with a dot, are passed over.
    A file that cannot be read is skipped and listed in ``corrupt``.

    Raises:
        SiteDataError: if the folder cannot be read, has no class folder, or a class has no
            readable image.
    """
    files = {name: _image_files(path) for name, path in _class_folders(folder).items()}
    images: dict[str, Pixels] = {}
    corrupt: list[Corrupt] = []
    with ThreadPoolExecutor(max_workers=2) as pool:
        for name, paths in files.items():
            read = list(pool.map(lambda path: _try_read(path, data), paths))
            good = [item for item in read if not isinstance(item, Corrupt)]
            corrupt += [item for item in read if isinstance(item, Corrupt)]
            if not good:
                found = f"{len(paths)} image file(s), none readable" if paths else "no image file"
                raise SiteDataError(
                    f"class folder {folder / name} has {found}; "
                    f"add images ({', '.join(sorted(SUFFIXES))}) or remove the folder"
                )
            images[name] = np.stack(good)
    return FolderData(images, tuple(corrupt))


def _class_folders(folder: Path) -> dict[str, Path]:
    found = {path.name: path for path in entries(folder) if path.is_dir()}
    if not found:
        raise SiteDataError(
            f"{folder} has no class folder; a site's folder holds one folder for each class, "
            f"such as {folder.name}/scratch/0001.png"
        )
    return dict(sorted(found.items()))


def _image_files(folder: Path) -> list[Path]:
    return [path for path in entries(folder) if path.suffix.lower() in SUFFIXES and not path.is_dir()]


def entries(folder: Path) -> list[Path]:
    """Return what is in a folder, sorted, without names that begin with a dot.

    Raises:
        SiteDataError: if the folder cannot be read.
    """
    try:
        found = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        any(path.is_dir() for path in found)  # a folder that may be listed but not entered fails here
    except OSError as error:
        raise SiteDataError(
            f"{folder} cannot be read: {error.strerror}; give the path of an existing folder that this user may read"
        ) from error
    return found


def _try_read(path: Path, data: DataSettings) -> Pixels | Corrupt:
    try:
        return read_image(path, data.channels, data.size, invert=data.invert)
    except UnreadableImageError as error:
        return Corrupt(path, str(error))
