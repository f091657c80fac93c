"""A site's data as people have it: one folder a class, image files in it, perhaps masks or templates beside them."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from string import Formatter
from typing import NoReturn

import numpy as np

from client.data.cache import Kept, PictureCache, Record
from client.data.dicom import has_no_ending, is_dicom, read_dicom
from client.data.images import SUFFIXES, UnreadableImageError, UnreadableNowError, read_image
from client.data.indexed import IndexedData, Pixels, Skipped
from common.errors import SettingsError, SiteDataError
from common.settings import DataSettings

Progress = Callable[[int, int], None]
"""Called with the number of pictures read so far and of those to be read."""


def quiet(done: int, total: int) -> None:
    """The progress that shows nothing."""


FIELDS = ("stem", "class")
BATCH = 32
"""Pictures that a thread takes at a time: handing them over one by one costs a tenth of reading them."""
MOST_THREADS = 8


@dataclass(frozen=True)
class Picture:
    """A picture of a class, and where ``data.beside`` says that something lies beside it."""

    label: str
    path: str
    beside: tuple[str, ...]


def open_folder(folder: Path, data: DataSettings, cache: Path | None = None, progress: Progress = quiet) -> IndexedData:
    """Read a folder of class folders.

    Files that are not images by their name, and names that begin with a dot, are passed over. A file that cannot be
    read, or that lacks what ``data.beside`` names, is skipped and listed. What lies beside a picture is no sample
    itself, and a folder into which another folder's pictures point so is no class.

    Args:
        cache: folder that keeps the decoded pictures; the next start then reads new and changed files only.

    Raises:
        SettingsError: if ``data.beside`` holds what is not a pattern.
        SiteDataError: if the folder cannot be read, has no class folder, or a class has no
            readable image.
    """
    root = os.path.abspath(folder)  # noqa: PTH100 - without "..", but links stay
    classes = _class_pictures(root, _patterns(data.beside))
    for name, members in classes.items():
        if not members:
            _refuse(root, name, "no image file")
    pictures = [picture for members in classes.values() for picture in members]
    kept = PictureCache(cache, Path(root), data) if cache else None
    inputs, records = _read_all(root, pictures, data, kept, progress)
    rows: dict[str, list[int]] = {name: [] for name in classes}
    skipped: list[Skipped] = []
    for row, (picture, record) in enumerate(zip(pictures, records, strict=True)):
        if record.reason is None:
            rows[picture.label].append(row)
        else:
            skipped.append(Skipped(picture.path, record.reason))
    for name, usable in rows.items():
        if not usable:
            first = next(item for item in skipped if item.where == classes[name][0].path)
            _refuse(root, name, f"{len(classes[name])} image file(s), none readable (the first: {first.reason})")
    index = {name: np.array(usable) for name, usable in rows.items()}
    return IndexedData(inputs, index, None, skipped, [picture.path for picture in pictures])


def _refuse(root: str, name: str, found: str) -> NoReturn:
    raise SiteDataError(
        f"class folder {Path(root) / name} has {found}; add images ({', '.join(sorted(SUFFIXES))}) or remove the folder"
    )


def read_picture(path: Path, data: DataSettings) -> Pixels:
    """Read one picture with what lies beside it: [*data.shape].

    Raises:
        SettingsError: if ``data.beside`` holds what is not a pattern.
        SiteDataError: if it cannot be read, or lacks what ``data.beside`` names.
    """
    whole = os.path.abspath(path)  # noqa: PTH100 - as in open_folder
    folder, name = os.path.split(whole)
    try:
        return _read(_picture(folder, name, _patterns(data.beside)), data)
    except UnreadableImageError as error:
        raise SiteDataError(f"{path}: {error}") from error


def entries(folder: Path) -> list[Path]:
    """Return what is in a folder, sorted, without names that begin with a dot.

    Raises:
        SiteDataError: if the folder cannot be read.
    """
    return [Path(entry.path) for entry in _scan(str(folder))]


# ----------------------------------------------------------------------------------------- finding pictures


def _scan(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as opened:
            found = sorted((entry for entry in opened if not entry.name.startswith(".")), key=lambda entry: entry.name)
        if found:
            found[0].stat(follow_symlinks=False)  # a folder that may be listed but not entered fails here
    except OSError as error:
        raise SiteDataError(
            f"{folder} cannot be read: {error.strerror}; give the path of an existing folder that this user may read"
        ) from error
    return found


def _class_pictures(root: str, patterns: Sequence[str]) -> dict[str, list[Picture]]:
    """Return the samples of each class, both in the order of their names."""
    folders = [entry for entry in _scan(root) if _is_folder(entry)]
    found = {entry.name: _pictures_in(entry.path, patterns) for entry in folders}
    if patterns:
        found = _without_companions(root, found)
    if not found:
        raise SiteDataError(
            f"{root} has no class folder; a site's folder holds one folder for each class, "
            f"such as {Path(root).name}/scratch/0001.png"
        )
    return found


def _pictures_in(folder: str, patterns: Sequence[str]) -> list[Picture]:
    return [_picture(folder, entry.name, patterns) for entry in _scan(folder) if _is_picture(entry)]


def _is_picture(entry: os.DirEntry[str]) -> bool:
    if os.path.splitext(entry.name)[1].lower() in SUFFIXES:  # noqa: PTH122 - for thousands, pathlib is slow
        return not _is_folder(entry)
    return has_no_ending(entry.name) and not _is_folder(entry) and is_dicom(Path(entry.path))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


# ------------------------------------------------------------------------------- what lies beside pictures


def _patterns(beside: str) -> list[str]:
    """Return the patterns of ``data.beside``. Raises SettingsError if one is absolute or has an unknown field."""
    patterns = beside.split()
    for pattern in patterns:
        try:
            fields = [part[1:] for part in Formatter().parse(pattern) if part[1] is not None]
        except ValueError:
            fields = [("", "", None)]
        if any(name not in FIELDS or spec or conversion for name, spec, conversion in fields):
            raise SettingsError(
                f"data.beside: {pattern!r} is not a file pattern; of braces it may hold only {{stem}}, the picture's "
                "name without its ending, and {class}, the name of its folder"
            )
        if Path(os.path.normpath(f"site/class/{pattern}")).parts[0] != "site":
            raise SettingsError(
                f"data.beside: {pattern!r} leads out of the site's folder, and nothing else is read; put what lies "
                "beside the pictures into it, such as '../masks/{class}/{stem}.png'"
            )
        if PureWindowsPath(pattern).anchor:  # of any system: a pattern is agreed on for all sites
            raise SettingsError(
                f"data.beside: {pattern!r} begins at the root; write it from the picture's folder, "
                "such as '../masks/{class}/{stem}.png'"
            )
    return patterns


def _picture(folder: str, name: str, patterns: Sequence[str]) -> Picture:
    label, path = os.path.basename(folder), os.path.join(folder, name)  # noqa: PTH118, PTH119
    if not patterns:
        return Picture(label, path, ())
    stem = name if has_no_ending(name) else name.rpartition(".")[0]
    known = {"stem": stem, "class": label}
    beside = tuple(os.path.normpath(os.path.join(folder, pattern.format(**known))) for pattern in patterns)  # noqa: PTH118
    return Picture(label, path, beside)


def _without_companions(root: str, found: dict[str, list[Picture]]) -> dict[str, list[Picture]]:
    """Leave out pictures that lie beside another one, and folders that another folder's pictures point into."""
    pictures = [picture for members in found.values() for picture in members]
    companions = {path for picture in pictures if picture.path not in picture.beside for path in picture.beside}
    pointed_at = {
        (picture.label, path.removeprefix(root + os.sep).partition(os.sep)[0])
        for picture in pictures
        for path in picture.beside
        if path.startswith(root + os.sep)
    }
    no_classes = {to for label, to in pointed_at if to != label}
    return {
        name: [picture for picture in members if picture.path not in companions]
        for name, members in found.items()
        if name not in no_classes
    }


