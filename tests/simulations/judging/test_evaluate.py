"""Judging a checkpoint: which inputs it is judged on, and what stands beside it."""

import base64
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from client.data.packed import write_packed
from client.data.sites import open_site_data
from common.checkpoint import Checkpoint, RunState
from common.errors import SettingsError
from common.learning.episode import Examples
from common.learning.judge import CALIBRATION_BINS
from common.learning.params import Params
from common.plan import Plan, plan_for
from common.settings import DataSettings, Settings, Value
from simulations.judging.alone import FOLDER, Alone, train_alone
from simulations.judging.evaluate import Protocol, evaluate, open_judged, parse_protocol
from simulations.judging.samples import column_names, samples_of
from simulations.reference import centralised_reptile
from tests.mirror import mirror_or_skip

PROTOCOL = Protocol(way=3, shot=2, query=4, episodes=9)


def settings_for(**changes: Value) -> Settings:
    base: dict[str, Value] = {"data.size": 8, "model.width": 4, "inner.steps": 2, "run.rounds": 3, "episode.way": 4}
    return Settings.from_flat({**base, **{key.replace("__", ".").replace("_", "-"): v for key, v in changes.items()}})


def begun(settings: Settings) -> Checkpoint:
    plan = plan_for(settings)
    return Checkpoint(RunState(1, plan.initial, plan.initial_slots, {}, {}), settings, "test")


@pytest.fixture
def dealt(tmp_path: Path) -> Path:
    """Sites 'old' in train and judge and 'new' in judge; grey level = row number; 'old' held rows 40 to 59 back."""
    pixels = np.repeat(np.arange(120, dtype=np.uint8), 64).reshape(120, 1, 8, 8)
    train = {"old": {"a": range(20), "b": range(20, 40)}}
    judge = {
        "old": {"a": range(40, 50), "b": range(50, 60), "c": range(60, 70)},
        "new": {"a": range(70, 80), "b": range(80, 90)},
    }
    write_packed(tmp_path / "train", pixels, train, {})
    write_packed(tmp_path / "judge", tmp_path / "train" / "inputs.npy", judge, {})
    return tmp_path


def rows(inputs: torch.Tensor) -> set[int]:
    return {round(value) for value in (inputs[:, 0, 0, 0] * 255).tolist()}


def test_a_site_that_trained_is_judged_on_what_it_held_back_and_a_new_one_on_what_it_has(dealt: Path) -> None:
    settings = settings_for()
    sites = open_judged(dealt / "judge", settings.data, dealt / "train")
    supports: dict[str, set[int]] = {"old": set(), "new": set()}

    def alone(site: str, plan: Plan, support: Examples, generator: torch.Generator) -> Params:
        supports[site] |= rows(support.inputs)
        return plan.initial

    result = evaluate(begun(settings), sites, "sites", replace(PROTOCOL, episodes=60), alone)
    assert supports["old"] == {*range(40), *range(60, 70)}, "support of known classes from training, of new ones not"
    assert supports["new"] == set(range(70, 90))
    assert {name: row.trained for name, row in result.sites.items()} == {"new": False, "old": True}


def test_without_training_data_every_support_comes_from_the_judged_sites(dealt: Path) -> None:
    sites = open_judged(dealt / "judge", settings_for().data)
    assert not sites.known
    result = evaluate(begun(settings_for()), sites, "sites", PROTOCOL)
    assert not any(row.trained for row in result.sites.values())
    assert result.alone is None and result.sites["old"].alone is None


def test_alone_is_judged_beside_and_changes_nothing_else(digit_sites: Path) -> None:
    settings = settings_for()
    sites = open_judged(digit_sites, settings.data)
    plain = evaluate(begun(settings), sites, "digits", PROTOCOL)
    beside = evaluate(begun(settings), sites, "digits", PROTOCOL, Alone({}, 30))
    assert (plain.before, plain.after, plain.scratch) == (beside.before, beside.after, beside.scratch)
    assert beside.alone is not None and beside.alone.mean != plain.scratch.mean
    assert all(row.alone is not None for row in beside.sites.values())


def test_the_curve_of_calibration_counts_every_query_once(digit_sites: Path) -> None:
    result = evaluate(begun(settings_for()), open_judged(digit_sites, settings_for().data), "digits", PROTOCOL)
    queries = PROTOCOL.episodes * PROTOCOL.way * PROTOCOL.query
    for score in (result.before, result.after, result.scratch):
        assert len(score.bins) == CALIBRATION_BINS
        assert sum(count for count, _, _ in score.bins) == queries
        assert sum(right for _, _, right in score.bins) / queries == pytest.approx(score.mean)
        gaps = sum(abs(confidence - right) for _, confidence, right in score.bins)
        assert gaps / queries == pytest.approx(score.ece)


def test_a_result_is_written_under_its_name_and_protocol(digit_sites: Path, tmp_path: Path) -> None:
    result = evaluate(begun(settings_for()), open_judged(digit_sites, settings_for().data), "digits", PROTOCOL)
    path = result.write(tmp_path)
    assert path.name == "judged-digits-3-way-2-shot.json"
    assert json.loads(path.read_text())["sites"].keys() == {f"site-{number}" for number in range(8)}
    assert str(digit_sites) not in path.read_text()


