"""``enrol approve | revoke | list``: who is let in, on what proof, and who is put out."""

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import get_type_hints

import pytest
from cryptography import x509
from typer.testing import CliRunner

from common.paths import write_atomically
from common.trust.certificates import (
    Authority,
    common_name,
    issue_server,
    issue_site,
    new_authority,
    parse_certificates,
    serial_of,
)
from common.trust.keys import header_of, hex_of, new_tls_key
from common.trust.kit import fingerprint, read_kit
from common.trust.request import SiteKeys, encode_request, read_request
from server.enrolment.bundle import fab_of_installation
from server.enrolment.cli import app
from server.enrolment.federation import read_authority
from server.enrolment.registry import read_registry
from server.home import FederationHome
from tests.commands import commands_of
from tests.common.trust.papers import new_keys
from tests.server.enrolment.pki import write_pem

show, refused = commands_of(app)
NOW = datetime.now(UTC)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FederationHome:
    monkeypatch.chdir(tmp_path)
    show("new", tmp_path / "fed", "--name", "lines", "--address", "fed.example.org:8443")
    return FederationHome(tmp_path / "fed")


def ask(tmp_path: Path, keys: SiteKeys, name: str = "line-3") -> Path:
    path = tmp_path / "request.json"
    write_atomically(path, encode_request(name, keys, NOW))
    return path


def test_an_approved_site_gets_a_kit_for_its_own_keys(home: FederationHome, tmp_path: Path) -> None:
    keys = new_keys()
    request = ask(tmp_path, keys)
    said = show("approve", request, "--home", home.path, "--yes", "--label", "north", "--label", "x-ray")
    assert read_request(request).fingerprint in said and "a new site" in said
    assert "'fedreptile-server up' will register its node" in said
    kit = read_kit(tmp_path / "line-3-kit.json")
    certificate = parse_certificates(kit.certificate_pem.encode())[0]
    site = read_registry(home.registry_file).sites["line-3"]
    assert (site.node_key, site.signing_key) == (header_of(keys.node.public_key()), hex_of(keys.signing.public_key()))
    assert (site.serials, site.labels, site.node_id) == ((serial_of(certificate),), ("north", "x-ray"), 0)
    assert common_name(certificate) == "line-3" and certificate.public_key() == keys.tls.public_key()
    assert kit.fabs == (fab_of_installation()[1],)
    assert fingerprint(kit) in show("fingerprint", "--home", home.path)


def test_the_kit_holds_no_secret(home: FederationHome, tmp_path: Path) -> None:
    keys = new_keys()
    show("approve", ask(tmp_path, keys), "--home", home.path, "--yes")
    text = (tmp_path / "line-3-kit.json").read_bytes()
    assert b"PRIVATE" not in text and str(home.path).encode() not in text
    for path in home.path.rglob("*.key"):
        for line in path.read_bytes().splitlines()[1:-1]:
            assert line not in text
    assert keys.signing.private_bytes_raw().hex().encode() not in text


def test_without_a_yes_nothing_changes(home: FederationHome, tmp_path: Path) -> None:
    words = ["approve", str(ask(tmp_path, new_keys())), "--home", str(home.path)]
    for typed in ("n\n", ""):
        assert CliRunner().invoke(app, words, input=typed).exit_code == 1
    assert not read_registry(home.registry_file).sites and not (tmp_path / "line-3-kit.json").exists()
    assert CliRunner().invoke(app, words, input="y\n").exit_code == 0
    assert read_registry(home.registry_file).sites


def test_a_renewed_site_keeps_its_earlier_certificate_until_it_ends(home: FederationHome, tmp_path: Path) -> None:
    keys = new_keys()
    show("approve", ask(tmp_path, keys), "--home", home.path, "--yes", "--label", "north")
    renewed = SiteKeys(new_tls_key(), keys.node, keys.signing)
    said = show("approve", ask(tmp_path, renewed), "--home", home.path, "--yes", "--days", "500", "--out", "new.json")
    assert "renewal of its certificate" in said
    site = read_registry(home.registry_file).sites["line-3"]
    assert len(site.serials) == 2 and site.labels == ("north",)
    assert datetime.fromisoformat(site.expires) > NOW + timedelta(days=499)
    kit = read_kit(tmp_path / "new.json")
    assert parse_certificates(kit.certificate_pem.encode())[0].public_key() == renewed.tls.public_key()


