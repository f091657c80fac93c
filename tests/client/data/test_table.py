"""A site's table: what is read, what is skipped and said, and how columns become numbers."""

from pathlib import Path

import numpy as np
import pytest

from client.data.indexed import Skipped
from client.data.table import (
    decoded,
    encode,
    numeric_places,
    open_table,
    propose_columns,
    read_table,
    read_unlabelled,
)
from common.columns import parse_columns
from common.errors import SiteDataError
from common.settings import DataSettings
from tests.mirror import mirror_or_skip

COLUMNS = "width, coating=none|zinc|tin, speed"
DATA = DataSettings(kind="table", label="defect", columns=COLUMNS)
TEXT = """width,coating,speed,defect
10,zinc,1.5,dent
20,none,,scratch
30,tin,2.5,dent
"""


def table(folder: Path, text: str = TEXT, name: str = "line-3.csv", encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return path


def test_rows_become_numbers_and_one_hot_values_by_class(tmp_path: Path) -> None:
    data = open_table(table(tmp_path), DATA)
    assert data.classes() == ["dent", "scratch"]
    assert data.skipped == ()
    dents = data.inputs("dent", [0, 1])
    assert dents.shape == (2, 5)
    assert dents[:, 1:4].tolist() == [[0, 1, 0], [0, 0, 1]]
    assert dents[:, 0].tolist() == pytest.approx([-1.2247, 1.2247], abs=1e-4)
    assert data.inputs("scratch", [0])[0].tolist() == pytest.approx([0, 1, 0, 0, 0], abs=1e-6)


@pytest.mark.parametrize(
    ("delimiter", "encoding", "end"),
    [(",", "utf-8-sig", "\r\n"), (";", "utf-8", "\n"), ("\t", "utf-8", "\n")],
    ids=["Excel's UTF-8", "semicolons", "tabs"],
)
def test_tables_of_any_office_are_read_alike(tmp_path: Path, delimiter: str, encoding: str, end: str) -> None:
    text = TEXT.replace(",", delimiter).replace("\n", end)
    found = open_table(table(tmp_path, text, encoding=encoding), DATA)
    expected = open_table(table(tmp_path, name="plain.csv"), DATA)
    for name in expected.classes():
        rows = range(expected.count(name))
        assert found.inputs(name, rows).equal(expected.inputs(name, rows))


def test_decimal_commas_are_numbers_where_semicolons_divide(tmp_path: Path) -> None:
    text = TEXT.replace(",", ";").replace("1.5", "1,5").replace("2.5", "2,5")
    found = open_table(table(tmp_path, text), DATA)
    assert found.inputs("dent", [0, 1]).equal(open_table(table(tmp_path, name="p.csv"), DATA).inputs("dent", [0, 1]))


def test_what_cannot_be_used_is_skipped_and_named_and_the_rest_is_there(tmp_path: Path) -> None:
    lines = ["40,zinc,fast,dent", "50,gold,1,scratch", "60,tin,1,", "70,tin,inf,dent", "", "80,none,1,scratch"]
    path = table(tmp_path, TEXT + "\n".join(lines) + "\n")
    data = open_table(path, DATA)
    assert (data.count("dent"), data.count("scratch")) == (2, 3)
    assert set(data.skipped) == {
        Skipped(f"{path} line 5, column 'speed'", "'fast' is not a number"),
        Skipped(f"{path} line 6, column 'coating'", "'gold' is none of none, zinc, tin; it counts as missing"),
        Skipped(f"{path} line 7", "no class in column 'defect'"),
        Skipped(f"{path} line 8, column 'speed'", "'inf' is not a number"),
    }
    assert data.inputs("scratch", [1])[0, 1:4].tolist() == [0, 0, 0]


def test_statistics_are_of_usable_rows_only(tmp_path: Path) -> None:
    spoilt = open_table(table(tmp_path, TEXT + "1000000,tin,fast,dent\n"), DATA)
    assert spoilt.inputs("dent", [0, 1]).equal(open_table(table(tmp_path, name="p.csv"), DATA).inputs("dent", [0, 1]))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ["is empty"]),
        ("width,coating,speed,defekt\n1,tin,1,a\n", ["no column 'defect'", "'defekt'"]),
        ("width,coating,Speed,defect\n1,tin,1,a\n", ["lacks 1 of 3", "speed", "'Speed'", "absent-columns"]),
        ("width,coating,speed,width,defect\n1,tin,1,1,a\n", ["two columns named 'width'"]),
        (TEXT + "1,2\n", ["line 5", "2 values", "header 4"]),
        ("width,coating,speed,defect\n", ["0 row(s)", "header only"]),
        ("width,coating,speed,defect\n1,tin,x,a\n", ["1 row(s), none usable", "'x' is not a number"]),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_with_what_to_do(tmp_path: Path, text: str, said: list[str]) -> None:
    path = table(tmp_path, text)
    with pytest.raises(SiteDataError) as caught:
        open_table(path, DATA)
    assert all(part in str(caught.value) for part in [str(path), *said])


