"""A run that is killed with -9 at any moment and started again ends with the same bits as one left alone."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from common.checkpoint import read_checkpoint
from common.learning.params import Params
from server.service.runs import read_journal

ROUNDS = 40


def command(sites: Path, run: Path, rounds: int = ROUNDS) -> list[str]:
    changes = [
        f"run.rounds={rounds}",
        "run.checkpoint-seconds=0.3",
        "data.size=8",
        "model.width=8",
        "episode.way=4",
        "outer.sites-per-round=3",
        "outer.optimizer=adam",
        "outer.meta-step-size=0.01",
        "outer.average=0.9",
        "inner.optimizer=adam",
        "inner.learning-rate=0.001",
        "judge.every=7",
    ]
    words = [sys.executable, "-m", "simulations", "run", "--data", str(sites), "--out", str(run)]
    return [*words, *(word for change in changes for word in ("--set", change))]


def run_whole(sites: Path, run: Path, rounds: int = ROUNDS) -> Params:
    subprocess.run(command(sites, run, rounds), check=True, capture_output=True, timeout=120)
    assert read_checkpoint(run).state.round == rounds
    return everything(run)


def everything(run: Path) -> Params:
    """Return all tensors of a checkpoint: params, both optimizers' state, moving average."""
    state = read_checkpoint(run).state
    parts = {"params": state.params, "slots": state.slots, "optimizer": state.optimizer, "average": state.average}
    assert all(parts.values())
    return {f"{part}/{name}": value for part, values in parts.items() for name, value in values.items()}


def run_until_killed(sites: Path, run: Path, rounds: int, pause: float) -> None:
    """Start the run, wait until its journal has ``rounds`` more rounds, wait a little longer, and kill it."""
    begun = len(read_journal(run))
    process = subprocess.Popen(command(sites, run), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 90
        while len(read_journal(run)) < min(begun + rounds, ROUNDS) and process.poll() is None:
            assert time.monotonic() < until, "the run does not get on"
            time.sleep(0.005)
        time.sleep(pause)
    finally:
        process.kill()
        process.wait()


def assert_same(found: Params, expected: Params) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def kill_and_resume(sites: Path, folder: Path, seed: int, kills: int) -> None:
    draw = random.Random(seed)
    whole = run_whole(sites, folder / "whole")
    for _ in range(kills):
        run_until_killed(sites, folder / "killed", draw.randint(1, 15), draw.random() * 0.1)
    assert_same(run_whole(sites, folder / "killed"), whole)
    assert [line["round"] for line in read_journal(folder / "killed")] == list(range(1, ROUNDS + 1))


def test_killed_at_random_rounds_a_run_ends_with_the_same_bits(digit_sites: Path, tmp_path: Path) -> None:
    kill_and_resume(digit_sites, tmp_path, seed=20261121, kills=3)


@pytest.mark.endurance
@pytest.mark.parametrize("seed", range(20))
def test_endurance_of_kill_and_resume(digit_sites: Path, tmp_path: Path, seed: int) -> None:
    kill_and_resume(digit_sites, tmp_path, seed, kills=5)


def heed_ctrl_c() -> None:
    """A job that a shell started in the background ignores Ctrl-C, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_leaves_a_run_that_goes_on(digit_sites: Path, tmp_path: Path) -> None:
    rounds = 4 * ROUNDS  # so many that the run is not over before the signal, however busy the machine
    whole = run_whole(digit_sites, tmp_path / "whole", rounds)
    words = command(digit_sites, tmp_path / "cut", rounds)
    process = subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=heed_ctrl_c,  # noqa: PLW1509
    )
    while len(read_journal(tmp_path / "cut")) < 5:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command goes on" in output and "Traceback" not in output
    assert 5 <= read_checkpoint(tmp_path / "cut").state.round < rounds
    assert_same(run_whole(digit_sites, tmp_path / "cut", rounds), whole)
