"""Runs whose process is no more are started again, without waiting for Flower to see it."""

import time
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict

from common.deployment.lock import hold
from common.settings import Settings, as_toml
from server import rounds
from server.app import app
from server.home import FederationHome
from server.service import steward
from server.service.control import RunStatus
from server.service.runs import (
    FINISHED,
    LOCK,
    RUNNING,
    WANTED,
    HeldError,
    all_runs,
    ask_for_run,
    has_died,
    read_outcome,
    read_run,
    update_run,
    write_attempt,
    write_outcome,
)

ATTEMPT = 7


class SuperLink:
    """Says that every run is running, as Flower does for a minute after the process died, but for those in ``over``."""

    def __init__(self, *over: int) -> None:
        self.stopped, self.started, self.over = list[int](), list[int](), over

    def run_status(self, run_id: int) -> RunStatus:
        return RunStatus("finished" if run_id in self.over else "running", "", "")

    def start_run(self, fab: bytes, fab_hash: str, settings: Any) -> int:
        self.started.append(ATTEMPT + 1)
        return ATTEMPT + 1

    def stop_run(self, run_id: int) -> None:
        self.stopped.append(run_id)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FederationHome:
    """A federation with a run that is under way."""
    monkeypatch.setattr(steward, "OUTCOME_SECONDS", 0.0)
    found = FederationHome(tmp_path)
    update_run(found, ask_for_run(found, "run", Settings()), state=RUNNING, flower_run=ATTEMPT)
    return found


def looked_after(home: FederationHome) -> tuple[str, list[int]]:
    """Have the steward look once; return the run's state and what was stopped."""
    superlink: Any = SuperLink()
    steward.look_after(home, superlink, b"", "")
    return read_run(home.runs / "run").state, superlink.stopped


def test_a_run_whose_process_died_is_stopped_and_wanted_again(home: FederationHome) -> None:
    write_attempt(home.runs / "run", ATTEMPT)
    assert looked_after(home) == (WANTED, [ATTEMPT])


def test_a_run_whose_process_is_at_work_or_has_not_begun_is_left_alone(home: FederationHome) -> None:
    folder = home.runs / "run"
    assert looked_after(home) == (RUNNING, []), "no attempt has begun"
    write_attempt(folder, ATTEMPT - 1)
    assert looked_after(home) == (RUNNING, []), "the new attempt has not begun"
    write_attempt(folder, ATTEMPT)
    file = hold(folder / LOCK)
    assert file is not None
    with file:
        assert not has_died(folder, ATTEMPT) and looked_after(home) == (RUNNING, [])
    assert has_died(folder, ATTEMPT)


def test_a_run_that_left_its_last_word_is_not_lost(home: FederationHome) -> None:
    write_attempt(home.runs / "run", ATTEMPT)
    write_outcome(home.runs / "run", ATTEMPT, "")
    assert looked_after(home) == (RUNNING, []), "Flower has not noted its end yet"


@pytest.mark.parametrize(("state", "noted"), [(WANTED, 0), (RUNNING, ATTEMPT + 1)])
def test_an_attempt_that_an_earlier_steward_did_not_note_is_followed_and_no_other_runs(
    home: FederationHome, state: str, noted: int
) -> None:
    """That steward died when it had started the attempt; in the second case another one was started beside it."""
    folder = home.runs / "run"
    update_run(home, read_run(folder), state=state, flower_run=noted)
    write_attempt(folder, ATTEMPT)
    superlink: Any = SuperLink()
    file = hold(folder / LOCK)
    assert file is not None
    with file:
        steward.look_after(home, superlink, b"", "")
    record = read_run(folder)
    assert (record.state, record.flower_run) == (RUNNING, ATTEMPT)
    assert (superlink.started, superlink.stopped) == ([], [noted] if noted else [])


def test_an_attempt_that_flower_has_given_up_is_not_followed_though_its_process_is_still_there(
    home: FederationHome,
) -> None:
    folder = home.runs / "run"
    update_run(home, read_run(folder), state=WANTED, flower_run=ATTEMPT)
    write_attempt(folder, ATTEMPT - 1)
    superlink: Any = SuperLink(ATTEMPT - 1)
    file = hold(folder / LOCK)
    assert file is not None
    with file:
        steward.look_after(home, superlink, b"", "")
    assert superlink.started == [ATTEMPT + 1] and read_run(folder).flower_run == ATTEMPT + 1


def test_an_attempt_that_finds_another_at_work_leaves_no_last_word_and_the_run_does_not_fail(
    home: FederationHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "LOCK_SECONDS", 0.1)
    folder, context = (
        home.runs / "run",
        Context(ATTEMPT, 0, {}, RecordDict(), dict(read_run(home.runs / "run").settings)),
    )
    nothing: Any = None
    file = hold(folder / LOCK)
    assert file is not None
    with file, pytest.raises(HeldError, match="another process works on the run in"):
        app(nothing, context)
    assert read_outcome(folder, ATTEMPT) is None
    superlink: Any = SuperLink(ATTEMPT)
    steward.look_after(home, superlink, b"", "")
    assert read_run(folder).state == WANTED


def test_sites_are_asked_what_they_wish_when_nothing_else_has_asked_them_for_long(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    home = FederationHome(tmp_path)
    home.config_file.write_text("name = 'lines'\naddress = 'localhost:1'\nask-minutes = 10.0\n", encoding="utf-8")
    began, minute = time.time(), 60.0
    steward.ask_when_due(home, began, began + 11 * minute)
    assert not all_runs(home) and "settings.toml" in caplog.text, "what is wrong is told, and the steward goes on"
    (tmp_path / "settings.toml").write_text(as_toml(Settings()), encoding="utf-8")
    steward.ask_when_due(home, began, began + 9 * minute)
    assert not all_runs(home)
    steward.ask_when_due(home, began, began + 11 * minute)
    (asked,) = all_runs(home)
    assert asked.state == WANTED and asked.settings["run.rounds"] == 0
    steward.ask_when_due(home, began, began + 100 * minute)
    assert all_runs(home) == [asked], "one that is under way is not asked for again"
    update_run(home, asked, state=FINISHED)
    update_run(home, ask_for_run(home, "run", Settings()), state=FINISHED)
    steward.ask_when_due(home, began, began + 9 * minute)
    assert {run.state for run in all_runs(home)} == {FINISHED}, "the run has asked them too"
    steward.ask_when_due(home, began, began + 11 * minute)
    assert read_run(home.runs / "asking").state == WANTED
    home.config_file.write_text("name = 'lines'\naddress = 'localhost:1'\nask-minutes = 0.0\n", encoding="utf-8")
    update_run(home, read_run(home.runs / "asking"), state=FINISHED)
    steward.ask_when_due(home, began, began + 1000 * minute)
    assert read_run(home.runs / "asking").state == FINISHED
