import dataclasses
import json
import math
import os
import shutil
import subprocess
from base64 import b64encode
from collections.abc import Callable
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from common.checkpoint import NAME, RunState, write_checkpoint
from common.errors import CheckpointError
from common.settings import Settings, as_toml, flatten, read_toml
from server.reptile import RoundReport
from server.rounds import JOURNAL, RunFolder
from simulations.evaluate import Evaluation, Picture, PicturedEpisode, Protocol, Score, SiteRow
from simulations.report import PATHS, RecordedRun, read_run, size, write_report

MAGENTA, BLUE = (255, 0, 255), (0, 0x72, 0xB2)
SETTINGS = Settings.from_flat({"run.rounds": 2, "run.dir": "/secret/run", "data.sites": "/secret/plants"})
ATTACK = "<script>alert('x')</script><img src=x onerror=alert(1)>"


class Page(HTMLParser):
    """What a reader of a page is shown, and what the page would make a browser do."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.rows: list[list[str]] = []
        self.words: list[str] = []
        self.in_cell = False
        self.html = path.read_text(encoding="utf-8")
        self.feed(self.html)
        self.text = " ".join(" ".join(self.words).split())  # a no-break space counts as one
        self.rows = [[" ".join(cell.split()) for cell in row] for row in self.rows]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        named = {name: value or "" for name, value in attrs}
        self.addresses += [named[name] for name in ("src", "href", "xlink:href", "srcset", "action") if name in named]
        self.handlers += [name for name in named if name.startswith("on")]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.in_cell = True
        if tag == "img":
            assert named["alt"]

    def handle_endtag(self, tag: str) -> None:
        self.in_cell = self.in_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self.in_cell:
            self.rows[-1][-1] += data

    def row(self, head: str) -> list[str]:
        """Return the first table row that begins with this."""
        return next(row for row in self.rows if row and row[0] == head)


def png(colour: tuple[int, int, int] = MAGENTA) -> str:
    stream = BytesIO()
    Image.new("RGB", (8, 8), colour).save(stream, "PNG")
    return b64encode(stream.getvalue()).decode()


def judged(way: int = 2, **changes: Any) -> Evaluation:
    """Return a small result in which adaptation helps at site C and hurts at site D."""
    query = (
        Picture(png(), "oak", "elm", "oak", 0.9),
        Picture(png(), "elm", "elm", "oak", 0.6),
    )
    result = Evaluation(
        data="/secret/judged",
        protocol=Protocol(way=way, shot=5, episodes=20),
        round=2,
        before=Score(0.5, 0.04, 1.0, 0.2),
        after=Score(0.75, 0.03, 0.5, 0.1),
        scratch=Score(0.4, 0.02, 2, 0.3),
        worst_site="D",
        share_hurt=0.5,
        sites={"C": SiteRow(10, 0.4, 0.9, 0.4), "D": SiteRow(10, 0.7, 0.6, 0.4)},
        confusion=(("C/elm", "C/oak", 3), ("C/oak", "C/elm", 1), ("C/oak", "C/oak", 9), ("C/elm", "C/elm", 7)),
        pictures=(PicturedEpisode("C", {"oak": (png(),), "elm": (png(),)}, query),),
    )
    return dataclasses.replace(result, **changes)


def journal() -> list[RoundReport]:
    accuracies = {"accuracy-before": 0.5, "accuracy-after": 0.625}
    return [
        RoundReport(1, 1.0, ("A", "B"), ("A", "B"), {}, True, 2000, 1500, accuracies),
        RoundReport(
            2, 0.5, ("A", "B"), (), {"B": "no-reply: no reply within the deadline"}, False, 2000, 500, {}, {},
            {"no-reply": 1},
        ),
    ]  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of two rounds over the sites A and B, judged on C and D. The last round had no quorum."""
    return make_run(tmp_path / "plants-run", journal(), [judged()])


def make_run(run: Path, lines: list[RoundReport], evaluations: list[Evaluation], settings: Settings = SETTINGS) -> Path:
    write_checkpoint(run / NAME, RunState(2, {"w": torch.zeros(2)}, {}, {}, {}), settings)
    for line in lines:
        RunFolder(run).append(line, 0.1)
    for evaluation in evaluations:
        evaluation.write(run)
    return run


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


