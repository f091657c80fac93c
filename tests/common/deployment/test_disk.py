"""Only the newest folders stay."""

import os
from pathlib import Path

from common.deployment.disk import keep_newest


def test_the_newest_folders_stay_and_files_are_not_touched(tmp_path: Path) -> None:
    for age, name in enumerate(("new", "middle", "old", "oldest")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.py").touch()
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    (tmp_path / "file").touch()
    assert sorted(keep_newest(tmp_path, 2)) == ["old", "oldest"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "middle", "new"]


def test_few_folders_or_none_are_left_as_they_are(tmp_path: Path) -> None:
    assert keep_newest(tmp_path / "none", 2) == []
    (tmp_path / "only").mkdir()
    assert keep_newest(tmp_path, 2) == [] and (tmp_path / "only").is_dir()
