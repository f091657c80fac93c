"""The register of releases: only ever added to."""

import os
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest

from common.errors import ReleaseError
from server.releases.publishing import open_registry
from server.releases.registry import PROMOTED, PUBLISHED, WITHDRAWN, About, Registry, make_registry
from tests.server.releases.made import NOW, put, releases_in


def test_a_release_is_found_as_it_was_entered(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    make_registry(path)
    about = About(None, "dents", ("a", "b"), {"inner.steps": 3}, "ab", "0.1.0", "cd", {"passed": True}, {"note": "ä"})
    with Registry(path) as registry:
        entered = registry.register(about, "ef", 7, NOW, lambda _: None)
        assert registry.get(1) == entered == registry.all()[0]
        assert (entered.number, entered.about, entered.digest, entered.size) == (1, about, "ef", 7)
        assert registry.state(1) == "registered"


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE releases SET digest = 'x'",
        "DELETE FROM releases",
        "INSERT OR REPLACE INTO releases SELECT * FROM releases",
        "UPDATE events SET what = 'published'",
        "DELETE FROM events",
        "INSERT OR REPLACE INTO events SELECT * FROM events",
    ],
)
def test_the_register_cannot_be_changed(tmp_path: Path, change: str) -> None:
    home = releases_in(tmp_path)
    put(home, b"one")
    with (
        closing(sqlite3.connect(home.releases / "registry.db")) as connection,
        pytest.raises(sqlite3.IntegrityError, match="only ever added"),
    ):
        connection.execute(change)


def test_a_number_is_never_given_twice(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    make_registry(path)
    kept: list[int] = []

    def fail(number: int) -> None:
        kept.append(number)
        raise OSError("disk full")

    with Registry(path) as registry:
        registry.register(About(), "a", 1, NOW, kept.append)
        with pytest.raises(OSError, match="disk full"):
            registry.register(About(), "b", 1, NOW, fail)
        assert [one.digest for one in registry.all()] == ["a"]
        registry.register(About(1), "c", 1, NOW, kept.append)
        assert [one.number for one in registry.all()] == [1, 2]
    assert kept == [1, 2, 2]


def test_what_became_of_a_release_follows_from_its_events(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    make_registry(path)
    with Registry(path) as registry:
        for _ in range(4):
            registry.register(About(), "a", 1, NOW, lambda _: None)
        for number, what, detail in (
            (1, PUBLISHED, {}),
            (2, PROMOTED, {"stage": "all"}),
            (1, PROMOTED, {"stage": "all"}),
            (3, PROMOTED, {"stage": "canary", "sites": ["north"]}),
            (3, PROMOTED, {"stage": "canary", "sites": ["south"]}),
            (4, PROMOTED, {"stage": "canary", "sites": ["north"]}),
            (4, WITHDRAWN, {"reason": "worse"}),
        ):
            registry.note(number, what, detail, NOW)
        pointer = registry.pointer()
        assert (pointer.all, pointer.canaries) == (2, {3: ("north", "south")})
        assert [registry.state(number) for number in (1, 2, 3, 4)] == ["replaced", "all", "canary", "withdrawn"]
        assert [one.what for one in registry.events(4)] == [PROMOTED, WITHDRAWN]


def test_numbers_that_are_none_are_refused(tmp_path: Path) -> None:
    with open_registry(releases_in(tmp_path)) as registry:
        for refused in (
            lambda: registry.get(1),
            lambda: registry.note(1, PUBLISHED, {}, NOW),
            lambda: registry.register(About(7), "a", 1, NOW, lambda _: None),
        ):
            with pytest.raises(ReleaseError, match="there is no release"):
                refused()
        assert registry.all() == []


def test_it_is_its_owners_alone_and_made_once(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    with pytest.raises(ReleaseError, match="is not there"):
        Registry(path)
    make_registry(path)
    with pytest.raises(ReleaseError, match="cannot be made"):
        make_registry(path)
    if os.name == "posix":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_that_is_no_register_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    path.write_bytes(b"something else" * 100)
    with Registry(path) as registry, pytest.raises(ReleaseError, match="cannot be used as the register"):
        registry.all()
