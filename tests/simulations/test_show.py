import io
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from PIL import Image
from rich.console import Console

from client.columns import missing_shares
from client.data.table import Table, read_table
from common.errors import CheckpointError
from simulations.sources.show import columns_of, show_columns, show_sites, who_has_what
from tests.mirror import mirror_or_skip

TRAIN = {"lyon": {"oak": 7, "elm": 120}, "graz": {"oak": 9, "elm": 2}}
JUDGE = {"lyon": {"oak": 3, "ash": 5}, "bonn": {"oak": 40, "elm": 41}}
"""Bonn is held out, and ash is new."""


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=140)


def told(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def row(console: Console, head: str) -> list[str]:
    """Return the cells of the first table row that begins with this."""
    lines = (line for line in told(console).splitlines() if line.startswith("│"))
    cells = ([cell.strip() for cell in line.strip("│").split("│")] for line in lines)
    return next(found for found in cells if found[0] == head)


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in shown_texts(figure)]


def shown_texts(figure: Figure) -> list[Text]:
    return [text for text in figure.findobj(Text) if isinstance(text, Text) and text.get_text() and text.get_visible()]


def cells(axes: Axes) -> list[list[float]]:
    """Return what a heat map shows, -1 where it shows nothing."""
    values = axes.images[0].get_array()
    assert values is not None
    found: list[list[float]] = np.ma.filled(values, -1).tolist()
    return found


def drawn(figure: Figure) -> list[tuple[str, Bbox]]:
    """Draw a figure and return its texts with where they stand, in pixels."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font")
        figure.savefig(io.BytesIO(), dpi=figure.dpi)
    return [(text.get_text(), text.get_window_extent()) for text in shown_texts(figure)]


def assert_readable(figure: Figure) -> None:
    """Assert that no text of a figure covers another or is cut off at its edge."""
    places = drawn(figure)
    width, height = figure.canvas.get_width_height()
    for number, (text, place) in enumerate(places):
        assert place.x0 >= 0 and place.y0 >= 0 and place.x1 <= width and place.y1 <= height, f"{text!r} is cut off"
        for other, taken in places[number + 1 :]:
            both = Bbox.intersection(place, taken)
            assert both is None or both.width * both.height < 4, f"{text!r} covers {other!r}"


def test_the_terminal_tells_who_trains_and_is_judged_on_what(console: Console) -> None:
    show_sites(TRAIN, JUDGE, console)
    assert row(console, "graz") == ["graz", "11 in 2 (2–9)", "–", "2", "9", ""]
    assert row(console, "lyon") == ["lyon", "127 in 2 (7–120)", "8 in 2 (3–5)", "120", "7 +3", "+5"]
    assert row(console, "bonn") == ["bonn", "held out", "81 in 2 (40–41)", "+41", "+40", ""]
    assert re.search(r"elm +┃ oak +┃ ash \(new\)", told(console))
    assert "3 sites, 1 of them held out; 3 classes, 1 of them new (no site trains on them)" in told(console)
    assert "7 +3: trained on 7, judged on 3" in told(console)


def test_many_sites_and_classes_are_summed_up_and_said_to_be(console: Console) -> None:
    train = {f"site-{site:03}": {f"class-{site}-{name}": site + 1 for name in range(3)} for site in range(100)}
    show_sites(train, {}, console)
    assert row(console, "site-099")[1] == "300 in 3 (100)"
    assert "site-040" in told(console) and "site-039" not in told(console)
    assert "100 sites, 0 of them held out; 300 classes; shown are 60 of 100 sites; shown are 60 of 300" in told(console)


def test_the_picture_has_a_row_a_site_and_both_panels(console: Console) -> None:
    figure = who_has_what(TRAIN, JUDGE)
    trained, judged = figure.axes[:2]
    assert [axes.get_title() for axes in (trained, judged)] == ["trained on", "judged on"]
    assert [label.get_text() for label in trained.get_yticklabels()] == ["graz", "lyon", "bonn (held out)"]
    assert [label.get_text() for label in judged.get_xticklabels()] == ["elm", "oak", "ash (new)"]
    assert cells(trained) == [[2, 9, -1], [120, 7, -1], [-1, -1, -1]]
    assert cells(judged) == [[-1, -1, -1], [-1, 3, 5], [41, 40, -1]]
    assert [len(axes.patches) for axes in (trained, judged)] == [1, 1]
    assert {"120", "127 in 2", "81 in 2"} <= set(texts(figure)) and "0" not in texts(figure)
    assert_readable(figure)


def test_without_anything_to_judge_on_there_is_one_panel() -> None:
    assert [axes.get_title() for axes in who_has_what(TRAIN, {}).axes] == ["trained on", ""]


def test_of_many_classes_every_site_shows_some() -> None:
    train = {f"site-{site:02}": {f"{site:02}/{name:02}": 20 for name in range(30)} for site in range(40)}
    figure = who_has_what(train, {})
    shown = np.array(cells(figure.axes[0]))
    assert shown.shape == (40, 60) and (shown > 0).any(1).all()
    assert texts(figure).count("20") == 1, "only the colour scale has numbers"
    assert texts(figure).count("600 in 30") == 40
    assert_readable(figure)


def test_names_of_any_length_and_script_are_text_and_cover_nothing() -> None:
    odd = ("$x_{$", "[bold]", "日本", "a" * 200, "long_name_of_a_class/character01", "long_name_of_a_class/character02")
    figure = who_has_what({name: dict.fromkeys(odd, 5) for name in odd}, {})
    assert {"$x_{$", "日本", "long_name_of_a_…/character02"} <= set(texts(figure))
    assert_readable(figure)


def test_markup_in_names_stays_text_in_the_terminal(console: Console) -> None:
    show_sites({"[bold]a": {"[red]x": 3, "y": 2}}, {}, console)
    assert row(console, "[bold]a")[3:] == ["3", "2"] and "[red]x" in told(console)
    show_columns({"[red]t": Table(Path(), ("[b]", "label"), ({"[b]": "1", "label": "c"},), (2,))}, "label", console)
    assert "[red]t" in told(console) and row(console, "[b]")[1] == "complete"


def test_a_picture_is_written_whole_and_alike_each_time(console: Console, tmp_path: Path) -> None:
    path = tmp_path / "new" / "who-has-what.png"
    show_sites(TRAIN, JUDGE, console, path)
    first = path.read_bytes()
    show_sites(TRAIN, JUDGE, console, path)
    assert path.read_bytes() == first
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert f"picture: {path}" in told(console).replace("\n", "")
    with Image.open(path) as picture:
        assert picture.format == "PNG" and picture.width > 500


def test_a_place_that_cannot_be_written_is_told(console: Console, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="who"):
        show_sites(TRAIN, JUDGE, console, tmp_path / "file" / "who.png")


def test_more_is_darker_also_to_those_who_see_no_colours() -> None:
    image = who_has_what({"lyon": {str(number): 10**number for number in range(4)}}, {}).axes[0].images[0]
    greys = np.array([0.299, 0.587, 0.114]) @ np.array([image.to_rgba(10**number)[:3] for number in range(4)]).T
    assert (np.diff(greys) < -0.1).all() and greys[0] < 0.95


@pytest.fixture
def tables(tmp_path: Path) -> dict[str, Table]:
    """Two sites' tables of 1000 rows, of which one has no column ``dose``, and misses one age and 3 in 4 notes."""
    rows = [f"{n or ''},{'' if n % 4 else 'x'},{n % 2}" for n in range(1000)]
    (tmp_path / "graz.csv").write_text("\n".join(["age,note,label", *rows]))
    (tmp_path / "lyon.csv").write_text("age,dose,note,label\n" + "40,1.5,y,0\n41,2.5,?,1\n" * 500)
    return {name: read_table(tmp_path / f"{name}.csv") for name in ("graz", "lyon")}


