"""The columns of tables, as settings write them: ``age, sex=0|1, cp=1|2|3|4``.

They are part of what a run agrees on, because they decide how wide an input is and what each of its
places means: sites cannot work it out from their own tables, which differ.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from common.errors import SettingsError


@dataclass(frozen=True)
class Column:
    """A column of numbers, or of one of some values."""

    name: str
    values: tuple[str, ...] = ()
    """The values that a categorical column may have; empty for numbers."""

    @property
    def width(self) -> int:
        """Places that the column takes in an input: one for a number, one for each value."""
        return len(self.values) or 1


@lru_cache
def parse_columns(text: str) -> tuple[Column, ...]:
    """Return the columns of ``data.columns``.

    Raises:
        SettingsError: if a column has no name, is there twice, or has fewer than two different values.
    """
    columns = [_parse_column(word.strip()) for word in text.split(",") if word.strip()]
    names = [column.name for column in columns]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise SettingsError(f"data.columns names {twice!r} twice; name every column once")
    return tuple(columns)


def format_columns(columns: Sequence[Column]) -> str:
    """Return columns as ``parse_columns`` takes them."""
    return ", ".join(column.name + ("=" + "|".join(column.values) if column.values else "") for column in columns)


def _parse_column(word: str) -> Column:
    name, equals, listed = (part.strip() for part in word.partition("="))
    values = tuple(value.strip() for value in listed.split("|")) if equals else ()
    if not name or (equals and (len(set(values)) < max(2, len(values)) or not all(values))):
        raise SettingsError(f"data.columns: {word!r} is neither NAME nor NAME=VALUE|VALUE with different values")
    return Column(name, values)
