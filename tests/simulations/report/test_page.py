"""What the page says of a run, whatever its data are."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from common.settings import RunSettings, as_toml, flatten, read_toml
from simulations.judging.evaluate import Protocol, Score, ShownEpisode, SiteRow
from simulations.judging.samples import Sample
from simulations.report.formats import size
from simulations.report.page import write_report
from simulations.report.recorded import FEDERATION, PATHS
from tests.simulations.report.pages import ATTACK, SETTINGS, Page, journal, judged, make_run


def test_the_page_says_who_took_part_what_was_sent_and_what_came_of_it(run: Path) -> None:
    path = write_report(run)
    page = Page(path)
    assert path == run / "report.html"
    assert "2 sites took part in 2 rounds of training on the data “plants”" in page.text
    assert "4.0 kB went to the sites and 2.0 kB came back" in page.text
    assert "can still leak information about those samples" in page.text
    row = page.row("2-way 5-shot")
    assert row[1:4] == ["75.0 % ± 3.0 %", "50.0 % ± 4.0 %", "40.0 % ± 2.0 %"]
    assert row[4:] == ["2 sites of “judged”, 20 episodes", "no"]


def test_the_page_needs_no_network_and_runs_nothing(run: Path) -> None:
    page = Page(write_report(run))
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in page.html
    assert not {"script", "link", "iframe", "object", "embed", "form"} & set(page.tags)
    assert page.addresses and all(address.startswith(("data:image/png;base64,", "#")) for address in page.addresses)
    assert "@import" not in page.html and page.html.count("url(") == page.html.count("url(#")


@pytest.mark.parametrize("place", ["class", "site", "picture", "data", "journal", "setting"])
def test_attack_names_with_markup_stay_text(tmp_path: Path, place: str) -> None:
    attacks: dict[str, dict[str, Any]] = {
        "class": {"confusion": ((f"C/{ATTACK}", "C/elm", 3),)},
        "site": {"sites": {ATTACK: SiteRow(10, 0.7, 0.6, 0.4)}, "worst_site": ATTACK},
        "picture": {"shown": (ShownEpisode(ATTACK, {ATTACK: (Sample('"><script>'),)}, ()),)},
        "data": {"data": ATTACK.replace("/", "")},
    }
    lines = [dataclasses.replace(line, asked=(ATTACK,), dropped={ATTACK: f"{ATTACK}: x"}) for line in journal()]
    settings = SETTINGS.with_values({"inner.frozen": ATTACK}) if place == "setting" else SETTINGS
    evaluations = [judged(**attacks.get(place, {}))]
    run = make_run(tmp_path / "run", lines if place == "journal" else journal(), evaluations, settings)
    page = Page(write_report(run))
    assert "script" not in page.tags and not page.handlers
    assert "alert('x')" in page.text


def test_attack_a_site_name_with_markup_stays_text_in_a_plot(tmp_path: Path) -> None:
    odd = {name: SiteRow(1, 0.5, 0.6, 0.4) for name in ("$x_{$", "]]>", "日本", "--><b>", "a" * 200)}
    page = Page(write_report(make_run(tmp_path, [], [judged(sites=odd)])))
    assert "b" not in page.tags
    plot = page.plots[-1]
    assert all(name in plot for name in ("$x_{$", "]]&gt;", "日本", "--&gt;&lt;b&gt;", "a" * 35 + "…<"))


def test_equal_runs_give_equal_pages_that_do_not_tell_paths_of_the_machine(run: Path) -> None:
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first
    assert b"secret" not in first and str(run.parent).encode() not in first


def test_ids_of_a_page_with_many_plots_are_unique_or_the_same_thing(tmp_path: Path) -> None:
    run = make_run(tmp_path, journal(), [judged(), judged(way=3, sites={"C": SiteRow(1, 0.1, 0.2, 0.3)})])
    html = write_report(run).read_text()
    ids = [part.split('"')[0] for part in html.split(' id="')[1:]]
    assert html.count("<svg") == 6
    assert len(ids) == len(set(ids))


def test_settings_on_the_page_read_back_as_those_of_the_run(run: Path, tmp_path: Path) -> None:
    odd = SETTINGS.with_values({"inner.frozen": 'a"b\\c\nö 🌱', "inner.learning-rate": 1e-7, "run.resume": False})
    (tmp_path / "settings.toml").write_text(as_toml(odd, PATHS), encoding="utf-8")
    values = read_toml(tmp_path / "settings.toml")
    assert values == {key: value for key, value in flatten(odd).items() if key not in PATHS}
    assert Page(write_report(run)).text.count(" ".join(as_toml(SETTINGS, PATHS).split())) == 1


def test_settings_that_differ_from_the_default_are_marked(run: Path) -> None:
    page = Page(write_report(run))
    assert page.row("run.rounds ●")[1:] == ["2", "2000", RunSettings.__dataclass_fields__["rounds"].metadata["meaning"]]
    assert page.row("run.seed")[1:3] == ["0", "0"]
    assert page.row("data.sites ●")[1] == "plants"
    assert page.row("run.resume")[1:3] == ["true", "true"]


def test_a_run_that_began_from_a_checkpoint_says_which_one_to_begin_from(tmp_path: Path, run: Path) -> None:
    settings = SETTINGS.with_values({"model.initial": "/secret/earlier"})
    page = Page(write_report(make_run(tmp_path / "other", [], [], settings)))
    assert "--set model.initial=CHECKPOINT CHECKPOINT is the one that this run began from (“earlier”)" in page.text
    assert "secret" not in page.html
    assert "CHECKPOINT" not in Page(write_report(run)).text


def test_sites_are_counted_with_what_became_of_their_answers(run: Path) -> None:
    page = Page(write_report(run))
    assert page.row("A") == ["A", "2", "1", "1", "0", "–"]
    assert page.row("B") == ["B", "2", "1", "0", "1", "1 × no-reply"]
    assert "In 1 round of 2 too few usable answers came" in page.text
    assert "1 × no-reply : no answer within the deadline" in page.text


def test_few_classes_are_shown_as_a_matrix_with_counts(run: Path) -> None:
    page = Page(write_report(run))
    assert "Of 20 answers after adaptation 4 were wrong" in page.text
    assert page.row("true class") == ["true class", "1", "2"]
    assert page.row("1. C/elm") == ["1. C/elm", "7", "3"]
    assert page.row("2. C/oak") == ["2. C/oak", "1", "9"]


@pytest.mark.parametrize(("classes", "matrix"), [(20, True), (21, False)])
def test_many_classes_are_shown_as_the_ten_most_frequent_mistakes(tmp_path: Path, classes: int, matrix: bool) -> None:
    names = [f"c{i:02}" for i in range(classes)]
    ring = [(a, b, i + 1) for i, (a, b) in enumerate(zip(names, names[1:] + names[:1], strict=True))]
    page = Page(write_report(make_run(tmp_path, [], [judged(confusion=tuple(ring))])))
    assert ("1. c00" in page.text) is matrix
    rows = [row for row in page.rows if len(row) == 3 and row[1].startswith("→")]
    assert rows == ([] if matrix else [[a, f"→ {b}", str(n)] for a, b, n in sorted(ring, key=lambda x: -x[2])[:10]])


def test_right_and_wrong_are_told_apart_by_words_and_signs_with_what_was_said_before(run: Path) -> None:
    page = Page(write_report(run))
    assert "✓ right , 90.0 % sure oak before: ✗ elm" in page.text
    assert "✗ wrong , 60.0 % sure said oak is elm before: ✓" in page.text
    assert 'alt="Sample of elm, recognised as oak"' in page.html
    assert page.tags.count("img") == 4


def test_by_site_the_worst_is_named_and_those_hurt_are_counted(run: Path) -> None:
    page = Page(write_report(run))
    assert "At 1 of 2 sites (50.0 %) the model was right less often after adaptation than before" in page.text
    assert "The worst site after adaptation is “D” with 60.0 %" in page.text
    assert "worst site: D" in page.html[page.html.index("<svg") :]
    assert page.row("C") == ["C", "90.0 %", "40.0 %", "40.0 %", "10"]


def test_a_thousand_sites_are_shown_in_part_with_a_sentence_that_says_so(tmp_path: Path) -> None:
    names = [f"s{i:04}" for i in range(1000)]
    rows = {name: SiteRow(1, 0.5, 0.4 + i / 2000, 0.2) for i, name in enumerate(names)}
    line = dataclasses.replace(journal()[0], asked=tuple(names), used=tuple(names))
    page = Page(write_report(make_run(tmp_path, [line], [judged(sites=rows)])))
    assert "Shown are the 60 sites with the lowest accuracy of 1000" in page.text
    assert "s0059" in page.plots[-1] and "s0060" not in page.plots[-1]
    assert "200 of 1000 sites" in page.text and "The 200 sites with the lowest accuracy of 1000" in page.text
    assert len([row for row in page.rows if row and row[0].startswith("s0")]) == 400


@pytest.mark.parametrize("pooled", [False, True])
def test_judged_sites_that_took_part_in_training_are_not_called_never_seen(tmp_path: Path, pooled: bool) -> None:
    protocol = Protocol(way=2, shot=5, episodes=20, pooled=pooled)
    sites = {"all sites" if pooled else "A": SiteRow(1, 0.5, 0.6, 0.7)}
    seen = judged(protocol=protocol, sites=sites, judged_sites=("A",))
    page = Page(write_report(make_run(tmp_path, journal(), [seen])))
    assert page.row(protocol.name)[5] == "⚠ 1 of 1"
    assert "Not a figure for never-seen sites" in page.text


def test_a_pooled_judgement_has_no_figures_by_site(tmp_path: Path) -> None:
    pooled = judged(protocol=Protocol(pooled=True), sites={"all sites": SiteRow(1, 0.5, 0.6, 0.7)})
    page = Page(write_report(make_run(tmp_path, journal(), [pooled])))
    assert "there are no figures by site" in page.text
    assert "worst site" not in page.html
    assert "took part in training" in page.text and "Not a figure for never-seen" not in page.text


def test_an_adaptation_that_changed_nothing_is_said_to(tmp_path: Path) -> None:
    same = Score(0.5, 0.1, 1.0, 0.1)
    one, five = (judged(protocol=Protocol(shot=shot), before=same, after=same) for shot in (1, 5))
    page = Page(write_report(make_run(tmp_path, [], [one, five])))
    assert page.text.count("adaptation changed nothing in this test") == 2
    assert page.text.count("here each class has only one") == 1


def test_a_judgement_of_an_earlier_round_is_called_that(tmp_path: Path) -> None:
    page = Page(write_report(make_run(tmp_path, [], [judged(round=1)])))
    assert "The model is that of round 1; the run is now at round 2" in page.text.replace(" ;", ";")


def test_a_run_that_was_not_judged_says_what_command_does_it(tmp_path: Path) -> None:
    page = Page(write_report(make_run(tmp_path, journal(), [])))
    assert "fedreptile-sim evaluate RUN --data FOLDER" in page.text
    assert "img" not in page.tags


def test_a_run_without_judged_rounds_says_which_setting_makes_them(tmp_path: Path) -> None:
    lines = [dataclasses.replace(line, figures={}) for line in journal()]
    page = Page(write_report(make_run(tmp_path, lines, [])))
    assert "No round of this run was judged while it ran" in page.text
    assert page.tags.count("svg") == 1


def test_a_run_without_a_journal_says_what_cannot_be_told(tmp_path: Path) -> None:
    page = Page(write_report(make_run(tmp_path, [], [judged()])))
    assert "cannot tell which sites took part" in page.text
    assert page.row("2-way 5-shot")[5] == "not known"


def test_a_journal_that_goes_on_after_the_checkpoint_is_pointed_out(tmp_path: Path) -> None:
    lines = [*journal(), dataclasses.replace(journal()[0], round=3)]
    assert "journal ends with round 3" in Page(write_report(make_run(tmp_path, lines, []))).text


def test_class_tables_and_held_out_sites_are_told_of_where_a_run_had_them(tmp_path: Path, run: Path) -> None:
    settings = SETTINGS.with_values({"outer.class-tables": True, "judge.held-out": 3})
    page = Page(write_report(make_run(tmp_path / "other", journal(), [], settings)))
    assert "asked for class tables" in page.text and "Measured at 3 sites never trained on" in page.text
    plain = Page(write_report(run))
    assert "class tables" not in plain.text.partition("Settings and how")[0] and "held back" in plain.text


def test_figures_that_are_not_numbers_are_shown_as_dashes(tmp_path: Path) -> None:
    none = Score(math.nan, math.nan, math.nan, math.nan)
    row = SiteRow(1, math.nan, math.nan, math.nan)
    lines = [
        dataclasses.replace(line, figures={"accuracy-before": math.nan, "accuracy-after": 0.5}) for line in journal()
    ]
    page = Page(write_report(make_run(tmp_path, lines, [judged(after=none, sites={"C": row, "D": row})])))
    assert page.row("2-way 5-shot")[1] == "–"
    assert page.row("C")[1:4] == ["–", "–", "–"]
    assert "No round of this run was judged" in page.text
    assert "nan" not in page.text.lower().split()


def test_what_sites_reach_alone_stands_beside_the_rest_where_it_was_judged(tmp_path: Path, run: Path) -> None:
    sites = {"C": SiteRow(10, 0.4, 0.9, 0.4, 0.8), "D": SiteRow(10, 0.7, 0.6, 0.4, 0.5)}
    alone = judged(alone=Score(0.65, 0.05, 1.2, 0.25), sites=sites)
    page = Page(write_report(make_run(tmp_path / "alone", journal(), [alone, judged(way=3)])))
    assert page.row("Test")[4] == "alone"
    assert page.row("2-way 5-shot")[4] == "65.0 % ± 5.0 %" and page.row("3-way 5-shot")[4] == "–"
    assert page.row("alone") == ["alone", "65.0 % ± 5.0 %", "25.0 %", "1.200"]
    assert page.row("C") == ["C", "90.0 %", "40.0 %", "40.0 %", "80.0 %", "10"]
    assert "what each site reaches with its own data and no federation" in page.text
    assert [">alone<" in plot for plot in page.plots] == [False, False, False, True, False, False]
    assert "alone" not in Page(write_report(run)).text.lower()


def test_sites_that_are_judged_on_what_they_held_back_are_called_that_and_not_too_well_known(tmp_path: Path) -> None:
    sites = {
        "A": SiteRow(10, 0.4, 0.9, 0.4, trained=True),
        "D": SiteRow(10, 0.7, 0.6, 0.3),
        "E": SiteRow(1, 0.5, 0.8, 0),
    }
    page = Page(write_report(make_run(tmp_path, journal(), [judged(sites=sites)])))
    assert page.row("2-way 5-shot")[5] == "1 of 3, judged on samples they held back"
    assert "no round of training used those" in page.text and "⚠" not in page.text
    assert "1 site of these took part in training and is judged on samples held back from it" in page.text
    assert "the other 2 were not trained on" in page.text
    assert page.row("1 site that took part in training")[1:] == ["90.0 %", "40.0 %", "40.0 %"]
    assert page.row("2 sites that never did")[1:] == ["70.0 %", "60.0 %", "15.0 %"]
    assert [page.row(name)[-1] for name in "ADE"] == ["took part", "never", "never"]


def test_a_trained_site_that_held_nothing_back_is_warned_of_beside_one_that_did(tmp_path: Path) -> None:
    sites = {"A": SiteRow(10, 0.4, 0.9, 0.4, trained=True), "B": SiteRow(10, 0.7, 0.6, 0.3)}
    page = Page(write_report(make_run(tmp_path, journal(), [judged(sites=sites)])))
    assert page.row("2-way 5-shot")[5] == "1 of 2, judged on samples they held back; ⚠ 1 of 2"
    assert "Not a figure for never-seen sites" in page.text


def test_a_pooled_judgement_of_what_sites_held_back_is_not_warned_of(tmp_path: Path) -> None:
    sites = {"all sites": SiteRow(1, 0.5, 0.6, 0.7, trained=True)}
    seen = judged(protocol=Protocol(pooled=True), sites=sites, judged_sites=("A",))
    page = Page(write_report(make_run(tmp_path, journal(), [seen])))
    assert page.row("5-way 1-shot pooled")[5] == "1 of 1, judged on samples they held back"
    assert "Not a figure" not in page.text


def test_how_sure_the_model_was_is_drawn_and_told_against_how_often_it_was_right(run: Path) -> None:
    page = Page(write_report(run))
    told = "Reliability diagram of 2-way 5-shot: right answers against confidence of 20 answers. "
    assert f'aria-label="{told}Calibration error 20.0% before and 10.0% after adaptation."' in page.plots[2]
    assert page.row("sure, from – to") == ["sure, from – to", "answers", "sure on average", "right"]
    assert page.row("33.3 % – 66.7 %") == ["33.3 % – 66.7 %", "8", "60.0 %", "50.0 %"]
    assert page.row("66.7 % – 100.0 %") == ["66.7 % – 100.0 %", "12", "90.0 %", "91.7 %"]
    assert "10.0 % after adaptation (●), 20.0 % before (○), 30.0 % from scratch (×)" in page.text


def test_without_counted_answers_there_is_no_plot_of_how_sure_the_model_was(tmp_path: Path) -> None:
    page = Page(write_report(make_run(tmp_path, [], [judged(after=Score(0.75, 0.03, 0.5, 0.1))])))
    assert "as sure as it is right" not in page.text and len(page.plots) == 1


def test_a_federation_is_reproduced_from_its_own_file_which_tells_no_path(run: Path) -> None:
    (run / FEDERATION).write_text('[federation]\nset = "trees"\n\n[model]\ninitial = "/secret/earlier"\nwidth = 3\n')
    page = Page(write_report(run))
    assert "fedreptile-sim run federation.toml --out NEW-FOLDER" in page.text and "settings.toml" not in page.text
    assert 'The federation’s file [federation] set = "trees" [model] width = 3' in page.text
    assert "secret" not in page.html


def test_sites_that_were_dealt_are_called_by_their_federation(tmp_path: Path) -> None:
    settings = SETTINGS.with_values({"data.sites": "/secret/sites/trees/train"})
    page = Page(write_report(make_run(tmp_path, journal(), [], settings)))
    assert "training on the data “trees”" in page.text and page.row("data.sites ●")[1] == "trees"


@pytest.mark.parametrize(("count", "text"), [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (2e9, "2.0 GB")])
def test_bytes_are_told_in_the_largest_unit_that_fits(count: int, text: str) -> None:
    assert size(count).replace("\N{NO-BREAK SPACE}", " ") == text
