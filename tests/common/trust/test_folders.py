"""Folders of keys: whole or not at all, and never over what is there."""

import os
import stat
from pathlib import Path

import pytest

from common.errors import TrustError
from common.trust.folders import new_folder, write_loopback
from tests.common.trust.papers import NOW


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    with new_folder(tmp_path / "deep" / "a") as scratch:
        (scratch / "x").write_text("1")
        assert not (tmp_path / "deep" / "a").exists()
        if os.name == "posix":
            assert stat.S_IMODE(scratch.stat().st_mode) == 0o700
    assert [path.name for path in (tmp_path / "deep" / "a").iterdir()] == ["x"]


def test_after_an_error_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), new_folder(tmp_path / "a") as scratch:
        (scratch / "x").write_text("1")
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_an_empty_folder_is_used_and_any_other_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with new_folder(tmp_path / "a") as scratch:
        (scratch / "x").write_text("1")
    for taken in (tmp_path / "a", tmp_path / "a" / "x"):
        with pytest.raises(TrustError, match="is there already"), new_folder(taken):
            raise AssertionError("it must not come to this")
    assert (tmp_path / "a" / "x").read_text() == "1"


def test_what_appears_meanwhile_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(TrustError, match="is there already"), new_folder(tmp_path / "a") as scratch:
        (scratch / "x").write_text("ours")
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "x").write_text("theirs")
    assert (tmp_path / "a" / "x").read_text() == "theirs"
    assert len(list(tmp_path.iterdir())) == 1


def test_the_loopback_key_is_its_owners_alone(tmp_path: Path) -> None:
    write_loopback(tmp_path / "loopback", NOW)
    assert {path.name for path in (tmp_path / "loopback").iterdir()} == {"ca.crt", "tls.crt", "tls.key"}
    if os.name == "posix":
        assert stat.S_IMODE((tmp_path / "loopback" / "tls.key").stat().st_mode) == 0o600
