"""Certificates: what an authority issues, what TLS makes of it, and what is refused or warned of."""

import random
import ssl
from base64 import b64encode
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from common.errors import TrustError
from common.trust.certificates import (
    Authority,
    as_pem,
    chain_problem,
    check_site_certificate,
    days_left,
    expiry_warning,
    is_authority,
    issue_server,
    issue_site,
    issued_by,
    new_authority,
    new_loopback,
    parse_certificates,
    read_certificates,
)
from common.trust.keys import new_tls_key, private_pem

NOW = datetime.now(UTC)
KEY = new_tls_key()


@pytest.fixture(scope="module")
def authority() -> Authority:
    return new_authority("lines", NOW)


def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext, host: str) -> str:
    """Return the name in the client's certificate that the server saw."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    left = client.wrap_bio(back, there, server_hostname=host)
    right = server.wrap_bio(there, back, server_side=True)
    for _ in range(4):
        for end in (left, right):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    found = right.getpeercert() or {}
    return dict(pair[0] for pair in found["subject"])["commonName"] if found else ""  # type: ignore[misc, unused-ignore]


@pytest.mark.parametrize("host", ["fed.example.org", "10.1.2.3", "::1", "a" * 60 + ".example.org"])
def test_both_ends_accept_what_the_authority_issued_also_in_strict_mode(
    tmp_path: Path, authority: Authority, host: str
) -> None:
    for name, one in (
        ("server", issue_server(authority, [host], KEY.public_key(), NOW, 1)),
        ("site", issue_site(authority, "line-3", KEY.public_key(), NOW, 1)),
    ):
        (tmp_path / name).write_bytes(as_pem([one]) + private_pem(KEY))
    (tmp_path / "ca").write_bytes(as_pem([authority.certificate]))
    server, client = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    for context, own in ((server, "server"), (client, "site")):
        context.load_verify_locations(tmp_path / "ca")
        context.load_cert_chain(tmp_path / own)
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_X509_STRICT
    assert shake_hands(server, client, host) == "line-3"
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        shake_hands(server, client, "other.example.org")


def test_a_site_cannot_pose_as_the_server_with_its_certificate(tmp_path: Path, authority: Authority) -> None:
    site = issue_site(authority, "fed.example.org", KEY.public_key(), NOW, 1)
    (tmp_path / "site").write_bytes(as_pem([site]) + private_pem(KEY))
    (tmp_path / "ca").write_bytes(as_pem([authority.certificate]))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "site")
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(server, ssl.create_default_context(cafile=str(tmp_path / "ca")), "fed.example.org")


def test_the_authority_signs_no_further_authority_and_lasts_ten_years(authority: Authority) -> None:
    basic = authority.certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    usage = authority.certificate.extensions.get_extension_for_class(x509.KeyUsage)
    assert basic.critical and basic.value.ca and basic.value.path_length == 0
    assert usage.critical and usage.value.key_cert_sign and not usage.value.digital_signature
    assert authority.certificate.not_valid_after_utc - NOW > timedelta(days=3650)


def test_no_certificate_outlives_its_authority(authority: Authority) -> None:
    made = issue_site(authority, "line-3", KEY.public_key(), NOW + timedelta(days=3600), 365)
    assert made.not_valid_after_utc == authority.certificate.not_valid_after_utc
    with pytest.raises(TrustError, match="authority's certificate expired"):
        issue_site(authority, "line-3", KEY.public_key(), NOW + timedelta(days=4000), 365)


def test_loopback_files_are_for_this_machine_alone(tmp_path: Path) -> None:
    made = new_loopback(NOW, private_pem(KEY), KEY.public_key())
    (tmp_path / "pair").write_bytes(made.certificate + made.key)
    (tmp_path / "ca").write_bytes(made.ca)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "pair")
    client = ssl.create_default_context(cafile=str(tmp_path / "ca"))
    for host in ("127.0.0.1", "localhost", "::1"):
        shake_hands(server, client, host)
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(server, client, "127.0.0.2")


def test_a_good_site_certificate_passes(authority: Authority) -> None:
    made = issue_site(authority, "line-3", KEY.public_key(), NOW, 1)
    check_site_certificate(made, "line-3", KEY.public_key(), [authority.certificate], NOW)


def test_site_certificates_that_would_not_work_are_refused_with_the_reason(authority: Authority) -> None:
    foreign, public = new_authority("lines", NOW), KEY.public_key()
    made = issue_site(authority, "line-3", public, NOW, 1)
    for certificate, name, now, reason in (
        (issue_site(authority, "line-3", new_tls_key().public_key(), NOW, 1), "line-3", NOW, "not for the TLS key"),
        (made, "line-4", NOW, "common name is 'line-3'"),
        (issue_site(foreign, "line-3", public, NOW, 1), "line-3", NOW, "not issued by the authority"),
        (issue_server(authority, ["line-3"], public, NOW, 1), "line-3", NOW, "clientAuth"),
        (made, "line-3", NOW + timedelta(days=2), "expired on"),
        (made, "line-3", NOW - timedelta(hours=2), "set the clock"),
    ):
        with pytest.raises(TrustError, match=reason):
            check_site_certificate(certificate, name, public, [authority.certificate], now)
    own = new_authority("line-3", NOW)
    with pytest.raises(TrustError, match="is an authority's"):
        check_site_certificate(own.certificate, "line-3", own.key.public_key(), [own.certificate], NOW)  # type: ignore[arg-type, unused-ignore]


def test_a_site_certificate_signs_no_other(authority: Authority) -> None:
    site = issue_site(authority, "line-3", KEY.public_key(), NOW, 1)
    below = issue_site(Authority(site, KEY), "line-4", KEY.public_key(), NOW, 1)
    assert not is_authority(site) and not issued_by(below, site)


def test_a_chain_without_its_root_is_named(authority: Authority) -> None:
    root = new_authority("root", NOW)
    key = new_tls_key()
    below = new_authority("below", NOW)
    middle = (
        x509.CertificateBuilder()
        .subject_name(below.certificate.subject)
        .issuer_name(root.certificate.subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=1))
        .add_extension(x509.BasicConstraints(True, None), critical=True)
        .sign(root.key, authority.certificate.signature_hash_algorithm)  # type: ignore[arg-type, unused-ignore]
    )
    assert chain_problem([middle, root.certificate]) is None
    assert "CN=root" in (chain_problem([middle]) or "")
    assert "no authority" in (chain_problem([issue_site(root, "a", key.public_key(), NOW, 1)]) or "")


def test_warnings_begin_thirty_days_before_the_end(tmp_path: Path, authority: Authority) -> None:
    path = tmp_path / "tls.crt"
    path.write_bytes(as_pem([issue_site(authority, "line-3", KEY.public_key(), NOW, 100), authority.certificate]))
    assert days_left(path, NOW) == pytest.approx(100, abs=0.01)
    assert expiry_warning(path, NOW + timedelta(days=69)) is None
    assert "in 29 day(s)" in (expiry_warning(path, NOW + timedelta(days=71)) or "")
    assert "expired on" in (expiry_warning(path, NOW + timedelta(days=101)) or "")
    assert days_left(path, NOW + timedelta(days=101)) < 0


@pytest.mark.parametrize("content", [b"", b"junk", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_what_is_no_certificate_is_refused(content: bytes) -> None:
    with pytest.raises(TrustError, match="holds no certificate"):
        parse_certificates(content)


def test_too_many_or_too_large_certificates_are_refused(tmp_path: Path, authority: Authority) -> None:
    with pytest.raises(TrustError, match="65 certificates"):
        parse_certificates(as_pem([authority.certificate]) * 65)
    (tmp_path / "big").write_bytes(b"x" * 300_000)
    with pytest.raises(TrustError, match="256 KiB"):
        read_certificates(tmp_path / "big")
    with pytest.raises(TrustError, match="is not there"):
        read_certificates(tmp_path / "none")


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
def test_damaged_certificates_raise_nothing_but_our_own_error(authority: Authority) -> None:
    draw, good = random.Random(1), issue_site(authority, "line-3", KEY.public_key(), NOW, 1).public_bytes(Encoding.DER)
    for _ in range(2000):
        data = bytearray(good)
        data[draw.randrange(len(data))] = draw.randrange(256)
        pem = f"-----BEGIN CERTIFICATE-----\n{b64encode(data).decode()}\n-----END CERTIFICATE-----\n"
        try:
            found = parse_certificates(pem.encode())[0]
            check_site_certificate(found, "line-3", KEY.public_key(), [authority.certificate], NOW)
            assert bytes(data) == good
        except TrustError:
            assert bytes(data) != good
