"""Logs of processes in files of bounded size."""

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

KEPT = 4
"""Files of a log beside the present one: ``name.log.1`` is the newest of them."""


class BoundedLog:
    """A log in ``KEPT + 1`` files that together take at most a number of bytes. The newest lines are in ``path``."""

    def __init__(self, path: Path, most: int) -> None:
        self._path = path
        self._most = max(most // (KEPT + 1), 1)
        self._file = path.open("ab", buffering=0)
        self._size = path.stat().st_size

    def write(self, data: bytes) -> None:
        """Append; a disk that is full loses lines of the log and nothing else."""
        try:
            if self._size + len(data) > self._most and self._size:
                self._turn()
            self._file.write(data[-self._most :])
            self._size += len(data)
        except (OSError, ValueError):  # the latter: it could not be opened again
            with contextlib.suppress(OSError):
                self._file = self._path.open("ab", buffering=0)

    def close(self) -> None:
        self._file.close()

    def _turn(self) -> None:
        self._file.close()
        for number in range(KEPT, 0, -1):
            older = self._numbered(number - 1)
            if older.exists():
                older.replace(self._numbered(number))
        self._file = self._path.open("ab", buffering=0)
        self._size = 0

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}") if number else self._path


def copy_to_log(source: IO[bytes], path: Path, most: int) -> threading.Thread:
    """Copy what a process writes to its log, in a thread that ends with the process."""

    def copy() -> None:
        log = BoundedLog(path, most)
        with source:
            while data := source.read1(65536):  # type: ignore[attr-defined]
                log.write(data)
        log.close()

    thread = threading.Thread(target=copy, daemon=True, name=f"log-{path.stem}")
    thread.start()
    return thread


@contextlib.contextmanager
def own_output_in(path: str, most: int) -> Iterator[None]:
    """Have all that this process itself writes go to a log of at most a number of bytes; an empty path: as it is.

    What it writes afterwards, such as why it ends, goes to the newest file of that log.
    """
    if not path:
        yield
        return
    reader, writer = os.pipe()
    _put_output(writer)
    copying = copy_to_log(os.fdopen(reader, "rb"), Path(path), most)
    try:
        yield
    finally:
        _put_output(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600))
        copying.join(5.0)


def _put_output(descriptor: int) -> None:
    """Have standard output and error go to what a descriptor is open for; the descriptor itself is closed."""
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        stream.flush()
        os.dup2(descriptor, number)
    os.close(descriptor)
