"""What a campaign reaches with each of six defects as the new one: as in test_new_defect.py, in one process."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from client.data.held import apart
from client.data.indexed import as_input
from client.data.sites import open_own, read_new
from client.gate import area_under_curve
from client.model import SiteModel, adapt_site
from common.checkpoint import read_checkpoint
from common.errors import CampaignError
from common.learning.threads import threads
from server.campaigns.campaign import read_campaign
from server.campaigns.creation import Wanted, campaign_settings
from simulations.engine import in_process
from tests.deployment.measured import report
from tests.deployment.pair import flat
from tests.deployment.steel import LINES, SETTINGS, Plant, defects, steel_plant, trained


@dataclass(frozen=True)
class Gained:
    """What hidden pictures say of a line's models."""

    recall: float
    """Of the new defect."""
    change: float
    """Of the mean recall of the others."""
    unknown: float
    """How well the old model told the new defect from others by distance: area under the ROC curve."""


@pytest.mark.endurance
def test_each_defect_in_turn(tmp_path: Path) -> None:
    """Campaigns have the settings that they have by themselves, the gate its own rules."""
    rows = []
    for defect in defects():
        plant = steel_plant(tmp_path / defect / "lines", defect)
        base = trained(tmp_path / defect / "base", plant.lines)
        before = {line: model_at(base, plant.lines / line) for line in LINES}
        verdict = campaign(tmp_path / defect, plant, base, defect)
        after = {line: model_at(tmp_path / defect / "run", plant.lines / line) for line in LINES}
        first, *others = (gained(before[line], after[line], plant, defect) for line in LINES)
        every = [first, *others]
        row = (
            first.recall,
            float(np.mean([one.recall for one in others])),
            min(one.recall for one in others),
            100 * float(np.mean([one.change for one in every])),
            100 * min(one.change for one in every),
            float(np.mean([one.unknown for one in every])),
        )
        rows.append((defect, *row, verdict))
    columns = ("new defect", "recall, line-1", "others", "worst", "old, points", "worst, points", "AUROC", "gate")
    report("new-defect", columns, rows)
    assert len(rows) == 6


def campaign(folder: Path, plant: Plant, base: Path, defect: str) -> str:
    """Label ten pictures at the first line and have all learn; return what the gate says."""
    (plant.lines / LINES[0] / defect).mkdir()
    for path in plant.new:
        shutil.copy(path, plant.lines / LINES[0] / defect)
    settings = campaign_settings(flat(SETTINGS), Wanted(defect, defect, "", LINES, (), {}, ()), 0, str(base))
    settings = settings.with_values({"run.dir": str(folder / "run"), "data.sites": str(plant.lines)})
    try:
        in_process(settings, len(LINES), {"site-class-tables": True})
    except CampaignError as error:
        return str(error)
    found = read_campaign(folder / "run")
    assert found is not None and found.verdict["passed"]
    return "passed"


def model_at(run: Path, data: Path) -> SiteModel:
    """Return what a line makes of a run's params."""
    found = read_checkpoint(run)
    train, _ = apart(open_own(data, found.settings.data), found.settings.data.hold_back)
    with threads(1):
        return adapt_site(found, train)[0]


def gained(before: SiteModel, after: SiteModel, plant: Plant, defect: str) -> Gained:
    recall: dict[str, list[float]] = {}
    far: dict[bool, list[float]] = {True: [], False: []}
    for name, pictures in plant.hidden.items():
        inputs = [as_input(read_new(path, before.settings.data)[1], None) for path in pictures]
        said = [[model.predict(one)[0] for one in inputs] for model in (before, after)]
        recall[name] = [sum(one.name == name for one in found) / len(found) for found in said]
        far[name == defect] += [one.distance for one in said[0]]
    old = [now - then for name, (then, now) in recall.items() if name != defect]
    area = area_under_curve(np.array(far[True]), np.array(far[False]))
    return Gained(recall[defect][1], sum(old) / len(old), area)
