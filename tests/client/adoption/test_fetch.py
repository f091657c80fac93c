"""Taking releases from a server that may lie: what is taken, and every way in which it is refused."""

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest.mock import patch

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Root, Signed

from client.adoption import fetch as fetching
from client.adoption.fetch import fetch, relay_of, trust_root
from client.home import SiteHome
from common.deployment.lock import hold
from common.deployment.ports import free_port
from common.errors import DeployError, FedreptileError, TrustError
from common.paths import write_atomically
from common.releases.artefact import encode
from common.releases.delta import difference_of, encode_delta
from common.releases.pointer import POINTER, Pointer, encode_pointer
from common.trust.keys import new_signing_key
from server.releases.publishing import Delta, promote, publish, withdraw
from server.releases.registry import About
from server.releases.repository import ROLES, Repository, renew, sign
from tests.client.adoption.place import Place, endless, place_in, site_in
from tests.common.releases.small import artefact

DAY = timedelta(days=1)
NOW = datetime.now(UTC)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with place_in(tmp_path) as found:
        yield found


def refused(place: Place, kind: type[FedreptileError] = TrustError) -> str:
    """Return what a site is refused with; it keeps what it had."""
    before = sorted(path.read_bytes() for path in (place.site.releases / "targets").glob("release-*.safetensors"))
    with pytest.raises(kind) as raised:
        place.fetch()
    after = sorted(path.read_bytes() for path in (place.site.releases / "targets").glob("release-*.safetensors"))
    assert after == before
    assert not [*(place.site.releases / "targets").glob(".*")]
    return str(raised.value)


def test_the_newest_release_is_taken_once(place: Place) -> None:
    assert place.fetch() is None
    place.release(b"one")
    found = place.fetch()
    assert found is not None
    assert (found.number, found.path.read_bytes(), found.way) == (1, b"one", "full")
    assert found.about["card"] == {"note": "x"}
    asked = len(place.server.asked)
    again = place.fetch()
    assert again is not None
    assert (again.way, again.bytes) == ("here", 0)
    assert place.server.asked[asked:] == ["metadata/2.root.json", "metadata/timestamp.json"]


def test_canaries_get_a_newer_release_than_other_sites(place: Place) -> None:
    other = site_in(place.folder, place.federation, "south")
    place.release(b"one")
    place.release(b"two", 1, "north")
    assert place.content() == b"two"
    found = fetch(other, place.source)
    assert found is not None and found.path.read_bytes() == b"one"


def test_a_withdrawn_release_is_followed_by_a_higher_number_without_a_download(place: Place) -> None:
    place.release(b"one")
    assert place.content() == b"one"
    place.release(b"two", 1)
    assert place.content() == b"two"
    withdraw(place.federation, 2, "worse", None, NOW)
    found = place.fetch()
    assert found is not None
    assert (found.number, found.path.read_bytes(), found.way) == (3, b"one", "same")


def test_a_difference_is_taken_where_its_start_is_and_gives_the_whole_release(place: Place) -> None:
    before, after = (artefact(seed, model__width=100, model__depth=2) for seed in (1, 2))
    first = encode(before)
    place.release(first)
    assert place.content() == first
    difference = difference_of(before.params, after.params)
    rounded = replace(after, params=difference.applied_to(before.params))
    delta = encode_delta(difference, first, rounded)
    whole = encode(rounded)
    publish(place.federation, whole, About(1), None, NOW, Delta(1, "int8", delta))
    promote(place.federation, 2, [], None, NOW)
    newcomer = site_in(place.folder, place.federation, "south")
    ways = {}
    for site in (place.site, newcomer):
        found = fetch(site, place.source)
        assert found is not None
        assert found.path.read_bytes() == whole
        ways[found.way] = found.bytes
    assert ways["delta"] < ways["full"]


def test_a_difference_that_is_no_use_is_passed_over_for_the_whole_release(place: Place) -> None:
    place.release(encode(artefact(1)))
    place.fetch()
    whole = encode(artefact(2))
    publish(place.federation, whole, About(1), None, NOW, Delta(1, "int8", b"signed, but wrong"))
    promote(place.federation, 2, [], None, NOW)
    found = place.fetch()
    assert found is not None
    assert (found.way, found.path.read_bytes()) == ("full", whole)


def test_only_the_newest_files_are_kept(place: Place) -> None:
    for number in range(5):
        place.release(str(number).encode(), number or None)
        place.fetch()
    kept = sorted(path.name for path in (place.site.releases / "targets").glob("release-*"))
    assert kept == [f"release-{number}.{end}" for number in (3, 4, 5) for end in ("json", "safetensors")]


def test_rollback_to_an_older_repository_is_refused(place: Place) -> None:
    place.release(b"one")
    older = place.keep()
    place.release(b"two", 1)
    assert place.content() == b"two"
    place.server.folder = older
    assert "something older about releases than before" in refused(place)