# -------------------------------------------------------------------------------------------------- reading


def _read_all(
    root: str, pictures: Sequence[Picture], data: DataSettings, cache: PictureCache | None, progress: Progress
) -> tuple[Pixels, Sequence[Record]]:
    """Return the pictures [N, *shape] and what became of each; only what the cache does not hold is read."""
    shape = (len(pictures), *data.shape)
    inputs: Pixels = np.zeros(shape, np.uint8) if data.bits == 8 else np.zeros(shape, np.uint16)
    kept = (cache.load() if cache else None) or Kept((), inputs[:0])
    records = [Record(picture.path[len(root) + 1 :], _stamp(picture) if cache else "", None) for picture in pictures]
    sources = _unchanged(kept.records, records)
    new = [row for row, source in enumerate(sources) if source is None]
    for row, error in _read_into(inputs, pictures, new, data, progress).items():
        stamp = "" if isinstance(error, UnreadableNowError) else records[row].stamp
        records[row] = Record(records[row].name, stamp, str(error))
    records = [
        record if source is None else kept.records[source] for record, source in zip(records, sources, strict=True)
    ]
    if records == list(kept.records):
        return kept.inputs, records
    for row, source in enumerate(sources):
        if source is not None:
            inputs[row] = kept.inputs[source]
    return (cache.store(records, inputs) if cache else inputs), records


