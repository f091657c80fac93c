"""One contract for every kind of site data, and the way from a path to sites."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from client.data.folder import open_folder
from client.data.packed import PackedSet, write_packed
from client.data.rotated import RotatedClasses
from client.data.sites import open_own, open_site_data, site_names
from common.errors import SiteDataError
from common.learning.episode import SiteData
from common.settings import DataSettings
from simulations.federation import deal, read_federation
from simulations.judging.evaluate import PooledData
from tests.mirror import mirror_or_skip

EIGHT = DataSettings(size=8)


@dataclass(frozen=True)
class Sources:
    """Where the kinds of data come from."""

    folders: Path
    packed: Path
    scratch: Path

    def folder(self) -> SiteData:
        return open_folder(self.folders / "line-1", EIGHT)

    def site(self) -> SiteData:
        return PackedSet(self.packed).site("site-3")

    def dealt(self, federation: str, site: str) -> SiteData:
        described = read_federation(federation)
        return open_site_data(deal(described).train, site, described.settings.data)

    def hospital(self) -> SiteData:
        hospitals = mirror_or_skip() / "heart_disease_hospitals"
        return open_site_data(hospitals, "va", DataSettings(kind="table", label="num", columns="age, cp=1|2|3|4, chol"))

    def sensors(self) -> SiteData:
        batches = mirror_or_skip() / "gas_drift" / "batches.npz"
        return open_own(batches, DataSettings(kind="vector", size=128, inputs="x", label="gas"))


KINDS: dict[str, tuple[tuple[int, ...], Callable[[Sources], SiteData]]] = {
    "folder": ((1, 8, 8), Sources.folder),
    "packed": ((1, 8, 8), Sources.site),
    "rotated folder": ((1, 8, 8), lambda sources: RotatedClasses(sources.folder())),
    "rotated packed": ((1, 8, 8), lambda sources: RotatedClasses(sources.site())),
    "pooled": ((1, 8, 8), lambda sources: PooledData({"b": sources.folder(), "a": sources.site()})),
    "pooled rotated": ((1, 8, 8), lambda sources: PooledData({"a": RotatedClasses(sources.site())})),
    "alphabet of a packed set": ((1, 28, 28), lambda sources: sources.dealt("omniglot", "Balinese")),
    "board line with templates": ((2, 64, 64), lambda sources: sources.dealt("board_lines", "12300")),
    "hospital of a packed set": ((25,), lambda sources: sources.dealt("heart_hospitals", "switzerland")),
    "scikit-learn digits": ((1, 28, 28), lambda sources: sources.dealt("digits", "site-01")),
    "hospital's own table": ((6,), Sources.hospital),
    "sensors' own arrays": ((128,), Sources.sensors),
}


@pytest.fixture(scope="module")
def sources(digit_folders: Path, digit_sites: Path, tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return Sources(digit_folders, digit_sites, tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest, sources: Sources) -> Iterator[tuple[tuple[int, ...], SiteData]]:
    shape, make = KINDS[request.param]
    yield shape, make(sources)


@pytest.fixture
def data(kind: tuple[tuple[int, ...], SiteData]) -> SiteData:
    return kind[1]


@pytest.fixture
def shape(kind: tuple[tuple[int, ...], SiteData]) -> tuple[int, ...]:
    return kind[0]


def test_classes_are_sorted_unique_names_and_there_are_some(data: SiteData) -> None:
    names = list(data.classes())
    assert names and all(isinstance(name, str) and name for name in names)
    assert names == sorted(set(names))


def test_every_class_has_at_least_one_input_and_gives_as_many_as_it_counts(
    data: SiteData, shape: tuple[int, ...]
) -> None:
    for name in data.classes():
        assert type(data.count(name)) is int and data.count(name) >= 1
        assert data.inputs(name, range(data.count(name))).shape == (data.count(name), *shape)


def test_inputs_are_float32_grey_levels_between_0_and_1_or_standardised_numbers(
    data: SiteData, shape: tuple[int, ...]
) -> None:
    inputs = [data.inputs(name, range(data.count(name))) for name in data.classes()]
    assert {each.dtype for each in inputs} == {torch.float32}
    assert all(each.isfinite().all() and each.min() < each.max() for each in inputs)
    if len(shape) == 3:
        assert all(each.min() >= 0 and each.max() <= 1 for each in inputs)
    else:
        first = torch.cat(inputs)[:, 0]
        assert abs(float(first.mean())) < 1e-4 and float(first.std(unbiased=False)) == pytest.approx(1, abs=1e-3)


def test_no_rows_give_no_inputs_of_the_right_shape(data: SiteData, shape: tuple[int, ...]) -> None:
    nothing = data.inputs(data.classes()[0], [])
    assert nothing.shape == (0, *shape) and nothing.dtype == torch.float32


def test_the_same_rows_give_the_same_values(data: SiteData) -> None:
    for name in data.classes():
        rows = range(data.count(name))
        assert torch.equal(data.inputs(name, rows), data.inputs(name, rows))


def test_the_order_of_rows_is_kept_and_a_row_may_come_twice(data: SiteData) -> None:
    for name in data.classes():
        count = data.count(name)
        each = [data.inputs(name, [row])[0] for row in range(count)]
        rows = [*reversed(range(count)), 0]
        found = data.inputs(name, rows)
        assert all(torch.equal(found[i], each[row]) for i, row in enumerate(rows))


@pytest.mark.parametrize("beyond", [0, 1, 10**6])
def test_a_row_beyond_the_last_raises_index_error(data: SiteData, beyond: int) -> None:
    for name in data.classes():
        with pytest.raises(IndexError):
            data.inputs(name, [0, data.count(name) + beyond])


def test_a_row_before_the_first_raises_index_error_and_does_not_count_from_the_end(data: SiteData) -> None:
    with pytest.raises(IndexError):
        data.inputs(data.classes()[0], [-1])


def test_changing_what_was_handed_out_changes_no_later_read(data: SiteData) -> None:
    name = data.classes()[0]
    before = data.inputs(name, [0]).clone()
    data.inputs(name, [0]).fill_(0.5)
    names = data.classes()
    if isinstance(names, list):
        names.clear()
    assert torch.equal(data.inputs(name, [0]), before)
    assert name in data.classes()


# ------------------------------------------------------------------------------------------ turned classes


class Corner:
    """One class of one picture, white in its upper left corner."""

    def classes(self) -> list[str]:
        return ["a"]

    def count(self, name: str) -> int:
        return {"a": 1}[name]

    def inputs(self, name: str, rows: object) -> torch.Tensor:
        picture = torch.zeros(1, 1, 3, 3)
        picture[0, 0, 0, 0] = 1
        return picture


def test_each_class_comes_four_times_each_a_quarter_turn_further() -> None:
    turned = RotatedClasses(Corner())
    assert list(turned.classes()) == ["a", "a @180", "a @270", "a @90"]
    corners = {name: tuple(turned.inputs(name, [0])[0, 0].nonzero()[0].tolist()) for name in turned.classes()}
    upper_left, lower_left, lower_right, upper_right = (0, 0), (2, 0), (2, 2), (0, 2)
    assert corners == {"a": upper_left, "a @90": lower_left, "a @180": lower_right, "a @270": upper_right}


def test_turned_classes_have_as_many_inputs_as_the_class_they_come_from(sources: Sources) -> None:
    plain = sources.site()
    turned = RotatedClasses(plain)
    assert len(turned.classes()) == 4 * len(plain.classes())
    assert {turned.count(f"{name}{turn}") for name in plain.classes() for turn in ("", " @90")} == {20}


def test_a_class_that_is_at_several_sites_is_one_class_when_they_are_pooled(sources: Sources) -> None:
    first, second = PackedSet(sources.packed).site("site-0"), PackedSet(sources.packed).site("site-1")
    pooled = PooledData({"x": first, "y": second.only(["3", "4"])})
    assert pooled.classes() == first.classes()
    assert (pooled.count("3"), pooled.count("5")) == (40, 20)
    assert torch.equal(pooled.inputs("3", [21, 1]), torch.cat([second.inputs("3", [1]), first.inputs("3", [1])]))
    assert torch.equal(pooled.inputs("5", [2, 0]), first.inputs("5", [2, 0]))
    assert pooled.inputs("3", []).shape == (0, 1, 8, 8)


# ---------------------------------------------------------------------------------- from a path to sites


def save_picture(path: Path, grey: int = 128) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), grey).save(path)


def test_a_packed_set_names_its_sites_in_order(digit_sites: Path) -> None:
    assert site_names(digit_sites) == [f"site-{number}" for number in range(8)]
    assert open_site_data(digit_sites, "site-7", EIGHT).count("9") == 20


def test_a_folder_of_site_folders_names_its_sites_in_order(digit_folders: Path) -> None:
    assert site_names(digit_folders) == ["line-1", "line-2"]
    found = open_site_data(digit_folders, "line-2", EIGHT)
    assert list(found.classes()) == [f"digit-{digit}" for digit in range(5, 10)]


def test_a_folder_of_class_folders_is_one_site_named_like_it(digit_folders: Path) -> None:
    assert site_names(digit_folders / "line-2") == ["line-2"]
    found = open_site_data(digit_folders / "line-2", "line-2", EIGHT)
    assert list(found.classes()) == [f"digit-{digit}" for digit in range(5, 10)]


def test_a_site_may_be_called_otherwise_than_its_folder(digit_folders: Path) -> None:
    found = open_site_data(digit_folders / "line-1", "Werk Süd, line 1", EIGHT)
    assert list(found.classes()) == [f"digit-{digit}" for digit in range(5)]


def test_a_site_that_a_folder_of_sites_lacks_is_refused_and_some_that_it_has_are_named(digit_folders: Path) -> None:
    with pytest.raises(SiteDataError, match=r"no site 'line-9'.*line-1, line-2"):
        open_site_data(digit_folders, "line-9", EIGHT)


def test_tables_and_arrays_are_sites_named_like_their_files(tmp_path: Path) -> None:
    for name in ("cleveland", "va"):
        (tmp_path / f"{name}.csv").write_text("age,label\n40,a\n50,b\n")
    assert site_names(tmp_path) == ["cleveland", "va"]
    assert site_names(tmp_path / "va.csv") == ["va"]
    data = DataSettings(kind="table", columns="age")
    for path in (tmp_path, tmp_path / "va.csv"):
        assert open_site_data(path, "va", data).classes() == ["a", "b"]


def test_a_class_may_be_called_like_its_site(tmp_path: Path) -> None:
    for name in ("line-3", "scratch"):
        save_picture(tmp_path / "line-3" / name / "1.png")
    assert site_names(tmp_path / "line-3") == ["line-3"]
    assert open_site_data(tmp_path / "line-3", "line-3", EIGHT).classes() == ["line-3", "scratch"]


def test_a_site_may_be_called_like_the_folder_of_all_sites(tmp_path: Path) -> None:
    for site in ("plant", "other"):
        for name in ("dent", "scratch"):
            save_picture(tmp_path / "plant" / site / f"{site} {name}" / "1.png")
    assert site_names(tmp_path / "plant") == ["other", "plant"]
    assert open_site_data(tmp_path / "plant", "plant", EIGHT).classes() == ["plant dent", "plant scratch"]


def test_a_file_beside_the_class_folders_of_a_site_does_not_make_it_a_class(tmp_path: Path) -> None:
    for site in ("line-1", "line-2"):
        save_picture(tmp_path / site / "dent" / "1.png")
    (tmp_path / "line-1" / "README.txt").write_text("which line this is")
    save_picture(tmp_path / "line-2" / "overview.png")
    assert site_names(tmp_path) == ["line-1", "line-2"]


def test_a_folder_of_masks_beside_the_classes_does_not_make_the_site_many(tmp_path: Path) -> None:
    for name in ("dent", "scratch"):
        save_picture(tmp_path / "line-1" / name / "1.png")
        save_picture(tmp_path / "line-1" / "masks" / name / "1.png")
    data = DataSettings(size=8, beside="../masks/{class}/{stem}.png")
    assert site_names(tmp_path / "line-1") == ["line-1"]
    assert open_site_data(tmp_path / "line-1", "line-1", data).classes() == ["dent", "scratch"]
    assert site_names(tmp_path) == ["line-1"]
    assert open_site_data(tmp_path, "line-1", data).classes() == ["dent", "scratch"]


def test_hidden_folders_are_no_sites(tmp_path: Path) -> None:
    for site in ("line-1", ".trash"):
        save_picture(tmp_path / site / "dent" / "1.png")
    assert site_names(tmp_path) == ["line-1"]


def test_a_hidden_folder_in_a_class_folder_does_not_make_the_site_many(tmp_path: Path) -> None:
    for name in ("dent", "scratch"):
        save_picture(tmp_path / "line-1" / name / "1.png")
    save_picture(tmp_path / "line-1" / "dent" / ".thumbnails" / "1.png")
    assert site_names(tmp_path / "line-1") == ["line-1"]
    assert open_site_data(tmp_path / "line-1", "line-1", EIGHT).classes() == ["dent", "scratch"]


@pytest.mark.parametrize("layout", ["packed", "folders", "one site"])
def test_turned_classes_are_a_setting_for_every_layout(digit_sites: Path, digit_folders: Path, layout: str) -> None:
    path, name, classes = {
        "packed": (digit_sites, "site-0", 10),
        "folders": (digit_folders, "line-1", 5),
        "one site": (digit_folders / "line-1", "line-1", 5),
    }[layout]
    assert len(open_site_data(path, name, EIGHT).classes()) == classes
    assert len(open_site_data(path, name, DataSettings(size=8, rotated_classes=True)).classes()) == 4 * classes


RELATIVE = {
    "packed": ("packed", "s"),
    "folders": ("sites", "line-1"),
    "one site": ("sites/line-1", "line-1"),
    "missing": ("nowhere", "line-1"),
}


@pytest.fixture
def around_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder that holds a packed set and a folder of sites."""
    monkeypatch.chdir(tmp_path)
    write_packed(tmp_path / "packed", np.zeros((2, 1, 8, 8), np.uint8), {"s": {"a": [0], "b": [1]}}, {})
    for name in ("dent", "scratch"):
        save_picture(tmp_path / "sites" / "line-1" / name / "1.png")


