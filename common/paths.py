"""Where things are kept on this machine when no path is given, and how a file is written whole. Torch-free."""

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from common.errors import WritingError


def data_home() -> Path:
    """Return ``$FEDREPTILE_HOME``, or the platform's folder for a user's cached data."""
    if chosen := os.environ.get("FEDREPTILE_HOME"):
        return Path(chosen).expanduser().resolve()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "fedreptile"
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "fedreptile"


def default_sites() -> Path:
    """Return the training sites that ``fedreptile-sim data get`` left: Omniglot's if there, else the digits'."""
    omniglot, digits = (sites_home() / name / "train" for name in ("omniglot", "digits"))
    return digits if digits.exists() and not omniglot.exists() else omniglot


def sites_home() -> Path:
    """Return the folder of the federations that were made of data sets."""
    return data_home() / "sites"


def cache_folder(chosen: str) -> Path | None:
    """Return where decoded pictures are kept: the folder chosen, by default the data home's, for 'off' nowhere."""
    if chosen == "off":
        return None
    return Path(chosen) if chosen else data_home() / "cache"


def read_table(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file of our own; empty if the file is missing, damaged or holds something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_atomically(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Write a file so that at every moment either the old content or the new one is there.

    Args:
        mode: who may read it, before the process's umask; 0o600 keeps it to its owner (not on Windows).

    Raises:
        WritingError: if it cannot be written; nothing is left behind.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(scratch, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except OSError as error:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)
        raise WritingError(f"{path} cannot be written: {error.strerror or error}") from error
