"""Runs that are asked for: again, with other settings, by root."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from common.errors import DeployError
from common.settings import Settings
from server.home import FederationHome
from server.service.runs import (
    FAILED,
    FINISHED,
    JOURNAL,
    RECORD,
    WANTED,
    as_owner_of,
    ask_for_run,
    read_run,
    update_run,
    write_run,
)

IS_ROOT = os.name == "posix" and os.geteuid() == 0
OWNER = 12345


@pytest.fixture
def home(tmp_path: Path) -> FederationHome:
    """A federation with a run of one round that has ended."""
    found = FederationHome(tmp_path / "federation")
    found.runs.mkdir(parents=True)
    update_run(found, ask_for_run(found, "run", Settings()), state=FINISHED, flower_run=3)
    (found.runs / "run" / JOURNAL).write_text(json.dumps({"round": 1}) + "\n", encoding="utf-8")
    return found


@pytest.mark.parametrize(("key", "value"), [("run.rounds", 7), ("inner.steps", 9), ("run.seed", 5)])
def test_a_run_is_not_taken_up_with_other_settings_and_its_record_stays(
    home: FederationHome, key: str, value: int
) -> None:
    before = read_run(home.runs / "run")
    then = before.settings[key]
    with pytest.raises(DeployError) as raised:
        ask_for_run(home, "run", Settings().with_values({key: value}))
    said = str(raised.value)
    assert said == (
        f"run 'run' has rounds with other settings ({key} = {then!r}, now {value!r}); "
        "choose another --name, or the same settings to go on"
    )
    assert read_run(home.runs / "run") == before


def test_settings_that_change_no_result_may_differ_and_so_may_all_before_the_first_round(home: FederationHome) -> None:
    other = Settings().with_values({"outer.deadline": 1.0, "run.checkpoint-seconds": 3.0})
    assert ask_for_run(home, "run", other).state == WANTED
    update_run(home, read_run(home.runs / "run"), state=FAILED)
    (home.runs / "run" / JOURNAL).unlink()
    assert ask_for_run(home, "run", Settings().with_values({"run.seed": 5})).settings["run.seed"] == 5


def test_a_record_of_an_older_version_stands_for_the_defaults_of_newer_settings(home: FederationHome) -> None:
    path = home.runs / "run" / RECORD
    record = json.loads(path.read_text(encoding="utf-8"))
    del record["settings"]["outer.failed-rounds"]
    path.write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(DeployError, match=r"outer\.failed-rounds = 3, now 4"):
        ask_for_run(home, "run", Settings().with_values({"outer.failed-rounds": 4}))
    assert ask_for_run(home, "run", Settings()).state == WANTED


@pytest.mark.skipif(not IS_ROOT, reason="only root can give files to another user")
def test_what_root_asks_for_belongs_to_the_user_whose_server_it_is() -> None:
    with TemporaryDirectory() as folder:
        home = FederationHome(Path(folder))
        home.runs.mkdir()
        for path in (home.path, home.runs):
            os.chown(path, OWNER, OWNER)
        ended = replace(ask_for_run(home, "run", Settings()), state=FINISHED)
        write_run(home, ended)
        ask_for_run(home, "run", Settings())
        for path in (home.runs / "run", home.runs / "run" / RECORD):
            assert (path.stat().st_uid, path.stat().st_gid) == (OWNER, OWNER)
    assert (os.geteuid(), os.getegid()) == (0, os.getgid())


@pytest.mark.skipif(not IS_ROOT, reason="only root can be another user")
def test_root_is_itself_again_whatever_happens(tmp_path: Path) -> None:
    shutil.chown(tmp_path, OWNER)
    with pytest.raises(ValueError, match="why"), as_owner_of(tmp_path):
        assert os.geteuid() == OWNER
        raise ValueError("why")
    assert os.geteuid() == 0
