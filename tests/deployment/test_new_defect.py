"""From ten pictures at one line to a better model at all four, and back at one: real processes, real steel."""

import json
import time
from pathlib import Path

from client.line.store import store_of
from simulations.engine import in_process
from tests.deployment.deployed import Deployment
from tests.deployment.pair import flat
from tests.deployment.steel import LINES, SETTINGS, Plant, steel_plant

DEFECT = "patches"
GATE = {"least-recall": 0.3, "least-by-table": 0.3, "most-drop": 20.0, "most-site-drop": 10.0, "least-unknown": 0.5}
"""Lower than what people should ask for: half a minute of training makes a model of nine tenths on known defects."""
PATIENCE = 180.0


def test_ten_pictures_at_one_line_teach_all_lines_a_defect_that_nobody_had_seen(deployment: Deployment) -> None:
    plant = steel_plant(deployment.folder / "data", DEFECT)
    base = trained(deployment.folder / "base", plant.lines)
    deployment.make(SETTINGS)
    for line in LINES:
        home = deployment.enrol(line, plant.lines / line, adopt_seconds=1.0)
        policy = home.policy_file.read_text(encoding="utf-8")
        assert "tables = false" in policy
        home.policy_file.write_text(policy.replace("tables = false", "tables = true"), encoding="utf-8")
    took = {}
    with deployment.up():
        said = deployment.operator("release publish", base, "--note", "the first one")
        assert "NO GATE HAS JUDGED IT" in said
        deployment.operator("release promote", 1)
        deployment.wait(lambda: running(deployment) == dict.fromkeys(LINES, 1), PATIENCE)
        before = {line: judged(deployment, line, plant) for line in LINES}
        assert all(names[DEFECT] == 0.0 for names in before.values())

        began = time.monotonic()
        deployment.engineer("line-1", "label", *plant.new, "--as", DEFECT, "--new")
        said = deployment.engineer("line-1", "adapt", "--use", "--ask-campaign", DEFECT)
        took["labelled and adapted at the line"] = time.monotonic() - began
        assert f"'{DEFECT}': " in said and "is in use" in said
        at_the_line = judged(deployment, "line-1", plant)

        began = time.monotonic()
        rules = [word for rule, value in GATE.items() for word in ("--set", f"gate.{rule}={value}")]
        deployment.operator("campaign new", "dents", "--class", DEFECT, "--canary", "line-2", *rules)
        took["campaign, gate and roll-out"] = time.monotonic() - began
        assert running(deployment) == dict.fromkeys(LINES, 2)
        after = {line: judged(deployment, line, plant) for line in LINES}
        for line in LINES:
            old = {name: (before[line][name], after[line][name]) for name in before[line]}
            print(line, "new", after[line][DEFECT], "old before, after", old)
        print("at the line alone", at_the_line, took)
        state = json.loads(deployment.operator("campaign status", "dents", "--json"))
        assert state["phase"] == "done"
        assert min(names[DEFECT] for names in after.values()) >= 0.4

        deployment.engineer("line-3", "rollback")
        time.sleep(5.0)
        assert running(deployment)["line-3"] == 1, "what a line went back from it does not take up again by itself"
        assert judged(deployment, "line-3", plant) == before["line-3"]


def trained(run: Path, lines: Path) -> Path:
    """Train the lines together in one process, which a deployment would do with the same result; return the run."""
    settings = flat(SETTINGS).with_values({"run.dir": str(run), "data.sites": str(lines)})
    in_process(settings, len(LINES), {"site-class-tables": True})
    return run


def running(deployment: Deployment) -> dict[str, int]:
    return {line: store_of(home).standing().release for line, home in deployment.sites.items()}


def judged(deployment: Deployment, line: str, plant: Plant) -> dict[str, float]:
    """Return which part of the hidden pictures of each defect a line's present model recognises."""
    found = {}
    for name, pictures in plant.hidden.items():
        said = json.loads(deployment.engineer(line, "classify", *pictures, "--json"))
        found[name] = sum(one["class"] == name for one in said) / len(pictures)
    return found
