"""``enrol new`` and ``renew-server``: a federation from nothing, or with certificates of the operator's own."""

import os
import stat
from datetime import timedelta
from pathlib import Path

import pytest

from common.errors import FedreptileError, SettingsError, TrustError
from common.settings import Settings, flatten
from common.trust.certificates import (
    Authority,
    common_name,
    days_left,
    issue_server,
    issue_site,
    new_authority,
    parse_certificates,
    read_certificates,
    same_key,
    serial_of,
)
from common.trust.keys import new_tls_key, read_private_key
from server.enrolment.cli import app
from server.enrolment.federation import Wanted, agreed_settings, make_federation, read_authority, try_server
from server.home import FederationHome
from tests.commands import commands_of
from tests.server.enrolment.pki import NOW, authority, write_key, write_pem

show, refused = commands_of(app)
HOST = "fed.example.org"


def new(folder: Path, *words: object) -> FederationHome:
    show("new", folder, "--name", "lines", "--address", f"{HOST}:8443", *words)
    return FederationHome(folder)


def test_a_federation_has_all_that_a_server_needs(tmp_path: Path) -> None:
    home = new(tmp_path / "fed", "--listen", "0.0.0.0:9443")
    assert (home.config().name, home.config().address, home.config().listen) == (
        "lines",
        f"{HOST}:8443",
        "0.0.0.0:9443",
    )
    try_server(home, HOST, None)
    assert common_name(read_authority(home, None).certificate) == "lines"
    assert days_left(home.tls_certificate) == pytest.approx(365, abs=1)
    assert agreed_settings(home)["inner.steps"] == Settings().inner.steps
    assert (home.loopback / "tls.key").exists()
    keys = [*home.path.rglob("*.key")]
    assert len(keys) == 8
    if os.name == "posix":
        assert {stat.S_IMODE(path.stat().st_mode) for path in keys} == {0o600}


def test_with_a_passphrase_all_keys_but_loopback_are_encrypted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDREPTILE_PASSPHRASE", "secret")
    home = new(tmp_path / "fed", "--passphrase")
    for path in (home.tls_key, home.authority_key, home.signing_key, *(home.releases / "keys").iterdir()):
        assert path.read_bytes().startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")
        assert read_private_key(path, "secret")
    show("fingerprint", "--home", home.path)
    monkeypatch.setenv("FEDREPTILE_PASSPHRASE", "wrong")
    assert "cannot be read with the given passphrase" in refused("fingerprint", "--home", home.path)


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    home = new(tmp_path / "fed")
    before = home.authority_key.read_bytes()
    assert "is there already" in refused("new", home.path, "--name", "other", "--address", f"{HOST}:1")
    assert home.authority_key.read_bytes() == before


def test_the_settings_of_a_file_are_agreed_to_but_not_the_servers_own_folders(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("[inner]\nsteps = 7\n[run]\ndir = '/srv/secret-place'\n")
    home = new(tmp_path / "fed", "--settings", tmp_path / "mine.toml")
    agreed = agreed_settings(home)
    assert agreed["inner.steps"] == 7
    assert agreed.keys() == flatten(Settings()).keys() - {"run.dir", "data.sites"}


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--name", "a/b", "--address", "h:1"], "federation's name"),
        (["--name", "a", "--address", "h"], "host:port"),
        (["--name", "a", "--address", "h:1", "--listen", "8443"], "host:port"),
        (["--name", "a", "--address", "h:1", "--key", "k"], "give all three"),
        (["--name", "a", "--address", "h:1", "--authority-key", "k"], "give both"),
        (["--name", "a", "--address", "h:1", "--settings", "none.toml"], "cannot be read"),
        (["--name", "a", "--address", "h:1", "--authority-certificate", "none.crt"], "is not there"),
    ],
)
def test_after_a_mistake_nothing_is_left(tmp_path: Path, words: list[str], reason: str) -> None:
    assert reason in refused("new", tmp_path / "fed", *words)
    assert not list(tmp_path.iterdir())


