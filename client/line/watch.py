"""Pictures that people see on the page: the newest of a folder, each looked at once and named by a number only.

A file is opened only if it is a plain one: links are passed over, wherever they lead. What is sent to a browser is
drawn anew and small, never a file itself.
"""

import hashlib
import heapq
import io
import os
import re
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from client.data.images import FORMATS, SUFFIXES, UnreadableImageError, read_image
from common.errors import SiteDataError

MOST_BYTES = 32 << 20
"""Of a picture's file."""
ENDINGS = SUFFIXES - {".dcm"}
"""Of files that are shown. DICOM files hold names of people beside the picture: those are not for a page."""
THUMB = 320
"""Pixels of the longer side of what is shown."""
FRESH_NS = 2_000_000_000
"""A folder that changed this short before it was listed may have changed once more within one tick of its clock."""
LISTING_SECONDS = 10.0
"""After which a folder is listed anew though its time says that nothing came or went: files may be written over."""

PLACED = re.compile(r"[0-9a-f]{32}")
"""What a picture is called whose name comes from its content."""
MANY, REST = 10_000, 5.0
"""Files from which on the next listing waits so many times as long as the last one took: no core is kept busy by it."""

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Recent(Generic[K, V]):
    """What was asked for last; the rest is forgotten. For several threads."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: OrderedDict[K, V] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: K) -> V | None:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def put(self, key: K, value: V) -> V:
        with self._lock:
            self._kept[key] = value
            self._kept.move_to_end(key)
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return value

    def __len__(self) -> int:
        return len(self._kept)


@dataclass(frozen=True)
class Seen:
    """A picture's file as it was when the folder was listed."""

    path: str
    size: int
    mtime_ns: int

    @property
    def name(self) -> str:
        return os.path.basename(self.path)  # noqa: PTH119 - for thousands, pathlib is slow

    @property
    def title(self) -> str:
        """What people see of its name: of a name that was made from content little."""
        stem, _, _ = self.name.rpartition(".")
        return f"picture {stem[:6]}" if PLACED.fullmatch(stem) else self.name

    @property
    def number(self) -> str:
        """What the page calls it. Another content, as time and size tell, has another number."""
        return hashlib.sha256(f"{self.path}\0{self.size}\0{self.mtime_ns}".encode(errors="replace")).hexdigest()[:32]


class Folder:
    """The pictures directly in a folder, which may be very many."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.path, self._clock = path, clock
        self._key: tuple[int, int] | None = None
        self._listed, self._rests, self._found = 0.0, 0.0, list[Seen]()

    def newest(self, count: int) -> list[Seen]:
        """Return the newest pictures, the newest first; none if the folder cannot be read.

        Files are asked about one by one only when the folder has changed, or was not listed for a while.
        """
        try:
            changed = self.path.stat().st_mtime_ns
        except OSError:
            return []
        settled, began = time.time_ns() - changed > FRESH_NS, self._clock()
        due = (changed, count) != self._key or began - self._listed > LISTING_SECONDS
        if due and began >= self._rests:
            self._found, total = _newest(self.path, count)
            self._listed = self._clock()
            self._rests = self._listed + REST * (self._listed - began) * (total >= MANY)
            self._key = (changed, count) if settled else None
        else:
            self._found = [now for one in self._found if (now := _now(one.path))]
        return self._found


def _newest(folder: Path, count: int) -> tuple[list[Seen], int]:
    """Return the newest pictures of a folder, and how many it has."""
    total = 0

    def found() -> Iterable[Seen]:
        nonlocal total
        with os.scandir(folder) as opened:
            for entry in opened:
                if entry.name.startswith(".") or os.path.splitext(entry.name)[1].lower() not in ENDINGS:  # noqa: PTH122
                    continue
                try:
                    status = entry.stat(follow_symlinks=False)
                except OSError:
                    continue  # it went away
                if stat.S_ISREG(status.st_mode):
                    total += 1
                    yield Seen(entry.path, status.st_size, status.st_mtime_ns)

    try:
        return heapq.nlargest(count, found(), key=lambda one: (one.mtime_ns, one.path)), total
    except OSError:
        return [], 0


def _now(path: str) -> Seen | None:
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return Seen(path, status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None


def plain_file(path: Path) -> Seen | None:
    """Return a file by its path; None if it is no plain one, or no picture by its name."""
    return _now(str(path)) if path.suffix.lower() in ENDINGS else None


def content_of(seen: Seen) -> bytes:
    """Return a file's content.

    Raises:
        SiteDataError: in few words, if it is gone, is no plain file any more, or is too large.
    """
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        with os.fdopen(os.open(seen.path, flags), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise SiteDataError("it is no plain file")
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise SiteDataError("it is gone, or may not be opened") from error
    if len(content) > MOST_BYTES:
        raise SiteDataError(f"its file has more than {MOST_BYTES >> 20} MiB")
    return content


@dataclass(frozen=True)
class Look:
    """What came of looking at a picture's file."""

    digest: str = ""
    """SHA-256 of its content, in hexadecimal."""
    thumb: bytes = b""
    """A small JPEG of it."""
    why: str = ""
    """Why it cannot be read; empty if it can."""


def look_at(content: bytes) -> Look:
    """Draw a picture small. What cannot be read is said in few words."""
    try:
        return Look(hashlib.sha256(content).hexdigest(), _thumb(content))
    except UnreadableImageError as error:
        return Look(why=why_unreadable(content, error))


def why_unreadable(content: bytes, error: UnreadableImageError) -> str:
    """Return in few words why a file is no picture."""
    cause = error.__cause__
    if not content:
        return "the file is empty, or still being written"
    if isinstance(cause, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return "it has far too many pixels"
    if isinstance(cause, UnidentifiedImageError):
        return "it is no picture"
    return "it is cut off or damaged, or still being written"


def _thumb(content: bytes) -> bytes:
    pixels = read_image(io.BytesIO(content), 3, THUMB)
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        wide, high = image.size
        if image.getexif().get(ExifTags.Base.Orientation, 1) >= 5:
            wide, high = high, wide
    longer = max(wide, high)
    size = max(1, round(THUMB * wide / longer)), max(1, round(THUMB * high / longer))
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).resize(size).save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


class Gallery:
    """The pictures that a page has named by number, and what they look like. For several threads."""

    def __init__(self, known: int = 4096, looks: int = 512) -> None:
        self._known: Recent[str, Seen] = Recent(known)
        self._looks: Recent[str, Look] = Recent(looks)

    def named(self, number: str) -> Seen | None:
        """Return the picture of a number that a page has shown; None for all others."""
        return self._known.get(number)

    def show(self, pictures: Sequence[Seen]) -> None:
        """Let a page name these pictures."""
        for one in pictures:
            self._known.put(one.number, one)

    def look(self, seen: Seen, content: bytes | None = None) -> Look:
        """Return what a picture looks like; its file is read once, as long as that is remembered."""
        if found := self._looks.get(seen.number):
            return found
        try:
            found = look_at(content_of(seen) if content is None else content)
        except SiteDataError as error:
            return Look(why=str(error))
        return self._looks.put(seen.number, found)
