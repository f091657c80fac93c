import csv
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, pvariance
from typing import Any

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from client.data.packed import PackedSet, SiteRows
from common.errors import SettingsError
from common.settings import Sections
from simulations.partition import Partition, PartitionSettings, partition, write_partition
from simulations.sources.pool import INPUTS, Pool, open_pool, write_pool
from tests.mirror import mirror_or_skip

Labels = tuple[list[str], dict[str, list[str]]]
"""Class of each row, and attribute -> value of each row."""
LAWS = settings(deadline=None, max_examples=50, database=None)


def deal(labels: Labels, **values: Any) -> Partition:
    return partition(*labels, PartitionSettings(**values))


def rows_of(sites: SiteRows) -> list[int]:
    return [row for own in sites.values() for rows in own.values() for row in rows]


def counts_of(sites: SiteRows) -> dict[str, dict[str, int]]:
    return {site: {name: len(rows) for name, rows in own.items()} for site, own in sites.items()}


def groups_of(rows: Sequence[int], groups: Sequence[str]) -> set[str]:
    return {groups[row] for row in rows} - {""}


def even(classes: int, each: int) -> Labels:
    """Return so many rows of each class, and no attributes."""
    return [f"c{number:04d}" for number in range(classes) for _ in range(each)], {}


@st.composite
def pools(draw: st.DrawFn) -> Labels:
    """A pool of up to 60 inputs of 3 classes at 3 hospitals; a patient has several inputs, anywhere, or is unknown."""
    row = st.tuples(st.sampled_from("abc"), st.sampled_from("uvw"), st.sampled_from(["", *"123456789"]))
    classes, hospitals, patients = zip(*draw(st.lists(row, min_size=30, max_size=60)), strict=True)
    return list(classes), {"hospital": list(hospitals), "patient": list(patients)}


@st.composite
def ways(draw: st.DrawFn) -> dict[str, Any]:
    """Any way to deal such a pool, nothing kept from training."""
    by = draw(st.sampled_from(["iid", "class", "dirichlet", "attribute"]))
    return {
        "by": by,
        "attribute": "hospital" if by == "attribute" else "",
        "number": draw(st.integers(1, 4)),
        "classes_per_site": 3 if by == "class" else 0,
        "alpha": draw(st.sampled_from([0.5, 1.0, 100.0])),
        "least": 1,
        "seed": draw(st.integers(0, 5)),
    }


@st.composite
def kept_from_training(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "held_out_number": draw(st.integers(0, 1)),
        "held_out_class_number": draw(st.integers(0, 1)),
        "held_back": draw(st.sampled_from([0.0, 0.1, 0.5, 0.9])),
        "group": draw(st.sampled_from(["", "patient"])),
        "most": draw(st.integers(0, 3)),
    }


def deal_or_reject(labels: Labels, **values: Any) -> Partition:
    """Leave out draws by which a site is left with fewer than two classes."""
    try:
        return deal(labels, **values)
    except SettingsError:
        reject()


@LAWS
@given(pools(), ways())
def test_every_input_falls_to_one_site(labels: Labels, way: dict[str, Any]) -> None:
    dealt = deal_or_reject(labels, **way)
    assert sorted(rows_of(dealt.train)) == list(range(len(labels[0])))
    assert not dealt.judge and not dealt.measured_on


@LAWS
@given(pools(), ways(), kept_from_training())
def test_no_input_is_in_twice_and_each_stands_under_its_class(
    labels: Labels, way: dict[str, Any], kept: dict[str, Any]
) -> None:
    dealt = deal_or_reject(labels, **way, **kept)
    rows = rows_of(dealt.train) + rows_of(dealt.judge)
    assert len(set(rows)) == len(rows)
    for sites in (dealt.train, dealt.judge):
        assert all(labels[0][row] == name for own in sites.values() for name, members in own.items() for row in members)
        assert all(len(own) >= 2 and all(own.values()) for own in sites.values())
    assert list(dealt.train) == sorted(dealt.train)


@LAWS
@given(pools(), ways(), kept_from_training())
def test_what_training_does_not_see_is_no_question_of_who_has_what(
    labels: Labels, way: dict[str, Any], kept: dict[str, Any]
) -> None:
    way["group"] = kept["group"]
    everyone = deal_or_reject(labels, **way).train
    dealt = deal_or_reject(labels, **{**way, **kept})
    for sites in (dealt.train, dealt.judge):
        assert all(set(rows) <= set(everyone[site][name]) for site, own in sites.items() for name, rows in own.items())


