"""What the command lines of all folders share: settings from files and words, and how an error ends a command."""

import signal
import sys
from collections.abc import Iterable
from pathlib import Path

import typer
from rich.console import Console
from rich.text import Text

from common.errors import FedreptileError
from common.settings import Settings, parse_assignments, read_toml

DEFAULTS = Settings()


def run_cli(app: typer.Typer) -> None:
    """Run a command line and leave with its exit code.

    An error that a user is meant to read becomes one red line on stderr and exit code 1; Ctrl-C
    becomes exit code 130, and so the request to end (SIGTERM) 143, after what is underway has
    been put in order. Any other exception is a bug and keeps its traceback.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        app()
    except FedreptileError as error:
        Console(stderr=True).print(Text(f"error: {error}", style="red"), soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def read_settings(config: Path | None, assignments: Iterable[str], base: Settings = DEFAULTS) -> Settings:
    """Return ``base``, changed by a TOML file if one is given, changed by ``key=value`` words.

    Raises:
        SettingsError: if the file cannot be read, or a key or value is not valid.
    """
    values = read_toml(config) if config else {}
    return base.with_values({**values, **parse_assignments(assignments)})
