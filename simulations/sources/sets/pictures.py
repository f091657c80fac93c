"""Reading pictures that are files or arrays, as the data settings say."""

import io
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from client.data.images import UnreadableImageError, pixels_of, read_image
from client.data.indexed import Pixels
from common.errors import SourceError
from common.settings import DataSettings
from simulations.sources.files import Entry, Files
from simulations.sources.pool import Pool


def read_pictures(
    files: Files, entries: Sequence[Entry], data: DataSettings, beside: Callable[[Entry], Entry] | None = None
) -> Pixels:
    """Return picture files as [N, C, size, size], with one channel more for what lies beside each, if asked for.

    Raises:
        SourceError: if a file is missing, damaged or not a picture.
    """
    rows: list[Pixels] = []
    for entry in entries:
        planes: list[Pixels] = [_read(files, entry, data.channels, data, invert=data.invert)]
        if beside is not None and data.beside:
            planes.append(_read(files, beside(entry), 1, data))
        rows.append(cast(Pixels, np.concatenate(planes)))
    return stacked(rows)


def from_arrays(pictures: Iterable[NDArray[np.uint8]], data: DataSettings) -> Pixels:
    """Return grey pictures [H, W] as [N, C, size, size], read as files of the same pixels would be."""
    return stacked(
        [pixels_of(picture, data.channels, data.size, bits=data.bits, invert=data.invert) for picture in pictures]
    )


def stacked(pictures: Sequence[Pixels]) -> Pixels:
    """Return pictures [C, H, W] of one type as [N, C, H, W]."""
    return cast(Pixels, np.stack(pictures))


def labelled_by_folder(files: Files, data: DataSettings) -> Pool:
    """Read a set of pictures that lie in a folder of their class."""
    return Pool(
        read_pictures(files, files.entries, data), tuple(entry.names.parent.name for entry in files.entries), {}
    )


def load_arrays(content: bytes, name: str, *needed: str) -> dict[str, NDArray[Any]]:
    """Return arrays of an .npz file. Raises SourceError if it cannot be read or lacks one."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as opened:
            return {key: opened[key] for key in needed}
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise SourceError(f"{name} does not hold the arrays {', '.join(needed)}: {error}; fetch it again") from error


def _read(files: Files, entry: Entry, channels: int, data: DataSettings, *, invert: bool = False) -> Pixels:
    try:
        return read_image(io.BytesIO(files.read(entry)), channels, data.size, bits=data.bits, invert=invert)
    except UnreadableImageError as error:
        raise SourceError(f"{files.where(entry)} is {error}; delete it and fetch it again") from error
