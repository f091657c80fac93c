"""A file that one process holds at a time; the system lets go of it when the process ends, however that is."""

import os
import time
from pathlib import Path
from typing import IO

if os.name == "nt":
    import msvcrt

    def _lock(file: IO[bytes]) -> None:
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]

else:
    import fcntl

    def _lock(file: IO[bytes]) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def hold(path: Path, patience: float = 0.0) -> IO[bytes] | None:
    """Return the file, locked until it is closed, or None if another process still holds it after some seconds.

    Raises:
        OSError: if the file cannot be made.
    """
    deadline = time.monotonic() + patience
    path.parent.mkdir(parents=True, exist_ok=True)
    # Nobody else may read it, since who can read a file can lock it.
    file = os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab")
    while True:
        try:
            _lock(file)
            return file
        except OSError:
            if time.monotonic() >= deadline:
                file.close()
                return None
            time.sleep(0.05)
