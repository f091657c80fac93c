"""Disk that would otherwise grow for ever."""

import shutil
from pathlib import Path


def keep_newest(folder: Path, count: int) -> list[str]:
    """Delete all folders in a folder but the newest, by their time of change; return the names of those deleted."""
    if not folder.is_dir():
        return []
    found = sorted((path for path in folder.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime)
    old = found[: max(len(found) - count, 0)]
    for path in old:
        shutil.rmtree(path, ignore_errors=True)
    return [path.name for path in old]
