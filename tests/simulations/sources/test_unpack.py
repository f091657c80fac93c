"""Packed sites written out as class folders: the same pictures, all or nothing."""

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from client.data.sites import open_own, open_site_data
from common.errors import FedreptileError, SourceError, TrustError
from common.settings import DataSettings
from simulations.sources.cli import data_app
from simulations.sources.unpack import unpack

SIZED = DataSettings(size=32, channels=1)


def data_unpack(*words: object) -> str:
    result = CliRunner().invoke(data_app, ["unpack", *map(str, words)], env={"COLUMNS": "200"})
    if isinstance(result.exception, FedreptileError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_real_sites_read_the_same_pictures_from_the_folders(tmp_path: Path, mirror: Path, home: Path) -> None:
    words = ("--data-mirror", mirror, "--set", "sites.number=3", "--set", "data.size=32")
    shown = data_unpack("neu_steel", tmp_path / "plant", *words)
    assert shown.count("pictures") == 3
    (packed,) = (path for path in (home / "sites").glob("neu_steel*/train"))
    for site in sorted(path.name for path in (tmp_path / "plant").iterdir()):
        written, read = open_own(tmp_path / "plant" / site, SIZED), open_site_data(packed, site, SIZED, None)
        assert written.classes() == read.classes()
        for name in read.classes():
            rows = range(read.count(name))
            assert np.array_equal(written.inputs(name, rows).numpy(), read.inputs(name, rows).numpy())


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path, home: Path) -> None:
    (tmp_path / "plant").mkdir()
    (tmp_path / "plant" / "mine").touch()
    with pytest.raises(TrustError, match="plant"):
        data_unpack("digits", tmp_path / "plant")
    assert [path.name for path in (tmp_path / "plant").iterdir()] == ["mine"]


def test_what_is_no_picture_by_itself_is_refused(tmp_path: Path) -> None:
    for data in (DataSettings(kind="vector", inputs="x"), DataSettings(beside="_mask.png")):
        with pytest.raises(SourceError, match="nothing beside them"):
            unpack(tmp_path, tmp_path / "plant", data)
    assert not (tmp_path / "plant").exists()
