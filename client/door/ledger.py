"""The ledger: one entry for everything that leaves a site, written and flushed to disk before it leaves.

Files ``ledger-000001.jsonl``, ``ledger-000002.jsonl``, … of one JSON line an entry. Each entry holds the hash of the
one before, over all files, so that no byte can be changed, and no entry taken out or put in, without being found
(``verify``). Torch-free, since the relay follows it too (``LedgerIndex``).
"""

import hashlib
import json
import logging
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Self

from common.deployment.lock import hold
from common.errors import DeployError, LedgerError

log = logging.getLogger("fedreptile.ledger")

FILE_BYTES = 16 << 20
"""Size from which a new file is begun."""
NAME = re.compile(r"ledger-([0-9]{6,9})\.jsonl")
LONGEST_LINE = 4 << 20
RESERVE = 1 << 20
"""Bytes beyond the limit that are left for entries about errors, so that the operator hears that it is full."""
FIRST = "0" * 64
"""What stands for the hash of the entry before the first."""

LEFT, REFUSED, AGAIN, REPAIRED = "left", "refused", "again", "repaired"
"""Events: content or an error left; the policy refused, of which only the clause left; an answer that had left before
was handed out once more; a line that was cut short by a crash was removed."""

Clock = Callable[[], datetime]


def now() -> datetime:
    """Return the time, with time zone."""
    return datetime.now(UTC)


@dataclass(frozen=True)
class Record:
    """What an entry says about one thing that leaves."""

    event: str
    run: str = ""
    """Identity of the run; empty where nothing is signed, as in a plain SuperNode."""
    round: int = 0
    kind: str = ""
    """Flower's type of the message that is answered."""
    content: str = ""
    """'Update', 'Judged', 'ClassTable', 'Introduction' or 'Error'."""
    arrays: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Name of each array -> its shape."""
    scalars: Sequence[str] = ()
    classes: Sequence[str] = ()
    """Names of classes."""
    reason: str = ""
    """Errors and refusals: the whole text that leaves. Repairs: what was repaired."""
    bytes: int = 0
    """Of the content as Flower sends it."""
    sha256: str = ""
    """Of the content without its seal (``common.trust.seals.digest_of``); of an error's reason in UTF-8."""
    clauses: Sequence[str] = ()
    """The clauses of the policy that allowed it, or the one that refused."""
    policy: str = ""
    """Digest of the policy."""
    base: str = ""
    """Digest of the request's content."""


@dataclass(frozen=True)
class Entry(Record):
    """A record in its place in the chain."""

    number: int = 0
    time: str = ""
    """ISO 8601, UTC."""
    previous: str = FIRST
    """``hash`` of the entry before."""
    stamp: str = ""
    """SHA-256 of all of the above; the seal of the answer names it."""
    objects: Sequence[str] = ()
    """Flower's ids of all objects that the answer consists of, its seal included."""
    hash: str = ""
    """SHA-256 of all of the above."""

    @property
    def day(self) -> str:
        """The day, UTC, as YYYY-MM-DD."""
        return self.time[:10]


@dataclass(frozen=True)
class Broken:
    """Where a ledger is damaged."""

    file: Path
    line: int
    why: str

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}: {self.why}"


@dataclass(frozen=True)
class Verified:
    """What ``verify`` found."""

    entries: int
    files: int
    first: int
    """Number of the first entry; above 1 where older files were moved away."""
    last: str
    """Hash of the last entry that is good."""
    broken: Broken | None