@LAWS
@given(pools(), ways(), kept_from_training())
def test_without_groups_all_is_trained_or_judged_on(labels: Labels, way: dict[str, Any], kept: dict[str, Any]) -> None:
    dealt = deal_or_reject(labels, **way, **{**kept, "group": "", "most": 0})
    everyone = deal(labels, **way).train
    for site in dealt.judge:
        assert sorted(rows_of({"": dealt.judge[site], " ": dealt.train.get(site, {})})) == sorted(
            rows_of({site: everyone[site]})
        )


@LAWS
@given(pools(), ways(), kept_from_training())
def test_a_group_is_never_divided_between_trained_and_judged_inputs(
    labels: Labels, way: dict[str, Any], kept: dict[str, Any]
) -> None:
    dealt = deal_or_reject(labels, **way, **{**kept, "group": "patient"})
    patients = labels[1]["patient"]
    assert not groups_of(rows_of(dealt.train), patients) & groups_of(rows_of(dealt.judge), patients)


@LAWS
@given(pools(), ways())
def test_a_group_is_at_one_site_unless_sites_are_natural(labels: Labels, way: dict[str, Any]) -> None:
    if way["by"] == "attribute":
        reject()
    dealt = deal_or_reject(labels, **way, group="patient")
    sites = [groups_of(rows_of({"": own}), labels[1]["patient"]) for own in dealt.train.values()]
    assert sum(map(len, sites)) == len(set().union(*sites))


@pytest.mark.parametrize("seed", range(4))
def test_where_no_whole_group_fits_into_the_share_the_smallest_is_held_back(seed: int) -> None:
    classes = ["a"] * 10 + ["b"] * 10
    patients = [*"1111222222", *"3333333444"]
    dealt = deal((classes, {"patient": patients}), number=1, group="patient", held_back=0.1, seed=seed)
    assert counts_of(dealt.judge) == {"site-01": {"a": 4, "b": 3}}
    assert counts_of(dealt.train) == {"site-01": {"a": 6, "b": 7}}


def test_inputs_without_a_group_stand_alone() -> None:
    classes, _ = even(3, 20)
    dealt = deal((classes, {"patient": [""] * 60}), number=3, group="patient")
    assert [len(rows_of({"": own})) for own in dealt.train.values()] == [20, 20, 20]


@LAWS
@given(pools(), ways(), st.sampled_from([0.05, 0.2, 0.5, 0.8, 0.99]))
def test_the_share_held_back_is_of_each_class_at_each_site(labels: Labels, way: dict[str, Any], share: float) -> None:
    everyone = deal_or_reject(labels, **way).train
    dealt = deal_or_reject(labels, **way, held_back=share)
    for site in dealt.judge:
        for name, rows in everyone[site].items():
            held = len(dealt.judge[site].get(name, ()))
            assert held == (0 if len(rows) == 1 else min(max(1, round(share * len(rows))), len(rows) - 1))


@LAWS
@given(pools(), ways())
def test_of_a_greater_share_the_smaller_is_part(labels: Labels, way: dict[str, Any]) -> None:
    fewer, more = (deal_or_reject(labels, **way, held_back=share) for share in (0.3, 0.6))
    assert set(rows_of(fewer.judge)) <= set(rows_of(more.judge))


@LAWS
@given(pools(), ways(), st.integers(1, 4))
def test_few_shots_are_some_of_what_would_be_trained_on_and_statistics_are_theirs(
    labels: Labels, way: dict[str, Any], most: int
) -> None:
    every, few = (deal_or_reject(labels, **way, held_back=0.3, most=number) for number in (0, most))
    assert few.judge == every.judge
    for site, own in every.train.items():
        assert {name: min(most, len(rows)) for name, rows in own.items()} == counts_of(few.train)[site]
        assert set(rows_of({"": few.train[site]})) <= set(rows_of({"": own}))
    assert all(list(few.measured_on[site]) == sorted(rows_of({"": few.train[site]})) for site in few.judge)


@LAWS
@given(pools(), ways(), st.integers(2, 6))
def test_a_site_goes_without_classes_of_which_it_has_fewer_than_the_least(
    labels: Labels, way: dict[str, Any], least: int
) -> None:
    everyone = deal_or_reject(labels, **way).train
    dealt = deal_or_reject(labels, **{**way, "least": least})
    assert dealt.train == {
        site: {name: rows for name, rows in own.items() if len(rows) >= least} for site, own in everyone.items()
    }