@pytest.mark.usefixtures("around_here")
@pytest.mark.parametrize("layout", RELATIVE)
def test_site_names_refuses_a_relative_path_whatever_lies_there(layout: str) -> None:
    with pytest.raises(SiteDataError, match="relative"):
        site_names(Path(RELATIVE[layout][0]))


@pytest.mark.usefixtures("around_here")
@pytest.mark.parametrize("layout", RELATIVE)
def test_open_site_data_refuses_a_relative_path_whatever_lies_there(layout: str) -> None:
    path, name = RELATIVE[layout]
    with pytest.raises(SiteDataError, match="relative"):
        open_site_data(Path(path), name, EIGHT)


def test_a_missing_path_says_how_to_get_data(tmp_path: Path) -> None:
    with pytest.raises(SiteDataError, match=r"no folder .*nowhere.*fedreptile-sim data get"):
        site_names(tmp_path / "nowhere")


def test_a_file_that_is_no_table_or_arrays_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sites").write_text("none")
    with pytest.raises(SiteDataError, match=r"sites is not of the kind 'image' .* needs class folders"):
        open_site_data(tmp_path / "sites", "sites", EIGHT)


def test_a_folder_without_sites_is_refused(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("empty")
    with pytest.raises(SiteDataError, match="holds no site;"):
        site_names(tmp_path)


def test_a_site_that_a_packed_set_lacks_is_refused_and_some_that_it_has_are_named(digit_sites: Path) -> None:
    with pytest.raises(SiteDataError, match=r"no site 'site-99'.*site-0"):
        open_site_data(digit_sites, "site-99", EIGHT)


@pytest.mark.parametrize("wanted", [DataSettings(size=28), DataSettings(size=8, channels=3)], ids=["size", "channels"])
def test_a_packed_set_of_another_shape_is_refused_with_both_shapes(digit_sites: Path, wanted: DataSettings) -> None:
    with pytest.raises(SiteDataError) as raised:
        open_site_data(digit_sites, "site-0", wanted)
    for part in ("(1, 8, 8)", str((wanted.channels, wanted.size, wanted.size)), "[data]"):
        assert part in str(raised.value)
