"""Every set of the catalogue from the mirror's packed form: the counts, shapes and values that it is known to have."""

import csv
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.data.images import read_image
from common.errors import SettingsError
from common.settings import DataSettings, Settings
from simulations.sources.catalogue import CATALOGUE
from simulations.sources.files import Origin
from simulations.sources.pool import Pool

ATTRIBUTES: dict[str, dict[str, int | dict[str, int]]] = {
    "omniglot": {"alphabet": 40, "drawer": 20, "set": {"background": 19280, "evaluation_dev": 5540}},
    "neu_steel": {},
    "magnetic_tile": {
        "exposure": {"0": 3, "1": 61, "2": 61, "3": 60, "4": 60, "5": 61, "6": 63},
        "tile_group": 69,
    },
    "deeppcb": {
        # Sums of the rows of the table in the set's README.
        "line": {"00041": 1642, "12000": 93, "12100": 919, "12300": 600, "13000": 1451, "20085": 2428},
        "picture": 1020,
    },
    "steel_plates_faults": {"steel": {"A300": 777, "A400": 1164}, "conveyer": 84},
    "gas_drift": {"batch": {"1": 445, "2": 1244, "3": 1586, "4": 161, "5": 197, "8": 294}},
    "cxr_pneumonia": {
        "hospital": {"guangzhou": 1300, "nih": 400},
        "patient": 301,
        "split": {"train": 776, "val": 524, "": 400},
    },
    "mednist6": {},
    "heart_disease_hospitals": {
        "hospital": {"cleveland": 303, "hungarian": 294, "switzerland": 123, "va": 200},
        "num": {"0": 411, "1": 265, "2": 109, "3": 107, "4": 28},
    },
    "sign_digits": {},
    "digits": {},
}
"""Attribute -> number of its values, or how many items have each."""

FEW = {"data.size": 8}
"""Small pictures, where their pixels do not matter."""


def settings_of(name: str, **changes: Any) -> DataSettings:
    values = {**CATALOGUE[name].data, **{f"data.{key}": value for key, value in changes.items()}}
    return Settings().with_values(values).data


def read(name: str, mirror: Path, **changes: Any) -> Pool:
    chosen = CATALOGUE[name]
    files = chosen.in_mirror(mirror) if chosen.origins else None
    return chosen.read(files, settings_of(name, **changes))  # type: ignore[arg-type]  # digits have no files


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_set_has_the_items_classes_and_attributes_that_it_is_known_for(name: str, mirror: Path) -> None:
    chosen, data = CATALOGUE[name], settings_of(name)
    pool = read(name, mirror)
    assert pool.inputs.shape == (chosen.items, *data.shape)
    assert pool.inputs.dtype == (np.uint8 if chosen.kind == "image" else np.float32)
    assert len(set(pool.classes)) == chosen.classes
    chosen.check(pool)
    assert pool.attributes.keys() == ATTRIBUTES[name].keys() and set(chosen.natural) <= pool.attributes.keys()
    for attribute, expected in ATTRIBUTES[name].items():
        found = Counter(pool.attributes[attribute])
        assert (dict(found) if isinstance(expected, dict) else len(found)) == expected, attribute


@pytest.mark.parametrize("name", [name for name, chosen in CATALOGUE.items() if chosen.kind == "image"])
def test_pictures_are_read_at_any_size_colour_and_depth(name: str, mirror: Path) -> None:
    for changes in (
        {"size": 5, "channels": 3},
        {"size": 6, "bits": 16, "beside": " ".join(CATALOGUE[name].companions)},
    ):
        pool = read(name, mirror, **changes)
        assert pool.inputs.shape == (CATALOGUE[name].items, *settings_of(name, **changes).shape)
        assert pool.inputs.dtype == (np.uint16 if "bits" in changes else np.uint8)
        assert pool.inputs.max() > (255 if "bits" in changes else 127)


@pytest.mark.parametrize("name", ["omniglot", "deeppcb", "cxr_pneumonia", "neu_steel", "digits"])
def test_inverted_pictures_are_the_others_turned_light_for_dark(name: str, mirror: Path) -> None:
    light, dark = (read(name, mirror, size=7, invert=invert).inputs.astype(int) for invert in (True, False))
    assert np.abs(light + dark - 255).max() <= 1


def test_omniglots_small_drawings_are_taken_as_they_are_and_ink_is_light(mirror: Path) -> None:
    pool = read("omniglot", mirror)
    with np.load(mirror / "omniglot" / "background.npz") as arrays:
        np.testing.assert_array_equal(pool.inputs[:19280, 0], arrays["images28"])
    assert pool.inputs.mean() < 64 and pool.inputs.max() == 255
    assert Counter(Counter(pool.classes).values()) == {20: 1241}
    assert all(
        name.startswith(f"{site}/") for name, site in zip(pool.classes, pool.attributes["alphabet"], strict=True)
    )


def test_omniglots_full_drawings_shrunk_are_its_small_ones_to_a_grey_level(mirror: Path) -> None:
    """105 pixels to 21 are 5x5 to one, whose mean can be counted; the packed form's bits are unpacked in order."""
    found = read("omniglot", mirror, size=21).inputs[:50, 0].astype(int)
    with np.load(mirror / "omniglot" / "background.npz") as arrays:
        bits = np.unpackbits(arrays["images105"][:50], axis=1)[:, : 105 * 105].reshape(50, 21, 5, 21, 5)
    np.testing.assert_allclose(found, 255 * bits.mean(axis=(2, 4)), atol=1)


