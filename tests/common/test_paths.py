"""Where things are kept when no path is given."""

from pathlib import Path

import pytest

from common.paths import data_home, default_sites


def test_the_data_home_is_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDREPTILE_HOME", str(tmp_path))
    assert data_home() == tmp_path


def test_a_data_home_may_be_relative_or_begin_at_the_users_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    monkeypatch.setenv("FEDREPTILE_HOME", "here")
    assert data_home() == tmp_path / "here"
    monkeypatch.setenv("FEDREPTILE_HOME", "~/data")
    assert data_home() == tmp_path / "me" / "data"


@pytest.mark.parametrize(
    ("platform", "variable", "fallback"),
    [
        ("linux", "XDG_CACHE_HOME", ".cache"),
        ("darwin", "XDG_CACHE_HOME", ".cache"),
        ("win32", "LOCALAPPDATA", "AppData/Local"),
    ],
)
def test_the_data_home_is_else_the_platforms_folder(
    platform: str, variable: str, fallback: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.setenv("FEDREPTILE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(variable, raising=False)
    assert data_home() == tmp_path / fallback / "fedreptile"
    monkeypatch.setenv(variable, str(tmp_path / "cached"))
    assert data_home() == tmp_path / "cached" / "fedreptile"


OMNIGLOT, DIGITS = "omniglot/train", "digits/train"


@pytest.mark.parametrize(
    ("there", "expected"),
    [([], OMNIGLOT), ([DIGITS], DIGITS), ([OMNIGLOT], OMNIGLOT), ([DIGITS, OMNIGLOT], OMNIGLOT)],
    ids=str,
)
def test_sites_are_omniglots_if_there_and_else_the_digits(
    there: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDREPTILE_HOME", str(tmp_path))
    for part in there:
        (tmp_path / "sites" / part).mkdir(parents=True)
    assert default_sites() == tmp_path / "sites" / expected