@LAWS
@given(st.integers(1, 7), st.integers(0, 9))
def test_iid_sites_are_of_equal_size_but_for_one_and_mixed(number: int, seed: int) -> None:
    labels = even(4, 101)
    dealt = deal(labels, by="iid", number=number, seed=seed)
    sizes = [len(rows_of({"": own})) for own in dealt.train.values()]
    assert len(sizes) == number and max(sizes) - min(sizes) <= 1
    # Of 57 or more inputs drawn from 404, none or all of a class of 101 would be a draw of less than 1 in a million.
    assert all(len(own) == 4 for own in dealt.train.values())


@LAWS
@given(st.integers(1, 9), st.integers(0, 8), st.integers(0, 9))
def test_by_class_each_site_has_its_number_of_classes_divided_evenly(number: int, hand: int, seed: int) -> None:
    labels = even(8, 45)
    if hand == 1 or (number * hand < 8 if hand else number > 4):
        reject()
    dealt = deal(labels, by="class", number=number, classes_per_site=hand, seed=seed).train
    assert all(len(own) == hand or not hand for own in dealt.values())
    holders = {name: [len(own[name]) for own in dealt.values() if name in own] for name in labels[0]}
    assert all(max(sizes) - min(sizes) <= 1 and sum(sizes) == 45 for sizes in holders.values())
    numbers = [len(sizes) for sizes in holders.values()]
    assert max(numbers) - min(numbers) <= 1 and (hand or max(numbers) == 1)


@pytest.mark.parametrize("alpha", [0.1, 1.0, 10.0])
def test_dirichlet_shares_have_the_mean_and_variance_of_the_distribution(alpha: float) -> None:
    sites, classes, each = 5, 500, 200
    dealt = deal(even(classes, each), by="dirichlet", number=sites, alpha=alpha, least=1).train
    for own in dealt.values():
        shares = [len(rows) / each for rows in own.values()]
        shares += [0.0] * (classes - len(shares))
        # Beta(alpha, 4 alpha): over 500 classes the mean's deviation is below 0.02, the variance's below 8 %.
        assert fmean(shares) == pytest.approx(1 / sites, abs=0.07)
        assert pvariance(shares) == pytest.approx((1 / sites) * (1 - 1 / sites) / (sites * alpha + 1), rel=0.35)


def test_dirichlet_favours_no_site_where_classes_have_few_inputs() -> None:
    sites, classes, each = 50, 1000, 10
    dealt = deal(even(classes, each), by="dirichlet", number=sites, alpha=100.0, least=1).train
    sizes = [len(rows_of({"": own})) for own in dealt.values()]
    # 200 on average, deviation below sqrt(200) = 14; cut in the order of the sites the first would have none.
    assert min(sizes) > 130 and max(sizes) < 270


