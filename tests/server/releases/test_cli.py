"""``fedreptile-server release``, as an operator types it."""

import json
from datetime import timedelta
from pathlib import Path

import pytest

from common.checkpoint import NAME, write_checkpoint
from common.errors import CheckpointError, ReleaseError, TrustError
from common.releases.artefact import decode
from common.releases.delta import apply_delta
from server.enrolment.federation import Wanted, make_federation
from server.home import FederationHome
from server.releases.cli import app
from server.releases.publishing import content
from server.releases.repository import Repository
from server.service import up
from tests.commands import commands_of
from tests.common.releases.small import artefact
from tests.server.releases.made import NOW, releases_in

show, refused = commands_of(app)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FederationHome:
    made = releases_in(tmp_path)
    monkeypatch.setenv("FEDREPTILE_FEDERATION", str(made.path))
    return made


def run_in(folder: Path, seed: int) -> Path:
    """Write the folder of a run that came to some params."""
    folder.mkdir()
    checkpoint = artefact(seed, model__width=100).checkpoint()
    write_checkpoint(folder / NAME, checkpoint.state, checkpoint.settings)
    return folder


def test_a_release_from_a_run_to_all_sites_and_back(home: FederationHome, tmp_path: Path) -> None:
    shown = show("publish", run_in(tmp_path / "one", 1), "--note", "the first")
    assert "release 1 is published" in shown
    assert "NO GATE HAS JUDGED IT" in shown
    assert "north: release 1" in show("promote", 1, "--canary", "north")
    assert "tried at north" in show("list")
    assert "all sites: release 1" in show("promote", 1)
    shown = show("publish", run_in(tmp_path / "two", 2), "--delta", "int8")
    assert "rounding to int8 loses" in shown
    assert "nobody has measured" in shown
    show("promote", 2)
    assert "its sites are given 3, the content of 1" in show("withdraw", 2, "--reason", "worse")
    rows = json.loads(show("list", "--json"))
    assert [(row["number"], row["state"], row["parent"]) for row in rows] == [
        (1, "replaced", None),
        (2, "withdrawn", 1),
        (3, "all", 1),
    ]
    one = json.loads(show("show", 2, "--json"))
    assert 0 < one["card"]["delta"]["rounding"] < 0.05
    assert [event["what"] for event in one["events"]] == ["published", "promoted", "withdrawn"]
    assert "worse" in show("show", 2)


def test_what_is_published_with_a_difference_is_what_the_difference_gives(home: FederationHome, tmp_path: Path) -> None:
    show("publish", run_in(tmp_path / "one", 1))
    shown = show("publish", run_in(tmp_path / "two", 2), "--delta", "bf16")
    assert "rounding to bf16 loses" in shown
    digest = Repository(home).digest_of("release-2-from-1.bf16.delta")
    delta = (home.repository / "targets" / f"{digest}.release-2-from-1.bf16.delta").read_bytes()
    assert apply_delta(content(home, 1), delta, "x") == content(home, 2)
    assert decode(content(home, 2), "x").settings.model.width == 100


def test_the_first_release_has_nothing_to_differ_from(home: FederationHome, tmp_path: Path) -> None:
    assert "no parent to differ from" in refused("publish", run_in(tmp_path / "one", 1), "--delta", "int8")
    show("publish", tmp_path / "one")
    assert "cannot be of kind" in refused("publish", tmp_path / "one", "--delta", "int4")
    with pytest.raises(ReleaseError):
        show("show", 2)
    with pytest.raises(CheckpointError):
        show("publish", tmp_path / "nothing")


def test_keys_are_rotated_and_renewed_with_the_roots_key_from_elsewhere(home: FederationHome, tmp_path: Path) -> None:
    away = tmp_path / "stick.key"
    (home.releases / "keys" / "root.key").rename(away)
    assert "bring it from where it is kept" in refused("rotate-key", "timestamp")
    assert "the timestamp has a new key" in show("rotate-key", "timestamp", "--root-key", away)
    before = Repository(home).ends("root")
    assert "the root was not renewed" in show("renew")
    assert Repository(home).ends("root") == before
    assert "root: good until" in show("renew", "--root-key", away)
    assert "no role 'mirror'" in refused("rotate-key", "mirror", "--root-key", away)


def test_a_federation_that_was_made_without_releases_gets_them(tmp_path: Path) -> None:
    made = FederationHome(tmp_path / "fed")
    make_federation(made, Wanted("lines", "localhost:1", "localhost:1"), None, NOW)
    assert "is there already" in refused("init", "--home", made.path)
    made.releases.rename(tmp_path / "away")
    assert "release init" in refused("list", "--home", made.path)
    shown = show("init", "--home", made.path)
    assert "root.key" in shown
    assert json.loads(show("list", "--json", "--home", made.path)) == []


def test_keys_can_have_a_passphrase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDREPTILE_PASSPHRASE", "secret")
    made = FederationHome(tmp_path / "fed")
    make_federation(made, Wanted("lines", "localhost:1", "localhost:1"), "secret", NOW)
    show("renew", "--home", made.path)
    show("rotate-key", "snapshot", "--home", made.path)
    assert (made.releases / "keys" / "snapshot.key").read_bytes().startswith(b"-----BEGIN ENCRYPTED")
    monkeypatch.setenv("FEDREPTILE_PASSPHRASE", "other")
    with pytest.raises(TrustError, match="cannot be read with the given passphrase"):
        show("renew", "--home", made.path)


def test_the_servers_process_keeps_the_timestamp_fresh(tmp_path: Path) -> None:
    made = FederationHome(tmp_path / "fed")
    make_federation(made, Wanted("lines", "localhost:1", "localhost:1"), None, NOW - timedelta(days=3))
    assert Repository(made).ends("timestamp") < NOW
    up.look_after(made, made.config(), None)  # type: ignore[arg-type]
    assert Repository(made).ends("timestamp") > NOW
