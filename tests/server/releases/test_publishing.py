"""Releases put out, tried, given to all and taken back; numbers never go down."""

import json
from pathlib import Path
from unittest.mock import patch

import pytest

from common.errors import ReleaseError
from common.releases.pointer import POINTER, encode_pointer
from server.home import FederationHome
from server.releases.publishing import Delta, content, open_registry, promote, publish, put_out, withdraw
from server.releases.registry import About
from server.releases.repository import Repository
from tests.server.releases.made import NOW, SITES, pointer_of, put, releases_in


def given(home: FederationHome) -> dict[str, int]:
    return {site: pointer_of(home).of(site) for site in SITES}


def target(home: FederationHome, name: str) -> bytes:
    digest = Repository(home).digest_of(name)
    return (home.repository / "targets" / f"{digest}.{name}").read_bytes()


def test_a_published_release_is_given_to_nobody_until_it_is_promoted(tmp_path: Path) -> None:
    home = releases_in(tmp_path)
    put(home, b"one")
    assert given(home) == dict.fromkeys(SITES, 0)
    promote(home, 1, ["north"], None, NOW)
    assert given(home) == {"east": 0, "north": 1, "south": 0}
    promote(home, 1, [], None, NOW)
    assert given(home) == dict.fromkeys(SITES, 1)
    assert target(home, POINTER) == encode_pointer(pointer_of(home))


def test_the_repository_has_its_files_and_says_no_names_of_sites(tmp_path: Path) -> None:
    home = releases_in(tmp_path)
    put(home, b"one")
    made = publish(home, b"two", About(1, sites=SITES), None, NOW, Delta(1, "int8", b"step"))
    assert target(home, "release-2.safetensors") == b"two" == content(home, made.number)
    assert target(home, "release-2-from-1.int8.delta") == b"step"
    about = json.loads(target(home, "release-2.json"))
    assert (about["number"], about["parent"], about["sites"], about["digest"]) == (2, 1, 3, made.digest)
    assert not about["gated"]
    promote(home, 2, ["north"], None, NOW)
    assert all(b"north" not in path.read_bytes() for path in home.repository.rglob("*.*"))


def test_withdrawing_gives_all_sites_a_higher_number_with_the_parents_content(tmp_path: Path) -> None:
    home = releases_in(tmp_path)
    put(home, b"one")
    put(home, b"two", 1)
    promote(home, 1, [], None, NOW)
    promote(home, 2, [], None, NOW)
    made = withdraw(home, 2, "worse", None, NOW)
    assert made is not None
    assert given(home) == dict.fromkeys(SITES, 3)
    assert target(home, "release-3.safetensors") == b"one"
    with open_registry(home) as registry:
        assert [registry.state(number) for number in (1, 2, 3)] == ["replaced", "withdrawn", "all"]
        assert registry.events(2)[-1].detail == {"reason": "worse", "by": 3}


def test_withdrawing_what_canaries_try_leaves_the_others_alone(tmp_path: Path) -> None:
    home = releases_in(tmp_path)
    put(home, b"one")
    promote(home, 1, [], None, NOW)
    put(home, b"two", 1)
    promote(home, 2, ["north", "east"], None, NOW)
    withdraw(home, 2, "worse", None, NOW)
    assert given(home) == {"east": 3, "north": 3, "south": 1}
    assert content(home, 3) == b"one"


def test_withdrawing_what_nobody_has_makes_nothing_new(tmp_path: Path) -> None:
    home = releases_in(tmp_path)
    put(home, b"one")
    assert withdraw(home, 1, "never meant", None, NOW) is None
    with pytest.raises(ReleaseError, match="is withdrawn"):
        promote(home, 1, [], None, NOW)
    with pytest.raises(ReleaseError, match="withdrawn already"):
        withdraw(home, 1, "again", None, NOW)


def test_going_back_skips_ancestors_that_are_withdrawn_or_takes_the_one_named(tmp_path: Path) -> None:
    home = releases_in(tmp_path)
    for number, data in enumerate((b"one", b"two", b"three")):
        put(home, data, number or None)
        promote(home, number + 1, [], None, NOW)
    withdraw(home, 2, "worse", None, NOW)
    assert given(home) == dict.fromkeys(SITES, 3)
    withdraw(home, 3, "worse", None, NOW)
    assert content(home, given(home)["north"]) == b"one"
    put(home, b"five", 4)
    promote(home, 5, [], None, NOW)
    with pytest.raises(ReleaseError, match="no older one that is good"):
        withdraw(home, 5, "worse", None, NOW, to=2)
    withdraw(home, 5, "worse", None, NOW, to=1)
    assert content(home, given(home)["north"]) == b"one"


def test_the_first_release_cannot_go_back_to_nothing(tmp_path: Path) -> None:
    home = releases_in(tmp_path)
    put(home, b"one")
    promote(home, 1, [], None, NOW)
    with pytest.raises(ReleaseError, match="has no parent to go back to"):
        withdraw(home, 1, "worse", None, NOW)
    with pytest.raises(ReleaseError, match="reason is empty"):
        withdraw(home, 1, " ", None, NOW)
    assert given(home) == dict.fromkeys(SITES, 1)


def test_an_older_release_is_not_promoted(tmp_path: Path) -> None:
    home = releases_in(tmp_path)
    for data in (b"one", b"two"):
        put(home, data)
    promote(home, 2, [], None, NOW)
    for sites in ([], ["north"]):
        with pytest.raises(ReleaseError, match="numbers never go down"):
            promote(home, 1, sites, None, NOW)
    with pytest.raises(ReleaseError, match="'nowhere' is not enrolled"):
        promote(home, 2, ["nowhere"], None, NOW)


def test_what_a_crash_left_undone_is_done_with_the_next_change(tmp_path: Path) -> None:
    home = releases_in(tmp_path)
    with patch("server.releases.publishing.put_out", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        put(home, b"one")
    assert Repository(home).digest_of("release-1.safetensors") == ""
    with open_registry(home) as registry:
        put_out(home, registry, Repository(home), NOW)
    assert target(home, "release-1.safetensors") == b"one"


def test_a_file_that_was_changed_on_disk_is_not_put_out_again(tmp_path: Path) -> None:
    home = releases_in(tmp_path)
    put(home, b"one")
    put(home, b"two", 1)
    promote(home, 2, [], None, NOW)
    (home.releases / "files" / "1.safetensors").write_bytes(b"own")
    with pytest.raises(ReleaseError, match="is not what was registered"):
        withdraw(home, 2, "worse", None, NOW)
