"""Labelling: a picture is copied into the site's data, into the folder of its class, under a name from its content."""

import hashlib
import io
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from client.data.dicom import SUFFIX as DICOM
from client.data.dicom import is_dicom
from client.data.folder import entries, read_picture
from client.data.images import FORMATS
from client.data.sites import is_one_site, is_packed
from common.errors import SiteDataError, WritingError
from common.paths import write_atomically
from common.settings import DataSettings, nearest
from common.trust.names import RESERVED

MOST_BYTES = 256 << 20
"""No picture's file is larger."""
LONGEST = 64
"""Characters of a class's name."""
UNSAFE = frozenset('/\\:*?"<>|')
"""Not in names of files on some system or other."""
SUFFIXES = {"JPEG": ".jpg", "TIFF": ".tif"}


@dataclass(frozen=True)
class Labelled:
    """A picture that was given a class."""

    picture: Path
    """Where it came from."""
    name: str
    path: Path
    """Where it lies in the site's data."""
    added: bool
    """False: it was labelled so already."""


@dataclass(frozen=True)
class _Checked:
    picture: Path
    digest: str
    suffix: str


def label(site: Path, pictures: Sequence[Path], name: str, data: DataSettings, *, new: bool = False) -> list[Labelled]:
    """Give pictures a class. All are looked at before the first is copied; each is copied whole or not at all.

    Args:
        site: the site's folder of class folders.
        new: the class may be one that the site does not have yet.

    Raises:
        SiteDataError: if the site's data are no folder of pictures, the class is unknown or its name not safe, a file
            is no picture or too large a one, or it is labelled otherwise already; then nothing is changed.
        WritingError: if a copy cannot be written.
    """
    known = classes_of(site, data)
    _check_class(name, known, new)
    labelled = _Labels(site)
    checked = [_checked(picture, data) for picture in dict.fromkeys(pictures)]
    found = {one.digest: where for one in checked if (where := labelled.find(one))}
    for one in checked:
        if one.digest in found and found[one.digest].parent.name != name:
            raise SiteDataError(
                f"{one.picture} is labelled {found[one.digest].parent.name!r} already ({found[one.digest]}); take that "
                "back with 'fedreptile-site label --remove', or move the file by hand"
            )
    done: list[Labelled] = []
    for one in checked:
        there = found.get(one.digest)
        path = there or _copied(one, site / name)
        found[one.digest] = path
        done.append(Labelled(one.picture, name, path, added=there is None))
    return done


def unlabel(site: Path, pictures: Sequence[Path], data: DataSettings) -> list[Labelled]:
    """Take labels back: remove from the site's data the copies that ``label`` put there.

    Args:
        pictures: the pictures as they were labelled, or their copies.

    Raises:
        SiteDataError: if one is not labelled, or lies there under a name that ``label`` did not give it, so that it may
            be the only copy; then nothing is changed.
        WritingError: if a copy cannot be removed.
    """
    classes_of(site, data)
    labelled = _Labels(site)
    done: list[Labelled] = []
    for picture in dict.fromkeys(pictures):
        one = _checked(picture, data)
        path = labelled.find(one)
        if path is None:
            raise SiteDataError(f"{picture} is not labelled; nothing in {site} has its content")
        if path.name != one.digest[:32] + one.suffix:
            raise SiteDataError(
                f"{path} was not put there by 'fedreptile-site label' and may be the only copy; move it by hand"
            )
        done.append(Labelled(picture, path.parent.name, path, added=False))
    for found in done:
        _remove(found.path)
    return done


def classes_of(site: Path, data: DataSettings) -> list[str]:
    """Return the class folders of a site whose pictures can be labelled.

    Raises:
        SiteDataError: if its data are a table, arrays or a set of sites, or pictures need others beside them.
    """
    if data.kind != "image" or not site.is_dir() or is_packed(site) or not is_one_site(site):
        raise SiteDataError(
            f"{site} is no folder of class folders with pictures, so that nothing can be labelled into it; add rows to "
            "a table or arrays where they are made"
        )
    if data.beside:
        raise SiteDataError(
            f"a picture of this site needs what data.beside names ({data.beside}), so that it cannot be labelled by "
            "itself; put it into its class folder by hand, with what lies beside it"
        )
    return [path.name for path in entries(site) if path.is_dir()]


