"""Runs whose process is no more are started again, without waiting for Flower to see it."""

from pathlib import Path
from typing import Any

import pytest

from common.deployment.lock import hold
from common.settings import Settings
from server.home import FederationHome
from server.service import steward
from server.service.control import RunStatus
from server.service.runs import (
    LOCK,
    RUNNING,
    WANTED,
    ask_for_run,
    has_died,
    read_run,
    update_run,
    write_attempt,
    write_outcome,
)

ATTEMPT = 7


class SuperLink:
    """Says that every run is running, as Flower does for a minute after the process died."""

    def __init__(self) -> None:
        self.stopped: list[int] = []

    def run_status(self, run_id: int) -> RunStatus:
        return RunStatus("running", "", "")

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
