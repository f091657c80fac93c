"""The commands at the line, from labelled pictures to a decision, as people and scripts type them."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from client.cli import app
from client.data.folder import open_folder
from client.data.held import apart
from client.home import SiteHome
from client.line.learn import learn
from client.line.store import About, store_of
from client.model import read_model
from common.errors import CheckpointError, SettingsError
from common.learning.interval import wilson
from tests.client.line.place import checkpoint_in, site_at
from tests.client.small import settings_with

DATA = settings_with().data


@pytest.fixture
def home(tmp_path: Path, digit_folders: Path) -> SiteHome:
    """A site that knows four of line-1's five digits."""
    data = Path(shutil.copytree(digit_folders / "line-1", tmp_path / "line-1"))
    shutil.move(data / "digit-4", tmp_path / "new")
    return site_at(tmp_path, data)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return checkpoint_in(tmp_path, data__hold_back=0.3)


def invoke(home: SiteHome, *words: object, code: int = 0) -> str:
    done = CliRunner(env={"COLUMNS": "300", "NO_COLOR": "1"}).invoke(
        app, [*map(str, words), "--home", str(home.path)], catch_exceptions=code != 0
    )
    if code:
        assert done.exception is not None and not isinstance(done.exception, SystemExit)
        return str(done.exception)
    assert done.exit_code == 0, done.output
    return done.output


def test_from_ten_new_pictures_to_a_model_that_knows_them_and_back(
    home: SiteHome, checkpoint: Path, tmp_path: Path
) -> None:
    first = invoke(home, "adapt", checkpoint, "--use")
    assert "model 1 is in use" in first
    pictures = sorted((tmp_path / "new").iterdir())[:10]
    said = json.loads(invoke(home, "classify", *pictures, "--json"))
    assert {one["class"] for one in said} <= {f"digit-{digit}" for digit in range(4)}
    assert {one["model"] for one in said} == {1} and said[0]["input"] == str(pictures[0])
    assert "no class 'digit-4'" in invoke(home, "label", *pictures, "--as", "digit-4", code=1)
    assert invoke(home, "label", *pictures, "--as", "digit-4", "--new").count("is labelled 'digit-4'") == 10
    shown = invoke(home, "adapt", "--use", "--ask-campaign", "digit-4")
    assert "of 10 are recognised by models adapted without them" in shown and "proves little" in shown
    assert "model 2 is in use; 'fedreptile-site rollback' goes back to model 1" in shown
    said = json.loads(invoke(home, "classify", *sorted((tmp_path / "new").iterdir())[10:], "--json"))
    assert {one["model"] for one in said} == {2}
    assert store_of(home).standing().wishes == {"digit-4": 10}
    assert "model 1 is in use" in invoke(home, "rollback")
    shown = invoke(home, "history")
    assert "went back" in shown and "1 in use" in shown
    kept = json.loads(invoke(home, "history", "--json"))
    assert kept["current"] == 1 and [one["number"] for one in kept["models"]] == [1, 2]
    assert [one["what"] for one in kept["events"]].count("used") == 2
    assert "is no longer 'digit-4'" in invoke(home, "label", pictures[0], "--remove")


def test_a_model_that_is_discarded_or_left_for_later_does_not_come_into_use(home: SiteHome, checkpoint: Path) -> None:
    assert "model 1 is kept and not in use" in invoke(home, "adapt", checkpoint)
    assert store_of(home).current() is None
    assert "make one with 'fedreptile-site adapt'" in invoke(home, "classify", checkpoint, code=1)
    assert "model 1 is in use" in invoke(home, "rollback", "--to", 1)
    assert "model 2 is discarded; model 1 stays in use" in invoke(home, "adapt", "--steps", 1, "--discard")
    assert [entry.number for entry in store_of(home).entries()] == [1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["adapt", "--use", "--discard"], "exclude each other"),
        (["adapt", "--out", "m.safetensors"], "go with --data"),
        (["adapt", "run", "--data", "line", "--use"], "--data adapts a CHECKPOINT without a site's folder"),
        (["adapt"], "no model is in use in"),
        (["label", "1.png"], "give --as CLASS"),
        (["label", "1.png", "--as", "a", "--remove"], "give --as CLASS"),
        (["rollback"], "none to go back to"),
    ],
)
def test_words_that_do_not_go_together_are_refused(home: SiteHome, words: list[str], said: str) -> None:
    assert said in invoke(home, *words, code=1)


