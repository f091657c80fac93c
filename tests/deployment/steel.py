"""Four lines of a steel plant, of real pictures: five defects everywhere, a sixth that nobody has seen, and pictures
that nobody learns from."""

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulations.engine import in_process
from tests.deployment.pair import flat
from tests.mirror import mirror_or_skip

LINES = ("line-1", "line-2", "line-3", "line-4")
AT_A_LINE, HIDDEN, NEW = 30, 40, 10
"""Pictures of a defect: at each line, for the judging at the end, and of the new one."""
SETTINGS: dict[str, dict[str, Any]] = {
    "run": {"rounds": 60, "seed": 0},
    "data": {"size": 128, "channels": 1, "hold-back": 0.2},
    "episode": {"way": 6, "shot": 10, "query": 5},
    "model": {"network": "texture", "width": 128, "depth": 1, "sharpness": 20.0},
    "inner": {"learning-rate": 0.2, "steps": 2, "batch-size": 30},
    "adapt": {"learning-rate": 0.05, "steps": 3},
    "outer": {"sites-per-round": 0, "join-sites": 4, "class-tables": True, "deadline": 120.0},
    "judge": {"every": 0},
}


@dataclass(frozen=True)
class Plant:
    lines: Path
    """A folder of class folders for each line."""
    new: list[Path]
    """Ten pictures of the defect that nobody has seen."""
    hidden: dict[str, list[Path]]
    """Pictures of all six defects that no line ever gets."""


def defects() -> list[str]:
    return sorted(path.name for path in (mirror_or_skip() / "neu_steel" / "images").iterdir())


def steel_plant(folder: Path, new: str) -> Plant:
    """Deal NEU's pictures; which goes where the SHA-256 of its name says."""
    hidden, ten = {}, []
    for name in defects():
        found = (mirror_or_skip() / "neu_steel" / "images" / name).glob("*.jpg")
        pictures = sorted(found, key=lambda path: hashlib.sha256(path.name.encode()).hexdigest())
        rest, hidden[name] = pictures[:-HIDDEN], pictures[-HIDDEN:]
        if name == new:
            ten = rest[:NEW]
            continue
        for number, line in enumerate(LINES):
            place = folder / line / name
            place.mkdir(parents=True)
            for path in rest[number * AT_A_LINE : (number + 1) * AT_A_LINE]:
                shutil.copy(path, place)
    return Plant(folder, ten, hidden)


def trained(run: Path, lines: Path) -> Path:
    """Train the lines together in one process, which a deployment would do with the same result; return the run."""
    settings = flat(SETTINGS).with_values({"run.dir": str(run), "data.sites": str(lines)})
    in_process(settings, len(LINES), {"site-class-tables": True})
    return run
