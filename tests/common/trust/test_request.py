"""The request: its sender has all three private keys, and nothing in it was exchanged."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from common.errors import TrustError
from common.trust.certificates import signing_request
from common.trust.documents import encoded, signed_bytes
from common.trust.keys import new_node_key, openssh_text
from common.trust.request import FORMAT, Request, SiteKeys, encode_request, read_request
from tests.common.trust.papers import NOW, new_keys

KEYS, THIEF = new_keys(), new_keys()
DATA = encode_request("line-3", KEYS, NOW)


def made(keys: SiteKeys, **changes: Any) -> bytes:
    """Return a request with other entries, signed by these keys."""
    body = {**json.loads(DATA)["body"], **changes}
    text = signed_bytes(FORMAT, body)
    proofs = {
        "tls": keys.tls.sign(text, ec.ECDSA(SHA256())),
        "node": keys.node.sign(text, ec.ECDSA(SHA256())),
        "signing": keys.signing.sign(text),
    }
    return encoded(FORMAT, body, proofs)


def opened(folder: Path, data: bytes) -> Request:
    """Read a request as the operator's command does."""
    (folder / "request.json").write_bytes(data)
    return read_request(folder / "request.json")


def csr(name: str, key: ec.EllipticCurvePrivateKey) -> str:
    return signing_request(name, key).public_bytes(Encoding.PEM).decode()


def test_a_request_comes_back_with_its_public_keys(tmp_path: Path) -> None:
    found = opened(tmp_path, DATA)
    assert (found.name, found.tls_key, found.node_key) == ("line-3", KEYS.tls.public_key(), KEYS.node.public_key())
    assert found.signing_key.public_bytes_raw() == KEYS.signing.public_key().public_bytes_raw()
    assert found.versions.keys() == {"fedreptile", "flwr", "python"}
    assert len(found.fingerprint) == 39


def test_it_holds_no_private_key() -> None:
    assert b"PRIVATE" not in DATA
    for key in (KEYS.tls, KEYS.node):
        assert f"{key.private_numbers().private_value:x}".encode() not in DATA
    assert KEYS.signing.private_bytes_raw().hex().encode() not in DATA


def test_every_changed_byte_is_refused(tmp_path: Path) -> None:
    draw = random.Random(0)
    for position in range(len(DATA)):
        data = bytearray(DATA)
        data[position] ^= 1 << draw.randrange(8)
        with pytest.raises(TrustError):
            opened(tmp_path, bytes(data))


@pytest.mark.parametrize("stolen", ["tls", "node", "signing"])
def test_who_lacks_one_private_key_is_refused(tmp_path: Path, stolen: str) -> None:
    """A thief puts someone else's public key beside his own two, and signs with what he has."""
    theirs = replace(THIEF, **{stolen: getattr(KEYS, stolen)})
    changes = {
        "csr": csr("line-3", theirs.tls),
        "node_key": openssh_text(theirs.node.public_key()),
        "signing_key": theirs.signing.public_key().public_bytes_raw().hex(),
    }
    assert opened(tmp_path, made(theirs, **changes))
    with pytest.raises(TrustError, match=f"the signature by its {stolen} key is wrong"):
        opened(tmp_path, made(THIEF, **changes))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"name": "../line-3"}, "site's name"),
        ({"name": "line-4"}, "its certificate request for 'line-3'"),
        ({"csr": "none"}, "cannot be read"),
        ({"csr": csr("line-3", new_node_key())}, "not an EC key on P-256"),
        ({"node_key": openssh_text(KEYS.tls.public_key())}, "not an EC key on P-384"),
        ({"node_key": "ssh-rsa"}, "OpenSSH"),
        ({"signing_key": ""}, "signing key"),
        ({"created": "\x1b[31m"}, "control characters"),
        ({"versions": []}, "must be of type dict"),
        ({"created": "\udc00"}, "cannot be used"),
        ({"more": ""}, "'more'"),
    ],
)
def test_what_a_request_may_not_say_is_refused_even_signed(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    with pytest.raises(TrustError, match=reason):
        opened(tmp_path, made(KEYS, **change))


def test_a_name_that_no_site_may_have_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(TrustError, match="site's name"):
        encode_request("a b", KEYS, NOW)


def test_a_huge_request_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrustError, match="256 KiB"):
        opened(tmp_path, b" " * 300_000)


def test_requests_of_different_sites_have_different_fingerprints(tmp_path: Path) -> None:
    other = encode_request("line-3", THIEF, NOW)
    assert opened(tmp_path, DATA).fingerprint != opened(tmp_path, other).fingerprint