def test_a_name_that_is_taken_and_keys_that_are_taken_are_refused(home: FederationHome, tmp_path: Path) -> None:
    keys = new_keys()
    show("approve", ask(tmp_path, keys), "--home", home.path, "--yes")
    before = home.registry_file.read_bytes()
    for taken, name, reason in (
        (new_keys(), "line-3", "enrolled with other keys"),
        (SiteKeys(keys.tls, keys.node, new_keys().signing), "line-3", "enrolled with other keys"),
        (new_keys(), "LINE-3", "only in letter case"),
        (SiteKeys(new_tls_key(), keys.node, new_keys().signing), "line-4", "is that of site 'line-3'"),
        (SiteKeys(new_tls_key(), new_keys().node, keys.signing), "line-4", "is that of site 'line-3'"),
    ):
        assert reason in refused("approve", ask(tmp_path, taken, name), "--home", home.path, "--yes")
    assert home.registry_file.read_bytes() == before


def test_a_changed_request_is_refused_before_anything_is_asked(home: FederationHome, tmp_path: Path) -> None:
    path = ask(tmp_path, new_keys())
    path.write_bytes(path.read_bytes().replace(b"line-3", b"line-4"))
    assert "line-4" in refused("approve", path, "--home", home.path)
    assert "is not there" in refused("approve", tmp_path / "none.json", "--home", home.path)


def test_a_revoked_site_is_out_at_once_and_its_keys_for_ever(home: FederationHome, tmp_path: Path) -> None:
    keys = new_keys()
    show("approve", ask(tmp_path, keys), "--home", home.path, "--yes")
    serial = read_registry(home.registry_file).sites["line-3"].serials[0]
    assert "enrolled are: line-3" in refused("revoke", "line-9", "--home", home.path, "--reason", "x")
    assert "control characters" in refused("revoke", "line-3", "--home", home.path, "--reason", "a\x1bb")
    show("revoke", "line-3", "--home", home.path, "--reason", "laptop stolen")
    registry = read_registry(home.registry_file)
    assert not registry.sites
    assert registry.revoked[serial].endswith("line-3: laptop stolen")
    said = show("list", "--home", home.path)
    assert serial in said and "laptop stolen" in said
    for again in (keys, SiteKeys(new_tls_key(), keys.node, new_keys().signing)):
        for name in ("line-3", "line-4"):
            reason = refused("approve", ask(tmp_path, again, name), "--home", home.path, "--yes")
            assert "revoked site 'line-3'" in reason
    show("approve", ask(tmp_path, new_keys()), "--home", home.path, "--yes")
    assert serial not in read_registry(home.registry_file).sites["line-3"].serials


def test_the_list_shows_what_ends_soon(home: FederationHome, tmp_path: Path) -> None:
    for name, days in (("line-1", 20), ("line-2", 200)):
        show("approve", ask(tmp_path, new_keys(), name), "--home", home.path, "--yes", "--days", days)
    rows = {line.split()[1]: line for line in show("list", "--home", home.path).splitlines() if "line-" in line}
    assert " 20 " in rows["line-1"] and " 200 " in rows["line-2"] and "not registered" in rows["line-1"]


def elsewhere(home: FederationHome, tmp_path: Path, keys: SiteKeys, name: str = "line-3") -> Path:
    """Issue a certificate as the operator's own tools would: from the 'csr' in the request's file."""
    csr = x509.load_pem_x509_csr(json.loads(ask(tmp_path, keys, name).read_text())["body"]["csr"].encode())
    key = csr.public_key()
    assert key == keys.tls.public_key()
    made = issue_site(read_authority(home, None), common_name(csr), keys.tls.public_key(), NOW, 30)
    home.authority_key.unlink()
    return write_pem(tmp_path / "site.crt", made)


