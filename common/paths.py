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
    omniglot, digits = (data_home() / "data" / part for part in ("omniglot/background", "digits/digits-0-to-4"))
    return digits if digits.exists() and not omniglot.exists() else omniglot
