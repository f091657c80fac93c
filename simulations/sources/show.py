"""Who has what: sites and their classes, or the columns of their tables, for the terminal and as a picture."""

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray
from rich import table as rich_table
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from client.columns import Shares, all_columns, missing_shares, percent, print_columns
from client.data.table import Table
from common.paths import write_atomically

Counts = Mapping[str, Mapping[str, int]]
"""Site -> class -> number of inputs."""

MOST_SHOWN = 60
"""Sites, classes or columns that are shown; of more, those with the most inputs."""
MOST_NUMBERED = 20
"""Rows and columns of a picture up to which each cell has its number printed."""
MOST_IN_TERMINAL = 6
"""Classes up to which the terminal's table has a column for each."""
LONGEST_NAME = 28
CELL = 0.24
"""Inches of a cell without a number; one with a number is twice as wide."""
COLOURS = LinearSegmentedColormap.from_list("counts", ["#dbe9f6", "#6aaed6", "#08306b"])
"""One hue from light to dark, which every kind of colour vision can follow. White is nothing at all."""
STYLE: dict[Any, Any] = {"text.parse_math": False, "font.size": 9, "hatch.linewidth": 0.6}  # a site may be called '$x$'


def show_sites(train: Counts, judge: Counts, console: Console, picture: Path | None = None) -> None:
    """Print which site has what to train and to be judged on, and draw it into a PNG file if one is named.

    Sites that are in ``judge`` only are held out; classes that are in ``judge`` only are new to every model.

    Raises:
        CheckpointError: if the picture cannot be written.
    """
    shown = _shown(train, judge)
    few = shown.classes if len(_classes(train, judge)) <= MOST_IN_TERMINAL else []
    table = rich_table.Table(
        "site", "trains on (each class)", "judged on", *(escape(_class_name(name, shown)) for name in few)
    )
    for site in shown.sites:
        trained, judged = train.get(site, {}), judge.get(site, {})
        own = [_cell(trained.get(name, 0), judged.get(name, 0)) for name in few]
        table.add_row(Text(site), _summed(trained) if site in train else "held out", _summed(judged), *own)
    console.print(table)
    console.print(Text(_caption(train, judge, shown) + ("; 7 +3: trained on 7, judged on 3" if few and judge else "")))
    if picture:
        write_atomically(picture, _png(who_has_what(train, judge)))
        console.print(Text(f"picture: {picture}"))


def show_columns(tables: Mapping[str, Table], label: str, console: Console, picture: Path | None = None) -> None:
    """Print which site's table has which columns and how complete they are, and a line to propose for ``data.columns``.

    Raises:
        CheckpointError: if the picture cannot be written.
    """
    print_columns(tables, label, console)
    if picture:
        write_atomically(picture, _png(columns_of(missing_shares(tables, label))))
        console.print(Text(f"picture: {picture}"))


def who_has_what(train: Counts, judge: Counts) -> Figure:
    """Draw sites as rows and classes as columns, once what is trained on and once what is judged on.

    Of more than 60 sites those with the most inputs are shown. Of more than 60 classes every shown site in turn gives
    its largest, so that each site is seen to have some.
    """
    shown = _shown(train, judge)
    parts = {"trained on": train, "judged on": judge} if judge else {"trained on": train}
    counts = {title: _counts(part, shown) for title, part in parts.items()}
    most = max(2, *(int(part.max(initial=0)) for part in counts.values()))
    classes = [_class_name(name, shown) for name in shown.classes]
    numbered = max(len(shown.sites), len(classes)) <= MOST_NUMBERED
    width, height = _size(len(shown.sites), len(classes), max(map(len, classes), default=0), numbered)
    with _drawing():
        figure = Figure(figsize=(3.2 + (width + 0.9) * len(parts), height + 1.4), layout="constrained")
        figure.suptitle(_caption(train, judge, shown), wrap=True, fontsize=10)
        panels = figure.subplots(1, len(parts), squeeze=False)[0]
        for axes, (title, part) in zip(panels, parts.items(), strict=True):
            there = np.ma.masked_equal(counts[title], 0)
            image = axes.imshow(there, cmap=COLOURS, norm=LogNorm(1, most), aspect="auto")
            axes.set_title(title, fontsize=10)
            _label(axes, [_site_name(site, train) for site in shown.sites] if part is train else [], classes)
            _add_totals(axes, part, shown.sites, len(classes))
            if numbered:
                _write_numbers(
                    axes,
                    image,
                    counts[title],
                    {(y, x): str(counts[title][y, x]) for y, x in np.argwhere(counts[title])},
                )
            for row, site in enumerate(shown.sites):
                if site not in part:
                    _hatch(axes, row, 0, len(classes))
        bar = figure.colorbar(image, ax=panels, label="inputs of a class", fraction=0.03, pad=0.02)
        bar.set_ticks(_marks(most), labels=[str(mark) for mark in _marks(most)])
        bar.minorticks_off()
        return figure