@pytest.mark.parametrize("place", ["class", "site", "picture", "folder", "journal", "setting"])
def test_attack_names_with_markup_stay_text(tmp_path: Path, place: str) -> None:
    attacks: dict[str, dict[str, Any]] = {
        "class": {"confusion": ((f"C/{ATTACK}", "C/elm", 3),)},
        "site": {"sites": {ATTACK: SiteRow(10, 0.7, 0.6, 0.4)}, "worst_site": ATTACK},
        "picture": {"pictures": (PicturedEpisode(ATTACK, {ATTACK: ('"><script>',)}, ()),)},
        "folder": {"data": f"/x/{ATTACK.replace('/', '')}"},
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
    plot = page.html[page.html.index("<svg") : page.html.index("</svg>")]
    assert all(name in plot for name in ("$x_{$", "]]&gt;", "日本", "--&gt;&lt;b&gt;", "a" * 35 + "…<"))


def test_equal_runs_give_equal_pages_that_do_not_tell_paths_of_the_machine(run: Path) -> None:
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first
    assert b"secret" not in first and str(run.parent).encode() not in first


def test_ids_of_a_page_with_many_plots_are_unique_or_the_same_thing(tmp_path: Path) -> None:
    run = make_run(tmp_path, journal(), [judged(), judged(way=3, sites={"C": SiteRow(1, 0.1, 0.2, 0.3)})])
    html = write_report(run).read_text()
    ids = [part.split('"')[0] for part in html.split(' id="')[1:]]
    assert html.count("<svg") == 4
    assert len(ids) == len(set(ids))


def test_settings_on_the_page_read_back_as_those_of_the_run(run: Path, tmp_path: Path) -> None:
    odd = SETTINGS.with_values({"inner.frozen": 'a"b\\c\nö 🌱', "inner.learning-rate": 1e-7, "run.resume": False})
    (tmp_path / "settings.toml").write_text(as_toml(odd, PATHS), encoding="utf-8")
    values = read_toml(tmp_path / "settings.toml")
    assert values == {key: value for key, value in flatten(odd).items() if key not in PATHS}
    assert Page(write_report(run)).text.count(" ".join(as_toml(SETTINGS, PATHS).split())) == 1


def test_settings_that_differ_from_the_default_are_marked(run: Path) -> None:
    page = Page(write_report(run))
    assert page.row("run.rounds ●")[1:] == ["2", "2000", "rounds in all"]
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
    assert "s0059" in page.html[: page.html.index("The same in numbers")].rpartition("<svg")[2]
    assert "s0060" not in page.html[: page.html.index("The same in numbers")].rpartition("<svg")[2]
    assert "200 of 1000 sites" in page.text and "The 200 sites with the lowest accuracy of 1000" in page.text
    assert len([row for row in page.rows if row and row[0].startswith("s0")]) == 400


@pytest.mark.parametrize("pooled", [False, True])
def test_judged_sites_that_took_part_in_training_are_not_called_never_seen(tmp_path: Path, pooled: bool) -> None:
    protocol = Protocol(way=2, shot=5, episodes=20, pooled=pooled)
    sites = {"all sites" if pooled else "A": SiteRow(1, 0.5, 0.6, 0.7)}
    seen = judged(protocol=protocol, sites=sites, confusion=(("A/elm", "A/elm", 1),))
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


def test_what_a_run_left_is_read_back_as_it_was_written(run: Path) -> None:
    found = read_run(run)
    assert found == RecordedRun("plants-run", found.checkpoint, journal(), [judged()])


def test_without_a_checkpoint_the_error_says_so_and_nothing_is_written(run: Path) -> None:
    (run / NAME).unlink()
    with pytest.raises(CheckpointError, match="is not a checkpoint that can be read"):
        write_report(run)
    assert not (run / "report.html").exists()


def _without(*keys: str) -> Callable[[str], str]:
    def change(text: str) -> str:
        values = json.loads(text)
        part = values
        for key in keys[:-1]:
            part = part[key]
        del part[keys[-1]]
        return json.dumps(values)

    return change


def _with(key: str, value: object) -> Callable[[str], str]:
    return lambda text: json.dumps({**json.loads(text), key: value})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda text: text[:-20], "Expecting|Unterminated"),
        (lambda text: "[]", "expected dict"),
        (lambda text: "\udcff", "decode"),
        (_without("after"), "has no 'after'"),
        (_without("before", "ci95"), "before has no 'ci95'"),
        (_with("share_hurt", "0.5"), "share_hurt is '0.5'; expected float"),
        (_with("round", True), "round is 'True'; expected int"),
        (_with("sites", {"C": 1}), "sites: C is '1'; expected dict"),
        (_with("confusion", [["a", "b"]]), r"confusion\[0\] has 2 parts; expected 3"),
        (_with("pictures", "none"), "pictures is 'none'; expected list"),
    ],
)
def test_a_broken_result_of_judging_is_named_with_what_to_do(
    run: Path, change: Callable[[str], str], told: str
) -> None:
    path = run / "judged-judged-2-way-5-shot.json"
    path.write_bytes(change(path.read_text()).encode(errors="surrogateescape"))
    with pytest.raises(CheckpointError, match=told) as caught:
        write_report(run)
    assert str(path) in str(caught.value) and "fedreptile-sim evaluate" in str(caught.value)


