"""Runs side by side: what is grouped, what the tables and the page say."""

import dataclasses
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from common.errors import CheckpointError, SettingsError
from common.settings import Value
from simulations.judging.evaluate import Evaluation, Protocol, Score, SiteRow
from simulations.report.compare import as_markdown, compare, comparison_tables, write_comparison
from simulations.report.recorded import FEDERATION
from tests.simulations.report.pages import ATTACK, SETTINGS, Page, journal, judged, make_run


def scored(after: float, alone: float = 0.5) -> Evaluation:
    """Return a result at the sites C and D, which reach 0.1 more and 0.1 less than the mean."""
    sites = {"C": SiteRow(10, 0.4, after + 0.1, 0.3, alone), "D": SiteRow(10, 0.7, after - 0.1, 0.2, alone, True)}
    return judged(after=Score(after, 0.03, 0.5, 0.1), alone=Score(alone, 0.1, 2, 0.3), sites=sites)


def made(path: Path, evaluation: Evaluation, **changes: Value) -> Path:
    settings = SETTINGS.with_values({key.replace("__", ".").replace("_", "-"): v for key, v in changes.items()})
    return make_run(path, journal(), [evaluation], settings)


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Three seeds of one run, and one of another with another inner learning rate, which comes second."""
    plain = [
        made(tmp_path / f"plain-{s}", scored(0.6 + s / 10), run__seed=s, run__dir=f"/secret/{s}") for s in range(3)
    ]
    return [plain[0], made(tmp_path / "gentle", scored(0.8), inner__learning_rate=0.25), *plain[1:]]


def test_runs_that_differ_in_their_seed_only_stand_as_one_in_the_order_given(runs: list[Path]) -> None:
    compared = compare(runs)
    assert [(group.name, [run.name for run in group.runs]) for group in compared.groups] == [
        ("plain", ["plain-0", "plain-1", "plain-2"]),
        ("gentle", ["gentle"]),
    ]
    assert compared.differing == {"inner.learning-rate": ["0.5", "0.25"]}


def test_how_sites_were_dealt_tells_runs_apart_and_where_they_lie_does_not(tmp_path: Path) -> None:
    runs = [made(tmp_path / name, scored(0.5), data__sites=f"/secret/{name}/train") for name in ("a1", "a2", "b")]
    for run, alpha in zip(runs, (1.0, 1.0, 0.1), strict=True):
        (run / FEDERATION).write_text(f"[sites]\nalpha = {alpha}\n")
    compared = compare(runs)
    assert [group.name for group in compared.groups] == ["a", "b"]
    assert compared.differing == {"sites.alpha": ["1.0", "0.1"]}


def test_groups_whose_names_begin_alike_are_called_by_all_their_folders(tmp_path: Path) -> None:
    runs = [made(tmp_path / "x" / f"s{s}", scored(0.5), run__seed=s) for s in range(2)]
    runs += [made(tmp_path / "y" / f"s{s}", scored(0.5), run__seed=s, inner__steps=9) for s in range(2)]
    assert [group.name for group in compare(runs).groups] == ["x/s0, x/s1", "y/s0, y/s1"]


def test_the_page_has_the_mean_and_the_spread_over_seeds_and_each_seed_below(runs: list[Path], tmp_path: Path) -> None:
    page = Page(write_comparison(compare(runs), tmp_path / "out" / "compare.html"))
    rows = [row for row in page.rows if len(row) == 9]
    assert rows[0] == [
        "Run", "from scratch", "alone", "before", "after", "log loss", "calibration error", "worst site",
        "sites it made worse",
    ]  # fmt: skip
    assert rows[1][0] == "plain" and rows[1][2:5] == ["50.0 ± 0.0 %", "50.0 ± 0.0 %", "70.0 ± 10.0 %"]
    assert rows[1][5:] == ["0.500 ± 0.000", "10.0 ± 0.0 %", "60.0 ± 10.0 % D", "50.0 ± 0.0 %"]
    assert [row[0] for row in rows[2:6]] == ["seed 0", "seed 1", "seed 2", "gentle"]
    assert rows[3][4] == "70.0 %" and rows[5][4] == "80.0 %"


def test_the_page_has_each_site_and_means_by_whether_it_trained(runs: list[Path], tmp_path: Path) -> None:
    page = Page(write_comparison(compare(runs), tmp_path / "compare.html"))
    lines = [row for row in page.rows if len(row) == 9][6:]
    assert [row[0] for row in lines] == [
        "Site",
        "D",
        "C",
        "mean of sites that trained",
        "mean of sites that never did",
        "mean",
    ]
    assert lines[1][1:5] == ["20.0 ± 0.0 %", "50.0 ± 0.0 %", "70.0 ± 0.0 %", "60.0 ± 10.0 %"]
    assert lines[2][5:] == ["30.0 %", "50.0 %", "40.0 %", "90.0 %"]
    assert lines[5][4] == "70.0 ± 10.0 %" and lines[5][8] == "80.0 %"


def test_the_page_has_what_the_runs_took_and_curves_and_dots_with_words(runs: list[Path], tmp_path: Path) -> None:
    page = Page(write_comparison(compare(runs), tmp_path / "compare.html"))
    assert page.row("plain") == ["plain", "0, 1, 2", "plants", "2", "2", "4.0 kB", "2.0 kB"]
    dots, curves = page.plots
    assert "After adaptation: 2-way 5-shot, plain: 70.0%; 2-way 5-shot, gentle: 80.0%." in dots
    assert "2 runs: plain 62.5% in round 1; gentle 62.5% in round 1." in curves


def test_the_page_tells_no_path_runs_nothing_and_is_equal_for_equal_runs(runs: list[Path], tmp_path: Path) -> None:
    page = Page(write_comparison(compare(runs), tmp_path / "compare.html"))
    assert "default-src 'none'" in page.html and "secret" not in page.html and str(tmp_path) not in page.html
    assert not {"script", "link", "iframe", "img"} & set(page.tags) and not page.handlers
    ids = [part.split('"')[0] for part in page.html.split(' id="')[1:]]
    assert len(ids) == len(set(ids))
    assert write_comparison(compare(runs), tmp_path / "again.html").read_text() == page.html


def test_attack_names_with_markup_stay_text(tmp_path: Path) -> None:
    odd = judged(sites={ATTACK: SiteRow(1, 0.5, 0.6, 0.7)}, worst_site=ATTACK)
    runs = [made(tmp_path / name, odd, inner__frozen=ATTACK * (name == "a<b>")) for name in ("a<b>", "b")]
    compared = compare(runs)
    page = Page(write_comparison(compared, tmp_path / "compare.html"))
    assert "script" not in page.tags and "b" not in page.tags and not page.handlers
    assert "<script>" not in as_markdown(compared).replace("\\<", "")


def test_runs_that_were_not_judged_alike_are_pointed_out(tmp_path: Path) -> None:
    fewer = dataclasses.replace(judged(), protocol=Protocol(way=2, shot=5, episodes=19))
    runs = [made(tmp_path / "a", judged()), made(tmp_path / "b", fewer, inner__steps=3)]
    compared = compare(runs)
    assert "cannot simply be compared" in Page(write_comparison(compared, tmp_path / "compare.html")).text
    alike = compare([runs[0], made(tmp_path / "c", judged(), inner__steps=4)])
    assert "cannot simply be compared" not in Page(write_comparison(alike, tmp_path / "alike.html")).text


def test_markdown_has_a_table_by_site_with_means(runs: list[Path]) -> None:
    lines = as_markdown(compare(runs)).splitlines()
    assert lines[:6] == [
        "### 2-way 5-shot",
        "",
        "plain: accuracy in %, mean ± standard deviation over 3 seeds.",
        "",
        "| site | scratch | alone | before | adapted |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    assert lines[6].replace("\N{NO-BREAK SPACE}", " ") == "| D | 20.0 ± 0.0 | 50.0 ± 0.0 | 70.0 ± 0.0 | 60.0 ± 10.0 |"
    assert lines[10].replace("\N{NO-BREAK SPACE}", " ").startswith("| **mean** | 25.0 ± 0.0 |")
    assert "gentle: accuracy in %, one seed." in lines and "| C | 30.0 | 50.0 | 40.0 | 90.0 |" in lines


def test_markdown_leaves_out_what_has_no_sites_and_ways_that_were_not_judged(tmp_path: Path) -> None:
    pooled = judged(protocol=Protocol(pooled=True), sites={"all sites": SiteRow(1, 0.5, 0.6, 0.7)})
    runs = [make_run(tmp_path / name, [], [judged(), pooled]) for name in ("a", "b")]
    text = as_markdown(compare(runs))
    assert "pooled" not in text and "| site | scratch | before | adapted |" in text


def test_tables_of_the_terminal_have_tests_and_what_differs(runs: list[Path]) -> None:
    console = Console(width=160, record=True, file=StringIO())
    for table in comparison_tables(compare(runs)):
        console.print(table)
    text = console.export_text().replace("\N{NO-BREAK SPACE}", " ")
    assert "70.0 ± 10.0" in text and "60.0 ± 10.0 D" in text and "seed 2" in text
    assert "inner.learning-rate" in text and "0.25" in text and "4.0 kB" in text


@pytest.mark.parametrize("many", [0, 1])
def test_fewer_than_two_runs_are_refused(runs: list[Path], many: int) -> None:
    with pytest.raises(SettingsError, match="two or more different runs"):
        compare(runs[:many])


def test_a_run_that_is_given_twice_is_refused(runs: list[Path]) -> None:
    with pytest.raises(SettingsError, match="two or more different runs"):
        compare([runs[0], runs[0].parent / "." / runs[0].name])


def test_a_folder_without_a_run_is_named(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing"):
        compare([runs[0], tmp_path / "nothing"])