def columns_of(shares: Shares) -> Figure:
    """Draw columns as rows and tables as columns: hatched where a table lacks the column, darker the more is missing.

    Of more than 60 tables or columns the first are shown.
    """
    sites, columns = list(shares)[:MOST_SHOWN], all_columns(shares)[:MOST_SHOWN]
    shown = np.array([[shares[site][column] for site in sites] for column in columns], float)  # None becomes NaN
    numbered = max(shown.shape) <= MOST_NUMBERED
    width, height = _size(len(columns), len(sites), max(map(len, sites)), numbered)
    with _drawing():
        figure = Figure(figsize=(3.6 + width, height + 1.4), layout="constrained")
        axes = figure.add_subplot()
        image = axes.imshow(np.ma.masked_invalid(shown), cmap=COLOURS, vmin=0, vmax=1, aspect="auto")
        figure.suptitle(_columns_caption(shares, sites, columns), wrap=True, fontsize=10)
        _label(axes, [_short(column) for column in columns], [_short(site) for site in sites])
        for row, column in np.argwhere(np.isnan(shown)):
            _hatch(axes, row, column, 1)
        if numbered:
            _write_numbers(axes, image, shown, {(y, x): percent(shown[y, x]) for y, x in np.argwhere(shown > 0)})
        bar = figure.colorbar(image, ax=axes, label="rows without a value", fraction=0.05)
        bar.ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        return figure


# What is shown


@dataclass(frozen=True)
class _Shown:
    """Names of the sites and classes that are shown, in order; and all classes that no site trains on."""

    sites: Sequence[str]
    classes: Sequence[str]
    new: frozenset[str]


def _shown(train: Counts, judge: Counts) -> _Shown:
    def inputs(site: str) -> int:
        return sum(train.get(site, {}).values()) + sum(judge.get(site, {}).values())

    largest = sorted(train.keys() | judge.keys(), key=lambda site: (-inputs(site), site))[:MOST_SHOWN]
    sites = sorted(largest, key=lambda site: (site not in train, site))
    classes = _in_turn([_largest_classes(train, judge, site) for site in sites], MOST_SHOWN)
    new = frozenset(_classes(judge) - _classes(train))
    return _Shown(sites, sorted(classes, key=lambda name: (name in new, name)), new)


def _largest_classes(train: Counts, judge: Counts, site: str) -> list[str]:
    both = {**judge.get(site, {})}
    for name, count in train.get(site, {}).items():
        both[name] = both.get(name, 0) + count
    return sorted(both, key=lambda name: (-both[name], name))


def _in_turn(lists: Sequence[Sequence[str]], most: int) -> set[str]:
    """Return different names: the first of every list, then the second, and so on until there are so many."""
    found: dict[str, None] = {}
    for place in range(max(map(len, lists), default=0)):
        for names in lists:
            if place < len(names) and len(found) < most:
                found[names[place]] = None
    return set(found)


def _classes(*parts: Counts) -> set[str]:
    return {name for part in parts for own in part.values() for name in own}


def _counts(part: Counts, shown: _Shown) -> NDArray[np.int64]:
    rows = [[part.get(site, {}).get(name, 0) for name in shown.classes] for site in shown.sites]
    return np.array(rows, np.int64).reshape(len(shown.sites), len(shown.classes))


# In words


