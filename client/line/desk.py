"""What people at the line do with pictures on the page: give them, label them, take labels back."""

import hashlib
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from client.data.images import SUFFIXES, UnreadableImageError
from client.home import SiteHome
from client.line.label import classes_of, label, unlabel
from client.line.learn import settings_at
from client.line.watch import FRESH_NS, PLACED, Folder, Gallery, Seen, content_of, look_at, plain_file
from common.errors import SiteDataError, WritingError
from common.paths import write_atomically
from common.settings import DataSettings

MOST_DROPPED = 2000
"""Pictures that wait in the folder of those that people gave."""
MOST_DROPPED_BYTES = 2 << 30
ENDINGS = {b"\x89PN": ".png", b"\xff\xd8\xff": ".jpg", b"GIF": ".gif", b"RIF": ".webp", b"II*": ".tif", b"MM\0": ".tif"}
"""How a picture's file begins -> the ending of its name; of the rest Pillow finds out by itself."""


class Desk:
    """The site's classes, and the pictures on their way into them. For several threads."""

    def __init__(self, home: SiteHome, gallery: Gallery) -> None:
        self._home, self._gallery = home, gallery
        self.site = Path(os.path.abspath(home.config().data))  # noqa: PTH100 - without "..", but links stay
        self._dropped = Folder(home.dropped)
        self._labels = Labels(self.site)

    def classes(self) -> dict[str, int]:
        """Return class -> its pictures. Raises SiteDataError if nothing can be labelled into the site's data."""
        self._labels.read(classes_of(self.site, self._data()))
        return self._labels.counts()

    def look_again(self) -> None:
        """Look which pictures have been labelled since, also by others."""
        with suppress(OSError):
            self._labels.read(one.name for one in self.site.iterdir() if one.is_dir() and not one.name.startswith("."))

    def class_of(self, digest: str) -> str:
        """Return the class that a content was given; empty if none."""
        return self._labels.of(digest) or ""

    def dropped(self, count: int) -> list[Seen]:
        """Return the pictures that people gave last."""
        return self._dropped.newest(count)

    def drop(self, content: bytes) -> Seen:
        """Keep a picture that somebody gave, under a name from its content.

        Raises:
            UnreadableImageError: if it is no picture, or too large a one.
            SiteDataError: if too many are kept.
            WritingError: if it cannot be written.
        """
        if why := look_at(content).why:
            raise UnreadableImageError(why)
        path = self._home.dropped / (hashlib.sha256(content).hexdigest()[:32] + ENDINGS.get(content[:3], ".bmp"))
        self._home.dropped.mkdir(mode=0o700, exist_ok=True)
        waiting = self._dropped.newest(MOST_DROPPED)
        if len(waiting) >= MOST_DROPPED or sum(one.size for one in waiting) + len(content) > MOST_DROPPED_BYTES:
            raise SiteDataError(f"{len(waiting)} pictures wait already; put them away first")
        write_atomically(path, content, 0o600)
        seen = plain_file(path)
        if seen is None:
            raise SiteDataError("the picture went away as it was kept; give it once more")
        self._gallery.show([seen])
        return seen

    def clear(self) -> int:
        """Remove the pictures that people gave, but not what was labelled of them; return how many."""
        found = self._dropped.newest(MOST_DROPPED)
        try:
            for one in found:
                Path(one.path).unlink(missing_ok=True)
        except OSError as error:
            raise WritingError(f"{self._home.dropped} cannot be cleared: {error.strerror or error}") from error
        return len(found)

    def label(self, numbers: Sequence[str], name: str) -> int:
        """Give pictures a class, which may be new; return how many were not of it before.

        Raises:
            SiteDataError: if one is gone, has another label, or cannot be labelled; then nothing is changed.
            WritingError: if a copy cannot be written.
        """
        if not numbers:
            raise SiteDataError("no picture is picked; pick one or more, then say what they show")
        if not name:
            raise SiteDataError("the class has no name; write what the pictures show")
        self.classes()
        with self._copies(numbers) as copies:
            for path, seen in copies.items():
                other = self.class_of(hashlib.sha256(path.read_bytes()).hexdigest())
                if other and other != name:
                    raise SiteDataError(f"{seen.title} is {other!r} already; take that label back first")
            return sum(one.added for one in label(self.site, list(copies), name, self._data(), new=True))

    def unlabel(self, number: str) -> str:
        """Take a picture's label back; return the class that it had. Raises like ``label``."""
        with self._copies([number]) as copies:
            (done,) = unlabel(self.site, list(copies), self._data())
            return done.name

    def lately(self, count: int) -> list[tuple[str, Seen]]:
        """Return the pictures that were labelled last, each with its class."""
        found = [
            (name, seen) for name, path in self._labels.placed() if (seen := plain_file(path)) is not None
        ]  # fmt: skip
        return sorted(found, key=lambda one: one[1].mtime_ns, reverse=True)[:count]

    @contextmanager
    def _copies(self, numbers: Sequence[str]) -> Iterator[dict[Path, Seen]]:
        """Copy pictures that the page has named to where nobody can exchange them; errors name the pictures."""
        with tempfile.TemporaryDirectory(prefix="fedreptile-") as folder:
            copies: dict[Path, Seen] = {}
            for number in dict.fromkeys(numbers):
                seen = self._gallery.named(number)
                if seen is None:
                    raise SiteDataError("a picture is not there any more; look at the page anew")
                path = Path(folder) / f"{len(copies)}{os.path.splitext(seen.name)[1].lower()}"  # noqa: PTH122
                path.write_bytes(_content(seen))
                copies[path] = seen
            try:
                yield copies
            except SiteDataError as error:
                raise SiteDataError(about_originals(str(error), copies)) from error

    def _data(self) -> DataSettings:
        return settings_at(self._home).data


