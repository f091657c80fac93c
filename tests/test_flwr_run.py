"""The project as the Flower app it is: one real ``flwr run``, held against the engine that research uses."""

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from common.checkpoint import read_checkpoint
from common.learning.params import Params
from common.plan import plan_for
from common.settings import Settings
from server.cli import app as server_commands
from server.launch import run_simulation
from simulations.engine import in_process

NODES = 2


def largest_difference(a: Params, b: Params) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def test_flwr_run_from_any_folder_computes_what_the_in_process_engine_computes(
    digit_sites: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    left_behind: Callable[[], list[str]],
) -> None:
    decoy = tmp_path / "elsewhere" / "client" / "__init__.py"
    decoy.parent.mkdir(parents=True)
    decoy.write_text("raise ImportError('this is not our client')")
    monkeypatch.chdir(tmp_path / "elsewhere")
    settings = Settings().with_values(
        {
            "run.rounds": 2,
            "run.dir": str(tmp_path / "flower"),
            "data.sites": str(digit_sites),
            "data.size": 8,
            "episode.shot": 5,
            "model.width": 16,
            "outer.join-sites": NODES,
            "outer.join-deadline": 60.0,
            "judge.every": 0,
        }
    )
    run_simulation(settings, NODES)
    assert not left_behind()

    in_process(settings.with_values({"run.dir": str(tmp_path / "in-process")}), NODES)

    flower, here = (read_checkpoint(tmp_path / name).state for name in ("flower", "in-process"))
    assert flower.round == here.round == 2
    off = largest_difference(flower.params, here.params)
    assert off <= 1e-6, f"params differ by up to {off:.1e} (to the bit: {off == 0})"
    assert largest_difference(flower.params, plan_for(settings).initial) > 1e-3

    shown = CliRunner().invoke(server_commands, ["show", str(tmp_path / "flower")])
    assert shown.exit_code == 0
    for text in ("2 of 2", "site-0", "site-1", "episode.shot"):
        assert text in shown.output
