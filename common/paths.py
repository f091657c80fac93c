"""Where things are kept on this machine when no path is given."""

import os
import sys
from pathlib import Path


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
