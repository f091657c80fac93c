"""Configuration files: every mistake is named with its file and key."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from common.deployment.config import read_config
from common.errors import SettingsError


@dataclass(frozen=True)
class Config:
    name: str
    most_seconds: float = 2.0
    threads: int = 1


def config(folder: Path, text: str) -> Config:
    path = folder / "x.toml"
    path.write_text(text, encoding="utf-8")
    return read_config(path, Config, "make it")


def test_values_and_defaults_are_read(tmp_path: Path) -> None:
    assert config(tmp_path, 'name = "a"\nmost-seconds = 3\n') == Config("a", 3.0, 1)


def test_a_byte_order_mark_as_windows_editors_write_it_is_no_mistake(tmp_path: Path) -> None:
    assert config(tmp_path, '\ufeffname = "a"\n').name == "a"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('name = "a"\nthread = 2\n', "unknown key 'thread'; the nearest valid one is 'threads'"),
        ('name = "a"\nthreads = "2"\n', "threads is '2'; it must be of type int"),
        ('name = "a"\nthreads = true\n', "threads is True; it must be of type int"),
        ("threads = 2\n", "has no 'name'"),
        ('name = ""\n', "has no 'name'"),
        ("name = \n", "cannot be read"),
    ],
)
def test_a_mistake_is_named_with_its_file_and_key(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SettingsError, match=r"x\.toml") as raised:
        config(tmp_path, text)
    assert said in str(raised.value)


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="is not there; make it"):
        read_config(tmp_path / "none.toml", Config, "make it")