def _check_class(name: str, known: Sequence[str], new: bool) -> None:
    if name in known:
        return
    if not new:
        hint = f"; the nearest is {nearest(name, known)!r}" if known else ""
        raise SiteDataError(f"the site has no class {name[:LONGEST]!r}{hint}; use that, or add --new for a new class")
    safe = name.isprintable() and not set(name) & UNSAFE and name == name.strip() and name.strip(".") == name
    if not safe or not 1 <= len(name) <= LONGEST or name.partition(".")[0].lower() in RESERVED:
        raise SiteDataError(
            f"{name[:LONGEST]!r} cannot be the name of a class; take 1 to {LONGEST} characters without "
            f"{' '.join(sorted(UNSAFE))}, with no dot or space at either end, and no device of Windows such as 'con'"
        )
    if same := [one for one in known if one.casefold() == name.casefold()]:
        raise SiteDataError(f"class {name!r} is {same[0]!r} in other letters; use that name, or a different one")


def _checked(picture: Path, data: DataSettings) -> _Checked:
    """Look at a picture's file as a run would. Raises SiteDataError if it cannot be used."""
    content = _read(picture)
    read_picture(picture, data)
    if is_dicom(picture):
        suffix = DICOM
    else:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            suffix = SUFFIXES.get(str(image.format), f".{str(image.format).lower()}")
    return _Checked(picture, hashlib.sha256(content).hexdigest(), suffix)


def _read(picture: Path) -> bytes:
    try:
        with picture.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise SiteDataError(f"{picture} cannot be read: {error.strerror or error}") from error
    if len(content) > MOST_BYTES:
        raise SiteDataError(f"{picture} has more than {MOST_BYTES >> 20} MiB; a picture's file has less")
    return content


class _Labels:
    """The files of a site's classes, by size; their content is read where a size is the same."""

    def __init__(self, site: Path) -> None:
        self._sizes: dict[int, list[Path]] = {}
        for path in _files(site):
            self._sizes.setdefault(path.stat().st_size, []).append(path)

    def find(self, one: _Checked) -> Path | None:
        """Return the file that has the same content; None if there is none."""
        candidates = self._sizes.get(one.picture.stat().st_size, [])
        return next((path for path in candidates if hashlib.sha256(_read(path)).hexdigest() == one.digest), None)


def _files(site: Path) -> Iterator[Path]:
    for folder in entries(site):
        if folder.is_dir():
            yield from (path for path in entries(folder) if path.is_file())


def _copied(one: _Checked, folder: Path) -> Path:
    """Copy a picture. A new class's folder appears with its first picture in it: an empty one would be an error."""
    content = _read(one.picture)
    if hashlib.sha256(content).hexdigest() != one.digest:
        raise SiteDataError(f"{one.picture} has changed while it was read; label it again")
    name = one.digest[:32] + one.suffix
    if folder.is_dir():
        write_atomically(folder / name, content)
        return folder / name
    try:
        scratch = Path(tempfile.mkdtemp(prefix=".label.", dir=folder.parent))
        try:
            write_atomically(scratch / name, content)
            scratch.chmod(0o755)
            scratch.rename(folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise WritingError(f"{folder} cannot be written: {error.strerror or error}") from error
    return folder / name


def _remove(path: Path) -> None:
    """Remove a copy, and its class's folder with the last one."""
    try:
        if [one.name for one in path.parent.iterdir()] != [path.name]:
            path.unlink()
            return
        away = path.parent.with_name(f".label.{os.getpid()}")
        path.parent.rename(away)
        shutil.rmtree(away)
    except OSError as error:
        raise WritingError(f"{path} cannot be removed: {error.strerror or error}") from error
