"""What a site's folder is given before its processes start, and when the worker counts as ready."""

import os
import pwd
import re
import socket
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from client.check.findings import subject_of
from client.cli import app
from client.door.explain import explain_site
from client.enrolment.joining import make_site
from client.home import LONGEST_SOCKET, SiteHome
from client.service.up import Ways, parts_of, prepare
from client.worker.worker import Worker
from tests.client.small import settings_with
from tests.client.worker.enrolled import enrolled

pytestmark = pytest.mark.skipif(os.name != "posix", reason="a site's own processes meet on a Unix socket here")


@pytest.fixture
def home(digit_folders: Path) -> Iterator[SiteHome]:
    """A site's folder before its kit, in a place with a short path, which sockets need."""
    with tempfile.TemporaryDirectory(prefix="fed") as scratch:
        found = SiteHome(Path(scratch) / "line-1")
        make_site(found, "line-1", digit_folders / "line-1", "cpu", None, datetime.now(UTC))
        yield found


def add(home: SiteHome, line: str) -> None:
    with home.config_file.open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")


def prepared(home: SiteHome) -> Ways:
    ways = Ways(1, 2, home.socket)
    prepare(home, home.config(), ways)
    return ways


def test_a_socket_that_a_killed_worker_left_is_no_sign_that_the_next_one_is_ready(home: SiteHome) -> None:
    ways = prepared(home)
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(ways.socket))
    worker = parts_of(home, home.config(), ways)[0]
    assert worker.name == "worker" and worker.ready()
    worker.before()
    assert not worker.ready()


def test_the_socket_is_in_the_folder_unless_systems_would_not_take_its_path(home: SiteHome, tmp_path: Path) -> None:
    assert home.socket == home.run / "worker" / "site.sock" and home.socket_key == home.run / "worker" / "site.key"
    for name in ("x" * LONGEST_SOCKET, "it's"):
        found = SiteHome(tmp_path / name).socket
        assert len(os.fsencode(found)) <= LONGEST_SOCKET and tmp_path not in found.parents


def test_pictures_are_kept_in_the_sites_own_folder_and_no_other_needs_to_be_writable(home: SiteHome) -> None:
    prepared(home)
    assert home.config().cache == str(home.path / "cache") and home.cache.stat().st_mode & 0o777 == 0o700
    unit = CliRunner().invoke(app, ["units", "--home", str(home.path)]).output
    assert f"\nReadWritePaths={home.path}\n" in unit


def test_a_cache_elsewhere_is_made_writable_and_none_is_made_beside_it(home: SiteHome) -> None:
    add(home, "cache = '/var/cache/pictures'")
    prepared(home)
    assert not home.cache.exists()
    unit = CliRunner().invoke(app, ["units", "--home", str(home.path)]).output
    assert re.search(rf"^ReadWritePaths={home.path} -?/var/cache/pictures$", unit, flags=re.M)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give folders to other users")
def test_with_users_of_their_own_the_workers_alone_keeps_pictures(home: SiteHome) -> None:
    add(home, "user = 'games'\nrelay-user = 'daemon'\napp-user = 'nobody'")
    prepared(home)
    assert home.cache.stat().st_uid == pwd.getpwnam("games").pw_uid and home.cache.stat().st_mode & 0o777 == 0o700
    assert home.config().shared_cache == "off"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give folders to other users")
def test_who_checks_another_users_site_leaves_nothing_that_its_worker_cannot_read(home: SiteHome) -> None:
    assert home.config().shared_cache == str(home.cache)
    os.chown(home.path, pwd.getpwnam("games").pw_uid, -1)
    assert home.config().shared_cache == "off"
    home.cache.mkdir()
    assert home.config().shared_cache == str(home.cache)
    add(home, "cache = 'off'")
    assert home.config().shared_cache == "off"


def test_worker_check_and_explain_keep_pictures_in_the_same_place(
    digit_folders: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FEDREPTILE_HOME", str(tmp_path / "home"))
    with enrolled(digit_folders / "line-1", settings_with()) as site:
        text = site.home.config_file.read_text(encoding="utf-8")
        site.home.config_file.write_text(text.replace("cache = 'off'\n", ""), encoding="utf-8")
        list(explain_site(site.home))
        kept = {path: path.stat().st_mtime_ns for path in site.home.cache.iterdir()}
        assert len(kept) == 2, "a list and an array"
        subject_of(site.home).open_data()
        worker = Worker(site.home)
        worker.warm()
        worker.close()
        assert {path: path.stat().st_mtime_ns for path in site.home.cache.iterdir()} == kept
    assert not (tmp_path / "home").exists()
