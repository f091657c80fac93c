"""``join``: from nothing to a site with a kit, and a renewal, against a federation of the operator's commands."""

import os
import stat
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from client.enrolment.cli import join
from client.enrolment.joining import new_tls_key_of, take_kit
from client.home import SiteHome
from common.errors import CheckpointError, TrustError
from common.paths import write_atomically
from common.trust.certificates import read_certificates, same_key
from common.trust.keys import new_signing_key, node_key_pem, read_ec_key, read_signing_key
from common.trust.kit import fingerprint, read_kit
from common.trust.request import SiteKeys, read_request
from server.enrolment.cli import app as operator
from server.enrolment.federation import read_authority
from server.home import FederationHome
from tests.commands import commands_of
from tests.common.trust.papers import new_keys, new_kit

site = typer.Typer()
site.command()(join)
show, refused = commands_of(site)
operate, _ = commands_of(operator)

NOW = datetime.now(UTC)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a federation, 'fed', and data; it is the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEDREPTILE_PASSPHRASE", raising=False)
    (tmp_path / "data").mkdir()
    operate("new", "fed", "--name", "lines", "--address", "fed.example.org:8443")
    return tmp_path


def begun(place: Path, name: str = "line-3") -> SiteHome:
    show("--home", place / name, "--name", name, "--data", place / "data")
    return SiteHome(place / name)


def approved(home: SiteHome, *words: object) -> Path:
    """Have the operator approve a site's request; return the kit."""
    operate("approve", home.request_file, "--home", "fed", "--yes", "--out", f"{home.path}.kit", *words)
    return Path(f"{home.path}.kit")


def known(kit: Path) -> list[object]:
    return ["--kit", kit, "--fingerprint", fingerprint(read_kit(kit))]


def joined(place: Path, name: str = "line-3") -> SiteHome:
    home = begun(place, name)
    show("--home", home.path, *known(approved(home)))
    return home


def keys_of(home: SiteHome) -> SiteKeys:
    """Return keys of which the TLS key is the site's."""
    return replace(new_keys(), tls=read_ec_key(home.tls_key))


def everything(home: SiteHome) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in home.path.rglob("*") if path.is_file()}


def test_step_one_makes_keys_and_a_request_and_says_what_to_do(place: Path) -> None:
    said = show("--home", "line-3", "--name", "line-3", "--data", "data", "--device", "cuda:1")
    home = SiteHome(place / "line-3")
    assert (home.config().name, home.config().data, home.config().device) == ("line-3", str(place / "data"), "cuda:1")
    request = read_request(home.request_file)
    assert request.fingerprint in said and "send" in said
    assert request.tls_key == read_ec_key(home.tls_key).public_key()
    assert request.node_key == read_ec_key(home.node_key).public_key()
    assert {path.name for path in home.loopback.iterdir()} == {"ca.crt", "tls.crt", "tls.key"}
    assert home.node_key.read_bytes().startswith(b"-----BEGIN OPENSSH PRIVATE KEY-----")
    if os.name == "posix":
        assert {stat.S_IMODE(path.stat().st_mode) for path in home.path.rglob("*.key")} == {0o600}


def test_step_two_takes_the_kit(place: Path) -> None:
    home = begun(place)
    kit = approved(home)
    said = show("--home", home.path, *known(kit))
    for word in ("lines", "fed.example.org:8443", read_kit(kit).fabs[0], fingerprint(read_kit(kit)), "365 day"):
        assert word in said
    assert home.kit_file.read_bytes() == kit.read_bytes()
    certificate = read_certificates(home.tls_certificate)[0]
    assert same_key(certificate, read_ec_key(home.tls_key).public_key())
    assert read_kit(kit).fabs[0] in home.policy_file.read_text()


def test_settings_that_differ_from_the_defaults_are_shown(place: Path) -> None:
    (place / "fed" / "settings.toml").write_text("[inner]\nsteps = 77\n")
    home = begun(place)
    said = show("--home", home.path, *known(approved(home)))
    assert "inner.steps" in said and "77" in said and "inner.batch-size" not in said


def test_no_private_key_leaves_the_folder(place: Path) -> None:
    home = begun(place)
    sent, returned = home.request_file.read_bytes(), approved(home).read_bytes()
    for path in home.path.rglob("*.key"):
        for line in path.read_bytes().splitlines()[1:-1]:
            assert line not in sent + returned
    for text in (sent, returned):
        assert b"PRIVATE" not in text


