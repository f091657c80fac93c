"""The page of real results for every kind of data: pictures, curves, rows of tables."""

import csv
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from client.data.sites import open_site_data
from common.checkpoint import NAME, Checkpoint, RunState, read_checkpoint, write_checkpoint
from common.plan import plan_for
from common.settings import Settings, Value
from simulations.judging.evaluate import Evaluation, JudgedSites, Protocol, evaluate
from simulations.judging.samples import Sample
from simulations.report.examples import telling_columns
from simulations.report.page import write_report
from tests.mirror import mirror_or_skip
from tests.simulations.report.pages import Page

HEART = (
    "age, sex=0|1, cp=1|2|3|4, trestbps, chol, fbs=0|1, restecg=0|1|2, thalach, exang=0|1, oldpeak, slope=1|2|3, ca, "
    "thal=3|6|7"
)
MLP: dict[str, Value] = {"model.network": "mlp", "model.depth": 2, "model.width": 8, "inner.learning-rate": 0.1}
PROTOCOL = Protocol(way=2, shot=3, query=2, episodes=4)


def judged_run(run: Path, sites: Path, names: list[str], values: dict[str, Value]) -> Evaluation:
    """Judge an untrained model at real sites into a run's folder."""
    settings = Settings.from_flat({"run.dir": str(run), "data.sites": str(sites), **values})
    state = RunState(1, plan_for(settings).initial, {}, {}, {})
    write_checkpoint(run / NAME, state, settings)
    opened = {name: open_site_data(sites, name, settings.data) for name in names}
    result = evaluate(read_checkpoint(run), JudgedSites(opened), "real", PROTOCOL)
    result.write(run)
    return result


def test_pictures_are_shown_as_pictures(tmp_path: Path, digit_sites: Path) -> None:
    values: dict[str, Value] = {"data.size": 8, "model.width": 4, "model.depth": 1}
    judged_run(tmp_path, digit_sites, ["site-0", "site-1"], values)
    page = Page(write_report(tmp_path))
    assert "These pictures come from the judged sites" in page.text
    assert page.tags.count("img") == 3 * (2 * 3 + 2 * 2)  # episodes x (support + queries)


def test_vectors_are_shown_as_wide_curves(tmp_path: Path) -> None:
    draws = np.random.default_rng(0)
    labels = np.repeat(np.array(["ethanol", "acetone"]), 8)
    np.savez(tmp_path / "lab.npz", inputs=draws.normal(size=(16, 5)).astype(np.float32), label=labels)
    judged_run(tmp_path / "run", tmp_path, ["lab"], {"data.kind": "vector", "data.size": 5, **MLP})
    page = Page(write_report(tmp_path / "run"))
    before = page.text.partition("Settings and how to reproduce")[0]
    assert "These curves come from the judged sites" in before and "Each curve is one sample" in before
    assert "picture" not in before.lower()
    assert 'class="cards wide"' in page.html and page.tags.count("img") == 3 * (2 * 3 + 2 * 2)


@pytest.fixture(scope="module")
def heart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Evaluation]]:
    """A run judged at two hospitals on their real patients."""
    run = tmp_path_factory.mktemp("heart") / "run"
    values: dict[str, Value] = {"data.kind": "table", "data.columns": HEART, "data.label": "num", **MLP}
    sites = mirror_or_skip() / "heart_disease_hospitals"
    yield run, judged_run(run, sites, ["hungarian", "va"], values)


def test_rows_of_tables_are_shown_as_a_table_with_values_as_they_were_given(heart: tuple[Path, Evaluation]) -> None:
    run, result = heart
    page = Page(write_report(run))
    shown = result.shown[0]
    names = [column.partition("=")[0].strip() for column in HEART.split(",")]
    heads = [[cell.removesuffix(" ◆") for cell in row] for row in page.rows]
    assert ["class", *names] in heads and ["after", "is", "said", "sure", "before", *names] in heads
    name, samples = next(iter(shown.support.items()))
    assert [name, *(text or "–" for text in samples[0].values)] in page.rows
    assert [text or "–" for text in samples[1].values] in page.rows  # the class stands once
    query = shown.query[0]
    row = next(row for row in page.rows if row[5:] == [text or "–" for text in query.sample.values])
    assert row[1:4] == [query.true, query.after, f"{query.confidence:.1%}".replace("%", " %")]
    assert row[0] == ("✓ right" if query.after == query.true else "✗ wrong")
    assert any("–" in row for row in page.rows if len(row) == len(names))


def test_shown_rows_are_rows_of_the_hospitals_own_table(heart: tuple[Path, Evaluation]) -> None:
    _, result = heart
    with (mirror_or_skip() / "heart_disease_hospitals" / "hungarian.csv").open() as file:
        ages = {(row["age"], row["sex"], row["num"]) for row in csv.DictReader(file)}
    shown = next(episode for episode in result.shown if episode.site == "hungarian")
    for query in shown.query:
        assert (query.sample.values[0], query.sample.values[1], query.true) in ages


def test_of_tables_the_page_speaks_of_rows_and_shows_no_picture(heart: tuple[Path, Evaluation]) -> None:
    page = Page(write_report(heart[0]))
    before = page.text.partition("Settings and how to reproduce")[0]
    assert "These rows come from the judged sites" in before
    assert not {"picture", "image", "curve"} & set(before.lower().split())
    assert "img" not in page.tags


def test_attack_values_of_a_table_with_markup_stay_text(heart: tuple[Path, Evaluation], tmp_path: Path) -> None:
    run, result = heart
    attack = "<script>alert(1)</script>"
    found: Checkpoint = read_checkpoint(run)
    write_checkpoint(tmp_path / NAME, found.state, found.settings)
    shown = replace(result.shown[0], support={attack: [Sample(values=(attack,))]})
    replace(result, shown=[shown], columns=[attack]).write(tmp_path)
    page = Page(write_report(tmp_path))
    assert "script" not in page.tags and page.row(attack) == [attack, attack]


def rows(*values: tuple[str, ...]) -> list[Sample]:
    return [Sample(values=row) for row in values]


def test_columns_that_differ_between_classes_are_marked_numbers_and_words_alike() -> None:
    support = {
        "sick": rows(("1", "red", "5", "x", ""), ("2", "red", "6", "y", "")),
        "well": rows(("8", "blue", "6", "y", ""), ("9", "blue", "5", "x", "")),
    }
    assert telling_columns(support) == {0, 1}


def test_at_most_three_columns_are_marked_and_none_where_all_would_be() -> None:
    sick, well = ("1", "1", "1", "1"), ("9", "9", "9", "9")
    assert telling_columns({"sick": rows(sick, sick), "well": rows(well, well)}) == {0, 1, 2}
    assert telling_columns({"sick": rows(sick[:3], sick[:3]), "well": rows(well[:3], well[:3])}) == set()
    assert telling_columns({"sick": rows(sick), "well": rows(well)}) == set()
