"""The app bundle's hash is what Flower will call it."""

import hashlib
import io
import zipfile
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk

from server.enrolment.bundle import fab_of_installation
from server.launch import stage_app


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern")
def test_the_bundle_is_the_same_each_time_and_the_one_that_is_submitted(tmp_path: Path) -> None:
    fab, digest = fab_of_installation()
    assert fab == build_fab_from_disk(stage_app(tmp_path / "fedreptile"))
    assert digest == hashlib.sha256(fab).hexdigest() == fab_of_installation()[1]
    assert "client/app.py" in zipfile.ZipFile(io.BytesIO(fab)).namelist()
