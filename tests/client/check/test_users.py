"""Who may read the data: checked by processes of the users themselves, which only root can start."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from client.check.findings import Finding, Level, subject_of
from client.check.users import check_users
from client.home import SiteHome
from tests.client.check.place import Place

WORKER, APP, RELAY = "nobody", "daemon", "games"
"""Users that every Linux has."""


@pytest.fixture
def open_home(fed: Place) -> Iterator[SiteHome]:
    """A site of three users in a folder that all may enter."""
    if os.name != "posix" or os.geteuid() != 0:
        pytest.skip("only root can start processes of other users")
    pwd = pytest.importorskip("pwd")
    if missing := [name for name in (WORKER, APP, RELAY) if name not in {entry.pw_name for entry in pwd.getpwall()}]:
        pytest.skip(f"this machine has no user {missing[0]}")
    with tempfile.TemporaryDirectory(prefix="fedusers") as scratch:
        Path(scratch).chmod(0o755)
        home = fed.site("line-1", Path(scratch))
        data = Path(scratch) / "data"
        for path in (data, *data.rglob("*")):
            shutil.chown(path, WORKER)
            path.chmod(0o700 if path.is_dir() else 0o600)
        text = f'user = "{WORKER}"\napp-user = "{APP}"\nrelay-user = "{RELAY}"\n'
        home.config_file.write_text(home.config_file.read_text() + text)
        yield home


@pytest.fixture
def runnable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have an interpreter that all users can run, which that of the tests need not be."""
    found = shutil.which("python3", path="/usr/bin:/usr/local/bin")
    if found is None:
        pytest.skip("this machine has no Python that all users can run")
    monkeypatch.setattr("client.check.users.sys.executable", found)
    monkeypatch.setattr("client.check.users._cannot_run", lambda key, name: None)


def only(home: SiteHome) -> Finding:
    (one,) = check_users(subject_of(home))
    return one


def change(home: SiteHome, **users: str) -> None:
    text = home.config_file.read_text()
    for key, name in users.items():
        lines = [line for line in text.splitlines() if not line.startswith(f"{key.replace('_', '-')} ")]
        text = "\n".join([*lines, f'{key.replace("_", "-")} = "{name}"'])
    home.config_file.write_text(text)


@pytest.mark.usefixtures("runnable")
def test_data_that_only_the_workers_user_can_read_are_as_they_should_be(open_home: SiteHome) -> None:
    one = only(open_home)
    assert (one.level, one.cause) == (Level.OK, "only 'nobody' can read the data"), one


@pytest.mark.usefixtures("runnable")
def test_a_file_that_the_workers_user_cannot_read_is_named(open_home: SiteHome) -> None:
    closed = open_home.path.parent / "data" / "digit-3"
    shutil.chown(closed, "root")
    one = only(open_home)
    assert (
        one.level == Level.PROBLEM and f"cannot read 1 file(s) or folder(s) of the data, such as {closed}" in one.cause
    )
    assert "chown -R nobody" in one.fix


@pytest.mark.usefixtures("runnable")
@pytest.mark.parametrize("key", ["app-user", "relay-user"])
def test_a_file_that_the_app_or_the_relay_can_read_is_named(open_home: SiteHome, key: str) -> None:
    data = open_home.path.parent / "data"
    for folder in (data, data / "digit-1"):
        folder.chmod(0o711)
    assert only(open_home).level == Level.OK
    picture = sorted((data / "digit-1").iterdir())[0]
    shutil.chown(picture, group={"app-user": APP, "relay-user": RELAY}[key])
    picture.chmod(0o640)  # in a folder that this user cannot list, but whose names can be guessed
    one = only(open_home)
    assert (
        one.level == Level.PROBLEM
        and one.cause.startswith(f"{key} ")
        and f"1 file(s) of the data, such as {picture}; it must not" in one.cause
    )
    assert "chmod -R o-rwx" in one.fix


def test_a_user_that_does_not_exist_is_named(open_home: SiteHome) -> None:
    change(open_home, relay_user="no-such-user")
    one = only(open_home)
    assert one.level == Level.PROBLEM and "relay-user: there is no user 'no-such-user'" in one.cause and one.fix


def test_one_user_for_two_parts_is_refused(open_home: SiteHome) -> None:
    change(open_home, app_user=WORKER)
    assert "must be others than the user who reads the data" in only(open_home).cause


def test_an_installation_that_a_user_cannot_run_is_named(open_home: SiteHome, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = open_home.path.parent / "hidden"
    hidden.mkdir(mode=0o700)
    (hidden / "python").symlink_to(os.path.realpath("/usr/bin/env"))
    monkeypatch.setattr("client.check.users.sys.executable", str(hidden / "python"))
    one = only(open_home)
    assert one.level == Level.PROBLEM and "cannot run the installation" in one.cause and "/opt" in one.fix


def test_a_check_that_is_not_roots_says_to_check_as_root(open_home: SiteHome, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.deployment.supervisor.os.geteuid", lambda: 54321)
    one = only(open_home)
    assert one.level == Level.WARNING and "check as root" in one.fix


def test_one_user_for_all_is_a_warning(home: SiteHome) -> None:
    one: Any = only(home)
    assert one.level == Level.WARNING and "all processes belong to one user" in one.cause
