"""A site's table: a CSV file, one row a sample, one column of it the class."""

import csv
import io
import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.data.indexed import IndexedData, Numbers, Skipped, Standardisation
from common.columns import Column, format_columns, parse_columns
from common.errors import SiteDataError
from common.settings import DataSettings, nearest

log = logging.getLogger("fedreptile.data")

MISSING = frozenset({"", "?", "na", "n/a", "nan", "null", "none", "-"})
"""What counts as no value, in small letters."""
NO_CLASS = frozenset({"", "?", "NaN", "nan"})
"""What counts as no class: fewer words, because a class may well be called 'none'."""
DELIMITERS = ",;\t"
MOST_CLASSES = 20
"""Classes up to which half of the rows may have one of their own."""
MOST_VALUES = 10
"""Different whole numbers, or texts, up to which a column is proposed as categorical."""

Row = Mapping[str, str]


@dataclass(frozen=True)
class Table:
    """A CSV file as it is."""

    path: Path
    header: tuple[str, ...]
    rows: tuple[Row, ...]
    lines: tuple[int, ...]
    """The line of the file that each row ends on."""


def open_table(path: Path, data: DataSettings) -> IndexedData:
    """Read a site's table, its numbers standardised with the site's own statistics.

    Rows without a class, and rows with text where a number belongs, are skipped and listed; so is a value that is
    none of its column's, which counts as missing.

    Raises:
        SiteDataError: if the file cannot be read, lacks the label or an agreed column, or has no usable row.
    """
    table = read_table(path, data.label)
    columns = agreed_columns(table, data)
    values, faults = encode(columns, table.rows)
    absent = [column.name for column in columns if column.name not in table.header]
    skipped = [Skipped(str(path), f"lacks column {name!r}, which counts as missing in every row") for name in absent]
    skipped += [
        Skipped(f"{path} line {table.lines[fault.row]}, column {fault.column!r}", fault.reason) for fault in faults
    ]
    unusable = {fault.row for fault in faults if fault.fatal}
    rows: dict[str, list[int]] = {}
    for number, row in enumerate(table.rows):
        if row[data.label].strip() in NO_CLASS:
            skipped.append(Skipped(f"{path} line {table.lines[number]}", f"no class in column {data.label!r}"))
        elif number not in unusable:
            rows.setdefault(_class_name(row[data.label]), []).append(number)
    if not rows:
        raise SiteDataError(f"{path} has {len(table.rows)} row(s), none usable: {_first(skipped)}")
    if len(rows) > max(MOST_CLASSES, len(table.rows) / 2):
        raise SiteDataError(
            f"{path} has {len(rows)} different classes in {len(table.rows)} rows: column {data.label!r} (data.label) "
            "does not look like a class, and its values would be told to the federation; name the right column"
        )
    usable = sorted(number for members in rows.values() for number in members)
    standardisation = Standardisation.of(values[usable], numeric_places(columns))
    index = {name: np.array(members, dtype=np.int64) for name, members in rows.items()}
    return IndexedData(values, index, standardisation, skipped)


def read_unlabelled(path: Path, data: DataSettings) -> tuple[list[str], Numbers]:
    """Read a table whose rows are to be classified: what to call each row, and its values [N, F].

    Raises:
        SiteDataError: if the file cannot be read, lacks an agreed column, or a value is not a number.
    """
    table = read_table(path)
    values, faults = encode(agreed_columns(table, data), table.rows)
    for fault in faults:
        said = f"{path} line {table.lines[fault.row]}, column {fault.column!r}: {fault.reason}"
        if fault.fatal:
            raise SiteDataError(said)
        log.warning("%s", said)
    return [f"{path}:{line}" for line in table.lines], values


