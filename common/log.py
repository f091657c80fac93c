"""Our log in the processes that Flower starts, which set up Flower's own log only."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import RotatingFileHandler
from pathlib import Path

log = logging.getLogger("fedreptile")


def show_log() -> None:
    """Write our own log from INFO up to the output of the process, unless the process has its log set up.

    Ours alone: the root logger has httpx's too, and as Flower sends each line of a ServerApp's output
    to the SuperLink by httpx, each line would make another.
    """
    if not log.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)


@contextmanager
def log_into(path: Path, most_bytes: int = 10 << 20) -> Iterator[None]:
    """Write our own log to a file too, which with one older file takes at most a number of bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = RotatingFileHandler(path, maxBytes=most_bytes // 2, backupCount=1, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()