def test_a_table_is_shown_in_its_own_units_and_a_picture_as_a_picture(digit_sites: Path) -> None:
    hospitals = mirror_or_skip() / "heart_disease_hospitals"
    data = DataSettings(kind="table", label="num", columns="age, cp=1|2|3|4, chol")
    site = open_site_data(hospitals, "cleveland", data)
    assert column_names(data) == ("age", "cp", "chol")
    first = samples_of(site, data)(site.inputs("0", [0]))[0]
    assert (first.png, first.values) == ("", ["63", "1", "233"])
    hungary = open_site_data(hospitals, "hungarian", data)  # where 23 patients have no number for chol
    shown = samples_of(hungary, data)(hungary.inputs("0", range(hungary.count("0"))))
    assert 0 < sum(sample.values[2] == "" for sample in shown) <= 23 and all(sample.values[0] for sample in shown)

    pictures = DataSettings(size=8)
    digits = open_site_data(digit_sites, "site-0", pictures)
    assert column_names(pictures) == ()
    seen = samples_of(digits, pictures)(digits.inputs("3", [0, 1]))
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(seen[1].png))))
    np.testing.assert_allclose(image / 255, digits.inputs("3", [1])[0, 0], atol=1e-6)


def test_what_lies_beside_a_picture_is_shown_beside_it_and_a_vector_as_a_curve() -> None:
    two = DataSettings(size=8, beside="template")
    picture = torch.stack([torch.zeros(8, 8), torch.ones(8, 8)])[None]
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(samples_of(None, two)(picture)[0].png))))  # type: ignore[arg-type]
    assert shown.shape == (8, 16) and (shown[:, :8] == 0).all() and (shown[:, 8:] == 255).all()
    vector = DataSettings(kind="vector", size=5)
    curve = samples_of(None, vector)(torch.tensor([[-3.0, 0, 3, 9, -9]]))[0]  # type: ignore[arg-type]
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(curve.png))))
    assert (pixels[-1, 0], pixels[0, pixels.shape[1] // 2]) == (0, 0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("5-way 1-shot", Protocol(5, 1, 7, 9)), ("2-way 10-shot pooled", Protocol(2, 10, 7, 9, True))],
)
def test_a_protocol_is_read_from_its_name(text: str, expected: Protocol) -> None:
    assert parse_protocol(text, 7, 9) == expected
    assert expected.name == text


@pytest.mark.parametrize("text", ["", "5-way", "5 way 1 shot", "1-way 1-shot", "5-way 0-shot", "5-way 1-shot mixed"])
def test_a_protocol_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="5-way 1-shot pooled"):
        parse_protocol(text, 5, 10)


# ------------------------------------------------------------------------------------------ without a federation


def test_a_site_alone_trains_like_the_federation_with_its_own_data_only(digit_sites: Path, tmp_path: Path) -> None:
    settings = settings_for()
    data = open_site_data(digit_sites, "site-2", settings.data)
    expected = centralised_reptile({"site-2": data}, settings)
    found = train_alone("site-2", digit_sites, settings, tmp_path)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    assert any(not torch.equal(found[name], value) for name, value in plan_for(settings).initial.items())


def test_what_a_site_reached_alone_is_kept_for_the_same_settings_only(
    digit_sites: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for()
    first = train_alone("site-2", digit_sites, settings, tmp_path)
    assert len(list((tmp_path / FOLDER).iterdir())) == 1
    with monkeypatch.context() as patch:
        patch.setattr("simulations.judging.alone.centralised_reptile", lambda *_: pytest.fail("trained again"))
        again = train_alone("site-2", digit_sites, settings, tmp_path)
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = train_alone("site-2", digit_sites, settings.with_values({"inner.learning-rate": 0.1}), tmp_path)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    next((tmp_path / FOLDER).iterdir()).write_bytes(b"cut off")
    assert all(torch.equal(first[n], v) for n, v in train_alone("site-2", digit_sites, settings, tmp_path).items())


def test_a_site_that_trained_starts_from_what_it_reached_and_a_new_one_from_the_initial_params(
    digit_sites: Path,
) -> None:
    settings = settings_for(adapt__steps=0)
    plan = plan_for(settings)
    reached = {name: value + 1 for name, value in plan.initial.items()}
    data = open_site_data(digit_sites, "site-0", settings.data)
    support = Examples(torch.cat([data.inputs("1", range(5)), data.inputs("7", range(5))]), torch.arange(10) // 5, 2)
    alone = Alone({"old": reached}, 7)
    old, new = (alone(site, plan, support, torch.Generator().manual_seed(1)) for site in ("old", "new"))
    assert all(torch.equal(old[name], reached[name]) for name in reached), "no step: exactly what it reached"
    assert any(not torch.equal(new[name], value) for name, value in plan.initial.items()), "seven steps of its own"
