"""The repository's upkeep: renewal, rotation of keys, and what a crash or a missing key does to it."""

import os
import stat
from datetime import timedelta
from pathlib import Path
from unittest.mock import patch

import pytest

from common.errors import ReleaseError, TrustError
from server.releases.repository import LIFE, ROLES, Repository, renew
from tests.server.releases.made import DAY, NOW, put, releases_in

SECOND = timedelta(seconds=1)


def test_the_servers_process_renews_timestamp_and_snapshot_before_they_end(tmp_path: Path) -> None:
    home = releases_in(tmp_path)
    repository = Repository(home)
    ends = {role: repository.ends(role) for role in ROLES}
    assert repository.renew(NOW + DAY / 4) == []
    assert repository.renew(NOW + DAY * 0.6) == ["timestamp"]
    assert repository.ends("timestamp") > ends["timestamp"]
    assert repository.ends("snapshot") == ends["snapshot"]
    assert renew(home, NOW + 8 * DAY, None) == []
    assert repository.ends("snapshot") > NOW + 21 * DAY
    assert repository.ends("targets") == ends["targets"]


def test_what_has_expired_is_renewed(tmp_path: Path) -> None:
    home = releases_in(tmp_path, NOW - 30 * DAY)
    repository = Repository(home)
    assert repository.ends("timestamp") < NOW
    renew(home, NOW, None)
    assert repository.ends("timestamp") > NOW + DAY - SECOND
    assert repository.ends("snapshot") > NOW + 14 * DAY - SECOND


def test_a_person_is_warned_before_targets_and_root_end(tmp_path: Path) -> None:
    home = releases_in(tmp_path)
    [targets] = renew(home, NOW + LIFE["targets"] - 10 * DAY, None)
    assert "the targets of the releases' repository ends at" in targets
    assert len(renew(home, NOW + LIFE["root"] - 10 * DAY, None)) == 2


def test_a_federation_without_releases_has_nothing_to_renew(tmp_path: Path) -> None:
    home = releases_in(tmp_path)
    home.releases.rename(tmp_path / "away")
    assert renew(home, NOW, None) == []
    with pytest.raises(ReleaseError, match="release init"):
        Repository(home)


def test_nothing_but_changing_keys_needs_the_roots_key(tmp_path: Path) -> None:
    home = releases_in(tmp_path)
    away = tmp_path / "root.key"
    (home.releases / "keys" / "root.key").rename(away)
    put(home, b"one")
    renew(home, NOW + DAY, None)
    with pytest.raises(TrustError, match=r"the root's key .* is not there; bring it"):
        Repository(home).rotate("timestamp", NOW)
    Repository(home, root_key=away).rotate("timestamp", NOW)
    before = away.read_bytes()
    Repository(home, root_key=away).rotate("root", NOW)
    assert away.read_bytes() != before
    Repository(home, root_key=away).renew_root(NOW)


@pytest.mark.parametrize("role", ROLES)
def test_a_rotation_that_was_cut_off_leaves_a_repository_that_works(tmp_path: Path, role: str) -> None:
    home = releases_in(tmp_path)
    replace = Path.replace

    def cut_off(self: Path, target: Path) -> Path:
        if self.name == f"{role}.key.new":
            raise KeyboardInterrupt
        return replace(self, target)

    with patch.object(Path, "replace", cut_off), pytest.raises(KeyboardInterrupt):
        Repository(home).rotate(role, NOW)
    put(home, b"one")
    Repository(home).rotate(role, NOW)
    put(home, b"two")
    assert not [*home.releases.glob("keys/*.new")]


def test_a_lost_key_can_be_replaced_but_not_the_roots(tmp_path: Path) -> None:
    home = releases_in(tmp_path)
    for role in ROLES[1:]:
        (home.releases / "keys" / f"{role}.key").unlink()
        Repository(home).rotate(role, NOW)
        put(home, role.encode())
    (home.releases / "keys" / "root.key").unlink()
    with pytest.raises(TrustError, match="root's key"):
        Repository(home).rotate("root", NOW)
    with pytest.raises(ReleaseError, match="no role"):
        Repository(home).rotate("other", NOW)


def test_another_roles_key_does_not_sign(tmp_path: Path) -> None:
    home = releases_in(tmp_path)
    keys = home.releases / "keys"
    (keys / "targets.key").write_bytes((keys / "snapshot.key").read_bytes())
    with pytest.raises(TrustError, match="is not the key of the releases' targets"):
        put(home, b"one")


def test_keys_are_their_owners_alone(tmp_path: Path) -> None:
    home = releases_in(tmp_path)
    Repository(home).rotate("timestamp", NOW)
    if os.name == "posix":
        assert {stat.S_IMODE(path.stat().st_mode) for path in (home.releases / "keys").iterdir()} == {0o600}


def test_files_that_nothing_points_at_go_after_a_day(tmp_path: Path) -> None:
    home = releases_in(tmp_path)
    repository = Repository(home)
    repository.publish({"release.json": b"1"}, NOW)
    repository.publish({"release.json": b"2"}, NOW)
    assert len([*(home.repository / "targets").iterdir()]) == 3
    for path in home.repository.rglob("*.*"):
        os.utime(path, (0, 0))
    repository.publish({"other": b"3"}, NOW)
    assert len([*(home.repository / "targets").iterdir()]) == 2
    assert sorted(path.name for path in (home.repository / "metadata").iterdir()) == [
        "1.root.json",
        "4.snapshot.json",
        "4.targets.json",
        "timestamp.json",
    ]


def test_damaged_metadata_are_named(tmp_path: Path) -> None:
    home = releases_in(tmp_path)
    (home.repository / "metadata" / "timestamp.json").write_bytes(b"{}")
    with pytest.raises(ReleaseError, match=r"timestamp.json cannot be read"):
        renew(home, NOW, None)