def test_a_table_that_is_not_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SiteDataError, match="not UTF-8"):
        open_table(table(tmp_path, TEXT.replace("dent", "défaut"), encoding="latin-1"), DATA)
    with pytest.raises(SiteDataError, match="cannot be read"):
        open_table(tmp_path / "none.csv", DATA)


def test_a_site_may_lack_columns_where_the_run_allows_it(tmp_path: Path) -> None:
    path = table(tmp_path, "width,defect\n10,a\n20,b\n")
    data = open_table(path, DataSettings(kind="table", label="defect", columns=COLUMNS, absent_columns=True))
    assert data.inputs("a", [0])[0].tolist() == pytest.approx([-1, 0, 0, 0, 0])


def test_columns_that_are_not_agreed_on_do_not_matter(tmp_path: Path) -> None:
    more = "\n".join(f"{line},{'note' if not i else 'x'}" for i, line in enumerate(TEXT.splitlines()))
    found = open_table(table(tmp_path, more), DATA)
    assert found.inputs("dent", [0, 1]).equal(open_table(table(tmp_path, name="p.csv"), DATA).inputs("dent", [0, 1]))


def test_rows_to_classify_need_no_class_but_usable_numbers(tmp_path: Path) -> None:
    path = table(tmp_path, "width,coating,speed\n10,zinc,1.5\n,tin,2\n")
    names, values = read_unlabelled(path, DATA)
    assert names == [f"{path}:2", f"{path}:3"]
    assert values[0].tolist() == [10, 0, 1, 0, 1.5]
    assert np.isnan(values[1, 0])
    with pytest.raises(SiteDataError, match="line 2, column 'width': 'wide' is not a number"):
        read_unlabelled(table(tmp_path, "width,coating,speed\nwide,tin,1\n"), DATA)


def test_values_are_the_same_number_however_it_is_written() -> None:
    columns = parse_columns("cp=1|2|3")
    values, faults = encode(columns, [{"cp": text} for text in ("1", "1.0", " 2", "3e0", "?", "NA")])
    assert not faults
    assert values.tolist() == [[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0], [0, 0, 0]]


def test_a_row_can_be_shown_as_it_was_written() -> None:
    columns = parse_columns(COLUMNS)
    values, _ = encode(columns, [{"width": "10.5", "coating": "zinc", "speed": ""}, {}])
    assert decoded(columns, values[0]) == ["10.5", "zinc", ""]
    assert decoded(columns, values[1]) == ["", "", ""]
    assert numeric_places(columns).tolist() == [True, False, False, False, True]