class Ledger:
    """The one writer of a ledger. A context manager; ``close`` frees the ledger for another process."""

    def __init__(self, folder: Path, most_bytes: int = 1_000_000_000, clock: Clock = now, patience: float = 5.0):
        """Open or begin a ledger.

        Args:
            most_bytes: what all of its files together may take.
            patience: seconds to wait for another process that has it open.

        Raises:
            LedgerError: if another process keeps it open, it cannot be written, or what is checked of it (the newest
                files) is damaged; a last line that a crash cut short is removed and a 'repaired' entry says so.
        """
        self.folder, self.most_bytes, self.clock = folder, most_bytes, clock
        self._writing = threading.Lock()
        self._file, self._size, self._total = _file(folder, 1), 0, 0
        self._number, self._last, self._bytes = 0, FIRST, Counter[str]()
        try:
            folder.mkdir(mode=0o750, parents=True, exist_ok=True)
            self._held = _held(folder / ".lock", patience)
            try:
                self._resume()
            except BaseException:
                self._held.close()
                raise
        except _BrokenLineError as error:
            raise error.as_error() from error
        except OSError as error:
            raise LedgerError(f"ledger {folder} cannot be opened: {error.strerror or error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._held.close()

    def bytes_on(self, day: str) -> int:
        """Return the bytes that left on a day (UTC, YYYY-MM-DD) that is today, yesterday or later."""
        return self._bytes[day]

    def append(self, record: Record, objects: Callable[[str], Sequence[str]] = lambda _: ()) -> Entry:
        """Write an entry and flush it to disk.

        Args:
            objects: takes the entry's stamp and returns the ids of the objects that the answer consists of, which may
                depend on the stamp, as the answer's seal does.

        Raises:
            LedgerError: if the ledger is full or cannot be written. It is then as it was before.
        """
        with self._writing:
            return self._append(record, objects)

    def _append(self, record: Record, objects: Callable[[str], Sequence[str]]) -> Entry:
        place = {
            "number": self._number + 1,
            "time": self.clock().astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "previous": self._last,
        }
        body = {**asdict(record), **place}
        body["stamp"] = _sha256(_canonical(body))
        body["objects"] = list(objects(body["stamp"]))
        body["hash"] = _sha256(_canonical(body))
        line = _canonical(body) + b"\n"
        room = self.most_bytes + (RESERVE if record.content in ("", "Error") else 0)
        if self._total + len(line) > room:
            with suppress(OSError):  # older files may have been moved away
                self._total = _bytes_of(_files(self.folder))
        if self._total + len(line) > room or len(line) > LONGEST_LINE:
            raise LedgerError(
                f"ledger {self.folder} is full: {self._total} of {self.most_bytes} bytes; move its older files away "
                "(all but the newest two) or raise ledger-megabytes in site.toml"
            )
        try:
            self._write(line)
        except OSError as error:
            raise LedgerError(f"ledger {self._file} cannot be written: {error.strerror or error}") from error
        self._number, self._last = body["number"], body["hash"]
        self._total += len(line)
        entry = Entry(**body)
        self._bytes[entry.day] += entry.bytes
        return entry

    def _write(self, line: bytes) -> None:
        """Append a line, whole or not at all."""
        if self._size >= FILE_BYTES:
            self._file, self._size = _file(self.folder, _number_of(self._file) + 1), 0
        new = not self._size
        with open(self._file, "ab", buffering=0, opener=_private) as file:
            try:
                if file.write(line) != len(line):
                    raise OSError("the disk is full")
                os.fsync(file.fileno())
            except OSError:
                with suppress(OSError):
                    file.truncate(self._size)
                raise
        if new:
            _flush_folder(self.folder)
        self._size += len(line)

    def _resume(self) -> None:
        """Check the newest files and take up the chain where it ends."""
        files = _files(self.folder)
        if not files:
            return
        self._file = files[-1]
        cut = _cut_torn_line(self._file)
        self._total = _bytes_of(files)
        self._size = self._file.stat().st_size
        for entry in _checked(self._recent(files)):
            self._number, self._last = entry.number, entry.hash
            self._bytes[entry.day] += entry.bytes
        if cut:
            log.warning("ledger %s: a line of %d bytes that a crash cut short was removed", self._file, cut)
            self._append(Record(REPAIRED, reason=f"{cut} bytes of an unfinished line were removed"), lambda _: ())

    def _recent(self, files: list[Path]) -> list[Path]:
        """Return the newest files, so many that all of yesterday and today are in them, and at least two."""
        since = _day_before(self.clock())
        for index in range(len(files) - 2, 0, -1):
            first = next(_lines(files[index]), b"")
            if _day_of(first) < since:
                return files[index:]
        return files


class LedgerIndex:
    """Which objects and errors a ledger holds, for another process, which follows it as it grows.

    Of the newest two files only: what left longer ago is not sent any more.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read: dict[Path, int] = {}
        self._objects: dict[Path, set[bytes]] = {}
        self._errors: dict[Path, set[str]] = {}
        self._reading = threading.Lock()

    def has_object(self, object_id: str) -> bool:
        """Return whether the ledger holds an object of Flower's; looks at the disk again before it says no."""
        try:
            wanted = bytes.fromhex(object_id)
        except ValueError:
            return False
        return self._holds(lambda: any(wanted in found for found in self._objects.values()))

    def has_error(self, sha256: str) -> bool:
        """Return whether the ledger holds an error whose reason has this SHA-256 (hexadecimal, of its UTF-8), or the
        reason is a constant that is told where no entry can be made."""
        return sha256 in WITHOUT_ENTRY or self._holds(lambda: any(sha256 in found for found in self._errors.values()))

    def _holds(self, there: Callable[[], bool]) -> bool:
        with self._reading:
            if there():
                return True
            self._follow()
            return there()

    def _follow(self) -> None:
        """Raises LedgerError if the ledger is there and cannot be read."""
        try:
            newest = _files(self.folder)[-2:] if self.folder.exists() else []
            for gone in self._read.keys() - set(newest):
                del self._read[gone], self._objects[gone], self._errors[gone]
            for file in newest:
                self._read_on(file)
        except OSError as error:
            raise LedgerError(f"ledger {self.folder} cannot be read: {error.strerror or error}") from error

    def _read_on(self, file: Path) -> None:
        start = self._read.setdefault(file, 0)
        objects, errors = self._objects.setdefault(file, set()), self._errors.setdefault(file, set())
        with file.open("rb") as opened:
            opened.seek(start)
            for line in opened:
                if not line.endswith(b"\n"):
                    break
                start += len(line)
                self._read[file] = start
                with suppress(ValueError, TypeError, KeyError):
                    values = json.loads(line)
                    objects.update(bytes.fromhex(item) for item in values["objects"])
                    if values["content"] == "Error":
                        errors.add(values["sha256"])


WITHOUT_ENTRY = frozenset(
    hashlib.sha256(error.told().encode()).hexdigest() for error in (LedgerError(""), DeployError(""))
)
"""SHA-256 of the constants that may be told to the server without an entry: that none can be made, and that the
process that makes them does not answer."""


def entries(folder: Path) -> Iterator[Entry]:
    """Read a ledger from its start, checking each entry.

    Raises:
        LedgerError: at the first damaged line, with file and number; or if there is no ledger.
    """
    try:
        yield from _checked(_existing(folder))
    except _BrokenLineError as error:
        raise error.as_error() from error
    except OSError as error:
        raise LedgerError(f"ledger {folder} cannot be read: {error.strerror or error}") from error


def verify(folder: Path) -> Verified:
    """Check every line of a ledger and that each follows from the one before.

    Entries taken off the end leave a good chain: compare ``last`` with what was noted before, or the entry that an
    answer's seal names.

    Raises:
        LedgerError: if there is no ledger or it cannot be read.
    """
    files, count, first, last, broken = _existing(folder), 0, 0, FIRST, None
    try:
        for entry in _checked(files):
            first = first or entry.number
            count, last = count + 1, entry.hash
    except _BrokenLineError as error:
        broken = error.broken
    except OSError as error:
        raise LedgerError(f"ledger {folder} cannot be read: {error.strerror or error}") from error
    return Verified(count, len(files), first, last, broken)


def witnessed(folder: Path, journal: Path, site: str) -> int:
    """Compare a ledger with the server's journal of a run, which names the stamp of each update that was used.

    Returns:
        how many stamps of the site's entries the journal names; all are in the ledger.

    Raises:
        LedgerError: if one is not, naming the first round, or one of the two cannot be read.
    """
    named, number = dict[str, int](), 0
    try:
        with journal.open("rb") as lines:
            for line in lines:
                number += 1
                if line.endswith(b"\n"):  # else it is still being written
                    values = json.loads(line)
                    named |= {str(stamp): values["round"] for name, stamp in values["ledgers"].items() if name == site}
    except OSError as error:
        raise LedgerError(f"journal {journal} cannot be read: {error.strerror or error}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise LedgerError(f"journal {journal}, line {number}, is none of a server's: {error}") from error
    missing = dict(named)
    for entry in entries(folder):
        missing.pop(entry.stamp, None)
    for stamp, round_number in missing.items():
        raise LedgerError(
            f"the ledger has no entry with the stamp that the server has for round {round_number}, {stamp}, nor for "
            f"{len(missing) - 1} more of {len(named)}; put files that were moved away beside it (--folder), else "
            "entries were cut off"
        )
    return len(named)


class _BrokenLineError(Exception):
    def __init__(self, broken: Broken) -> None:
        super().__init__(str(broken))
        self.broken = broken

    def as_error(self) -> LedgerError:
        return LedgerError(
            f"the ledger is damaged: {self.broken}; keep its folder as evidence, find out what changed it, and begin a "
            "new ledger by moving the folder away"
        )


def _checked(files: Sequence[Path]) -> Iterator[Entry]:
    """Read files that follow each other. Raises _BrokenLineError."""
    before: Entry | None = None
    for place, file in enumerate(files):
        if place and _number_of(file) != _number_of(files[place - 1]) + 1:
            raise _BrokenLineError(
                Broken(file, 1, f"the file before it, {files[place - 1].name}, does not come before it")
            )
        number = 0
        for number, line in enumerate(_lines(file), 1):
            try:
                entry = _entry(line)
                _follows(entry, before, _number_of(file))
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                raise _BrokenLineError(Broken(file, number, str(error))) from error
            before = entry
            yield entry
        if not number and place < len(files) - 1:
            raise _BrokenLineError(Broken(file, 1, "it is empty"))


def _entry(line: bytes) -> Entry:
    """Raises ValueError, TypeError or KeyError for a line that is not exactly as it was written."""
    if not line.endswith(b"\n"):
        raise ValueError("the line is not complete")
    values = json.loads(line)
    if not isinstance(values, dict) or _canonical(values) + b"\n" != line:
        raise ValueError("it is not written as the ledger writes")
    stated, objects, stamp = values.pop("hash"), values.get("objects"), values.get("stamp")
    if _sha256(_canonical(values)) != stated:
        raise ValueError("its hash is not that of what it says")
    del values["objects"], values["stamp"]
    if _sha256(_canonical(values)) != stamp:
        raise ValueError("its stamp is not that of what it says")
    return Entry(**values, stamp=stamp, objects=objects, hash=stated)  # type: ignore[arg-type]


def _follows(entry: Entry, before: Entry | None, file: int) -> None:
    """Raises ValueError if an entry does not follow from the one before, or from nothing where it is the first."""
    if before is None:
        if (entry.number == 1) != (entry.previous == FIRST) or (file == 1 and entry.number != 1):
            raise ValueError("it is not the first entry of the ledger")
    elif entry.number != before.number + 1:
        raise ValueError(f"it is entry {entry.number}; expected {before.number + 1}")
    elif entry.previous != before.hash:
        raise ValueError("it does not follow from the entry before")


def _lines(file: Path) -> Iterator[bytes]:
    with file.open("rb") as opened:
        while line := opened.readline(LONGEST_LINE + 1):
            yield line


def _existing(folder: Path) -> list[Path]:
    files = _files(folder) if folder.is_dir() else []
    if not files:
        raise LedgerError(f"there is no ledger in {folder}; give the folder with {_file(folder, 1).name}")
    return files


def _files(folder: Path) -> list[Path]:
    return sorted((path for path in folder.iterdir() if NAME.fullmatch(path.name)), key=_number_of)


def _bytes_of(files: Sequence[Path]) -> int:
    return sum(file.stat().st_size for file in files)


def _file(folder: Path, number: int) -> Path:
    return folder / f"ledger-{number:06}.jsonl"


def _number_of(file: Path) -> int:
    match = NAME.fullmatch(file.name)
    return int(match[1]) if match else 0


def _cut_torn_line(file: Path) -> int:
    """Cut off what follows the last line end; return the bytes cut."""
    with file.open("r+b") as opened:
        size = opened.seek(0, os.SEEK_END)
        start = max(0, size - LONGEST_LINE - 1)
        opened.seek(start)
        tail = opened.read()
        end = start + tail.rfind(b"\n") + 1
        if end == size:
            return 0
        if end == start > 0:
            raise _BrokenLineError(Broken(file, 0, f"its last line is longer than {LONGEST_LINE} bytes"))
        opened.truncate(end)
        os.fsync(opened.fileno())
        return size - end


def _held(path: Path, patience: float) -> IO[bytes]:
    """Return a lock file that this process holds until it is closed. Raises LedgerError after some seconds."""
    file = hold(path, patience)
    if file is None:
        raise LedgerError(
            f"ledger {path.parent} is in use by another process; only one may write it: stop the other one "
            "('fedreptile-site down')"
        )
    return file


def _private(name: str, flags: int) -> int:
    return os.open(name, flags, 0o640)


def _flush_folder(folder: Path) -> None:
    with suppress(OSError):  # Windows opens no folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _day_of(line: bytes) -> str:
    try:
        return str(json.loads(line)["time"])[:10]
    except (ValueError, TypeError, KeyError):
        return ""


def _day_before(moment: datetime) -> str:
    return datetime.fromtimestamp(moment.timestamp() - 86400, UTC).date().isoformat()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