def test_a_certificate_issued_elsewhere_is_taken(home: FederationHome, tmp_path: Path) -> None:
    keys = new_keys()
    path = elsewhere(home, tmp_path, keys)
    assert "issued elsewhere" in refused("approve", ask(tmp_path, keys), "--home", home.path, "--yes")
    show("approve", ask(tmp_path, keys), "--home", home.path, "--yes", "--certificate", path)
    kit = read_kit(tmp_path / "line-3-kit.json")
    assert kit.certificate_pem.encode() == path.read_bytes()
    assert datetime.fromisoformat(kit.expires) < NOW + timedelta(days=31)


def test_one_that_would_not_let_the_site_in_is_refused(home: FederationHome, tmp_path: Path) -> None:
    keys, own = new_keys(), read_authority(home, None)
    public = keys.tls.public_key()
    foreign: Authority = new_authority("lines", NOW)
    for made, reason in (
        (issue_site(foreign, "line-3", public, NOW, 1), "not issued by the authority"),
        (issue_site(own, "line-4", public, NOW, 1), "common name is 'line-4'"),
        (issue_site(own, "line-3", new_tls_key().public_key(), NOW, 1), "not for the TLS key"),
        (issue_server(own, ["line-3"], public, NOW, 1), "clientAuth"),
        (issue_site(own, "line-3", public, NOW - timedelta(minutes=30), 0.01), "expired on"),
    ):
        words = ["--home", home.path, "--yes", "--certificate", write_pem(tmp_path / "site.crt", made)]
        assert reason in refused("approve", ask(tmp_path, keys), *words)
    assert not read_registry(home.registry_file).sites


def test_a_revoked_certificate_is_not_taken_again(home: FederationHome, tmp_path: Path) -> None:
    keys = new_keys()
    path = elsewhere(home, tmp_path, keys)
    show("approve", ask(tmp_path, keys), "--home", home.path, "--yes", "--certificate", path)
    show("revoke", "line-3", "--home", home.path, "--reason", "moved")
    fresh = SiteKeys(keys.tls, new_keys().node, new_keys().signing)
    words = ["--home", home.path, "--yes", "--certificate", path]
    assert "is revoked; have a new one issued" in refused("approve", ask(tmp_path, fresh), *words)


def test_a_key_that_others_can_read_stops_an_approval(home: FederationHome, tmp_path: Path) -> None:
    home.signing_key.chmod(0o644)
    assert "chmod 600" in refused("approve", ask(tmp_path, new_keys()), "--home", home.path, "--yes")
    assert not read_registry(home.registry_file).sites


def test_labels_are_names(home: FederationHome, tmp_path: Path) -> None:
    words = ["--home", home.path, "--yes", "--label", "a b"]
    assert "label's name" in refused("approve", ask(tmp_path, new_keys()), *words)


@pytest.mark.parametrize(
    ("command", "texts"),
    [
        ("approve", ["otherwise $FEDREPTILE_FEDERATION, otherwise ./federation", "otherwise NAME-kit.json"]),
        ("list", ["otherwise $FEDREPTILE_FEDERATION, otherwise ./federation"]),
    ],
)
def test_the_help_says_what_is_taken_when_nothing_is_given(command: str, texts: list[str]) -> None:
    shown = " ".join(re.sub("[│╭╮╰╯─]", " ", show(command, "--help")).split())
    assert [text for text in texts if text in shown] == texts


def test_no_help_loses_words_in_square_brackets() -> None:
    """What looks like markup of rich is not shown."""
    parts = [app.info.help or ""]
    for command in app.registered_commands:
        assert command.callback is not None
        hints = get_type_hints(command.callback, include_extras=True).values()
        parts += [command.callback.__doc__ or ""]
        parts += [option.help or "" for hint in hints for option in getattr(hint, "__metadata__", ())]
    assert len(parts) > 20 and not [part for part in parts if re.search(r"\[[a-z]", part)]
