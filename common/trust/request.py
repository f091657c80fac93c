"""The request: what a site sends to its operator to be let in. It holds public keys and no secret.

Each of the three keys signs the whole body, the other two public keys and the name with it: who sends it has all three
private keys, and none of them can be put into a request of someone else. Torch-free.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from common.errors import TrustError
from common.trust.certificates import UNREADABLE, common_name, signing_request
from common.trust.documents import (
    Document,
    check_keys,
    encoded,
    entry,
    grouped,
    read_document,
    signed_bytes,
    text_table,
)
from common.trust.keys import hex_of, node_public_key, openssh_text, verify_key
from common.trust.kit import check_printable, own_versions
from common.trust.names import checked_name

FORMAT = "fedreptile-request-1"
KEYS = frozenset({"name", "csr", "node_key", "signing_key", "versions", "created"})
SIGNERS = ("node", "signing", "tls")


@dataclass(frozen=True)
class SiteKeys:
    """A site's three private keys."""

    tls: ec.EllipticCurvePrivateKey
    node: ec.EllipticCurvePrivateKey
    signing: Ed25519PrivateKey


@dataclass(frozen=True)
class Request:
    """A request whose three signatures are right."""

    name: str
    csr: x509.CertificateSigningRequest
    tls_key: ec.EllipticCurvePublicKey
    node_key: ec.EllipticCurvePublicKey
    signing_key: Ed25519PublicKey
    versions: Mapping[str, str]
    """The site's: fedreptile, flwr, python."""
    created: str
    """ISO 8601, UTC."""
    fingerprint: str
    """What tells this request from all others, for people to compare: eight groups of four digits."""


def encode_request(name: str, keys: SiteKeys, now: datetime) -> bytes:
    """Return the file of a request, signed by each of the three keys.

    Raises:
        TrustError: if the name is not one that a site may have.
    """
    body = {
        "name": checked_name(name),
        "csr": signing_request(name, keys.tls).public_bytes(Encoding.PEM).decode(),
        "node_key": openssh_text(keys.node.public_key()),
        "signing_key": hex_of(keys.signing.public_key()),
        "versions": own_versions(),
        "created": now.isoformat(timespec="seconds"),
    }
    text = signed_bytes(FORMAT, body)
    proofs = {
        "tls": keys.tls.sign(text, ec.ECDSA(SHA256())),
        "node": keys.node.sign(text, ec.ECDSA(SHA256())),
        "signing": keys.signing.sign(text),
    }
    return encoded(FORMAT, body, proofs)


def read_request(path: Path) -> Request:
    """Read a request and verify that its sender has all three private keys.

    Raises:
        TrustError: if it is missing, larger than 256 KiB, damaged or changed, if its name is not allowed, a key of
            another kind than needed, or a signature wrong.
    """
    return _opened(read_document(path, "request", FORMAT, SIGNERS), f"request {path}")


def _opened(document: Document, name: str) -> Request:
    body = document.body
    check_keys(body, KEYS, name)
    site = checked_name(entry(body, "name", str, name))
    versions, created = text_table(body, "versions", name), entry(body, "created", str, name)
    check_printable({**versions, "created": created}, name)
    csr = _certificate_request(entry(body, "csr", str, name), site, name)
    request = Request(
        name=site,
        csr=csr,
        tls_key=_tls_key(csr, name),
        node_key=node_public_key(entry(body, "node_key", str, name)),
        signing_key=verify_key(entry(body, "signing_key", str, name)),
        versions=versions,
        created=created,
        fingerprint=grouped(hashlib.sha256(document.signed).hexdigest()),
    )
    _verify(request, document, name)
    return request


def _certificate_request(pem: str, site: str, name: str) -> x509.CertificateSigningRequest:
    try:
        csr = x509.load_pem_x509_csr(pem.encode())
        good, _, asked = csr.is_signature_valid, csr.public_key(), common_name(csr)
    except UNREADABLE as error:
        raise TrustError(f"{name}: its certificate request cannot be read: {error}") from error
    if not good:
        raise TrustError(f"{name}: its certificate request is not signed by its own key")
    if asked != site:
        raise TrustError(f"{name}: it is for site {site!r}, but its certificate request for {asked[:80]!r}")
    return csr


def _tls_key(csr: x509.CertificateSigningRequest, name: str) -> ec.EllipticCurvePublicKey:
    key = csr.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise TrustError(f"{name}: its TLS key is not an EC key on P-256")
    return key


def _verify(request: Request, document: Document, name: str) -> None:
    for who, key in (("tls", request.tls_key), ("node", request.node_key), ("signing", request.signing_key)):
        signature = document.signatures[who]
        try:
            if isinstance(key, Ed25519PublicKey):
                key.verify(signature, document.signed)
            else:
                key.verify(signature, document.signed, ec.ECDSA(SHA256()))
        except InvalidSignature as error:
            raise TrustError(
                f"{name}: the signature by its {who} key is wrong, so it was changed, or its sender has not the "
                "private key; have the site send its own request.json again"
            ) from error