def test_four_hospitals_are_read_with_one_line_of_columns_and_that_line_is_proposed() -> None:
    hospitals = sorted((mirror_or_skip() / "heart_disease_hospitals").glob("*.csv"))
    tables = [read_table(path, "num") for path in hospitals]
    proposed = propose_columns(tables, "num")
    named = {column.name: column.values for column in parse_columns(proposed)}
    assert named["cp"] == ("1", "2", "3", "4")
    assert named["thal"] == ("3", "6", "7")
    assert named["age"] == named["chol"] == ()
    settings = DataSettings(kind="table", label="num", columns=proposed)
    counts = {}
    for path in hospitals:
        data = open_table(path, settings)
        counts[path.stem] = [data.count(name) for name in data.classes()]
        assert data.skipped == ()
        everything = np.concatenate([data.inputs(name, range(data.count(name))).numpy() for name in data.classes()])
        assert np.isfinite(everything).all()
        age = everything[:, 0]
        assert abs(age.mean()) < 1e-4 and age.std() == pytest.approx(1, abs=1e-3)
    assert counts == {
        "cleveland": [164, 55, 36, 35, 13],
        "hungarian": [188, 106],
        "switzerland": [8, 48, 32, 30, 5],
        "va": [51, 56, 41, 42, 10],
    }


def test_a_column_of_names_is_not_taken_for_the_class(tmp_path: Path) -> None:
    rows = "".join(f"{number},patient {number}\n" for number in range(30))
    with pytest.raises(SiteDataError, match="30 different classes in 30 rows") as raised:
        open_table(table(tmp_path, "age,name\n" + rows), DataSettings(kind="table", label="name", columns="age"))
    assert "data.label" in str(raised.value)


def test_columns_that_a_site_lacks_are_told(tmp_path: Path) -> None:
    data = DataSettings(kind="table", label="defect", columns=COLUMNS, absent_columns=True)
    path = table(tmp_path, "width,defect\n10,a\n20,b\n")
    assert [item.reason.split(",")[0] for item in open_table(path, data).skipped] == [
        "lacks column 'coating'",
        "lacks column 'speed'",
    ]
    with pytest.raises(SiteDataError, match="lacks 3 of 3"):
        open_table(table(tmp_path, "Width,defect\n10,a\n"), data)


def test_cells_may_hold_line_breaks_and_a_stray_quote_is_refused(tmp_path: Path) -> None:
    quoted = TEXT + '40,zinc,1,"a\nb"\n50,tin,2,dent\n'
    data = open_table(table(tmp_path, quoted), DATA)
    assert data.count("a\nb") == 1 and data.count("dent") == 3
    with pytest.raises(SiteDataError, match="quotation marks"):
        open_table(table(tmp_path, TEXT + '40,zinc,1,"dent\n50,tin,2,dent\n'), DATA)


def test_a_class_that_is_a_number_is_the_same_however_it_is_written(tmp_path: Path) -> None:
    data = open_table(table(tmp_path, "width,coating,speed,defect\n1,tin,1,1\n2,tin,1,1.0\n3,tin,1,2\n"), DATA)
    assert {name: data.count(name) for name in data.classes()} == {"1": 2, "2": 1}


def test_large_and_small_numbers_keep_what_tells_them_apart(tmp_path: Path) -> None:
    times = table(
        tmp_path, "width,coating,speed,defect\n1700000000,tin,1e-7,a\n1700000030,tin,5e-7,b\n1700000060,tin,9e-7,b\n"
    )
    data = open_table(times, DATA)
    first, last = data.inputs("a", [0])[0], data.inputs("b", [1])[0]
    assert first[0] == pytest.approx(-1.2247, abs=1e-3) and last[0] == pytest.approx(1.2247, abs=1e-3)
    assert first[4] == pytest.approx(-1.2247, abs=1e-3) and last[4] == pytest.approx(1.2247, abs=1e-3)


def test_proposed_values_are_written_as_in_the_table(tmp_path: Path) -> None:
    path = table(tmp_path, 'part,"len, mm",ok=1,size,label\n1234567,1,1,a,x\n9000001,2,0,b,y\n')
    assert propose_columns([read_table(path, "label")], "label") == "part=1234567|9000001, size=a|b"