@pytest.mark.parametrize("way", [{"by": "iid"}, {"by": "class"}, {"by": "dirichlet", "alpha": 5.0}])
def test_another_seed_deals_otherwise_and_the_same_seed_alike(way: dict[str, Any]) -> None:
    labels = even(20, 30)
    first, again, other = (deal(labels, **way, number=4, held_back=0.2, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first.train != other.train


def test_a_process_with_other_hashes_deals_the_same() -> None:
    labels = even(6, 40)
    labels[1]["patient"] = [str(row // 3) for row in range(240)]
    values = "by='dirichlet', alpha=9.0, number=4, group='patient', held_back=.3, held_out_number=1, most=5, seed=3"
    code = f"from simulations.partition import *\nprint(partition(*{labels!r}, PartitionSettings({values})))"
    told = [
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True,
            env={**os.environ, "PYTHONHASHSEED": hashes, "PYTHONPATH": str(Path(__file__).parents[2])},
        ).stdout
        for hashes in ("1", "2")
    ]  # fmt: skip
    assert told[0] == told[1] and "site-01" in told[0]


HOSPITALS: Labels = (
    [*"aabbaabbaabbab"],
    {
        "hospital": [*"uuuuvvvvwwww", "", ""],
        "set": ["train"] * 4 + ["test"] * 4 + ["train", "test"] * 2 + ["train"] * 2,
    },
)
"""Hospitals u, v, w with two inputs each of a and b, of whose w has some of either set; two inputs of no hospital."""


def test_sites_held_out_by_what_all_their_inputs_have_are_judged_and_not_trained_on() -> None:
    dealt = deal(HOSPITALS, by="attribute", attribute="hospital", select="hospital=u|v", held_out="set=test")
    assert dealt.train == {"u": {"a": [0, 1], "b": [2, 3]}}
    assert dealt.judge == {"v": {"a": [4, 5], "b": [6, 7]}}
    assert not dealt.measured_on


@pytest.mark.parametrize("named", ["v, w", "[vw]", "v, [wx]"])
def test_sites_are_held_out_by_name_and_pattern(named: str) -> None:
    if "x" in named:
        with pytest.raises(SettingsError, match="'x'"):
            deal(HOSPITALS, by="attribute", attribute="hospital", select="hospital=?", held_out="v, x")
    dealt = deal(HOSPITALS, by="attribute", attribute="hospital", select="hospital=?", held_out=named)
    assert list(dealt.train) == ["u"] and list(dealt.judge) == ["v", "w"]


def test_sites_of_two_attributes_are_called_by_both() -> None:
    labels = even(3, 8)
    labels[1].update(line=[*"uuuuvvvv"] * 3, shift=[*"12"] * 12)
    dealt = deal(labels, by="attribute", attribute="line  x shift")
    assert counts_of(dealt.train) == {
        f"{line} x {shift}": {"c0000": 2, "c0001": 2, "c0002": 2} for line in "uv" for shift in "12"
    }


def test_classes_held_out_are_judged_where_they_fell_to() -> None:
    labels = even(4, 20)
    everyone = deal(labels, by="iid", number=3).train
    dealt = deal(labels, by="iid", number=3, held_out_classes="c0001, c0003")
    new = {"c0001", "c0003"}
    assert dealt.train == {
        site: {name: rows for name, rows in own.items() if name not in new} for site, own in everyone.items()
    }
    assert dealt.judge == {
        site: {name: rows for name, rows in own.items() if name in new} for site, own in everyone.items()
    }
    assert set(dealt.measured_on) == set(dealt.train)


def test_as_many_sites_and_classes_are_held_out_as_asked() -> None:
    labels = even(6, 60)
    dealt = deal(labels, by="iid", number=5, held_out="site-02", held_out_number=2, held_out_class_number=3)
    held_out = dealt.judge.keys() - dealt.train.keys()
    assert len(held_out) == 3 and "site-02" in held_out
    assert len({name for own in dealt.train.values() for name in own}) == 3
    assert all(len(dealt.judge[site]) == 6 for site in held_out)


BY_HOSPITAL = {"by": "attribute", "attribute": "hospital", "select": "hospital=?"}


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"by": "attribute"}, "sites.attribute is empty; the data set has 'class', 'hospital', 'set'"),
        ({"by": "attribute", "attribute": "clinic"}, "sites.attribute: there is no attribute 'clinic'; the data set"),
        ({"by": "attribute", "attribute": "hospital x day"}, "there is no attribute 'day'"),
        ({"by": "attribute", "attribute": "hospital"}, r"2 of 14 inputs have no 'hospital'.*'hospital=\?\*'"),
        ({"group": "patient"}, "sites.group: there is no attribute 'patient'"),
        ({"select": "hospital"}, "sites.select: 'hospital' is not ATTRIBUTE=VALUE"),
        ({"select": "day=1"}, "sites.select: there is no attribute 'day'"),
        ({"select": "hospital=u|x*"}, r"sites.select: 'x\*' fits none of the values of 'hospital' \(, u, v, w\)"),
        ({"select": "hospital=u, set=test"}, "which no input fits"),
        ({**BY_HOSPITAL, "held_out": "x"}, r"sites.held-out: 'x' fits none of the 3 sites \(u, v, w\)"),
        ({**BY_HOSPITAL, "held_out": "set=test"}, "'set=test' fits 50% of the inputs of site 'w'.*sites.select"),
        ({**BY_HOSPITAL, "held_out": "?"}, "names 3 .* of 3 sites, so that none is left to train on"),
        ({**BY_HOSPITAL, "held_out_number": 3}, "held-out-number is 3 of 3 sites, so that none is left"),
        ({"held_out_classes": "d"}, r"sites.held-out-classes: 'd' fits none of the 2 classes \(a, b\)"),
        ({"held_out_classes": "a"}, "at least two must be left to train on"),
        ({"by": "class", "number": 2, "classes_per_site": 3}, "for 2 classes: a site cannot have more"),
        ({"by": "class", "number": 2}, "2 of 2 sites have fewer than two classes to train on, .*classes-per-site"),
        ({"by": "iid", "number": 9}, r"such as 'site-01' with none; ask for fewer sites.*sites.least, which is 2"),
        ({"by": "dirichlet", "number": 3, "alpha": 0.001, "least": 1}, r"a greater sites.alpha or another sites.seed$"),
        ({**BY_HOSPITAL, "least": 3}, r"3 of 3 sites .*; leave such sites out \(sites.select\), or lower sites.least"),
        ({**BY_HOSPITAL, "group": "set", "held_out": "u"}, r"held-out site 'u' has none .*'set' \(sites.group\) that"),
    ],
)
def test_what_cannot_be_dealt_is_told_with_what_to_do(values: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        deal(HOSPITALS, **values)


def test_judging_on_one_class_only_is_told() -> None:
    with pytest.raises(SettingsError, match=r"no site has two classes to be judged on, .*or more classes"):
        deal(even(4, 20), by="iid", number=3, held_out_classes="c0001")


def test_the_settings_work_as_a_section_of_a_file() -> None:
    @dataclass(frozen=True)
    class File(Sections):
        sites: PartitionSettings = field(default_factory=PartitionSettings)

    assert File.from_flat({"sites.held-out-number": 2, "sites.by": "class"}).sites == PartitionSettings(
        by="class", held_out_number=2
    )
    with pytest.raises(SettingsError, match=r"sites.by is 'hospital'; it must be one of attribute, class"):
        File.from_flat({"sites.by": "hospital"})
    with pytest.raises(SettingsError, match=r"sites.held-back is 1.0; it must be at most 0.99"):
        File.from_flat({"sites.held-back": 1})


def pool_of(labels: Labels) -> Pool:
    values = np.arange(2 * len(labels[0]), dtype=np.float32).reshape(-1, 2)
    return Pool(values, tuple(labels[0]), {name: tuple(column) for name, column in labels[1].items()})


def test_sites_on_disk_hold_their_rows_of_the_pool_and_copy_nothing(tmp_path: Path) -> None:
    write_pool(tmp_path / "pool", pool_of(even(3, 30)), {})
    pool = open_pool(tmp_path / "pool")
    dealt = partition(pool.classes, pool.attributes, PartitionSettings(number=3, held_out_number=1, held_back=0.2))
    train, judge = write_partition(tmp_path / "sites" / "own", tmp_path / "pool", dealt, {"sites.number": 3})
    assert judge is not None
    for folder, sites in ((train, dealt.train), (judge, dealt.judge)):
        packed = PackedSet(folder)
        assert packed.names == sorted(sites)
        for site, own in sites.items():
            opened = packed.site(site)
            assert opened.standardisation is not None
            measured = list(dealt.measured_on.get(site, ())) or rows_of({"": own})
            np.testing.assert_allclose(opened.standardisation.mean, pool.inputs[measured].mean(0), rtol=1e-6)
            for name, rows in own.items():
                found = opened.standardisation.undo(opened.inputs(name, range(len(rows))))
                np.testing.assert_allclose(found, pool.inputs[rows], rtol=1e-5, atol=1e-4)
    assert [path.relative_to(tmp_path) for path in tmp_path.rglob(INPUTS)] == [Path("pool", INPUTS)]


def test_without_anything_to_judge_on_there_is_no_folder_for_it(tmp_path: Path) -> None:
    labels = even(3, 30)
    write_pool(tmp_path / "pool", pool_of(labels), {})
    train, judge = write_partition(tmp_path / "own", tmp_path / "pool", deal(labels, number=3), {})
    assert judge is None and [path.name for path in (tmp_path / "own").iterdir()] == [train.name]


# Real data


def readme_rows(folder: Path) -> dict[str, list[str]]:
    """Return the rows of the table in a data set's README by their first cell."""
    lines = (folder / "README.md").read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return {first: rest for first, *rest in cells if not set(first) <= {"-"}}


def test_boards_by_line_are_the_counts_of_the_sets_readme() -> None:
    folder = mirror_or_skip() / "deeppcb"
    expected = readme_rows(folder)
    kinds = expected.pop("group")
    with np.load(folder / "crops.npz") as crops:
        classes = [kinds[label - 1] for label in crops["label"].tolist()]
        lines = [f"{line:05d}" for line in crops["group"].tolist()]
    dealt = deal((classes, {"line": lines}), by="attribute", attribute="line", held_out="20085, 1*")
    assert list(dealt.train) == ["00041"]
    assert counts_of({**dealt.train, **dealt.judge}) == {
        line: dict(sorted(zip(kinds, map(int, row), strict=True))) for line, row in expected.items()
    }


def test_hospitals_are_the_counts_of_the_sets_readme() -> None:
    folder = mirror_or_skip() / "heart_disease_hospitals"
    expected = readme_rows(folder)
    expected.pop("hospital")
    classes, hospitals = [], []
    for hospital in expected:
        with (folder / f"{hospital}.csv").open(encoding="utf-8", newline="") as file:
            found = [row["num"] for row in csv.DictReader(file)]
        classes += found
        hospitals += [hospital] * len(found)
    dealt = deal((classes, {"hospital": hospitals}), by="attribute", attribute="hospital")
    for hospital, (patients, by_class, _) in expected.items():
        counts = counts_of(dealt.train)[hospital]
        assert sum(counts.values()) == int(patients)
        assert [counts.get(str(number), 0) for number in range(5)] == [int(count) for count in by_class.split("/")]


def tiles() -> Labels:
    with (mirror_or_skip() / "magnetic_tile" / "items.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [row["class"] for row in rows], {name: [row[name] for row in rows] for name in ("exposure", "tile_group")}


@pytest.mark.parametrize(
    "values",
    [
        {"by": "attribute", "attribute": "exposure", "select": "exposure=[1-6]", "held_back": 0.3},
        {"by": "attribute", "attribute": "exposure", "select": "exposure=[1-6]", "held_back": 0.3, "held_out": "3"},
        {"by": "iid", "number": 3, "held_back": 0.3, "held_out_number": 1},
    ],
)
def test_a_spot_of_a_tile_is_never_both_trained_and_judged_on(values: dict[str, Any]) -> None:
    labels = tiles()
    dealt = deal(labels, **values, group="tile_group", least=1)
    groups = labels[1]["tile_group"]
    assert groups_of(rows_of(dealt.train), groups).isdisjoint(groups_of(rows_of(dealt.judge), groups))
    held = len(rows_of({site: own for site, own in dealt.judge.items() if site in dealt.train}))
    share = held / (held + len(rows_of(dealt.train)))
    assert 0.2 < share < 0.4
    assert dealt.judge.keys() >= dealt.train.keys()


def test_a_camera_station_whose_every_tile_is_trained_on_cannot_be_held_out() -> None:
    way = {"by": "attribute", "attribute": "exposure", "select": "exposure=[1-6]", "group": "tile_group"}
    with pytest.raises(SettingsError, match=r"held-out site '3' has .*sites.held-back keeps a share of them"):
        deal(tiles(), **way, held_out="3")


def omniglot() -> Labels:
    folder = mirror_or_skip() / "omniglot"
    classes: list[str] = []
    attributes: dict[str, list[str]] = {"alphabet": [], "drawer": [], "set": []}
    for part in ("background", "evaluation_dev"):
        with (folder / f"{part}_classes.csv").open(encoding="utf-8", newline="") as file:
            names = {int(row["label"]): (row["alphabet"], row["character"]) for row in csv.DictReader(file)}
        with np.load(folder / f"{part}.npz") as arrays:
            labels, drawers = arrays["label"].tolist(), arrays["drawer"].tolist()
        classes += ["/".join(names[label]) for label in labels]
        attributes["alphabet"] += [names[label][0] for label in labels]
        attributes["drawer"] += map(str, drawers)
        attributes["set"] += [part] * len(labels)
    return classes, attributes


def test_omniglot_trains_by_alphabet_or_writer_and_judges_on_alphabets_that_none_had() -> None:
    labels = omniglot()
    by_alphabet = deal(labels, by="attribute", attribute="alphabet", held_out="set=evaluation_dev")
    assert (len(by_alphabet.train), len(by_alphabet.judge)) == (30, 10)
    assert (len(rows_of(by_alphabet.train)), sum(map(len, by_alphabet.train.values()))) == (19280, 964)
    assert {len(rows) for own in by_alphabet.train.values() for rows in own.values()} == {20}
    writers = deal(labels, by="attribute", attribute="alphabet x drawer", held_out="set=evaluation_dev", least=1)
    assert (len(writers.train), len(writers.judge)) == (600, 200)
    assert writers.judge["Angelic x 7"].keys() == by_alphabet.judge["Angelic"].keys()