def test_a_picture_is_read_as_a_site_reads_its_file(mirror: Path) -> None:
    pool = read("neu_steel", mirror, size=20, invert=True)
    files = sorted((mirror / "neu_steel" / "images").rglob("*.jpg"))
    for row in (0, 600, 1199):
        np.testing.assert_array_equal(pool.inputs[row], read_image(files[row], 1, 20, invert=True))
        assert files[row].parent.name == pool.classes[row]


def test_masks_are_white_where_there_is_a_defect_and_never_inverted(mirror: Path) -> None:
    pool = read("magnetic_tile", mirror, size=16, beside="mask", invert=True)
    without = read("magnetic_tile", mirror, size=16, invert=True)
    np.testing.assert_array_equal(pool.inputs[:, :1], without.inputs)
    masked = np.array([mask.max() > 0 for mask in pool.inputs[:, 1]])
    free = np.array([name == "Free" for name in pool.classes])
    assert masked[~free].all() and not masked[free].any()


def test_groups_of_tiles_are_those_of_the_packed_form(mirror: Path) -> None:
    with (mirror / "magnetic_tile" / "items.csv").open(encoding="utf-8") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    pool = read("magnetic_tile", mirror, size=4)
    names = [
        entry.names.stem for entry in CATALOGUE["magnetic_tile"].in_mirror(mirror).entries if entry.more["tile_group"]
    ]
    for name, of_class, group, exposure in zip(
        names, pool.classes, pool.attributes["tile_group"], pool.attributes["exposure"], strict=True
    ):
        found = rows[name]
        assert (of_class, group, exposure) == (found["class"], found["tile_group"], found["exposure"])


def test_crops_of_a_board_and_its_template_differ_at_the_defect_in_the_middle_only_a_little(mirror: Path) -> None:
    pool = read("deeppcb", mirror, beside="template")
    assert set(np.unique(pool.inputs)) == {0, 255}
    differ = (pool.inputs[:, 0] != pool.inputs[:, 1]).mean(axis=0)
    assert differ[24:40, 24:40].mean() > 2 * differ.mean() > 0


def test_numbers_of_a_table_are_those_of_its_file_and_missing_ones_are_not_numbers(mirror: Path) -> None:
    pool = read("heart_disease_hospitals", mirror, columns="chol, sex=0|1, age")
    # First lines of cleveland.csv and of va.csv, and the third of hungarian.csv, whose chol is missing.
    np.testing.assert_array_equal(pool.inputs[0], [233, 0, 1, 63])
    np.testing.assert_array_equal(pool.inputs[303 + 294 + 123], [260, 0, 1, 63])
    assert np.isnan(pool.inputs[303 + 2][0]) and pool.inputs[303 + 2][3] == 29
    assert pool.classes[:2] == ("no disease", "disease") and pool.attributes["num"][:2] == ("0", "2")


def test_hearts_missing_cells_are_as_many_as_its_readme_says(mirror: Path) -> None:
    numbers = "age, sex, cp, trestbps, chol, fbs, restecg, thalach, exang, oldpeak, slope, ca, thal"
    pool = read("heart_disease_hospitals", mirror, columns=numbers)
    hospitals = np.array(pool.attributes["hospital"])
    missing = {name: int(np.isnan(pool.inputs[hospitals == name]).sum()) for name in set(hospitals.tolist())}
    assert missing == {"cleveland": 6, "hungarian": 782, "switzerland": 273, "va": 698}


def test_the_degree_of_disease_can_be_the_class_and_steel_too(mirror: Path) -> None:
    assert Counter(read("heart_disease_hospitals", mirror, label="num").classes)["4"] == 28
    assert set(read("steel_plates_faults", mirror, label="steel").classes) == {"A300", "A400"}


@pytest.mark.parametrize(
    ("name", "changes", "named"),
    [
        ("heart_disease_hospitals", {"label": "diagnosis"}, "'diagnosis'.*it has age, sex"),
        ("steel_plates_faults", {"columns": "X_Minimum, Weight"}, "'Weight'.*it has X_Minimum"),
        ("steel_plates_faults", {"columns": "steel"}, "'steel' for numbers.*steel=A"),
        ("gas_drift", {"size": 64}, "64; gas_drift has vectors of 128"),
    ],
)
def test_settings_that_do_not_fit_a_set_are_refused_with_what_it_has(
    mirror: Path, name: str, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(SettingsError, match=named):
        read(name, mirror, **changes)


def test_every_set_says_whose_it_is_under_what_terms_and_where_from() -> None:
    for name, chosen in CATALOGUE.items():
        assert chosen.name == name and all((chosen.title, chosen.licence, chosen.terms, chosen.cite, chosen.sums))
        for origin in chosen.origins:
            assert len(origin.commit) == 40 and origin.repository.count("/") == 1


def test_an_address_at_an_origin_names_repository_commit_and_path() -> None:
    origin = Origin("someone/some.thing.", "a" * 40)
    assert origin.url("a folder/b.txt") == (
        f"https://raw.githubusercontent.com/someone/some.thing./{'a' * 40}/a%20folder/b.txt"
    )