def test_columns_are_told_with_what_is_missing_and_where_they_are_not(
    tables: dict[str, Table], console: Console
) -> None:
    show_columns(tables, "label", console)
    assert row(console, "age") == ["age", "<1% missing", "complete", ""]
    assert row(console, "note") == ["note", "75% missing", "50% missing", ""]
    assert row(console, "dose") == ["dose", "not there", "complete", "not everywhere"]
    assert 'columns = "age, note=x|y, dose"' in told(console)


def test_columns_in_a_picture_are_hatched_where_they_are_not_and_dark_where_values_miss(
    tables: dict[str, Table], console: Console, tmp_path: Path
) -> None:
    figure = columns_of(missing_shares(tables, "label"))
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["age", "note", "dose"]
    assert cells(axes) == [[0.001, 0], [0.75, 0.5], [-1, 0]]
    (hatched,) = axes.patches
    assert isinstance(hatched, Rectangle) and hatched.get_xy() == (-0.5, 1.5)
    said = "3 columns of 2 tables, 1 of them not in all (hatched)"
    assert {"<1%", "75%", "50%", said} <= set(texts(figure))
    assert_readable(figure)
    show_columns(tables, "label", console, tmp_path / "columns.png")
    assert (tmp_path / "columns.png").read_bytes().startswith(b"\x89PNG")


def test_the_hospitals_miss_what_the_sets_readme_says() -> None:
    folder = mirror_or_skip() / "heart_disease_hospitals"
    hospitals = {path.stem: read_table(path) for path in sorted(folder.glob("*.csv"))}
    for line in (folder / "README.md").read_text(encoding="utf-8").splitlines():
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        if name in hospitals:
            shares = missing_shares(hospitals, "num")[name].values()
            assert round(sum(share or 0 for share in shares) * int(cells[0])) == int(cells[-1])
    assert_readable(columns_of(missing_shares(hospitals, "num")))
