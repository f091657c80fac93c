"""Certificates: made by an authority of one's own, read, and looked at for what will go wrong. Torch-free.

Times are UTC. What is made here is good from one hour ago, so that a site whose clock is a little behind can use it.
"""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common.errors import TrustError
from common.trust.keys import CertificateKey, new_tls_key
from common.trust.names import is_ip

WARN_DAYS = 30
AUTHORITY_DAYS = 3652
BACKDATED = timedelta(hours=1)
MOST_BYTES = 256 * 1024
MOST_CERTIFICATES = 64
"""In one file."""

UNREADABLE = (
    ValueError,
    TypeError,
    NotImplementedError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""What ``cryptography`` raises for a certificate that it cannot read."""

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey
Extension = TypeVar("Extension", bound=x509.ExtensionType)


@dataclass(frozen=True)
class Authority:
    """What signs certificates."""

    certificate: x509.Certificate
    key: CertificateKey


@dataclass(frozen=True)
class Loopback:
    """Files for TLS between the processes of one machine, PEM."""

    ca: bytes
    certificate: bytes
    key: bytes


def new_authority(name: str, now: datetime) -> Authority:
    """Make an authority that signs certificates of sites and servers, but of no further authority; for ten years."""
    key = new_tls_key()
    subject = _named(name)
    builder = _builder(subject, subject, key.public_key(), now, now + timedelta(days=AUTHORITY_DAYS))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(authority=True), critical=True)
    identity = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    builder = builder.add_extension(identity, critical=False)
    # OpenSSL's strict mode wants this one even where subject and issuer are the same.
    builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identity), False)
    return Authority(builder.sign(key, SHA256()), key)


def issue_server(
    authority: Authority, hosts: Sequence[str], key: PublicKey, now: datetime, days: float
) -> x509.Certificate:
    """Sign the certificate of a server that answers under names or IP addresses; the first one is its subject.

    It ends no later than the authority's own.

    Raises:
        TrustError: if the authority has ended.
    """
    known: list[x509.GeneralName] = [
        x509.IPAddress(ipaddress.ip_address(host)) if is_ip(host) else x509.DNSName(host) for host in hosts
    ]
    builder = _leaf(authority, _named(hosts[0]), key, now, days)
    builder = builder.add_extension(x509.SubjectAlternativeName(known), critical=False)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    return builder.sign(authority.key, SHA256())


def issue_site(authority: Authority, name: str, key: PublicKey, now: datetime, days: float) -> x509.Certificate:
    """Sign the certificate by which a site shows who it is; its common name is the site's.

    It ends no later than the authority's own.

    Raises:
        TrustError: if the authority has ended.
    """
    builder = _leaf(authority, _named(name), key, now, days)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
    return builder.sign(authority.key, SHA256())


def signing_request(name: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateSigningRequest:
    """Return a request for a certificate with this common name (PKCS #10)."""
    return x509.CertificateSigningRequestBuilder().subject_name(_named(name)).sign(key, SHA256())


def new_loopback(now: datetime, private_pem: bytes, key: PublicKey) -> Loopback:
    """Certify a key for 127.0.0.1, ::1 and localhost, for ten years, by an authority whose key nobody keeps."""
    authority = new_authority("fedreptile loopback", now)
    certificate = issue_server(authority, ("localhost", "127.0.0.1", "::1"), key, now, AUTHORITY_DAYS)
    return Loopback(as_pem([authority.certificate]), as_pem([certificate]), private_pem)


def as_pem(certificates: Sequence[x509.Certificate]) -> bytes:
    """Return certificates as the text of a file."""
    return b"".join(one.public_bytes(Encoding.PEM) for one in certificates)


def read_certificates(path: Path) -> list[x509.Certificate]:
    """Read the certificates of a PEM file, at least one, in its order.

    Raises:
        TrustError: if it is missing, too large or holds none that can be read.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except FileNotFoundError as error:
        raise TrustError(f"certificate {path} is not there") from error
    except OSError as error:
        raise TrustError(f"certificate {path} cannot be read: {error.strerror or error}") from error
    return parse_certificates(data, str(path))


def parse_certificates(data: bytes, name: str = "the certificate") -> list[x509.Certificate]:
    """Return the certificates in the text of a PEM file, which errors call by a name.

    Raises:
        TrustError: if there is none, more than 64, or one that cannot be read.
    """
    if len(data) > MOST_BYTES:
        raise TrustError(f"{name} has more than {MOST_BYTES // 1024} KiB; it is not a certificate")
    try:
        found = x509.load_pem_x509_certificates(data)
        for one in found:
            one.public_key(), one.extensions, one.subject, one.issuer
    except UNREADABLE as error:
        raise TrustError(f"{name} holds no certificate that can be read (PEM): {error}") from error
    if len(found) > MOST_CERTIFICATES:
        raise TrustError(f"{name} holds {len(found)} certificates; at most {MOST_CERTIFICATES} are read")
    return found


def days_left(path: Path, now: datetime | None = None) -> float:
    """Return the days until the first certificate of a file ends; negative when it has ended.

    Raises:
        TrustError: if the file cannot be read.
    """
    end = read_certificates(path)[0].not_valid_after_utc
    return (end - (now or datetime.now(UTC))) / timedelta(days=1)


def expiry_warning(path: Path, now: datetime | None = None) -> str | None:
    """Return what to say about a certificate that has ended, or ends within 30 days; None if it is good for longer.

    Raises:
        TrustError: if the file cannot be read.
    """
    left, end = days_left(path, now), read_certificates(path)[0].not_valid_after_utc
    if left > WARN_DAYS:
        return None
    if left <= 0:
        return f"certificate {path} expired on {end:%Y-%m-%d}; renew it"
    return f"certificate {path} expires on {end:%Y-%m-%d}, in {left:.0f} day(s); renew it before then"


def common_name(certificate: x509.Certificate | x509.CertificateSigningRequest) -> str:
    """Return the subject's common name; empty unless there is exactly one."""
    found = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if len(found) == 1 else ""


def serial_of(certificate: x509.Certificate) -> str:
    """Return the serial number as the registry has it: hexadecimal, lower case, without leading zeros."""
    return f"{certificate.serial_number:x}"


def same_key(one: x509.Certificate, key: PublicKey) -> bool:
    """Say whether a certificate is for a public key."""
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return one.public_key().public_bytes(*form) == key.public_bytes(*form)


def check_site_certificate(
    certificate: x509.Certificate, name: str, key: PublicKey, authorities: Sequence[x509.Certificate], now: datetime
) -> None:
    """Check that a certificate lets a site in under its name.

    Raises:
        TrustError: if it is for another key or name, was not issued by one of the authorities, is an authority's own,
            is not for clients, or is not good at this time.
    """
    if not same_key(certificate, key):
        raise TrustError(f"the certificate is not for the TLS key of site {name!r}: was it made for another request?")
    if common_name(certificate) != name:
        raise TrustError(
            f"the certificate's common name is {common_name(certificate)!r}; it must be the site's name, {name!r}"
        )
    if is_authority(certificate):
        raise TrustError("the certificate is an authority's; a site's must have basic constraints CA:FALSE, or none")
    if not any(issued_by(certificate, one) for one in authorities):
        raise TrustError("the certificate was not issued by the authority that the federation accepts for its sites")
    uses = _extension(certificate, x509.ExtendedKeyUsage)
    if uses is not None and ExtendedKeyUsageOID.CLIENT_AUTH not in uses:
        raise TrustError("the certificate is not for clients; its extended key usage must have clientAuth")
    check_time(certificate, "the site's certificate", now)


def check_time(certificate: x509.Certificate, what: str, now: datetime) -> None:
    """Raises TrustError if a certificate has expired or is not good yet."""
    if now > certificate.not_valid_after_utc:
        raise TrustError(f"{what} expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC; have it renewed")
    if now < certificate.not_valid_before_utc:
        raise TrustError(
            f"{what} is good only from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC, and here it is "
            f"{now:%Y-%m-%d %H:%M} UTC; set the clock of this machine"
        )


def is_authority(certificate: x509.Certificate) -> bool:
    """Say whether a certificate may sign others."""
    found = _extension(certificate, x509.BasicConstraints)
    return found is not None and found.ca


def issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Say whether an authority's key signed a certificate."""
    if not is_authority(authority):
        return False
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def chain_problem(certificates: Sequence[x509.Certificate]) -> str | None:
    """Return why these are not authorities up to a root of each; None if they are.

    Python's TLS accepts a certificate only if it finds the whole way up to one that signed itself.
    """
    for one in certificates:
        who = one.subject.rfc4514_string()
        if not is_authority(one):
            return f"{who} is no authority's certificate (basic constraints CA:TRUE)"
        if not any(issued_by(one, other) for other in certificates):
            return f"who issued {who} is missing ({one.issuer.rfc4514_string()}): add all up to the root"
    return None


def _extension(certificate: x509.Certificate, kind: type[Extension]) -> Extension | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _leaf(
    authority: Authority, subject: x509.Name, key: PublicKey, now: datetime, days: float
) -> x509.CertificateBuilder:
    check_time(authority.certificate, "the authority's certificate", now)
    end = min(now + timedelta(days=days), authority.certificate.not_valid_after_utc)
    builder = _builder(subject, authority.certificate.subject, key, now, end)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(authority=False), critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    return builder.add_extension(_issuer_identity(authority), critical=False)


def _issuer_identity(authority: Authority) -> x509.AuthorityKeyIdentifier:
    """Return the mark of the authority's key: the one in its certificate, which others may have chosen."""
    known = _extension(authority.certificate, x509.SubjectKeyIdentifier)
    if known is None:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(known)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: PublicKey, now: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(end)
    )


def _named(name: str) -> x509.Name:
    """Return a subject; a common name has at most 64 characters, and a longer host stands in the other names."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])


def _usage(authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )
