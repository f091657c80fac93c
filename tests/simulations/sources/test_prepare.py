"""From a name to a pool: mirror, downloads or origin; made once, and not of anything that is not the published set."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from common.errors import SettingsError, SourceError
from simulations.sources import files as listed
from simulations.sources import prepare as preparing
from simulations.sources.catalogue import CATALOGUE
from simulations.sources.download import Done, NotThereError, UnreachableError
from simulations.sources.pool import open_pool
from simulations.sources.prepare import find_mirror, key, prepare
from tests.simulations.sources.origin import Origin
from tests.simulations.sources.test_origins import HEART
from tests.simulations.sources.test_sets import settings_of

HEARTS = "heart_disease_hospitals"
NAMES = ("cleveland", "hungarian", "switzerland", "va")


@pytest.fixture
def hearts(origin: Origin, mirror: Path, monkeypatch: pytest.MonkeyPatch) -> Origin:
    """An origin that serves the four tables of patients as they are published."""
    monkeypatch.setattr(listed, "RAW", origin.url)
    (published,) = CATALOGUE[HEARTS].origins
    for name in NAMES:
        rows = (mirror / HEARTS / f"{name}.csv").read_text().splitlines()[1:]
        mark = "?" if name == "hungarian" else ""
        text = HEART + "\n".join(",".join(cell or mark for cell in row.split(",")) for row in rows)
        origin.files[f"/{published.repository}/{published.commit}/data/processed.{name}.data"] = text.encode()
    return origin


def path_of(hearts: Origin, name: str) -> str:
    return next(path for path in hearts.files if name in path)


def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*what: object) -> None:
        raise AssertionError("this must not be fetched")

    monkeypatch.setattr(preparing, "fetch_all", refuse)


# ------------------------------------------------------------------------------------------------- origin


def test_a_set_comes_from_its_origin_where_there_is_no_mirror(home: Path, mirror: Path, hearts: Origin) -> None:
    seen: list[Done] = []
    folder = prepare(HEARTS, settings_of(HEARTS), progress=seen.append)
    assert folder.parent == home / "pools" and seen[-1].files == seen[-1].all_files == 4
    found, expected = (
        open_pool(folder),
        CATALOGUE[HEARTS].read(CATALOGUE[HEARTS].in_mirror(mirror), settings_of(HEARTS)),
    )
    np.testing.assert_array_equal(found.inputs, expected.inputs)
    assert tuple(found.classes) == expected.classes and dict(found.attributes) == dict(expected.attributes)


def test_the_second_call_uses_what_is_there(home: Path, hearts: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepare(HEARTS, settings_of(HEARTS))
    before = (first / "items.csv").stat().st_mtime_ns
    shutil.rmtree(home / "downloads")
    no_network(monkeypatch)
    assert prepare(HEARTS, settings_of(HEARTS)) == first and (first / "items.csv").stat().st_mtime_ns == before


def test_other_settings_make_another_pool_of_the_same_downloads(home: Path, hearts: Origin) -> None:
    first = prepare(HEARTS, settings_of(HEARTS))
    asked = len(hearts.asked)
    second = prepare(HEARTS, settings_of(HEARTS, columns="age", label="num"))
    assert first != second and len(hearts.asked) == asked
    assert open_pool(second).inputs.shape == (920, 1) and set(open_pool(second).classes) == set("01234")


def test_an_origin_that_breaks_off_for_good_leaves_no_pool_and_what_came_is_not_fetched_again(
    home: Path, hearts: Origin
) -> None:
    broken = path_of(hearts, "va")
    hearts.faults[broken] = ["500*"]
    with pytest.raises(UnreachableError):
        prepare(HEARTS, settings_of(HEARTS))
    assert not (home / "pools").exists()
    downloads = home / "downloads" / HEARTS
    finished = {path.name for path in downloads.rglob("processed.*.data")}
    hearts.asked.clear()
    hearts.faults.clear()
    prepare(HEARTS, settings_of(HEARTS))
    assert {Path(path).name for path in hearts.paths()} == {f"processed.{name}.data" for name in NAMES} - finished


def test_a_file_that_the_origin_no_longer_has_is_said_to_be_gone(home: Path, hearts: Origin) -> None:
    del hearts.files[path_of(hearts, "va")]
    with pytest.raises(NotThereError, match=r"processed\.va\.data is not there \(404\)"):
        prepare(HEARTS, settings_of(HEARTS))


def test_a_file_of_another_size_is_refused_and_no_pool_made(home: Path, hearts: Origin) -> None:
    hearts.files[path_of(hearts, "va")] += b"\n"
    with pytest.raises(SourceError, match="has 6119 bytes; expected 6118") as raised:
        prepare(HEARTS, settings_of(HEARTS))
    assert not isinstance(raised.value, UnreachableError) and not (home / "pools").exists()


def test_a_file_of_the_right_size_with_other_patients_is_told_by_their_number_in_each_class(
    home: Path, hearts: Origin
) -> None:
    """Where no sum of the origin's file is known."""
    path = path_of(hearts, "va")
    assert hearts.files[path].endswith(b",1")
    hearts.files[path] = hearts.files[path][:-1] + b"0"
    with pytest.raises(SourceError, match="disease 508, no disease 412; expected disease 509, no disease 411"):
        prepare(HEARTS, settings_of(HEARTS))
    assert not (home / "pools").exists()


