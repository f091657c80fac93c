"""Files of releases, from the repository's two folders to enrolled sites."""

import os
import stat
from pathlib import Path
from typing import BinaryIO

from common.deployment.forward import RELEASES

PART = 64 << 10
"""Bytes that are sent at a time, of which each download holds about two."""


def opened(repository: Path, path: str) -> tuple[BinaryIO, int] | None:
    """Open what a request asks for; None if there is no such plain file, or a link in its place.

    Args:
        path: as ``route_of`` lets it pass, so that it leads nowhere else.

    Returns:
        the file and its size in bytes.
    """
    file = repository / path.removeprefix(RELEASES)
    if file.parent.is_symlink() or file.is_symlink():
        return None
    try:
        number = os.open(file, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return None
    about = os.fstat(number)
    if not stat.S_ISREG(about.st_mode):
        os.close(number)
        return None
    return os.fdopen(number, "rb"), about.st_size
