"""Judging a whole run in processes: the same results as in one, and nothing left when it is broken off."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from common.checkpoint import read_checkpoint
from common.settings import Settings
from simulations.engine import in_process
from simulations.judging.alone import FOLDER, Alone, train_alone
from simulations.judging.evaluate import Protocol, evaluate, open_judged
from simulations.judging.workers import judge_run

PROTOCOLS = [Protocol(3, 2, 4, 6), Protocol(2, 1, 3, 5, pooled=True)]


@pytest.fixture
def run(digit_sites: Path, tmp_path: Path) -> Path:
    """The folder of a short run on eight sites."""
    settings = Settings.from_flat(
        {
            "run.rounds": 2,
            "run.dir": str(tmp_path / "run"),
            "data.sites": str(digit_sites),
            "data.size": 8,
            "model.width": 4,
            "inner.steps": 2,
            "judge.every": 0,
        }
    )
    in_process(settings, 8)
    return tmp_path / "run"


def test_processes_judge_as_one_process_does_and_tell_how_far_they_are(run: Path, digit_sites: Path) -> None:
    said: list[tuple[str, int, int]] = []
    results = judge_run(run, "digits", digit_sites, digit_sites, PROTOCOLS, 3, lambda *how_far: said.append(how_far))
    found = read_checkpoint(run)
    sites = open_judged(digit_sites, found.settings.data, digit_sites)
    alone = Alone({name: train_alone(name, digit_sites, found.settings, run) for name in sites.known}, 3)
    assert results == [evaluate(found, sites, "digits", protocol, alone) for protocol in PROTOCOLS]
    assert sorted(path.name for path in run.glob("judged-*")) == [
        "judged-digits-2-way-1-shot-pooled.json",
        "judged-digits-3-way-2-shot.json",
    ]
    assert len(list((run / FOLDER).iterdir())) == 8
    last = {what: (done, total) for what, done, total in said}
    assert last == {"training each site alone": (8, 8), "judging": (11, 11)}


def test_an_error_in_a_process_is_the_runs_error(run: Path, digit_sites: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "sites.json").write_text("{}")
    with pytest.raises(Exception, match="packed set"):
        judge_run(run, "digits", digit_sites, broken, PROTOCOLS, 0, lambda *_: None)
    assert not list(run.glob("judged-*"))


@pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals to a process group")
@pytest.mark.parametrize(
    ("stop", "code"),
    [
        (lambda process: os.killpg(process.pid, signal.SIGINT), 130),
        (lambda process: process.send_signal(signal.SIGTERM), 143),
    ],
    ids=["Ctrl-C", "asked to end"],
)
def test_judging_that_is_broken_off_ends_at_once_and_leaves_no_process(
    tmp_path: Path,
    left_behind: Callable[[], list[str]],
    stop: Callable[[subprocess.Popen[str]], None],
    code: int,
) -> None:
    changes = ["run.rounds=2", "judge.every=0", "judging.episodes=1000000", "judging.alone=false"]
    words = [word for change in changes for word in ("--set", change)]
    process = subprocess.Popen(
        [sys.executable, "-m", "simulations", "run", "digits", "--out", str(tmp_path / "run"), *words],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509 - a shell may ignore it
    )
    assert process.stdout
    for line in process.stdout:
        if "trained in" in line:
            break
    until = time.monotonic() + 60
    while len(left_behind()) < 3:
        assert time.monotonic() < until and process.poll() is None, "its workers do not start"
        time.sleep(0.1)
    time.sleep(3)
    stop(process)
    process.communicate(timeout=30)
    assert process.returncode == code
    until = time.monotonic() + 10
    while left_behind() and time.monotonic() < until:
        time.sleep(0.1)
    assert not left_behind()