def test_without_mirror_and_network_a_set_is_unreachable(
    home: Path, nobody: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listed, "RAW", nobody)
    with pytest.raises(UnreachableError, match=nobody):
        prepare("omniglot", settings_of("omniglot"))
    assert not (home / "pools").exists()


def test_digits_need_neither_mirror_nor_network(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_network(monkeypatch)
    folder = prepare("digits", settings_of("digits"))
    assert folder == home / "pools" / "digits-1x28" and open_pool(folder).inputs.shape == (1797, 1, 28, 28)


# ------------------------------------------------------------------------------------------------ mirrors


@pytest.mark.parametrize("way", ["given", "named by the variable"])
def test_a_mirror_in_packed_form_is_enough(home: Path, mirror: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    no_network(monkeypatch)
    if way == "named by the variable":
        monkeypatch.setenv("FEDREPTILE_DATA_MIRROR", str(mirror))
    folder = prepare("gas_drift", settings_of("gas_drift"), mirror if way == "given" else None)
    assert open_pool(folder).inputs.shape == (3927, 128)


def test_a_copy_of_the_downloads_does_as_a_mirror(home: Path, tmp_path: Path, hearts: Origin) -> None:
    first = prepare(HEARTS, settings_of(HEARTS))
    shutil.move(home / "downloads", tmp_path / "mirror")
    shutil.rmtree(first)
    hearts.asked.clear()
    assert prepare(HEARTS, settings_of(HEARTS), tmp_path / "mirror") == first and not hearts.asked


def test_a_damaged_file_of_a_mirror_is_named_and_no_pool_made(home: Path, mirror: Path, tmp_path: Path) -> None:
    shutil.copytree(mirror / HEARTS, tmp_path / "mirror" / HEARTS)
    damaged = tmp_path / "mirror" / HEARTS / "va.csv"
    damaged.write_bytes(damaged.read_bytes().replace(b"63,1,4,140", b"63,0,4,140", 1))
    with pytest.raises(SourceError, match=r"va\.csv is damaged .* sha256 sum is .* expected"):
        prepare(HEARTS, settings_of(HEARTS), tmp_path / "mirror")
    assert not (home / "pools").exists()


def test_a_file_that_a_mirror_lacks_is_named(home: Path, mirror: Path, tmp_path: Path) -> None:
    shutil.copytree(mirror / HEARTS, tmp_path / "mirror" / HEARTS)
    (tmp_path / "mirror" / HEARTS / "va.csv").unlink()
    with pytest.raises(SourceError, match=r"va\.csv cannot be read: No such file.*complete the mirror"):
        prepare(HEARTS, settings_of(HEARTS), tmp_path / "mirror")


@pytest.mark.parametrize("holds", ["nothing", "another set"])
def test_a_given_mirror_without_the_set_is_refused_and_the_network_not_used(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, holds: str
) -> None:
    (tmp_path / "mirror" / ("mnist" if holds == "another set" else "")).mkdir(parents=True)
    no_network(monkeypatch)
    with pytest.raises(SourceError, match=r"does not hold gas_drift: there is no .*batches\.npz"):
        prepare("gas_drift", settings_of("gas_drift"), tmp_path / "mirror")


@pytest.mark.parametrize("found", ["nothing", "a file"])
@pytest.mark.parametrize("variable", [True, False], ids=["named by the variable", "given"])
def test_a_mirror_that_is_no_folder_is_refused_and_not_passed_over(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: str, variable: bool
) -> None:
    mirror = tmp_path / "mirror"
    if found == "a file":
        mirror.write_text("x")
    if variable:
        monkeypatch.setenv("FEDREPTILE_DATA_MIRROR", str(mirror))
    no_network(monkeypatch)
    with pytest.raises(SourceError, match="is not a folder; correct --data-mirror or FEDREPTILE_DATA_MIRROR"):
        prepare("gas_drift", settings_of("gas_drift"), None if variable else mirror)


def test_a_given_mirror_comes_before_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDREPTILE_DATA_MIRROR", str(tmp_path / "elsewhere"))
    assert find_mirror(tmp_path) == tmp_path
    (tmp_path / "elsewhere").mkdir()
    assert find_mirror(None) == tmp_path / "elsewhere"


def test_a_relative_mirror_is_resolved_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find_mirror(Path("mine")) == (tmp_path / "mine").resolve()


def test_without_a_named_mirror_the_one_beside_the_checkout_counts_if_it_is_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("FEDREPTILE_DATA_MIRROR", raising=False)
    monkeypatch.setattr(preparing, "__file__", str(tmp_path / "checkout" / "simulations" / "sources" / "prepare.py"))
    assert find_mirror(None) is None
    (tmp_path / "shared" / "data").mkdir(parents=True)
    assert find_mirror(None) == tmp_path / "shared" / "data"


# ----------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize("name", ["mnist", "", "Omniglot", "../omniglot"])
def test_an_unknown_set_is_refused_with_the_known_ones(home: Path, name: str) -> None:
    with pytest.raises(SourceError, match=r"unknown data set .* known are omniglot, neu_steel"):
        prepare(name, settings_of("omniglot"))
    assert not home.exists()


REFUSED: dict[str, Callable[[], object]] = {
    "data.kind is 'table'; digits has 'image'": lambda: prepare("digits", settings_of(HEARTS)),
    "data.beside names 'mask'; beside pictures of digits lies nothing": lambda: prepare(
        "digits", settings_of("digits", beside="mask")
    ),
    "data.beside names 'mask'; beside pictures of deeppcb lies only template": lambda: prepare(
        "deeppcb", settings_of("deeppcb", beside="template mask")
    ),
    "data.beside names 'template'; .* to be named once": lambda: prepare(
        "deeppcb", settings_of("deeppcb", beside="template template")
    ),
}


@pytest.mark.parametrize("said", REFUSED)
def test_settings_of_another_kind_are_refused_before_anything_is_fetched(
    home: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    no_network(monkeypatch)
    with pytest.raises(SettingsError, match=said):
        REFUSED[said]()
    assert not home.exists()


def test_whatever_changes_an_input_changes_the_name_of_its_pool_and_nothing_else_does() -> None:
    base = settings_of("deeppcb")
    assert key(base) == "1x64"
    others = [
        settings_of("deeppcb", size=32),
        settings_of("deeppcb", channels=3),
        settings_of("deeppcb", bits=16),
        settings_of("deeppcb", invert=True),
        settings_of("deeppcb", beside="template"),
    ]
    assert [key(other) for other in others] == ["1x32", "3x64", "1x64-16bit", "1x64-inverted", "1+templatex64"]
    assert key(settings_of("deeppcb", **{"rotated-classes": True, "sites": "elsewhere"})) == "1x64"
    tables = [settings_of(HEARTS), settings_of(HEARTS, label="num"), settings_of(HEARTS, columns="age")]
    assert len({key(table) for table in tables}) == 3