def test_rollback_to_an_older_release_by_the_server_itself_is_refused(place: Place) -> None:
    place.release(b"one")
    place.release(b"two", 1)
    place.fetch()
    Repository(place.federation).publish({POINTER: encode_pointer(Pointer(1))}, NOW)
    assert "names release 1 and had named 2 before" in refused(place)


def test_freeze_is_noticed_when_the_timestamp_has_expired(tmp_path: Path) -> None:
    with place_in(tmp_path, NOW - 2 * DAY) as place:
        place.release(b"one", now=NOW - 2 * DAY)
        assert "has expired" in refused(place)
        renew(place.federation, NOW, None)
        assert place.content() == b"one"


def test_freeze_of_a_site_that_has_seen_newer_is_noticed(place: Place) -> None:
    place.release(b"one")
    place.fetch()

    is_expired = Signed.is_expired

    def later(self: Signed, _: datetime) -> bool:
        return is_expired(self, NOW + 2 * DAY)

    with patch.object(Signed, "is_expired", later):
        assert "has expired" in refused(place)


def test_mix_and_match_of_targets_is_refused(place: Place) -> None:
    place.release(b"one")
    older = (place.metadata / "3.targets.json").read_bytes()
    place.release(b"two", 1)
    place.server.lies["5.targets.json"] = older
    assert "not the one that was signed" in refused(place)


def test_mix_and_match_of_snapshots_is_refused(place: Place) -> None:
    place.release(b"one")
    older = (place.metadata / "3.snapshot.json").read_bytes()
    place.release(b"two", 1)
    place.server.lies["5.snapshot.json"] = older
    assert "not the one that was signed" in refused(place)


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_a_wrong_key_is_refused(place: Place, role: str) -> None:
    place.release(b"one")
    place.fetch()
    with patch.object(Repository, "_signer", lambda self, asked: _signer(self, asked, role)):
        place.release(b"evil", 1)
    assert "not signed as it must be" in refused(place)


_real = Repository._signer


def _signer(repository: Repository, asked: str, wrong: str) -> CryptoSigner:
    return CryptoSigner(new_signing_key()) if asked == wrong else _real(repository, asked)


def test_a_root_that_the_old_one_has_not_signed_is_refused(place: Place) -> None:
    place.release(b"one")
    root: Metadata[Root] = Metadata.from_file(str(place.metadata / "1.root.json"))
    signer = CryptoSigner(new_signing_key())
    for role in ROLES:
        root.signed.roles[role].keyids.clear()
        root.signed.add_key(signer.public_key, role)
    root.signed.version = 2
    place.server.lies["2.root.json"] = sign(root, [signer], NOW + DAY)
    assert "not signed as it must be" in refused(place)


def test_a_threshold_that_is_not_met_is_refused(place: Place) -> None:
    """From the next root on two keys must sign the targets; one has."""
    place.release(b"one")
    root: Metadata[Root] = Metadata.from_file(str(place.metadata / "1.root.json"))
    second = CryptoSigner(new_signing_key())
    root.signed.add_key(second.public_key, "targets")
    root.signed.roles["targets"].threshold = 2
    root.signed.version = 2
    data = sign(root, [Repository(place.federation)._signer("root")], NOW + DAY)
    (place.metadata / "2.root.json").write_bytes(data)
    assert "not signed as it must be" in refused(place)
    repository = Repository(place.federation)
    repository._say_again("targets", [repository._signer("targets"), second], NOW)
    assert place.content() == b"one"


@pytest.mark.parametrize("name", ["timestamp.json", "snapshot.json", "targets.json", "release.json", ".safetensors"])
def test_endless_data_is_cut_off(place: Place, name: str) -> None:
    place.release(b"one")
    place.server.lies[name] = endless
    assert "the server sends more than was signed" in refused(place)


def test_endless_roots_are_cut_off(place: Place) -> None:
    place.release(b"one")
    place.server.lies["root.json"] = endless
    assert "the server sends more than was signed" in refused(place)


