"""Samples that are never trained on: chosen by content, so that the choice outlives every change around them."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from client.data.folder import open_folder
from client.data.held import FEW, apart, fractions
from client.data.indexed import IndexedData, Standardisation
from client.data.rotated import RotatedClasses
from client.data.sites import open_site_data
from client.site import Site
from common.learning.episode import SiteData
from tests.client.small import NumberedData, own_settings, rows_in, settings_with

DIGITS = settings_with().data


def all_in(data: SiteData) -> dict[str, list[bytes]]:
    return {
        name: sorted(sample.numpy().tobytes() for sample in data.inputs(name, range(data.count(name))))
        for name in data.classes()
    }


def numbers_in(data: SiteData) -> set[int]:
    return set[int]().union(*(rows_in(data.inputs(name, range(data.count(name)))) for name in data.classes()))


def test_a_share_of_nothing_holds_nothing_back_and_gives_the_very_same_data() -> None:
    data = NumberedData({"a": 5, "b": 5})
    train, held = apart(data, 0.0)
    assert train is data and list(held.classes()) == [] and data.asked == []


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 70), min_size=1), st.floats(0.01, 0.9))
def test_the_two_parts_are_disjoint_and_together_all_there_is_and_each_class_keeps_one_to_train_on(
    counts: dict[str, int], share: float
) -> None:
    data = NumberedData(counts, size=1)
    train, held = apart(data, share)
    assert train.classes() == sorted(counts)
    assert not numbers_in(train) & numbers_in(held)
    assert numbers_in(train) | numbers_in(held) == numbers_in(data)
    for name in held.classes():
        assert 0 < held.count(name) == counts[name] - train.count(name)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.7])
def test_of_many_samples_about_the_share_is_held_back(share: float) -> None:
    generator = np.random.default_rng(0)
    data = IndexedData(generator.integers(0, 256, (4000, 1, 2, 2), np.uint8), {"a": np.arange(4000)})
    _, held = apart(data, share)
    assert abs(held.count("a") / 4000 - share) < 4 * (share * (1 - share) / 4000) ** 0.5  # four standard deviations


def test_what_is_held_back_stays_so_when_samples_classes_or_the_order_change(digit_folders: Path) -> None:
    found = open_folder(digit_folders / "line-1", DIGITS)
    pixels = np.concatenate([found.content(name, range(found.count(name))) for name in found.classes()])
    order = np.random.default_rng(0).permutation(len(pixels))[: FEW + 5]
    data, fewer = (
        IndexedData(part, {name: np.arange(len(part))}) for part, name in ((pixels, "one"), (pixels[order], "another"))
    )
    (_, held), (_, held_of_fewer) = apart(data, 0.4), apart(fewer, 0.4)
    before = all_in(held)["one"]
    kept = [data.inputs("one", [int(row)]).numpy().tobytes() for row in order]
    assert all_in(held_of_fewer)["another"] == sorted(sample for sample in kept if sample in before)
    assert 0 < len(before) < len(pixels)


@given(st.integers(1, FEW), st.floats(0.01, 0.9), st.integers(0, 1000))
def test_of_few_samples_no_more_than_the_share_is_held_back(count: int, share: float, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 1, 2, 2), np.uint8)
    _, held = apart(IndexedData(pixels, {"new": np.arange(count)}), share)
    assert (held.count("new") if list(held.classes()) else 0) <= min(math.ceil(share * count), count - 1)


def test_numbers_are_chosen_as_they_were_read_since_standardised_ones_change_with_every_new_row() -> None:
    values = np.random.default_rng(0).normal(size=(40, 3))
    rows = {"a": np.arange(30)}
    with_few, with_all = (
        IndexedData(values, rows, Standardisation.of(values[:count], np.ones(3, bool))) for count in (30, 40)
    )
    assert not torch.equal(with_few.inputs("a", [0]), with_all.inputs("a", [0]))
    assert fractions(with_few, "a") == fractions(with_all, "a")


def test_copies_of_one_picture_lie_on_one_side_whatever_they_are_called() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 1, 4, 4), np.uint8)
    copies = np.concatenate([pixels, pixels, pixels])
    train, held = apart(IndexedData(copies, {"a": np.arange(9), "b": np.arange(9, 18)}), 0.5)
    both = {sample for part in all_in(train).values() for sample in part} & {
        sample for part in all_in(held).values() for sample in part
    }
    # A class whose samples would all be held back keeps its last one, all copies of it: here no class is so.
    assert not both and held.classes()


def test_a_class_of_copies_only_is_trained_on() -> None:
    pixels = np.zeros((4, 1, 2, 2), np.uint8)
    train, held = apart(IndexedData(pixels, {"a": np.arange(4)}), 0.9)
    assert train.count("a") == 4 and not held.classes()


def test_a_picture_and_its_turned_copies_lie_on_one_side(digit_sites: Path) -> None:
    upright = open_site_data(digit_sites, "site-0", DIGITS)
    train, held = apart(RotatedClasses(upright), 0.3)
    _, held_upright = apart(upright, 0.3)
    for turn in ("", " @90", " @180", " @270"):
        assert held.count(f"3{turn}") == held_upright.count("3") == 20 - train.count(f"3{turn}")


def test_a_row_that_is_not_there_is_refused() -> None:
    train, _ = apart(NumberedData({"a": 5}), 0.5)
    with pytest.raises(IndexError, match="row 5 of a class with"):
        train.inputs("a", [5])


# ------------------------------------------------------------------------------------------------- at a site


def test_a_site_trains_on_what_it_does_not_hold_back(digit_sites: Path) -> None:
    whole = open_site_data(digit_sites, "site-1", DIGITS)
    site = Site(own_settings("site-1", str(digit_sites)), settings_with(data__hold_back=0.3))
    train, held = apart(whole, 0.3)
    assert all_in(site.data) == all_in(train) and all_in(site.held_back) == all_in(held)
    assert site.introduce().classes == {name: train.count(name) for name in train.classes()}


def test_a_site_that_holds_nothing_back_trains_on_all_it_has(digit_sites: Path) -> None:
    site = Site(own_settings("site-1", str(digit_sites)), settings_with())
    assert all_in(site.data) == all_in(open_site_data(digit_sites, "site-1", DIGITS))
    assert not site.held_back.classes()