def _unchanged(kept: Sequence[Record], found: Sequence[Record]) -> list[int | None]:
    """Return for each file that is found the row that it is kept in; None if it is new or has changed."""
    rows = {record.name: row for row, record in enumerate(kept)}
    candidates = [rows.get(record.name) for record in found]
    return [
        row if row is not None and kept[row].stamp == record.stamp else None
        for row, record in zip(candidates, found, strict=True)
    ]


def _stamp(picture: Picture) -> str:
    """Return size and time of change of a picture and of what lies beside it, by which a change is noticed."""
    return " ".join(_size_and_time(path) for path in (picture.path, *picture.beside))


def _size_and_time(path: str) -> str:
    try:
        found = os.stat(path)  # noqa: PTH116 - for thousands, pathlib is slow
    except OSError:
        return "absent"
    return f"{found.st_size}:{found.st_mtime_ns}"


def _read_into(
    inputs: Pixels, pictures: Sequence[Picture], rows: Sequence[int], data: DataSettings, progress: Progress
) -> dict[int, UnreadableImageError]:
    """Read some of the pictures into their rows of inputs [N, *shape]; return why others could not be read, by row."""
    failures: dict[int, UnreadableImageError] = {}

    def read(batch: Sequence[int]) -> int:
        for row in batch:
            try:
                inputs[row] = _read(pictures[row], data)
            except UnreadableImageError as error:
                failures[row] = error.with_traceback(None)  # which would hold what was unpacked of the picture
        return len(batch)

    done = 0
    with ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1)) as pool:
        for count in pool.map(read, [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]):
            done += count
            progress(done, len(rows))
    return failures


def _read(picture: Picture, data: DataSettings) -> Pixels:
    for path in picture.beside:
        if path == picture.path:
            raise UnreadableImageError("data.beside names the picture itself, so it is a mask or template without one")
        if not os.path.exists(path):  # noqa: PTH110
            raise UnreadableImageError(f"lacks what data.beside names: there is no {path}")
    own = _read_file(picture.path, data.channels, data, invert=data.invert)
    return np.concatenate([own, *(_read_companion(path, data) for path in picture.beside)]) if picture.beside else own


def _read_companion(path: str, data: DataSettings) -> Pixels:
    try:
        return _read_file(path, 1, data, invert=False)
    except UnreadableImageError as error:
        raise type(error)(f"what data.beside names, {path}, is {error}") from error


def _read_file(path: str, channels: int, data: DataSettings, *, invert: bool) -> Pixels:
    file = Path(path)
    read = read_dicom if is_dicom(file) else read_image
    return read(file, channels, data.size, bits=data.bits, white=data.white, invert=invert)
