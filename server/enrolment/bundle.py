"""The app bundle (FAB) of the installed version, by whose hash sites decide what code may run."""

import hashlib
import tempfile
import warnings
from pathlib import Path

from flwr.cli.build import build_fab_from_disk

from server.launch import APP, stage_app


def fab_of_installation() -> tuple[bytes, str]:
    """Return the bundle that ``flwr run`` makes of this installation, and its hash as Flower and sites write it.

    The same installation gives the same bytes each time.
    """
    with tempfile.TemporaryDirectory(prefix="fedreptile-") as scratch:
        return fab_of(stage_app(Path(scratch) / APP))


def fab_of(app: Path) -> tuple[bytes, str]:
    """Return the bundle of a Flower app, and its hash: the SHA-256 of the bytes, in hexadecimal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # flwr uses what pathspec has deprecated
        fab = build_fab_from_disk(app)
    return fab, hashlib.sha256(fab).hexdigest()
