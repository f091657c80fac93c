"""Decoded pictures of one site's folder, kept for the next start.

    KEY.json            {"format": 1, "of": what they were read from and how, "array": name of the other file,
                         "names": [...], "stamps": [...], "reasons": [why it was skipped, or null, ...]}
    KEY.RANDOM.npy      uint8 or uint16 [N, C, H, W]: row i is the picture of file i, zeros if it was skipped

KEY stands for the folder and the settings. The array gets a new name each time, because one that is memory-mapped
cannot be replaced everywhere; the rename of the JSON file is what makes it count. Both hold private pictures or
names and are for their owner only. Whatever does not fit is ignored and written anew. That the pixels themselves
are undamaged is not checked: that would cost as much as what the cache saves.
"""

import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import PIL
from numpy.lib.format import open_memmap

from client.data.indexed import Pixels
from common.settings import DataSettings

log = logging.getLogger("fedreptile.data")

FORMAT = 1
SETTINGS = ("channels", "size", "bits", "white", "invert", "beside")
"""What of DataSettings changes the pixels."""
ABANDONED = 3600.0
"""Seconds after which a file that no start has finished counts as left behind."""


@dataclass(frozen=True)
class Record:
    """What became of one file."""

    name: str
    """Its path from the site's folder."""
    stamp: str
    """By which a change is noticed; empty if the file is to be read again in any case."""
    reason: str | None
    """Why it was skipped."""


@dataclass(frozen=True)
class Kept:
    """What the cache holds: the files, and their pictures [len(records), *shape], memory-mapped."""

    records: tuple[Record, ...]
    inputs: Pixels


class PictureCache:
    """The entry of one folder, read with some settings, in a cache folder."""

    def __init__(self, folder: Path, site: Path, data: DataSettings) -> None:
        self._folder = folder.absolute()
        settings = {name: value for name, value in asdict(data).items() if name in SETTINGS}
        self._of = {"folder": os.path.abspath(site), "settings": settings, "pillow": PIL.__version__}  # noqa: PTH100
        named = json.dumps([self._of["folder"], settings], sort_keys=True)
        self._key = hashlib.sha256(named.encode("utf-8", "surrogatepass")).hexdigest()[:32]
        self._shape = data.shape
        self._dtype = np.dtype(np.uint8 if data.bits == 8 else np.uint16)

    def load(self) -> Kept | None:
        """Return what is kept; None if that is nothing, is damaged, or is of other settings or another version."""
        try:
            index = json.loads(self._index.read_text(encoding="utf-8"))
            if index["format"] != FORMAT or index["of"] != self._of:
                return None
            records = _records(index)
            inputs = open_memmap(self._array(index), mode="r")
            self._check(inputs, len(records))
        except FileNotFoundError:
            return None
        except (ArithmeticError, LookupError, OSError, RecursionError, TypeError, ValueError) as error:
            log.warning("the cache of pictures %s is damaged and will be made anew: %s", self._index, error)
            return None
        return Kept(records, inputs)

    def store(self, records: Sequence[Record], inputs: Pixels) -> Pixels:
        """Keep pictures [len(records), *shape] instead of what was kept; return them, memory-mapped if that worked.

        That they cannot be kept is logged and changes nothing else.
        """
        written: list[Path] = []
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            array = self._write(".npy", lambda file: np.save(file, inputs, allow_pickle=False), written)
            columns = {f"{key}s": [getattr(record, key) for record in records] for key in ("name", "stamp", "reason")}
            content = json.dumps({"format": FORMAT, "of": self._of, "array": array.name, **columns}).encode()
            scratch = self._write(".part", lambda file: file.write(content), written)
            before = self._named()
            scratch.replace(self._index)
            mapped: Pixels = open_memmap(array, mode="r")
        except (OSError, ValueError) as error:
            log.warning(
                "decoded pictures cannot be kept in %s, so the next start reads them again: %s", self._folder, error
            )
            for path in written:
                _remove(path)
            return inputs
        self._clean(before, array)
        return mapped

    @property
    def _index(self) -> Path:
        return self._folder / f"{self._key}.json"

    def _array(self, index: Any) -> Path:
        name = index["array"]
        if not isinstance(name, str) or Path(name).name != name or not name.startswith(f"{self._key}."):
            raise ValueError("it names an array that is not its own")
        if not name.endswith(".npy"):
            raise ValueError("what it names is no array")
        return self._folder / name

    def _named(self) -> Path | None:
        """Return the array that the entry on disk names."""
        with suppress(LookupError, OSError, RecursionError, TypeError, ValueError):
            return self._array(json.loads(self._index.read_text(encoding="utf-8")))
        return None

    def _check(self, inputs: Pixels, count: int) -> None:
        if inputs.dtype != self._dtype or inputs.shape != (count, *self._shape):
            raise ValueError(
                f"its array is {inputs.dtype} {list(inputs.shape)}; expected {self._dtype} {[count, *self._shape]}"
            )

    def _write(self, suffix: str, write: Callable[[IO[bytes]], Any], written: list[Path]) -> Path:
        """Write a new file that only its owner may read, to the disk; note its path before anything can go wrong."""
        handle, name = tempfile.mkstemp(suffix, f"{self._key}.", self._folder)
        written.append(Path(name))
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        return written[-1]

    def _clean(self, before: Path | None, now: Path) -> None:
        """Remove the array that was kept before, and files that a start which ended halfway has left behind.

        Younger files may be another process's, which is about to name them.
        """
        if before is not None and before != now:
            _remove(before)
        for path in self._folder.glob(f"{self._key}.*"):
            with suppress(OSError):
                if path not in (now, self._index) and time.time() - path.stat().st_mtime > ABANDONED:
                    path.unlink()


def _records(index: Any) -> tuple[Record, ...]:
    found = tuple(Record(*row) for row in zip(index["names"], index["stamps"], index["reasons"], strict=True))
    if not all(
        isinstance(r.name, str) and isinstance(r.stamp, str) and isinstance(r.reason, str | None) for r in found
    ):
        raise ValueError("its list of files is not one")
    return found


def _remove(path: Path) -> None:
    """Remove a file where that is allowed: Windows keeps one that is still mapped."""
    with suppress(OSError):
        path.unlink()
