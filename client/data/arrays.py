"""A site's arrays: an .npz file with the inputs, and the class of each."""

import zipfile
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.data.images import UnreadableImageError, pixels_of
from client.data.indexed import IndexedData, Numbers, Pixels, Skipped, Standardisation
from common.errors import SiteDataError
from common.settings import DataSettings

Arrays = dict[str, NDArray[Any]]
UNREADABLE = (
    AttributeError,
    EOFError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What numpy and zipfile raise for a file that is no archive, is damaged, or holds Python objects."""


def open_arrays(path: Path, data: DataSettings) -> IndexedData:
    """Read a site's .npz file: the arrays that ``data.inputs`` and ``data.label`` name, and those of ``data.beside``.

    Pictures are [N, H, W], [N, H, W, C] or [N, C, H, W] and are resized like image files, vectors are [N, F]. Classes
    are text or whole numbers [N]. An input that cannot be used is skipped and listed.

    Raises:
        SiteDataError: if the file cannot be read, lacks an array, shapes do not fit, or nothing is usable.
    """
    arrays = _read(path, [data.inputs, data.label, *data.beside.split()])
    labels = arrays[data.label]
    if labels.ndim != 1 or labels.dtype.kind not in "iuUSb" or labels.shape != arrays[data.inputs].shape[:1]:
        raise SiteDataError(
            f"{path}: array {data.label!r} is {labels.dtype} {list(labels.shape)}; expected text or whole numbers, "
            f"one for each of the inputs {list(arrays[data.inputs].shape)}"
        )
    inputs, wrong = _inputs(path, arrays, data)
    rows: dict[str, list[int]] = {}
    for number, label in enumerate(labels.tolist()):
        name = (label.decode("utf-8", "replace") if isinstance(label, bytes) else str(label)).strip()
        if not name:
            wrong.setdefault(number, f"no class in array {data.label!r}")
        elif number not in wrong:
            rows.setdefault(name, []).append(number)
    if not rows:
        first = f" (the first: {next(iter(wrong.values()))})" if wrong else ""
        raise SiteDataError(f"{path} has {len(inputs)} inputs, none usable{first}")
    index = {name: np.array(members, dtype=np.int64) for name, members in rows.items()}
    skipped = [Skipped(f"{path} input {number}", reason) for number, reason in wrong.items()]
    if data.kind == "image":
        return IndexedData(inputs, index, skipped=skipped)
    usable = np.sort(np.concatenate(list(index.values())))
    standardisation = Standardisation.of(inputs[usable], np.ones(inputs.shape[1], bool))
    return IndexedData(inputs, index, standardisation, skipped)


def read_unlabelled_arrays(path: Path, data: DataSettings) -> tuple[list[str], Pixels | Numbers]:
    """Read inputs that are to be classified: what to call each, and the inputs [N, *shape].

    Raises:
        SiteDataError: if the file cannot be read, or one of its inputs cannot be used.
    """
    inputs, wrong = _inputs(path, _read(path, [data.inputs, *data.beside.split()]), data)
    for number, reason in wrong.items():
        raise SiteDataError(f"{path} input {number}: {reason}")
    return [f"{path}:{number}" for number in range(len(inputs))], inputs


def _read(path: Path, names: list[str]) -> Arrays:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as opened:
            if absent := [name for name in names if name not in opened]:
                raise SiteDataError(
                    f"{path} has no array {absent[0]!r}; it has {', '.join(opened.files) or 'none'}: set data.inputs, "
                    "data.label or data.beside to the names that are there"
                )
            return {name: opened[name] for name in names}
    except UNREADABLE as error:
        raise SiteDataError(
            f"{path} is not an .npz file that can be read: {error}; write it with numpy.savez, "
            "text as numpy's own type (.astype(str))"
        ) from error


def _inputs(path: Path, arrays: Arrays, data: DataSettings) -> tuple[Pixels | Numbers, dict[int, str]]:
    """Return the inputs [N, *shape], and of those that cannot be used the reason."""
    found = arrays[data.inputs]
    if data.kind == "vector":
        if found.ndim != 2 or found.shape[1] != data.size or found.dtype.kind not in "iufb":
            raise SiteDataError(
                f"{path}: array {data.inputs!r} is {found.dtype} {list(found.shape)}; expected numbers "
                f"[N, {data.size}], as long as data.size says"
            )
        numbers = found.astype(np.float64)
        endless = np.flatnonzero(np.isinf(numbers).any(1)).tolist()
        return numbers, dict.fromkeys(endless, "not all of its numbers are finite")
    pictures = [_channels_last(path, data.inputs, found, data.channels)]
    pictures += [_channels_last(path, name, arrays[name], 1) for name in data.beside.split()]
    if {len(part) for part in pictures} != {len(found)}:
        counts = ", ".join(str(len(part)) for part in pictures)
        raise SiteDataError(f"{path}: the arrays hold {counts} pictures; they must hold as many, one beside another")
    inputs = np.zeros((len(found), *data.shape), dtype=np.uint8 if data.bits == 8 else np.uint16)
    wrong: dict[int, str] = {}
    convert = partial(pixels_of, size=data.size, bits=data.bits, white=data.white)
    for number in range(len(found)):
        try:
            own = convert(pictures[0][number], data.channels, invert=data.invert)
            others = [convert(part[number], 1) for part in pictures[1:]]
            inputs[number] = np.concatenate([own, *others])
        except UnreadableImageError as error:
            wrong[number] = str(error)
    return inputs, wrong


def _channels_last(path: Path, name: str, pictures: NDArray[Any], channels: int) -> NDArray[Any]:
    """Return pictures as [N, H, W, channels]."""
    if pictures.ndim == 3 and channels == 1:
        return pictures[..., None]
    if pictures.ndim == 4 and pictures.shape[1] == channels:
        return pictures.transpose(0, 2, 3, 1)
    if pictures.ndim == 4 and pictures.shape[3] == channels:
        return pictures
    raise SiteDataError(
        f"{path}: array {name!r} has the shape {list(pictures.shape)}; expected pictures of {channels} channel(s) "
        f"(data.channels): [N, H, W], [N, H, W, {channels}] or [N, {channels}, H, W]"
    )