def test_wrong_settings_are_refused_with_the_key(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("[inner]\nstepz = 7\n")
    with pytest.raises(SettingsError, match="stepz"):
        make_federation(FederationHome(tmp_path / "fed"), Wanted("a", "h:1", "h:1", tmp_path / "mine.toml"), None, NOW)
    assert not (tmp_path / "fed").exists()


def own_server(tmp_path: Path, host: str = HOST) -> list[object]:
    """Write a root, what is between, and a server's certificate and key; return the options that name them."""
    root = authority("corporate root")
    middle = authority("corporate issuing", root)
    key = new_tls_key()
    certificate = issue_server(middle, [host], key.public_key(), NOW, 30)
    write_pem(tmp_path / "own.crt", certificate, middle.certificate)
    write_pem(tmp_path / "root.crt", root.certificate)
    write_key(tmp_path / "own.key", key)
    return ["--certificate", tmp_path / "own.crt", "--key", tmp_path / "own.key", "--chain", tmp_path / "root.crt"]


def test_a_server_certificate_of_the_operators_own_is_used(tmp_path: Path) -> None:
    home = new(tmp_path / "fed", *own_server(tmp_path))
    assert len(read_certificates(home.tls_certificate)) == 2
    assert common_name(read_certificates(home.chain)[0]) == "corporate root"
    assert common_name(read_authority(home, None).certificate) == "lines"
    assert "was not issued by this federation's own authority" in refused("renew-server", "--home", home.path)


def test_one_that_sites_would_refuse_is_refused_now(tmp_path: Path) -> None:
    options = own_server(tmp_path, "other.example.org")
    assert "Hostname mismatch" in str(_error(tmp_path, options))
    options = own_server(tmp_path)
    write_pem(tmp_path / "own.crt", read_certificates(tmp_path / "own.crt")[0])
    assert "unable to get local issuer certificate" in str(_error(tmp_path, options))
    options = own_server(tmp_path)
    write_pem(tmp_path / "root.crt", authority("corporate root").certificate)
    assert "sites would refuse" in str(_error(tmp_path, options))
    options = own_server(tmp_path)
    write_key(tmp_path / "own.key", new_tls_key())
    assert "is not the key of the first certificate" in str(_error(tmp_path, options))
    options = own_server(tmp_path)
    write_pem(tmp_path / "root.crt", read_certificates(tmp_path / "own.crt")[0])
    assert "is no authority" in str(_error(tmp_path, options))
    assert not (tmp_path / "fed").exists()


def _error(tmp_path: Path, options: list[object]) -> FedreptileError:
    with pytest.raises(TrustError) as raised:
        new(tmp_path / "fed", *options)
    return raised.value


def test_an_authority_of_the_operators_own_signs_server_and_sites(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = authority("corporate root")
    middle = authority("for sites", root)
    write_pem(tmp_path / "sites.crt", middle.certificate, root.certificate)
    write_key(tmp_path / "sites.key", middle.key, "secret")
    options = ["--authority-certificate", tmp_path / "sites.crt", "--authority-key", tmp_path / "sites.key"]
    assert "needs a passphrase" in str(_error(tmp_path, options))
    monkeypatch.setenv("FEDREPTILE_PASSPHRASE", "secret")
    home = new(tmp_path / "fed", *options)
    made = read_authority(home, "secret")
    assert common_name(made.certificate) == "for sites"
    assert read_certificates(home.tls_certificate)[0].issuer == middle.certificate.subject


def test_an_authority_whose_key_is_elsewhere_needs_a_server_certificate_too(tmp_path: Path) -> None:
    own = new_authority("for sites", NOW)
    write_pem(tmp_path / "sites.crt", own.certificate)
    options = ["--authority-certificate", tmp_path / "sites.crt"]
    assert "give it with --certificate" in str(_error(tmp_path, list(options)))
    home = new(tmp_path / "fed", *options, *own_server(tmp_path))
    assert not home.authority_key.exists()
    with pytest.raises(TrustError, match="issued elsewhere"):
        read_authority(home, None)


def test_an_authority_without_its_root_or_expired_is_refused(tmp_path: Path) -> None:
    write_pem(tmp_path / "sites.crt", authority("for sites", authority("corporate root")).certificate)
    assert "add all up to the root" in str(_error(tmp_path, ["--authority-certificate", tmp_path / "sites.crt"]))
    write_pem(tmp_path / "sites.crt", new_authority("old", NOW - timedelta(days=4000)).certificate)
    assert "expired on" in str(_error(tmp_path, ["--authority-certificate", tmp_path / "sites.crt"]))


def test_a_key_of_another_authority_is_refused(tmp_path: Path) -> None:
    write_pem(tmp_path / "sites.crt", new_authority("a", NOW).certificate)
    write_key(tmp_path / "sites.key", new_tls_key())
    options = ["--authority-certificate", tmp_path / "sites.crt", "--authority-key", tmp_path / "sites.key"]
    assert "is not the key of the first certificate" in str(_error(tmp_path, list(options)))


def test_a_renewed_server_certificate_is_for_the_same_key_and_name(tmp_path: Path) -> None:
    home = new(tmp_path / "fed")
    before, fingerprint = read_certificates(home.tls_certificate)[0], show("fingerprint", "--home", home.path)
    show("renew-server", "--home", home.path)
    after = read_certificates(home.tls_certificate)[0]
    assert serial_of(after) != serial_of(before) and after.subject == before.subject
    assert same_key(after, parse_certificates(home.tls_certificate.read_bytes())[0].public_key())  # type: ignore[arg-type]
    assert same_key(before, after.public_key())  # type: ignore[arg-type]
    try_server(home, HOST, None)
    assert show("fingerprint", "--home", home.path) == fingerprint


def test_commands_say_where_a_federation_is_missing(tmp_path: Path) -> None:
    for words in (["list"], ["fingerprint"], ["renew-server"]):
        assert "is not there" in refused(*words, "--home", tmp_path / "none")


def test_the_authority_of_another_folder_is_noticed(tmp_path: Path) -> None:
    one, other = new(tmp_path / "one"), new(tmp_path / "other")
    one.authority_key.write_bytes(other.authority_key.read_bytes())
    with pytest.raises(TrustError, match="is not the key of the first certificate"):
        read_authority(one, None)


def test_certificates_of_sites_are_no_servers(tmp_path: Path) -> None:
    home = new(tmp_path / "fed")
    made = read_authority(home, None)
    site = issue_site(Authority(made.certificate, made.key), HOST, new_tls_key().public_key(), NOW, 1)
    write_pem(home.tls_certificate, site)
    with pytest.raises(TrustError, match="sites would refuse"):
        try_server(home, HOST, None)