def test_running_it_again_says_what_is_there_and_changes_nothing(place: Path) -> None:
    home = begun(place)
    before = everything(home)
    said = show("--home", home.path, "--name", "line-3")
    assert "waits for a kit" in said and read_request(home.request_file).fingerprint in said
    assert "another --home" in refused("--home", home.path, "--name", "line-4")
    assert str(place / "data") in show("--home", home.path, "--name", "line-3", "--data", "elsewhere")
    assert everything(home) == before
    show("--home", home.path, *known(approved(home)))
    assert "certificate is good until" in show("--home", home.path)


def test_step_one_refuses_what_cannot_be(place: Path) -> None:
    for words, reason in (
        (["--name", "../x", "--data", "data"], "site's name"),
        (["--name", "x", "--data", "none"], "is not there"),
        (["--name", "x", "--data", "data", "--device", "gpu"], "--device 'gpu'"),
        (["--name", "x"], "give --name and --data"),
        ([], "give --name and --data"),
        (["--renew"], "is not there"),
        (["--kit", "x.json"], "is not there"),
        (["--kit", "x.json", "--renew"], "steps of their own"),
    ):
        assert reason in refused("--home", "line-3", *words)
    assert not Path("line-3").exists()


def test_with_a_passphrase_the_keys_are_encrypted_and_taking_the_kit_needs_it(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDREPTILE_PASSPHRASE", "secret")
    show("--home", "line-3", "--name", "line-3", "--data", "data", "--passphrase")
    home = SiteHome(place / "line-3")
    for path in (home.tls_key, home.node_key, home.signing_key):
        assert path.read_bytes().startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")
    assert node_key_pem(read_ec_key(home.node_key, "secret")).startswith(b"-----BEGIN OPENSSH")
    assert read_signing_key(home.signing_key, "secret")
    monkeypatch.delenv("FEDREPTILE_PASSPHRASE")
    kit = approved(home)
    assert "needs a passphrase" in refused("--home", home.path, *known(kit))
    monkeypatch.setenv("FEDREPTILE_PASSPHRASE", "secret")
    show("--home", home.path, *known(kit))


def test_without_the_fingerprint_or_a_yes_the_kit_is_not_taken(place: Path) -> None:
    home = begun(place)
    kit = approved(home)
    before = everything(home)
    wrong = "0000-" * 7 + "0000"
    assert "is not taken" in refused("--home", home.path, "--kit", kit, "--fingerprint", wrong)
    shortened = fingerprint(read_kit(kit))[:9]
    assert "is not taken" in refused("--home", home.path, "--kit", kit, "--fingerprint", shortened)
    words = ["--home", str(home.path), "--kit", str(kit)]
    for typed in ("n\n", "\n", ""):
        assert CliRunner().invoke(site, words, input=typed).exit_code == 1
    assert everything(home) == before
    assert CliRunner().invoke(site, words, input="y\n").exit_code == 0
    assert home.kit_file.exists()


def test_a_kit_with_one_byte_changed_is_refused(place: Path) -> None:
    home = begun(place)
    kit = approved(home)
    words = known(kit)
    kit.write_bytes(kit.read_bytes().replace(b"fed.example.org", b"bad.example.org"))
    assert "was changed" in refused("--home", home.path, *words)
    assert not home.kit_file.exists()


def test_the_kit_of_another_site_or_request_is_refused(place: Path) -> None:
    one, two = begun(place, "line-1"), begun(place, "line-2")
    assert "is for site 'line-2'" in refused("--home", one.path, *known(approved(two)))
    kit = approved(one)
    home = SiteHome(place / "again" / "line-1")
    show("--home", home.path, "--name", "line-1", "--data", "data")
    assert "earlier request" in refused("--home", home.path, *known(kit))


def test_a_kit_that_was_forged_by_another_federation_has_another_fingerprint(place: Path) -> None:
    home = begun(place)
    good = approved(home)
    Path("forged.json").write_bytes(new_kit(keys_of(home), new_signing_key())[1])
    assert "is not taken" in refused("--home", home.path, "--kit", "forged.json", *known(good)[2:])
    show("--home", home.path, *known(good))
    words = ["--home", str(home.path), "--kit", "forged.json"]
    said = CliRunner(env={"COLUMNS": "200"}).invoke(site, words, input="n\n")
    assert said.exit_code == 1


def test_certificates_that_do_not_fit_are_refused(place: Path) -> None:
    home = begun(place)
    _, good = new_kit(keys_of(home), new_signing_key())
    _, foreign = new_kit(keys_of(home), new_signing_key(), authority_pem=Path("fed/authority.crt").read_text())
    for data, now, reason in (
        (foreign, NOW, "not issued by the authority"),
        (good, NOW + timedelta(days=91), "expired on"),
        (good, NOW - timedelta(hours=3), "set the clock"),
    ):
        with pytest.raises(TrustError, match=reason):
            take_kit(home, data, None, now)
    assert not home.kit_file.exists() and not home.policy_file.exists()


def test_renewal_swaps_key_and_certificate_and_nothing_else(place: Path) -> None:
    home = joined(place)
    old_key, old_certificate = home.tls_key.read_bytes(), home.tls_certificate.read_bytes()
    home.policy_file.write_text(home.policy_file.read_text() + "\n# ours\n")
    kept = {path: path.read_bytes() for path in (home.node_key, home.signing_key, home.policy_file, home.config_file)}
    show("--home", home.path, "--renew")
    waiting = new_tls_key_of(home).read_bytes()
    assert (home.tls_key.read_bytes(), home.tls_certificate.read_bytes()) == (old_key, old_certificate)
    show("--home", home.path, "--renew")
    assert new_tls_key_of(home).read_bytes() == waiting
    assert "waits for a kit" in show("--home", home.path)

    kit = approved(home, "--days", "400")
    show("--home", home.path, "--kit", kit)  # of the federation that is known: nothing is asked
    assert home.tls_key.read_bytes() == waiting and not new_tls_key_of(home).exists()
    assert same_key(read_certificates(home.tls_certificate)[0], read_ec_key(home.tls_key).public_key())
    assert {path: path.read_bytes() for path in kept} == kept
    assert "400 day" in show("--home", home.path, "--kit", kit)


def test_a_renewal_that_was_cut_off_is_made_good_by_the_same_kit(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = joined(place)
    show("--home", home.path, "--renew")
    kit = approved(home)

    def failing(path: Path, data: bytes, mode: int = 0o666) -> None:
        if path == home.tls_certificate:
            raise CheckpointError("the disk is full")
        write_atomically(path, data, mode)

    monkeypatch.setattr("client.enrolment.joining.write_atomically", failing)
    assert "disk is full" in refused("--home", home.path, "--kit", kit)
    assert not same_key(read_certificates(home.tls_certificate)[0], read_ec_key(home.tls_key).public_key())
    monkeypatch.undo()
    monkeypatch.chdir(place)
    show("--home", home.path, "--kit", kit)
    assert same_key(read_certificates(home.tls_certificate)[0], read_ec_key(home.tls_key).public_key())


def test_an_older_kit_does_not_replace_a_newer_one(place: Path) -> None:
    home = joined(place)
    old = home.kit_file.read_bytes()
    signer = read_signing_key(Path("fed/keys/signing.key"))
    own = read_authority(FederationHome(place / "fed"), None)
    newer = (datetime.now(UTC) + timedelta(hours=1)).isoformat(timespec="seconds")
    take_kit(home, new_kit(keys_of(home), signer, own, issued=newer)[1], None, datetime.now(UTC))
    with pytest.raises(TrustError, match="keep that"):
        take_kit(home, old, None, datetime.now(UTC))


def test_new_code_in_a_kit_is_named_and_the_policy_left_to_the_site(place: Path) -> None:
    home = joined(place)
    policy = home.policy_file.read_bytes()
    signer, own = read_signing_key(Path("fed/keys/signing.key")), read_authority(FederationHome(place / "fed"), None)
    later = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=5)
    Path("next.json").write_bytes(new_kit(keys_of(home), signer, own, fabs=("cd" * 32,), issued=later.isoformat())[1])
    said = show("--home", home.path, "--kit", "next.json")
    assert "cd" * 32 in said and "code.fabs" in said and "inner.steps" in said
    assert home.policy_file.read_bytes() == policy


def test_other_versions_at_the_server_are_named(place: Path) -> None:
    home = begun(place)
    kit, data = new_kit(keys_of(home), new_signing_key(), versions={"fedreptile": "9.9.9"})
    Path("kit.json").write_bytes(data)
    said = show("--home", home.path, "--kit", "kit.json", "--fingerprint", fingerprint(kit))
    assert "9.9.9 at the server" in said