def test_old_and_new_model_are_compared_on_samples_that_neither_was_adapted_on(
    home: SiteHome, checkpoint: Path
) -> None:
    first = learn(home, checkpoint)
    store_of(home).use(first.entry.number)
    second = learn(home, changes={"adapt.steps": 0})
    data = open_folder(Path(home.config().data), DATA)
    _, held = apart(data, 0.3)
    expected = {name: held.count(name) for name in held.classes()}
    assert {name: total for name, (_, total) in second.comparison.new.per_class().items()} == expected
    assert second.comparison.old == first.comparison.new and second.before == "model 1"
    models = read_model(first.entry.path), second.model
    for one in second.comparison.changed:
        (row,) = [row for row in range(data.count(one.true)) if data.source(one.true, row) == one.source]
        said = [model.predict(data.inputs(one.true, [row]))[0].name for model in models]
        assert said == [one.before, one.after] and one.before != one.after
    figures = second.entry.about.judgement
    assert figures["held-back"] == sum(expected.values()) and figures["changed"] == len(second.comparison.changed)
    assert second.samples == {f"digit-{digit}": 12 for digit in range(4)}


def test_a_class_with_few_samples_is_judged_by_leaving_out_each_of_them(
    home: SiteHome, checkpoint: Path, tmp_path: Path
) -> None:
    store_of(home).use(learn(home, checkpoint).entry.number)
    new = Path(home.config().data) / "digit-4"
    new.mkdir()
    for path in sorted((tmp_path / "new").iterdir())[:3]:
        shutil.copy(path, new)
    found = learn(home).comparison.left_out
    assert next(iter(found)) == "digit-4" and found["digit-4"][1] == 3 and 0 <= found["digit-4"][0] <= 3
    assert sum(total for _, total in found.values()) <= 20


@pytest.mark.parametrize(
    ("right", "total", "low", "high"), [(10, 10, 0.7225, 1.0), (9, 10, 0.5958, 0.9821), (0, 10, 0.0, 0.2775)]
)
def test_the_interval_is_wilsons(right: int, total: int, low: float, high: float) -> None:
    assert wilson(right, total) == pytest.approx((low, high), abs=1e-4)


def test_the_shared_model_is_kept_so_that_adaptation_can_start_there_again(home: SiteHome, checkpoint: Path) -> None:
    first = learn(home, checkpoint)
    store_of(home).use(first.entry.number)
    shutil.rmtree(checkpoint)
    again = learn(home)
    assert again.entry.about.base == first.entry.about.base != ""
    assert (again.model.prototypes == first.model.prototypes).all()


def test_without_a_shared_model_adaptation_says_what_to_give(home: SiteHome, checkpoint: Path) -> None:
    store = store_of(home)
    store.use(store.add(learn(home, checkpoint).model, About("release 1", release=1)).number)
    with pytest.raises(CheckpointError, match=r"adapted from is not kept; give a run's folder"):
        learn(home)


def test_a_campaign_can_only_be_asked_for_a_class_that_the_site_has(home: SiteHome, checkpoint: Path) -> None:
    invoke(home, "adapt", checkpoint, "--use")
    assert "no class 'digit-9' to ask a campaign for" in invoke(home, "adapt", "--ask-campaign", "digit-9", code=1)
    assert store_of(home).standing().wishes == {}


def test_a_setting_that_does_not_exist_is_refused(home: SiteHome, checkpoint: Path) -> None:
    with pytest.raises(SettingsError, match="adapt\\.stepz"):
        learn(home, checkpoint, {"adapt.stepz": 1})
