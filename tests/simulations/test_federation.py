"""A federation in one file: reading, dealing, and each of those that come with the project, run briefly."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.data.packed import INDEX, open_packed
from client.data.sites import open_site_data, site_names
from common.errors import SettingsError
from common.paths import sites_home
from common.settings import flatten
from simulations.cli import app
from simulations.federation import READY, deal, read_federation
from tests.commands import commands_of
from tests.mirror import mirror_or_skip

invoke, refused = commands_of(app)


def test_five_federations_and_one_for_machines_without_network_are_ready() -> None:
    assert set(READY) == {
        "omniglot",
        "steel_lines",
        "board_lines",
        "chest_xrays",
        "heart_hospitals",
        "digits",
    }


@pytest.mark.parametrize("name", READY)
def test_a_federation_comes_back_from_what_it_writes(name: str, tmp_path: Path) -> None:
    found = read_federation(name)
    (tmp_path / "again.toml").write_text(found.as_toml(), encoding="utf-8")
    again = read_federation(str(tmp_path / "again.toml"))
    assert (again.described, again.settings, again.dealing) == (found.described, found.settings, found.dealing)


@pytest.mark.parametrize("name", sorted(set(READY) - {"omniglot", "digits"}))
def test_no_input_is_both_trained_and_judged_on(name: str) -> None:
    mirror_or_skip()
    dealt = deal(read_federation(name))
    assert dealt.judge is not None
    trained, judged = (np.load(path / "rows.npy") for path in (dealt.train, dealt.judge))
    index = open_packed(dealt.judge)
    rows = [row for site in index.names for own in index.site(site)._rows.values() for row in own.tolist()]
    assert len(judged) >= len(rows) > 0
    assert not set(trained.tolist()) & set(rows)
    assert len(set(rows)) == len(rows)


def test_a_value_of_any_section_can_be_changed() -> None:
    found = read_federation("steel_lines", ["sites.number=4", "judging.episodes=7", "inner.steps=3"])
    assert (found.described.sites.number, found.described.judging.episodes, found.settings.inner.steps) == (4, 7, 3)
    assert flatten(found.settings)["data.size"] == 64


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sites.numbr=4"], ["sites.numbr", "sites.number"]),
        (["inner.stps=4"], ["inner.stps", "inner.steps"]),
        (["judging.protocols=5-way"], ["5-way", "5-way 1-shot"]),
        (["sites.by=hospital"], ["sites.by", "attribute, class, dirichlet, iid"]),
    ],
)
def test_a_wrong_key_or_value_is_refused_and_named(words: list[str], said: list[str]) -> None:
    with pytest.raises(SettingsError) as raised:
        read_federation("steel_lines", words)
    assert all(part in str(raised.value) for part in said)


def test_a_federation_that_is_not_there_is_refused_and_the_ready_ones_named(tmp_path: Path) -> None:
    for source in ("steel_line", str(tmp_path / "none.toml")):
        with pytest.raises(SettingsError, match=r"no file .*heart_hospitals"):
            read_federation(source)


def test_another_way_of_dealing_gets_a_folder_of_its_own_and_the_same_one_is_made_once() -> None:
    ready = deal(read_federation("digits"))
    assert ready.train == sites_home() / "digits" / "train"
    stamp = (ready.train / INDEX).stat().st_mtime_ns
    assert deal(read_federation("digits")) == ready
    assert (ready.train / INDEX).stat().st_mtime_ns == stamp
    other = deal(read_federation("digits", ["sites.by=dirichlet", "sites.alpha=5", "sites.number=4"]))
    assert other.train != ready.train and len(site_names(other.train)) == 4
    assert deal(read_federation("digits", ["inner.steps=9"])) == ready, "training settings do not change who has what"


def test_dealing_copies_no_inputs() -> None:
    dealt = deal(read_federation("digits"))
    assert dealt.judge
    for folder in (dealt.train, dealt.judge):
        assert sorted(path.name for path in folder.iterdir()) == [
            "cells.npy",
            "classes.npy",
            "names.npy",
            "rows.npy",
            INDEX,
        ]


def test_an_older_way_of_dealing_in_the_same_place_is_replaced() -> None:
    dealt = deal(read_federation("digits"))
    index = dealt.train / INDEX
    index.write_text(index.read_text().replace('"sites.number": 10', '"sites.number": 11'))
    assert len(site_names(deal(read_federation("digits")).train)) == 10
    assert '"sites.number": 10' in index.read_text()


def test_held_back_rows_are_standardised_like_the_sites_training_rows() -> None:
    mirror_or_skip()
    described = read_federation("heart_hospitals")
    dealt = deal(described)
    assert dealt.judge
    train, judge = (
        open_site_data(folder, "hungarian", described.settings.data) for folder in (dealt.train, dealt.judge)
    )
    trained = np.concatenate([train.inputs(name, range(train.count(name))) for name in train.classes()])
    judged = np.concatenate([judge.inputs(name, range(judge.count(name))) for name in judge.classes()])
    assert abs(trained[:, 0].mean()) < 1e-4 < abs(judged[:, 0].mean())


# ---------------------------------------------------------------------------------------- run from the command

BRIEF: dict[str, Any] = {"run.rounds": 4, "judge.every": 2, "judging.episodes": 12, "judging.alone-steps": 3}


@pytest.mark.parametrize("name", READY)
def test_each_ready_federation_runs_to_its_report(name: str, tmp_path: Path) -> None:
    mirror_or_skip()
    changes = [word for key, value in BRIEF.items() for word in ("--set", f"{key}={value}")]
    shown = invoke("run", name, "--out", tmp_path / "run", *changes)
    described = read_federation(name)
    for protocol in described.described.protocols:
        assert [line for line in shown.splitlines() if protocol.name in line and line.count("±") == 4], shown
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    assert len(list((tmp_path / "run").glob("judged-*.json"))) == len(described.described.protocols)
    written = read_federation(str(tmp_path / "run" / "federation.toml"))
    assert written.described.judging.episodes == 12 and written.dealing == described.dealing


def test_a_federation_of_ones_own_is_written_in_one_file(tmp_path: Path) -> None:
    mirror_or_skip()
    file = tmp_path / "tiles.toml"
    file.write_text(
        '[federation]\nset = "magnetic_tile"\n[sites]\nby = "attribute"\nattribute = "exposure"\n'
        'select = "exposure=[1-6]"\ngroup = "tile_group"\n'
        'held-back = 0.3\n[judging]\nprotocols = "3-way 2-shot"\nepisodes = 8\nalone-steps = 2\n'
        '[data]\nsize = 32\nbeside = "mask"\n[model]\nwidth = 8\n[run]\nrounds = 3\n'
    )
    shown = invoke("run", file, "--out", tmp_path / "run")
    assert "6 sites" in shown and "3-way 2-shot" in shown
    assert "leave one away" in refused("run", file, "--data", tmp_path)


def test_sites_of_ones_own_run_as_they_are(tmp_path: Path) -> None:
    hospitals = tmp_path / "hospitals"
    shutil.copytree(mirror_or_skip() / "heart_disease_hospitals", hospitals)
    (hospitals / "README.md").unlink()
    changes = ["data.kind=table", "data.label=num", "data.columns=age, sex=0|1, chol", "model.network=mlp"]
    words = [word for change in [*changes, "run.rounds=3", "model.depth=2"] for word in ("--set", change)]
    shown = invoke("run", "--data", hospitals, "--out", tmp_path / "run", *words)
    assert "4 sites" in shown and (tmp_path / "run" / "report.html").exists()


def test_settings_of_a_federation_are_printed_as_a_file_to_start_from(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(invoke("settings", "board_lines"))
    assert read_federation(str(tmp_path / "mine.toml")).described == read_federation("board_lines").described


def test_a_tracker_that_is_not_known_is_refused() -> None:
    assert "--track wandb" in refused("run", "digits", "--track", "wandb=x")