def read_table(path: Path, needed: str = "") -> Table:
    """Read a CSV file with a header; commas, semicolons or tabs between values.

    Args:
        needed: a column that must be there, as the class must; it also tells which character divides the values.

    Raises:
        SiteDataError: if the file cannot be read, is not UTF-8, lacks the column, or a row is longer or shorter
            than the header.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise SiteDataError(f"{path} is not UTF-8 text ({error}); save it as CSV with the encoding UTF-8") from error
    except OSError as error:
        raise SiteDataError(f"{path} cannot be read: {error.strerror}") from error
    text = text.lstrip("\r\n")
    lines = text.splitlines()
    if not lines:
        raise SiteDataError(f"{path} is empty; a table has a line of column names, then one line a sample")
    delimiter = max(
        DELIMITERS, key=lambda mark: (needed in _cells(lines[0], mark) if needed else 0, lines[0].count(mark))
    )
    header = _cells(lines[0], delimiter)
    if needed and needed not in header:
        raise SiteDataError(
            f"{path} has no column {needed!r} (data.label); the nearest of its {len(header)} columns is "
            f"{nearest(needed, header)!r}"
        )
    if len(set(header)) < len(header):
        twice = next(name for name, count in Counter(header).items() if count > 1)
        raise SiteDataError(f"{path} has two columns named {twice!r}; rename one")
    rows, numbers = [], []
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for cells in reader:
            if reader.line_num == 1 or not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                raise SiteDataError(
                    f"{path} line {reader.line_num} has {len(cells)} values and the header {len(header)}; "
                    f"check for a stray {delimiter!r}"
                )
            row = dict(zip(header, cells, strict=True))
            texts = row if delimiter == "," else {key: _with_point(text) for key, text in row.items()}
            rows.append({**texts, needed: row[needed]} if needed else texts)
            numbers.append(reader.line_num)
    except csv.Error as error:
        raise SiteDataError(f"{path} line {reader.line_num}: {error}; check its quotation marks") from error
    return Table(path, header, tuple(rows), tuple(numbers))


def agreed_columns(table: Table, data: DataSettings) -> tuple[Column, ...]:
    """Return the columns of the settings. Raises SiteDataError if the table lacks some and may not."""
    columns = parse_columns(data.columns)
    absent = [column.name for column in columns if column.name not in table.header]
    if absent and (not data.absent_columns or len(absent) == len(columns)):
        spare = [name for name in table.header if name != data.label]
        hint = f"; the nearest to {absent[0]!r} is {nearest(absent[0], spare)!r}" if spare else ""
        raise SiteDataError(
            f"{table.path} lacks {len(absent)} of {len(columns)} agreed columns (data.columns): "
            f"{', '.join(absent)}{hint}; "
            "rename or add them, or let the run count them as missing with data.absent-columns = true"
        )
    return columns


@dataclass(frozen=True)
class Fault:
    """A value of a table that is not what its column holds."""

    row: int
    column: str
    reason: str
    fatal: bool
    """Whether the whole row cannot be used; otherwise the value counts as missing."""


def encode(columns: Sequence[Column], rows: Sequence[Row]) -> tuple[Numbers, list[Fault]]:
    """Turn rows of text into float64 [N, F], NaN where a number is missing, all 0 where a category is; and the faults.

    A column that a row does not have counts as missing.
    """
    values = np.zeros((len(rows), sum(column.width for column in columns)))
    faults: list[Fault] = []
    place = 0
    for column in columns:
        for number, row in enumerate(rows):
            text = row.get(column.name, "").strip()
            if not column.values:
                values[number, place] = found = _number(text)
                if not math.isfinite(found) and not is_missing(text):
                    faults.append(Fault(number, column.name, f"{text!r} is not a number", fatal=True))
            elif (position := _position(text, column.values)) is not None:
                values[number, place + position] = 1
            elif not is_missing(text):
                reason = f"{text!r} is none of {', '.join(column.values)}; it counts as missing"
                faults.append(Fault(number, column.name, reason, fatal=False))
        place += column.width
    return values, faults


def decoded(columns: Sequence[Column], values: Numbers) -> list[str]:
    """Return one encoded row [F], not standardised, as text: one entry a column, empty for what is missing."""
    texts, place = [], 0
    for column in columns:
        part = values[place : place + column.width]
        if column.values:
            texts.append(column.values[int(part.argmax())] if part.max() > 0.5 else "")
        else:
            texts.append("" if math.isnan(part[0]) else f"{part[0]:.6g}")
        place += column.width
    return texts


def numeric_places(columns: Iterable[Column]) -> NDArray[np.bool_]:
    """Return [F]: which places of an encoded row are numbers and not one-hot values."""
    return np.array([not column.values for column in columns for _ in range(column.width)], dtype=bool)


def is_missing(text: str) -> bool:
    return text.strip().lower() in MISSING


def propose_columns(tables: Sequence[Table], label: str) -> str:
    """Propose ``data.columns``: what some table has, but for the label; few different values are categories."""
    names = dict.fromkeys(name for table in tables for name in table.header if name != label)
    columns = []
    for name in names:
        present = {row[name].strip() for table in tables if name in table.header for row in table.rows}
        values = {text for text in present if not is_missing(text)}
        if set(name) & set(",=|") or any(set(text) & set(",|") for text in values if math.isnan(_number(text))):
            continue  # data.columns cannot name it
        codes = {_number(text): text for text in sorted(values, key=len, reverse=True)}
        if not all(math.isfinite(number) for number in codes):
            if 2 <= len(values) <= MOST_VALUES:
                columns.append(Column(name, tuple(sorted(values))))
        elif 2 <= len(codes) <= MOST_VALUES and all(number == int(number) for number in codes):
            columns.append(Column(name, tuple(codes[number] for number in sorted(codes))))
        else:
            columns.append(Column(name))
    return format_columns(columns)


def _class_name(text: str) -> str:
    """Return the name of a class; one that is a whole number is the same however it is written (1, 1.0)."""
    number = _number(text)
    return str(int(number)) if math.isfinite(number) and number == int(number) else text.strip()


def _cells(line: str, delimiter: str) -> tuple[str, ...]:
    return tuple(cell.strip() for cell in next(csv.reader([line], delimiter=delimiter)))


def _with_point(text: str) -> str:
    """Return a number with a decimal comma as one with a point; other text as it is."""
    pointed = text.replace(",", ".", 1)
    return pointed if "," in text and math.isfinite(_number(pointed)) else text


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _position(text: str, values: Sequence[str]) -> int | None:
    """Return which of the values a text is, also when they are the same number written differently."""
    if text in values:
        return values.index(text)
    number = _number(text)
    return next((i for i, value in enumerate(values) if _number(value) == number), None)


def _first(skipped: Sequence[Skipped]) -> str:
    return f"{skipped[0].where}: {skipped[0].reason}" if skipped else "it has a header only"
