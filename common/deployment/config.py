"""Configuration files of one level: the fields of a dataclass, with hyphens."""

import tomllib
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar

from common.errors import SettingsError
from common.settings import nearest

Config = TypeVar("Config")


def read_config(path: Path, kind: type[Config], advice: str) -> Config:
    """Read a TOML file into a dataclass.

    Args:
        advice: what to do if the file is not there.

    Raises:
        SettingsError: if the file is missing, is not TOML, or has an unknown key, a missing one or a value of the wrong
            type; it names the file and the key.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise SettingsError(f"{path} is not there; {advice}") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{path} cannot be read: {error}") from error
    known = {item.name.replace("_", "-"): item for item in fields(kind)}  # type: ignore[arg-type]
    found: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            raise SettingsError(f"{path} has the unknown key {key!r}; the nearest valid one is {nearest(key, known)!r}")
        wanted = known[key].type
        if type(value) is not wanted and not (wanted is float and type(value) is int):
            raise SettingsError(f"{path}: {key} is {value!r}; it must be of type {getattr(wanted, '__name__', wanted)}")
        found[known[key].name] = wanted(value)
    for key, item in known.items():
        if item.default is MISSING and not found.get(item.name):
            raise SettingsError(f"{path} has no {key!r}; add it")
    return kind(**found)