def _caption(train: Counts, judge: Counts, shown: _Shown) -> str:
    held_out = judge.keys() - train.keys()
    classes = _classes(train, judge)
    sites = len(train.keys() | judge.keys())
    said = f"{sites} sites, {len(held_out)} of them held out; {len(classes)} classes"
    said += f", {len(shown.new)} of them new (no site trains on them)" if shown.new else ""
    return said + _of(len(shown.sites), sites, "sites") + _of(len(shown.classes), len(classes), "classes")


def _columns_caption(shares: Shares, sites: Sequence[str], columns: Sequence[str]) -> str:
    there = all_columns(shares)
    lacking = sum(None in (own[column] for own in shares.values()) for column in there)
    said = f"{len(there)} columns of {len(shares)} tables"
    said += f", {lacking} of them not in all (hatched)" if lacking else ", the same in all"
    return said + _of(len(columns), len(there), "columns") + _of(len(sites), len(shares), "tables")


def _of(shown: int, there: int, what: str) -> str:
    return f"; shown are {shown} of {there} {what}" if shown < there else ""


def _summed(own: Mapping[str, int]) -> str:
    if not own:
        return "–"
    fewest, most = min(own.values()), max(own.values())
    each = f"{fewest}" if fewest == most else f"{fewest}–{most}"
    return f"{sum(own.values())} in {len(own)} ({each})"


def _cell(trained: int, judged: int) -> str:
    """Return "7" for what is trained on, "+3" for what is judged on, and "7 +3" for both."""
    return " ".join([*([f"{trained}"] if trained else []), *([f"+{judged}"] if judged else [])])


def _site_name(site: str, train: Counts) -> str:
    return _short(site) if site in train else f"{_short(site)} (held out)"


def _class_name(name: str, shown: _Shown) -> str:
    return f"{_short(name)} (new)" if name in shown.new else _short(name)


def _short(name: str) -> str:
    """Return a name, a long one without its middle: names often differ at their end only."""
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 13] + "…" + name[-12:]


# In pictures


@contextmanager
def _drawing() -> Iterator[None]:
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        # A name in a script without a font here shows boxes; the terminal's table has it right.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font", category=UserWarning)
        yield


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    with _drawing():
        figure.savefig(stream, format="png", dpi=110, metadata={"Software": None})
    return stream.getvalue()


def _label(axes: Axes, rows: Sequence[str], columns: Sequence[str]) -> None:
    """Put names beside rows and, upright, below columns."""
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xticks(range(len(columns)), columns, rotation=90)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_edgecolor("#999999")


def _add_totals(axes: Axes, part: Counts, sites: Sequence[str], columns: int) -> None:
    """Write at the right of each row how many inputs the site has, of how many classes, shown or not."""
    for row, site in enumerate(sites):
        if own := part.get(site):
            axes.text(
                columns - 0.4, row, f"{sum(own.values())} in {len(own)}", va="center", fontsize=7, color="#444444"
            )


def _write_numbers(axes: Axes, image: AxesImage, values: NDArray[Any], texts: Mapping[tuple[int, int], str]) -> None:
    """Write into cells of an image of values, dark on light or light on dark."""
    for (row, column), text in texts.items():
        red, green, blue, _ = image.to_rgba(values[row, column])
        dark = 0.3 * red + 0.6 * green + 0.1 * blue < 0.5
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")


def _hatch(axes: Axes, row: int, column: int, width: int) -> None:
    """Hatch cells: what is not there, or not used."""
    box = Rectangle((column - 0.5, row - 0.5), width, 1, fill=False, hatch="////", edgecolor="#bbbbbb", linewidth=0)
    axes.add_patch(box)


def _marks(most: int) -> list[int]:
    """Return the powers of ten that leave room below the last mark, which is ``most`` (at least 2)."""
    return [10**power for power in range(len(str(most))) if 10**power <= most / 2] + [most]


def _size(rows: int, columns: int, longest: int, numbered: bool) -> tuple[float, float]:
    """Return width and height in inches of so many cells and the names below them."""
    width, height = (2 * CELL, 1.2 * CELL) if numbered else (0.7 * CELL, 0.7 * CELL)
    return max(1.5, width * columns), max(1.0, height * rows) + 0.08 * longest
