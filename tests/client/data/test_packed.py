"""Packed sets: whole or refused, whole or not written, and free until something is drawn."""

import errno
import json
import sys
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.data import packed as packed_sets
from client.data.packed import CELLS, INDEX, PackedSet, open_packed, write_packed
from common.errors import SiteDataError

ARRAYS = ("inputs.npy", "rows.npy", "cells.npy", "names.npy", "classes.npy")
ROWS = {"t": {"c": [2, 2, 4]}, "s": {"b": [5, 0, 3], "a": [1]}}
"""Neither sites nor classes are in the order of their names."""


@pytest.fixture
def inputs() -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Six inputs [2, 3, 3]; every element of row r is r times 10."""
    return np.repeat(np.arange(6, dtype=np.uint8) * 10, 18).reshape(6, 2, 3, 3)


@pytest.fixture
def packed(tmp_path: Path, inputs: np.ndarray[Any, np.dtype[np.uint8]]) -> Path:
    write_packed(tmp_path / "set", inputs, ROWS, {"name": "test"})
    return tmp_path / "set"


def tens(found: torch.Tensor) -> list[int]:
    return [round(float(one.mean()) * 255) for one in found]


def test_what_was_written_is_read(packed: Path) -> None:
    found = PackedSet(packed)
    assert found.names == ["s", "t"] and found.shape == (2, 3, 3)
    assert found.site("s").classes() == ["a", "b"]
    assert tens(found.site("s").inputs("b", [0, 1, 2])) == [50, 0, 30]
    assert tens(found.site("s").inputs("a", [0])) == [10]
    assert tens(found.site("t").inputs("c", [2, 1, 0])) == [40, 20, 20]


def test_a_row_of_the_next_class_cannot_be_reached(packed: Path) -> None:
    with pytest.raises(IndexError):
        PackedSet(packed).site("s").inputs("b", [3])


def test_the_origin_is_on_record(packed: Path) -> None:
    assert json.loads((packed / INDEX).read_text())["origin"] == {"name": "test"}


# ------------------------------------------------------------------------------------------------ damaged


def rewrite(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text())
        change(index)
        (folder / INDEX).write_text(json.dumps(index))

    return damage


def cells(**columns: Sequence[int]) -> Callable[[Path], object]:
    """Replace columns of the cells, which are: a of s, b of s, c of t, from the rows 0, 1 and 4."""

    def damage(folder: Path) -> None:
        found = np.load(folder / CELLS)
        for name, values in columns.items():
            found[name] = values
        np.save(folder / CELLS, found)

    return damage


def in_plain_numbers(folder: Path) -> None:
    found = np.load(folder / CELLS)
    np.save(folder / CELLS, np.stack([found["site"], found["class"], found["start"]]))


def text(content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / INDEX).write_text(content)


def array(name: str, value: Any) -> Callable[[Path], object]:
    return lambda folder: np.save(folder / name, value)


def content(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(data)


def cut(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-1])


def pickled(file: Path) -> None:
    np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)


def boast(file: Path) -> None:
    """Have an array's header say that it is long beyond all memory."""
    written = np.load(file)
    with file.open("wb") as opened:
        shape = (10**12, *written.shape[1:])
        header = {"descr": np.lib.format.dtype_to_descr(written.dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(opened, header)
        opened.write(written.tobytes())


DAMAGE: dict[str, Callable[[Path], object]] = {
    **{f"no {name}": (lambda folder, name=name: (folder / name).unlink()) for name in ARRAYS},  # type: ignore[misc]
    **{f"{name} cut off": cut(name) for name in ARRAYS},
    **{f"empty {name}": content(name, b"") for name in ARRAYS},
    **{f"{name} is pickled objects": (lambda folder, name=name: pickled(folder / name)) for name in ARRAYS},  # type: ignore[misc]
    **{f"{name} says it holds more than there is": (lambda folder, name=name: boast(folder / name)) for name in ARRAYS},  # type: ignore[misc]
    "the index is no JSON": text('{"format": 1, "sites":'),
    "the index is no text": lambda folder: (folder / INDEX).write_bytes(b"\xff\xfe\x00"),
    "the index is a list": text("[1]"),
    "the index is a number": text("1"),
    "the index is empty": text(""),
    "no format": rewrite(lambda index: index.pop("format")),
    "the format before": rewrite(lambda index: index.update(format=2)),
    "no place of the inputs": rewrite(lambda index: index.pop("inputs")),
    "the inputs are a number": rewrite(lambda index: index.update(inputs=1)),
    "names in bytes": array("names.npy", np.array([b"s", b"t"])),
    "names in two dimensions": array("names.npy", np.array([["s", "t"]])),
    "names that are not sorted": array("names.npy", np.array(["t", "s"])),
    "one name twice": array("names.npy", np.array(["s", "s"])),
    "a site without a name": array("names.npy", np.array(["s"])),
    "names that are no text": array("names.npy", np.array([2**31, 2**31 + 1], np.uint32).view("U1")),
    "classes in numbers": array("classes.npy", np.arange(3)),
    "classes that are not sorted": array("classes.npy", np.array(["a", "c", "b"])),
    "a class without a name": array("classes.npy", np.array(["a", "b"])),
    "cells in plain numbers": in_plain_numbers,
    "a site before the first": cells(site=[-1, 0, 1]),
    "sites that are not sorted": cells(site=[0, 1, 0]),
    "a class before the first": cells(**{"class": [-2, 1, 2]}),
    "a class twice": cells(**{"class": [1, 1, 2]}),
    "classes of a site that are not sorted": cells(**{"class": [1, 0, 2]}),
    "an empty class": cells(start=[0, 0, 4]),
    "a class backwards": cells(start=[0, 5, 4]),
    "a class before the start": cells(start=[-1, 1, 4]),
    "an empty class at the end": cells(start=[0, 1, 7]),
    "a class beyond the end": cells(start=[0, 1, 9]),
    "a row beyond the inputs": array("rows.npy", np.array([1, 5, 0, 3, 2, 2, 6])),
    "a row before the inputs": array("rows.npy", np.array([1, 5, 0, 3, 2, 2, -1])),
    "rows in int32": array("rows.npy", np.zeros(7, np.int32)),
    "rows in two dimensions": array("rows.npy", np.zeros((7, 1), np.int64)),
    "inputs in float32": array("inputs.npy", np.zeros((6, 2, 3, 3), np.float32)),
    "inputs in three dimensions": array("inputs.npy", np.zeros((6, 3, 3), np.uint8)),
    "no inputs at all": array("inputs.npy", np.zeros((0, 2, 3, 3), np.uint8)),
    "inputs are text": content("inputs.npy", b"not an array"),
    "inputs are pickled objects": content("inputs.npy", b"\x80\x04K\x01."),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_set_is_refused_when_it_is_opened_with_what_to_do(packed: Path, damage: str) -> None:
    DAMAGE[damage](packed)
    with pytest.raises(SiteDataError) as raised:
        PackedSet(packed)
    assert str(packed) in str(raised.value) and "make it again" in str(raised.value)


def test_a_wrong_row_is_found_wherever_it_lies(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_sets, "AT_ONCE", 2)
    assert PackedSet(packed).names == ["s", "t"]
    good = np.load(packed / "rows.npy")
    for place in range(len(good)):
        bad = good.copy()
        bad[place] = 6
        np.save(packed / "rows.npy", bad)
        with pytest.raises(SiteDataError, match="does not hold row numbers"):
            PackedSet(packed)


def test_an_older_format_is_refused_with_both_numbers(packed: Path) -> None:
    rewrite(lambda index: index.update(format=2))(packed)
    with pytest.raises(SiteDataError, match="its format is 2; this version reads 3"):
        PackedSet(packed)


def test_a_missing_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SiteDataError, match="missing a file"):
        PackedSet(tmp_path / "nowhere")


def test_a_set_that_could_not_be_opened_is_looked_at_again(packed: Path) -> None:
    (packed / "rows.npy").rename(packed / "away.npy")
    with pytest.raises(SiteDataError):
        open_packed(packed)
    (packed / "away.npy").rename(packed / "rows.npy")
    assert open_packed(packed).names == ["s", "t"]


# --------------------------------------------------------------------------------------------------- cost


def test_a_thousand_sites_cost_their_index_only(tmp_path: Path) -> None:
    count, sites = 40_000, 1000
    rows = {f"site-{s}": {f"c{c}": range(40 * s + 8 * c, 40 * s + 8 * c + 8) for c in range(5)} for s in range(sites)}
    values = np.zeros((count, 1, 28, 28), np.uint8)
    write_packed(tmp_path / "set", values, rows, {})
    size = values.nbytes
    del values
    tracemalloc.start()
    try:
        opened = PackedSet(tmp_path / "set")
        found = [opened.site(name) for name in opened.names]
        _, peak = tracemalloc.get_traced_memory()
        drawn = found[-1].inputs("c0", [0, 7])
    finally:
        tracemalloc.stop()
    assert len(found) == sites and drawn.shape == (2, 1, 28, 28)
    assert peak < size / 4, f"{peak} bytes were used to open a set of {size}"


def test_twenty_thousand_sites_of_twenty_classes_cost_no_memory_for_what_is_not_opened(tmp_path: Path) -> None:
    sites, members = 20_000, [[row] for row in range(100)]
    rows = {f"site-{s:05d}": {f"c{c % 100}": members[c % 100] for c in range(s, s + 20)} for s in range(sites)}
    write_packed(tmp_path / "set", np.zeros((100, 1, 2, 2), np.uint8), rows, {})
    del rows
    tracemalloc.start()
    try:
        opened = PackedSet(tmp_path / "set")
        size, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size < 4e6 and peak < 20e6, "some 100 bytes a site; of its cells none"
    assert opened.site("site-19999").classes() == sorted(f"c{c % 100}" for c in range(19_999, 20_019))


# ------------------------------------------------------------------------------------------------- writing


def disk_full_at(monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    real = np.save

    def save(file: Any, *args: Any, **kwargs: Any) -> None:
        if Path(file).name == failing:
            Path(file).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(file, *args, **kwargs)

    monkeypatch.setattr(np, "save", save)


@pytest.mark.parametrize("failing", ARRAYS)
def test_a_set_that_could_not_be_written_is_not_there_at_all(
    tmp_path: Path, inputs: np.ndarray[Any, np.dtype[np.uint8]], monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    disk_full_at(monkeypatch, failing)
    with pytest.raises(OSError, match="No space"):
        write_packed(tmp_path / "data" / "set", inputs, ROWS, {})
    assert list((tmp_path / "data").iterdir()) == []


def test_after_a_failed_write_the_same_process_can_try_again(
    tmp_path: Path, inputs: np.ndarray[Any, np.dtype[np.uint8]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as full:
        disk_full_at(full, "rows.npy")
        with pytest.raises(OSError, match="No space"):
            write_packed(tmp_path / "set", inputs, ROWS, {})
    write_packed(tmp_path / "set", inputs, ROWS, {})
    assert PackedSet(tmp_path / "set").names == ["s", "t"]


def test_writing_leaves_nothing_beside_the_set(packed: Path) -> None:
    assert list(packed.parent.iterdir()) == [packed]
    assert sorted(file.name for file in packed.iterdir()) == sorted([*ARRAYS, INDEX])


def test_a_whole_set_that_is_there_already_is_left_as_it_is(
    packed: Path, inputs: np.ndarray[Any, np.dtype[np.uint8]]
) -> None:
    write_packed(packed, inputs, {"other": {"a": [0]}}, {})
    assert PackedSet(packed).names == ["s", "t"] and list(packed.parent.iterdir()) == [packed]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no permission bits")
def test_other_users_may_read_a_set(packed: Path) -> None:
    assert packed.stat().st_mode & 0o055 == 0o055
    assert all(file.stat().st_mode & 0o044 == 0o044 for file in packed.iterdir())


def test_rows_may_be_any_whole_numbers(tmp_path: Path, inputs: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    write_packed(tmp_path / "set", inputs, {"s": {"a": np.array([4, 1], np.int16)}}, {})  # type: ignore[dict-item]
    assert tens(PackedSet(tmp_path / "set").site("s").inputs("a", [0, 1])) == [40, 10]


def test_a_site_may_be_without_classes_and_names_may_be_any_text(
    tmp_path: Path, inputs: np.ndarray[Any, np.dtype[np.uint8]]
) -> None:
    rows = {"": {}, "größe 零": {"ß": [1], "": [2]}, "long " * 40: {}, "z\nline": {"😀": [3]}, "zz": {}}
    write_packed(tmp_path / "set", inputs, rows, {})
    found = PackedSet(tmp_path / "set")
    assert found.names == sorted(rows)
    assert {name: found.site(name).classes() for name in rows} == {name: sorted(own) for name, own in rows.items()}
    assert tens(found.site("größe 零").inputs("ß", [0])) == [10]


def test_numbers_are_standardised_by_the_rows_that_are_named_for_a_site_and_else_by_its_own(tmp_path: Path) -> None:
    numbers = np.array([[0.0], [2.0], [4.0], [8.0]], np.float32)
    rows = {"a": {"x": [0], "y": [1]}, "b": {"x": [2, 3]}}
    write_packed(tmp_path / "set", numbers, rows, {}, {"b": [0, 1], "elsewhere": [3]})
    found = PackedSet(tmp_path / "set")
    assert found.names == ["a", "b"] and found.site("b").classes() == ["x"]
    assert found.site("a").inputs("y", [0]).tolist() == [[1.0]]
    assert found.site("b").inputs("x", [0, 1]).tolist() == [[3.0], [7.0]]