def test_data_that_only_trickle_are_given_up(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.release(b"one")
    monkeypatch.setattr(fetching, "TOTAL_SECONDS", -1.0)
    assert "was not complete in" in refused(place, DeployError)


def test_a_truncated_target_is_refused(place: Place) -> None:
    place.release(b"one" * 1000)
    place.server.lies[".safetensors"] = b"one" * 999
    assert "not the one that was signed" in refused(place)


def test_a_connection_that_is_cut_is_told(place: Place) -> None:
    place.release(b"one" * 1000)

    def cut(handler: object) -> None:
        handler.send_response(200)  # type: ignore[attr-defined]
        handler.send_header("content-length", "3000")  # type: ignore[attr-defined]
        handler.end_headers()  # type: ignore[attr-defined]
        handler.wfile.write(b"one")  # type: ignore[attr-defined]

    place.server.lies[".safetensors"] = cut
    assert "releases cannot be fetched" in refused(place, DeployError)
    place.server.lies.clear()
    assert place.content() == b"one" * 1000


@pytest.mark.parametrize("place_of_bit", [0, 1500, 2999])
def test_one_bit_changed_is_refused(place: Place, place_of_bit: int) -> None:
    data = b"one" * 1000
    place.release(data)
    wrong = bytearray(data)
    wrong[place_of_bit] ^= 1
    place.server.lies[".safetensors"] = bytes(wrong)
    assert "not the one that was signed" in refused(place)


@pytest.mark.parametrize("name", ["timestamp.json", "snapshot.json", "targets.json"])
def test_one_bit_changed_in_metadata_is_refused(place: Place, name: str) -> None:
    place.release(b"one")
    path = max(place.metadata.glob(f"*{name}"), key=lambda one: one.stat().st_mtime_ns)
    data = path.read_bytes()
    for position in (20, len(data) // 2, len(data) - 2):
        wrong = bytearray(data)
        wrong[position] ^= 1
        place.server.lies[path.name] = bytes(wrong)
        refused(place)


def test_a_file_that_was_changed_at_the_site_is_taken_anew(place: Place) -> None:
    place.release(b"one")
    found = place.fetch()
    assert found is not None
    found.path.write_bytes(b"own")
    assert place.content() == b"one"


@pytest.mark.parametrize("role", ROLES)
def test_a_rotated_key_is_followed_before_and_after(place: Place, role: str) -> None:
    place.release(b"one")
    place.fetch()
    Repository(place.federation).rotate(role, NOW)
    assert place.content() == b"one"
    place.release(b"two", 1)
    assert place.content() == b"two"


def test_a_site_that_slept_through_several_roots_follows_them(place: Place) -> None:
    for role in ("root", "timestamp", "root", "targets", "snapshot"):
        Repository(place.federation).rotate(role, NOW)
    place.release(b"one")
    assert place.content() == b"one"
    assert (place.site.releases / "metadata" / "root_history" / "6.root.json").exists()


def test_the_repository_can_be_read_at_every_moment_of_a_rotation(place: Place) -> None:
    place.release(b"one")
    real, seen = write_atomically, list[str]()

    def looked(path: Path, data: bytes, mode: int = 0o666) -> None:
        real(path, data, mode)
        seen.append(path.name)
        assert place.content() == b"one"

    with patch("server.releases.repository.write_atomically", looked):
        for role in ROLES:
            Repository(place.federation).rotate(role, NOW)
    assert len(seen) > 10


def test_an_expired_timestamp_that_is_renewed_is_taken_again(tmp_path: Path) -> None:
    with place_in(tmp_path, NOW - 3 * DAY) as place:
        place.release(b"one", now=NOW - 3 * DAY)
        refused(place)
        renew(place.federation, NOW, None)
        assert place.content() == b"one"


def test_a_later_kit_does_not_lower_the_root(place: Place) -> None:
    first = (place.metadata / "1.root.json").read_text()
    Repository(place.federation).rotate("root", NOW)
    place.fetch()
    assert not trust_root(place.site, first)
    root = json.loads((place.site.releases / "metadata" / "root.json").read_bytes())
    assert root["signed"]["version"] == 2


def test_a_root_that_is_none_or_not_signed_by_itself_is_not_trusted(place: Place, tmp_path: Path) -> None:
    text = (place.metadata / "1.root.json").read_text()
    site = SiteHome(tmp_path / "other")
    for wrong in (
        "",
        "{}",
        text.replace('"version":1', '"version":7'),
        (place.metadata / "timestamp.json").read_text(),
    ):
        with pytest.raises(TrustError, match="root of releases cannot be used"):
            trust_root(site, wrong)


def test_without_a_root_nothing_is_taken(place: Place) -> None:
    (place.site.releases / "metadata" / "root.json").unlink()
    assert "holds no root of releases" in refused(place)


def test_a_root_whose_link_was_cut_off_is_found_again(place: Place) -> None:
    place.release(b"one")
    place.fetch()
    (place.site.releases / "metadata" / "root.json").unlink()
    assert place.content() == b"one"


def test_a_server_that_is_not_there_is_told(place: Place) -> None:
    place.release(b"one")
    with pytest.raises(DeployError, match="releases cannot be fetched"):
        fetch(place.site, replace(place.source, url=f"http://127.0.0.1:{free_port()}/releases"))
    with pytest.raises(DeployError, match="does not say where the relay is"):
        relay_of(place.site)


def test_one_process_takes_at_a_time(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "LOCK_SECONDS", 0.1)
    held = hold(place.site.releases / ".lock")
    assert held is not None
    with held:
        assert "another process is taking a release" in refused(place, DeployError)