def about_originals(text: str, copies: Mapping[Path, Seen]) -> str:
    """Return what is said of copies, said of the pictures that people see."""
    for path, seen in copies.items():
        text = text.replace(str(path), seen.title)
    return text


def _content(seen: Seen) -> bytes:
    try:
        return content_of(seen)
    except SiteDataError as error:
        raise SiteDataError(f"{seen.title} cannot be labelled: {error}") from error


class Labels:
    """Which pictures a site has labelled, by what their files are named: folders are listed again when they change."""

    def __init__(self, site: Path) -> None:
        self._site = site
        self._kept: dict[str, tuple[int, Mapping[str, str]]] = {}

    def read(self, classes: Iterable[str]) -> None:
        """Look which of the classes have changed."""
        found: dict[str, tuple[int, Mapping[str, str]]] = {}
        for name in classes:
            with suppress(OSError):  # it went away
                changed, before = (self._site / name).stat().st_mtime_ns, self._kept.get(name)
                settled = time.time_ns() - changed > FRESH_NS
                listed = before[1] if before and before[0] == changed else self._in(name)
                found[name] = changed if settled else 0, listed
        self._kept = found

    def _in(self, name: str) -> dict[str, str]:
        with os.scandir(self._site / name) as opened:
            found = [one.name for one in opened if not one.name.startswith(".")]
        return {os.path.splitext(one)[0]: one for one in found if os.path.splitext(one)[1].lower() in SUFFIXES}  # noqa: PTH122

    def counts(self) -> dict[str, int]:
        """Return class -> its pictures."""
        return {name: len(found) for name, (_, found) in self._kept.items()}

    def placed(self) -> list[tuple[str, Path]]:
        """Return the pictures that the page or the command labelled, each after its class."""
        return [
            (name, self._site / name / file)
            for name, (_, found) in self._kept.items()
            for stem, file in found.items()
            if PLACED.fullmatch(stem)
        ]

    def of(self, digest: str) -> str | None:
        """Return the class that the page or the command gave to a content; None if neither did."""
        return next((name for name, (_, found) in self._kept.items() if digest[:32] in found), None) if digest else None
