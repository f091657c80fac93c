"""The kit: what an operator returns to a site that he approved. It holds no secret.

It is signed by the federation's signing key, which stands in it: so a changed byte is noticed at every reading, and
whose kit it is a person decides once, by the fingerprint. Torch-free.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from platform import python_version
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding

from common.errors import TrustError
from common.settings import Value
from common.trust.certificates import parse_certificates
from common.trust.documents import (
    MOST_BYTES,
    Document,
    check_keys,
    encoded,
    entry,
    grouped,
    parse_document,
    read_document,
    signed_bytes,
    text_table,
    texts,
)
from common.trust.keys import hex_of, verify_key
from common.trust.names import checked_name, split_address

FORMAT = "fedreptile-kit-1"
SIGNER = "federation"
KEYS = frozenset(
    {
        "federation",
        "site",
        "address",
        "roots_pem",
        "authority_pem",
        "certificate_pem",
        "server_signing_key",
        "fabs",
        "settings",
        "versions",
        "issued",
        "expires",
    }
)

ROOT = "releases_root"
"""A key that kits of a federation without releases do not have."""


@dataclass(frozen=True)
class Kit:
    federation: str
    site: str
    """The name under which the site was approved."""
    address: str
    """What the site dials: host:port."""
    roots_pem: str
    """Certificates by which the site knows the server."""
    authority_pem: str
    """Certificates of the authority that issued the site's own."""
    certificate_pem: str
    """The site's own certificate."""
    server_signing_key: str
    """Ed25519 public key of the federation, raw bytes in hexadecimal."""
    fabs: tuple[str, ...]
    """SHA-256 of the app bundles that the server means to run, in hexadecimal."""
    settings: Mapping[str, Value]
    """The settings to agree to, 'section.key' -> value."""
    versions: Mapping[str, str]
    """The server's: fedreptile, flwr, python."""
    issued: str
    """ISO 8601, UTC."""
    expires: str
    """When the site's certificate ends: ISO 8601, UTC."""
    releases_root: str = ""
    """The root of the federation's releases, as TUF's root.json; empty: it makes none."""

    @property
    def server_key(self) -> Ed25519PublicKey:
        """What verifies the server's seals."""
        return verify_key(self.server_signing_key)


def read_kit(path: Path) -> Kit:
    """Read a kit and verify its signature. Whether its certificate has expired is not looked at.

    Raises:
        TrustError: if it is missing, larger than 256 KiB, damaged, changed by one byte, or names what cannot be.
    """
    return _opened(read_document(path, "kit", FORMAT, [SIGNER]), f"kit {path}")


def parse_kit(data: bytes, name: str) -> Kit:
    """Read a kit from its bytes, which errors call by a name. Raises TrustError like ``read_kit``."""
    return _opened(parse_document(data, name, FORMAT, [SIGNER]), name)


def encode_kit(kit: Kit, key: Ed25519PrivateKey) -> bytes:
    """Return the file of a kit, signed. Raises TrustError if the kit names another key, or would be too large."""
    if hex_of(key.public_key()) != kit.server_signing_key:
        raise TrustError("the kit names another signing key than the one that is to sign it")
    body = {**vars(kit), "fabs": list(kit.fabs), "settings": dict(kit.settings), "versions": dict(kit.versions)}
    if not kit.releases_root:
        del body[ROOT]
    data = encoded(FORMAT, body, {SIGNER: key.sign(signed_bytes(FORMAT, body))})
    if len(data) > MOST_BYTES:
        raise TrustError(
            f"the kit would have {len(data)} bytes and may have {MOST_BYTES}; "
            "leave certificates that nobody needs out of chain.crt and authority.crt"
        )
    return data


def fingerprint(kit: Kit) -> str:
    """Return what tells this federation from all others, for people to compare: eight groups of four digits."""
    return fingerprint_of(kit.roots_pem, kit.authority_pem, kit.server_signing_key)


def fingerprint_of(roots_pem: str, authority_pem: str, server_signing_key: str) -> str:
    """Return the fingerprint of a federation with these roots, this authority and this signing key.

    The order of certificates and what stands between them in a file do not matter.
    """
    digest = hashlib.sha256(b"fedreptile-federation-1")
    for pem in (roots_pem, authority_pem):
        found = {hashlib.sha256(one.public_bytes(Encoding.DER)).digest() for one in parse_certificates(pem.encode())}
        digest.update(len(found).to_bytes(4, "big") + b"".join(sorted(found)))
    digest.update(bytes.fromhex(server_signing_key))
    return grouped(digest.hexdigest())


def root_version(text: str) -> int:
    """Return the version of the root of releases that stands in a kit. Raises TrustError if it is no root."""
    try:
        signed = json.loads(text)["signed"]
        if signed["_type"] != "root" or type(signed["version"]) is not int:
            raise ValueError("it is another file")
        return int(signed["version"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise TrustError(f"the kit's root of releases cannot be read: {error}; ask for the kit again") from error


def own_versions() -> dict[str, str]:
    """Return the versions of this machine that both ends compare: fedreptile, flwr, python."""
    found = {"python": python_version()}
    for package in ("fedreptile", "flwr"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "unknown"
    return found


def check_printable(values: Mapping[str, Any], name: str) -> None:
    """Raises TrustError if a text of a table could steer a terminal, or is longer than 4000 characters."""
    for key, value in values.items():
        if not key.isprintable() or len(key) > 200 or not str(value).isprintable() or len(str(value)) > 4000:
            raise TrustError(f"{name}: {key[:80]!r} or its value is too long or holds control characters")


def _opened(document: Document, name: str) -> Kit:
    body = document.body
    check_keys(body, KEYS | ({ROOT} & body.keys()), name)
    try:
        verify_key(entry(body, "server_signing_key", str, name)).verify(document.signatures[SIGNER], document.signed)
    except InvalidSignature as error:
        raise TrustError(
            f"{name} was changed after the operator signed it, or was not signed by him; ask for it again"
        ) from error
    kit = Kit(
        **{key: entry(body, key, str, name) for key in body.keys() - {"fabs", "settings", "versions"}},
        fabs=texts(body, "fabs", name),
        settings=_settings(body, name),
        versions=text_table(body, "versions", name),
    )
    _check(kit, name)
    return kit


def _settings(body: Mapping[str, Any], name: str) -> dict[str, Value]:
    values: dict[str, Value] = entry(body, "settings", dict, name)
    for key, value in values.items():
        if type(value) not in (bool, int, float, str):
            raise TrustError(f"{name}: setting {key[:80]!r} is a {type(value).__name__}; it must be a value")
    return dict(values)


def _check(kit: Kit, name: str) -> None:
    checked_name(kit.federation, "federation")
    checked_name(kit.site)
    split_address(kit.address)
    check_printable(kit.settings, name)
    check_printable(kit.versions, name)
    for pem in (kit.roots_pem, kit.authority_pem, kit.certificate_pem):
        parse_certificates(pem.encode(), name)
    if kit.releases_root:
        root_version(kit.releases_root)
    for fab in kit.fabs:
        if len(fab) != 64 or fab.strip("0123456789abcdef"):
            raise TrustError(f"{name}: {fab[:80]!r} is not the SHA-256 of an app bundle")
    for when in (kit.issued, kit.expires):
        try:
            known = datetime.fromisoformat(when).utcoffset() == datetime.now(UTC).utcoffset()
        except ValueError:
            known = False
        if not known:
            raise TrustError(f"{name}: {when[:80]!r} is not a time in UTC such as 2026-01-31T12:00:00+00:00")
