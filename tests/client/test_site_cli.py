"""``fedreptile-site`` as site engineers run it: real processes, exit codes, and what is on the screen and the disk."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import click
import numpy as np
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

import client
from client.cli import app
from client.model import read_model
from common.checkpoint import RunState, read_checkpoint, write_checkpoint
from common.learning.threads import threads
from common.plan import plan_for
from common.settings import Settings, Value
from tests.client.small import settings_with
from tests.commands import commands_of
from tests.mirror import mirror_or_skip

ROOT = Path(str(client.__file__)).parents[1]
COMMAND = shutil.which("fedreptile-site", path=str(Path(sys.executable).parent)) or "fedreptile-site is not installed"


def run(*words: object, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, on the code of this checkout."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", "NO_COLOR": "1"}
    return subprocess.run(
        [COMMAND, *map(str, words)], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def assert_user_error(done: subprocess.CompletedProcess[str], *parts: object) -> None:
    """One line that names what is wrong, exit code 1, and no traceback."""
    assert done.returncode == 1, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    assert not [part for part in parts if str(part) not in lines[0]], lines[0]
    assert "Traceback" not in done.stdout + done.stderr


def commands(group: click.Group, *before: str) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        yield (*before, name)
        if isinstance(command, click.Group):
            yield from commands(command, *before, name)


@pytest.mark.parametrize("words", list(commands(cast(click.Group, typer.main.get_command(app)))), ids=" ".join)
def test_help_shows_every_word_of_what_it_says(words: tuple[str, ...]) -> None:
    """What stands in brackets is markup to rich, and is left out if it is not escaped."""
    command: click.Command = typer.main.get_command(app)
    for word in words:
        command = cast(click.Group, command).commands[word]
    shown = CliRunner(env={"COLUMNS": "1000", "NO_COLOR": "1"}).invoke(app, [*words, "--help"]).output
    shown = re.sub(r"[\s│]+", " ", shown)
    for text in (getattr(one, "help", "") or "" for one in (command, *command.params)):
        for line in text.splitlines():
            assert re.sub(r"\s+", " ", line.replace("\\[", "[")).strip() in shown


def test_help_names_where_the_sites_folder_is_looked_for_and_the_section_that_counts() -> None:
    shown = {
        name: CliRunner(env={"COLUMNS": "1000"}).invoke(app, [name, "--help"]).output for name in ("join", "check")
    }
    assert "otherwise $FEDREPTILE_SITE, otherwise ./site." in shown["join"]
    assert "only [data] counts here." in shown["check"]


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """An empty folder to run in, beside which the input lies."""
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """The folder of a run that has just begun."""
    settings = settings_with(model__width=16)
    plan = plan_for(settings)
    state = RunState(1, plan.initial, plan.initial_slots, {}, {})
    write_checkpoint(tmp_path / "run" / "checkpoint.safetensors", state, settings)
    return tmp_path / "run"


@pytest.fixture
def site(digit_folders: Path, tmp_path: Path) -> Path:
    """A copy of line-1 with two files that cannot be read."""
    copy = Path(shutil.copytree(digit_folders / "line-1", tmp_path / "line-1"))
    (copy / "digit-0" / "cut off.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (copy / "digit-3" / "empty.png").write_bytes(b"")
    return copy


def test_check_lists_classes_counts_and_every_file_that_cannot_be_read(site: Path, work: Path) -> None:
    done = run("check", "--data", site, "--set", "data.size=8", folder=work)
    assert done.returncode == 0, done.stderr
    for digit in range(5):
        assert [line for line in done.stdout.splitlines() if f"digit-{digit}" in line and "12" in line]
    assert "2 thing(s) cannot be used" in done.stdout
    for broken in (site / "digit-0" / "cut off.png", site / "digit-3" / "empty.png"):
        assert f"{broken}: not a readable image" in done.stdout
    assert list(work.iterdir()) == []


def test_check_of_a_folder_that_is_not_there_ends_with_one_line_that_names_it(work: Path) -> None:
    assert_user_error(run("check", "--data", "nowhere", folder=work), work / "nowhere", "there is no")


def test_adapt_writes_a_model_that_classify_reads(site: Path, checkpoint: Path, work: Path) -> None:
    adapted = run("adapt", checkpoint, "--data", site, "--hold-back", 0.25, "--out", "mine.safetensors", folder=work)
    assert adapted.returncode == 0, adapted.stderr
    assert "model of 5 classes: mine.safetensors" in adapted.stdout and "cut off.png" in adapted.stdout
    assert [path.name for path in work.iterdir()] == ["mine.safetensors"]
    rows = {line.split()[1]: line.split() for line in adapted.stdout.splitlines() if "digit-" in line and "│" in line}
    held = sum(int(row[3]) for row in rows.values())
    assert rows.keys() <= {f"digit-{digit}" for digit in range(5)} and 5 < held < 25  # about 15 of 60
    total = next(line.split() for line in adapted.stdout.splitlines() if line.split()[1:2] == ["all"])
    right = sum(int(row[7]) for row in rows.values())
    assert total[3] == str(held) and total[7] == f"{right / held:.1%}"
    pictures = [sorted((site / f"digit-{digit}").glob("[0-9]*.png"))[0] for digit in range(5)]
    said = run("classify", *pictures, "--model", "mine.safetensors", folder=work)
    assert said.returncode == 0, said.stderr
    lines = [line.split("\t") for line in said.stdout.splitlines()]
    assert [line[0] for line in lines] == [str(picture) for picture in pictures]
    assert {line[1] for line in lines} <= {f"digit-{digit}" for digit in range(5)}
    assert all(line[2].endswith("%") and 20 <= float(line[2][:-1]) <= 100 for line in lines)
    # By chance 1 of 5 is right, and 4 or more in 1 of 150 draws; most of these were adapted on.
    assert sum(line[1] == picture.parent.name for line, picture in zip(lines, pictures, strict=True)) >= 4


def test_adapt_without_a_checkpoint_ends_with_one_line_that_names_it_and_writes_nothing(site: Path, work: Path) -> None:
    assert_user_error(run("adapt", "nowhere", "--data", site, folder=work), "nowhere", "is not a checkpoint")
    assert list(work.iterdir()) == []


def test_adapt_to_a_class_without_images_names_the_folder_and_writes_nothing(
    site: Path, checkpoint: Path, work: Path
) -> None:
    (site / "digit-9").mkdir()
    assert_user_error(run("adapt", checkpoint, "--data", site, folder=work), site / "digit-9", "no image file")
    assert list(work.iterdir()) == []


def test_classify_names_the_picture_that_cannot_be_read(site: Path, checkpoint: Path, work: Path) -> None:
    assert run("adapt", checkpoint, "--data", site, folder=work).returncode == 0
    broken = site / "digit-3" / "cut off.png"  # of whose name Pillow says nothing
    whole = sorted((site / "digit-3").glob("[0-9]*.png"))[0].read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    assert_user_error(
        run("classify", broken, "--model", "site-model.safetensors", folder=work), broken, "not a readable image"
    )


def test_a_wrong_word_on_the_command_line_is_exit_code_2(work: Path) -> None:
    done = run("check", "--dato", "x", folder=work)
    assert done.returncode == 2 and "--dato" in done.stderr and "Traceback" not in done.stderr


# --------------------------------------------------------------- the same commands within this process, for speed


invoke, refused = commands_of(app)


def test_names_with_brackets_and_colons_are_shown_as_they_are(tmp_path: Path) -> None:
    names = ("[old] scratch", "dent :bug:", "[b]blister")
    for name in names:
        (tmp_path / "line" / name).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / "line" / name / "1.png")
        (tmp_path / "line" / name / "scan [copy].png").write_bytes(b"")
    shown = invoke("check", "--data", tmp_path / "line")
    for name in names:
        assert [line for line in shown.splitlines() if name in line and "scan" not in line], "not in the table"
        assert str(tmp_path / "line" / name / "scan [copy].png") in shown


@pytest.mark.parametrize("where", ["a folder", "below a file"])
def test_adapt_to_where_no_file_can_be_written_is_a_users_error_and_leaves_nothing(
    site: Path, checkpoint: Path, work: Path, where: str
) -> None:
    if where == "a folder":
        out = work / "models"
        out.mkdir()
    else:
        (work / "file").write_text("x")
        out = work / "file" / "model.safetensors"
    before = sorted(work.rglob("*"))
    assert str(out) in refused("adapt", checkpoint, "--data", site, "--out", out)
    assert sorted(work.rglob("*")) == before


def test_a_model_that_was_there_survives_an_adaptation_that_fails(site: Path, checkpoint: Path, work: Path) -> None:
    out = work / "model.safetensors"
    out.write_bytes(b"the old model")
    shutil.rmtree(site / "digit-0")
    (site / "digit-0").mkdir()
    refused("adapt", checkpoint, "--data", site, "--out", out)
    assert out.read_bytes() == b"the old model" and list(work.iterdir()) == [out]


def test_classify_refuses_a_checkpoint_in_place_of_a_model_and_says_how_to_make_one(
    site: Path, checkpoint: Path
) -> None:
    text = refused("classify", site / "digit-0" / "cut off.png", "--model", checkpoint / "checkpoint.safetensors")
    assert "is not a site's model; make one with 'fedreptile-site adapt'" in text


def test_adapt_with_nothing_held_back_says_that_nothing_was_judged(site: Path, checkpoint: Path, work: Path) -> None:
    shown = invoke("adapt", checkpoint, "--data", site, "--hold-back", 0, "--out", work / "m.safetensors")
    assert "no input was held back, so the model is not judged" in shown and (work / "m.safetensors").exists()


def test_check_of_channels_that_no_picture_has_names_the_setting(site: Path) -> None:
    assert "data.channels is 2" in refused("check", "--data", site, "--set", "data.channels=2")


def test_a_checkpoint_file_does_as_well_as_its_folder(site: Path, checkpoint: Path, work: Path) -> None:
    with threads(1):
        for number, given in enumerate((checkpoint, checkpoint / "checkpoint.safetensors")):
            invoke("adapt", given, "--data", site, "--out", work / f"{number}.safetensors")
    first, second = (read_model(work / f"{number}.safetensors") for number in (0, 1))
    assert torch.equal(first.prototypes, second.prototypes)


def test_classify_separates_its_columns_by_tabs_so_that_names_may_have_spaces(
    site: Path, checkpoint: Path, work: Path
) -> None:
    invoke("adapt", checkpoint, "--data", site, "--out", work / "m.safetensors")
    picture = work / "a picture [1].png"
    shutil.copy(sorted((site / "digit-0").glob("[0-9]*.png"))[0], picture)
    path, name, confidence = invoke("classify", picture, "--model", work / "m.safetensors").rstrip("\n").split("\t")[:3]
    assert path == str(picture) and name.startswith("digit-") and confidence.endswith("%")


def test_adapt_takes_settings_of_its_own(site: Path, checkpoint: Path, work: Path) -> None:
    for name, steps in (("still.safetensors", 0), ("moved.safetensors", 3)):
        invoke("adapt", checkpoint, "--data", site, "--out", work / name, "--set", f"adapt.steps={steps}")
    still, moved = (read_model(work / name).params for name in ("still.safetensors", "moved.safetensors"))
    start = read_checkpoint(checkpoint).state.published
    assert all(torch.equal(still[name], value) for name, value in start.items())
    assert not all(torch.equal(moved[name], value) for name, value in start.items())
    assert "adapt.stepz" in refused("adapt", checkpoint, "--data", site, "--set", "adapt.stepz=1")


# --------------------------------------------------------------------------------------- tables and arrays


HEART = "age, sex=0|1, cp=1|2|3|4, trestbps, thalach, exang=0|1, oldpeak"


def run_with(tmp_path: Path, changes: dict[str, Value]) -> Path:
    """Return the folder of a run that has just begun, on data of another kind."""
    settings = Settings.from_flat({"model.network": "mlp", "model.width": 8, "model.depth": 2, **changes})
    plan = plan_for(settings)
    state = RunState(1, plan.initial, plan.initial_slots, {}, {})
    write_checkpoint(tmp_path / "table-run" / "checkpoint.safetensors", state, settings)
    return tmp_path / "table-run"


def test_a_hospitals_table_is_checked_adapted_to_and_new_patients_are_classified(tmp_path: Path) -> None:
    hospital = mirror_or_skip() / "heart_disease_hospitals" / "cleveland.csv"
    settings: dict[str, Value] = {"data.kind": "table", "data.label": "num", "data.columns": HEART}
    agreed = tmp_path / "federation.toml"
    agreed.write_text(f'[data]\nkind = "table"\nlabel = "num"\ncolumns = "{HEART}"\n[sites]\nby = "iid"\n')
    shown = invoke("check", "--data", hospital, "--settings", agreed)
    assert [line for line in shown.splitlines() if "0" in line and "164" in line]
    model = tmp_path / "cleveland.safetensors"
    adapted = invoke("adapt", run_with(tmp_path, settings), "--data", hospital, "--out", model)
    assert "model of 5 classes" in adapted and "held-back inputs" in adapted
    patients = tmp_path / "new patients.csv"
    lines = hospital.read_text().splitlines()
    patients.write_text("\n".join(line.rpartition(",")[0] for line in lines[:6]))
    answers = [line.split("\t") for line in invoke("classify", patients, "--model", model).splitlines()]
    assert [answer[0] for answer in answers] == [f"{patients}:{number}" for number in range(2, 7)]
    assert {answer[1] for answer in answers} <= set("01234")
    same = hospital.parent / "cleveland.csv"  # with the class still in it, the answers are the same
    assert [line.split("\t")[1:] for line in invoke("classify", same, "--model", model).splitlines()[:5]] == [
        answer[1:] for answer in answers
    ]
    assert "lacks 7 of 7 agreed columns" in refused("classify", _table(tmp_path, "a,b\n1,2\n"), "--model", model)


def test_a_model_keeps_the_statistics_by_which_new_rows_are_standardised(tmp_path: Path) -> None:
    hospital = mirror_or_skip() / "heart_disease_hospitals" / "va.csv"
    settings: dict[str, Value] = {"data.kind": "table", "data.label": "num", "data.columns": HEART}
    model = tmp_path / "va.safetensors"
    invoke("adapt", run_with(tmp_path, settings), "--data", hospital, "--out", model)
    all_rows = invoke("classify", hospital, "--model", model).splitlines()
    lines = hospital.read_text().splitlines()
    one_row = _table(tmp_path, "\n".join([lines[0], lines[17]]))
    assert invoke("classify", one_row, "--model", model).split("\t")[1:] == [
        *all_rows[16].split("\t")[1:-1],
        all_rows[16].split("\t")[-1] + "\n",
    ]


def test_columns_of_tables_are_shown_where_they_differ_and_a_line_is_proposed(tmp_path: Path) -> None:
    hospitals = sorted((mirror_or_skip() / "heart_disease_hospitals").glob("*.csv"))
    shown = invoke("columns", *hospitals, _table(tmp_path, "age,weight,num\n40,70,0\n50,?,1\n"), "--label", "num")
    weight = next(line for line in shown.splitlines() if "weight" in line and "│" in line)
    assert "50% missing" in weight and "not everywhere" in weight
    assert 'columns = "age, sex=0|1, cp=1|2|3|4' in shown
    proposed = shown.strip().splitlines()[-1].removeprefix('columns = "').removesuffix('"')
    invoke("check", "--data", hospitals[0], "--set", "data.kind=table", "--set", "data.label=num",
           "--set", f'data.columns="{proposed}"', "--set", "data.absent-columns=true")  # fmt: skip


def test_gas_sensors_in_an_npz_file_are_adapted_to_and_classified(tmp_path: Path) -> None:
    batches = mirror_or_skip() / "gas_drift" / "batches.npz"
    run_folder = run_with(tmp_path, {"data.kind": "vector", "data.size": 128, "data.inputs": "x", "data.label": "gas"})
    model = tmp_path / "gas.safetensors"
    assert "model of 6 classes" in invoke("adapt", run_folder, "--data", batches, "--out", model)
    with np.load(batches) as opened:
        np.savez(tmp_path / "new.npz", x=opened["x"][:3])
    answers = [line.split("\t") for line in invoke("classify", tmp_path / "new.npz", "--model", model).splitlines()]
    assert [answer[0] for answer in answers] == [f"{tmp_path / 'new.npz'}:{number}" for number in range(3)]


def test_data_of_another_kind_than_agreed_is_refused_with_what_is_needed(tmp_path: Path, site: Path) -> None:
    table = _table(tmp_path, "age,label\n1,a\n2,b\n")
    assert "needs class folders" in refused("check", "--data", table)
    assert "needs a .csv file" in refused(
        "check", "--data", site, "--set", "data.kind=table", "--set", "data.columns=age"
    )


def test_decoded_pictures_are_kept_only_where_the_site_says(site: Path, tmp_path: Path) -> None:
    invoke("check", "--data", site, "--cache", "off")
    kept = tmp_path / "kept"
    first = invoke("check", "--data", site, "--cache", kept)
    assert list(kept.iterdir())
    assert invoke("check", "--data", site, "--cache", kept) == first


def _table(folder: Path, text: str) -> Path:
    path = folder / "table.csv"
    path.write_text(text)
    return path