@pytest.mark.parametrize("line", [b'{"round": 1}\n', b"[]\n", b"\xff\n"])
def test_a_broken_journal_is_named_with_what_to_do(run: Path, line: bytes) -> None:
    (run / JOURNAL).write_bytes(line)
    with pytest.raises(CheckpointError, match=r"rounds\.jsonl is not a journal that can be read.*move it away"):
        write_report(run)


def test_a_half_written_last_line_of_the_journal_is_left_out(run: Path) -> None:
    with (run / JOURNAL).open("a") as file:
        file.write('{"round": 3, "st')
    assert [line.round for line in read_run(run).journal] == [1, 2]


@pytest.mark.parametrize(("count", "text"), [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (2e9, "2.0 GB")])
def test_bytes_are_told_in_the_largest_unit_that_fits(count: int, text: str) -> None:
    assert size(count).replace("\N{NO-BREAK SPACE}", " ") == text


@pytest.fixture
def chromium(tmp_path: Path) -> Callable[..., str]:
    program = shutil.which("chromium")
    if program is None and os.environ.get("CI_REQUIRES_CHROMIUM") == "1":
        pytest.fail("CI_REQUIRES_CHROMIUM is 1 but there is no chromium on PATH")
    if program is None:
        pytest.skip("no chromium on PATH")
    fixed = [program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    fixed += ["--disable-sync", "--no-first-run", "--hide-scrollbars", f"--user-data-dir={tmp_path / 'profile'}"]

    def browse(page: Path, *options: str) -> str:
        done = subprocess.run([*fixed, *options, page.as_uri()], capture_output=True, check=True, timeout=120)
        return done.stdout.decode()

    return browse


def test_a_real_browser_shows_headings_pictures_and_plots_under_the_pages_own_policy(
    run: Path, tmp_path: Path, chromium: Callable[..., str]
) -> None:
    page = write_report(run)
    dom = chromium(page, "--dump-dom")
    headings = ("How well it does", "Training round by round", "Judged: 2-way 5-shot", "Sites", "Settings and how")
    assert all(f">{heading}" in dom for heading in headings)
    chromium(page, f"--screenshot={tmp_path / 'seen.png'}", "--window-size=1000,5000")
    with Image.open(tmp_path / "seen.png") as seen:
        colours = {colour: count for count, colour in seen.convert("RGB").getcolors(1 << 24) or []}
    shown = 4 * 54 * 54  # four pictures of 56 pixels a side with a border of one in two of them
    assert shown <= colours[MAGENTA] <= 4 * 56 * 56
    assert colours[BLUE] > 100


def test_a_phone_can_read_the_page_without_scrolling_sideways(
    run: Path, tmp_path: Path, chromium: Callable[..., str]
) -> None:
    html = write_report(run).read_text(encoding="utf-8")
    policy, head = html.index('<meta http-equiv="Content-Security-Policy"'), html.index('<meta name="viewport"')
    tell = "<script>onload = () => parent.postMessage([innerWidth, document.documentElement.scrollWidth], '*')</script>"
    (tmp_path / "told.html").write_text(html[:policy] + tell + html[head:], encoding="utf-8")
    phone = tmp_path / "phone.html"
    phone.write_text(
        "<script>onmessage = message => document.title = message.data.join()</script>"
        '<iframe src="told.html" style="width: 360px; height: 640px; border: 0"></iframe>'
    )
    assert "<title>360,360</title>" in chromium(phone, "--dump-dom", "--virtual-time-budget=2000")
