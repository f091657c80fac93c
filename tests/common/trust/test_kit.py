"""The kit: signed, readable, without secrets, and refused if one byte differs."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from common.errors import TrustError
from common.trust.certificates import as_pem, new_authority
from common.trust.documents import encoded, grouped, same_fingerprint, signed_bytes
from common.trust.keys import new_signing_key
from common.trust.kit import FORMAT, encode_kit, fingerprint, fingerprint_of, parse_kit, read_kit, root_version
from tests.common.trust.papers import NOW, new_keys, new_kit

SITE, SIGNER = new_keys(), new_signing_key()
KIT, DATA = new_kit(SITE, SIGNER)


def signed(body: dict[str, Any]) -> bytes:
    """Return a body as a kit's file, rightly signed whatever it says."""
    return encoded(FORMAT, body, {"federation": SIGNER.sign(signed_bytes(FORMAT, body))})


def changed(**changes: Any) -> bytes:
    return signed({**json.loads(DATA)["body"], **changes})


def test_a_kit_comes_back_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "kit.json").write_bytes(DATA)
    assert read_kit(tmp_path / "kit.json") == KIT
    assert KIT.server_key.public_bytes_raw().hex() == KIT.server_signing_key


def test_every_changed_byte_is_refused() -> None:
    """Every byte is changed once, in one bit that chance chooses."""
    draw = random.Random(0)
    for position in range(len(DATA)):
        data = bytearray(DATA)
        data[position] ^= 1 << draw.randrange(8)
        with pytest.raises(TrustError):
            parse_kit(bytes(data), "kit")


@pytest.mark.parametrize(
    "data",
    [
        DATA + b" ",
        b" " + DATA,
        DATA[:-1],
        DATA.replace(b"\n", b"\r\n"),
        DATA.replace(b'"body"', b'"body": {}, "body"', 1),
        b"\xef\xbb\xbf" + DATA,
        b"",
        b"null",
        b"[" * 100_000,
        b"{}",
    ],
)
def test_other_bytes_that_say_the_same_or_nothing_are_refused(data: bytes) -> None:
    with pytest.raises(TrustError, match="cannot be used"):
        parse_kit(data, "kit")


def test_a_kit_signed_by_another_key_is_refused() -> None:
    body = json.loads(DATA)["body"]
    forged = encoded(FORMAT, body, {"federation": new_signing_key().sign(signed_bytes(FORMAT, body))})
    with pytest.raises(TrustError, match="not signed by him"):
        parse_kit(forged, "kit")
    with pytest.raises(TrustError, match="names another signing key"):
        encode_kit(KIT, new_signing_key())


def test_a_signature_for_another_kind_of_document_does_not_count() -> None:
    body = json.loads(DATA)["body"]
    forged = encoded(FORMAT, body, {"federation": SIGNER.sign(signed_bytes("fedreptile-request-1", body))})
    with pytest.raises(TrustError, match="not signed by him"):
        parse_kit(forged, "kit")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"site": "../etc"}, "site's name"),
        ({"federation": "a/b"}, "federation's name"),
        ({"address": "fed.example.org"}, "host:port"),
        ({"fabs": ["zz"]}, "app bundle"),
        ({"fabs": "ab" * 32}, "must be of type list"),
        ({"fabs": [1]}, "list of texts"),
        ({"settings": {"inner.steps": None}}, "must be a value"),
        ({"settings": {"data.sites": "\x1b[2J"}}, "control characters"),
        ({"versions": {"flwr": "1\r2"}}, "control characters"),
        ({"versions": {"flwr": 1}}, "table of texts"),
        ({"expires": "tomorrow"}, "not a time in UTC"),
        ({"issued": "2026-01-01T00:00:00"}, "not a time in UTC"),
        ({"certificate_pem": "none"}, "holds no certificate"),
        ({"server_signing_key": "00"}, "signing key"),
        ({"extra": 1}, "'extra'"),
        ({"address": 7}, "must be of type str"),
    ],
)
def test_what_a_kit_may_not_say_is_refused_even_signed(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(TrustError, match=reason):
        parse_kit(changed(**change), "kit")


def test_a_kit_without_an_entry_is_refused() -> None:
    body = json.loads(DATA)["body"]
    del body["fabs"]
    with pytest.raises(TrustError, match="'fabs' is missing"):
        parse_kit(signed(body), "kit")


def test_a_kit_larger_than_256_kib_is_neither_read_nor_written(tmp_path: Path) -> None:
    (tmp_path / "kit.json").write_bytes(DATA + b" " * 300_000)
    with pytest.raises(TrustError, match="256 KiB"):
        read_kit(tmp_path / "kit.json")
    with pytest.raises(TrustError, match="would have"):
        new_kit(SITE, SIGNER, roots_pem=KIT.roots_pem * 500)


def test_a_missing_kit_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrustError, match="is not there"):
        read_kit(tmp_path / "kit.json")


def test_the_fingerprint_changes_with_root_authority_and_signing_key_and_with_nothing_else() -> None:
    other = as_pem([new_authority("lines", NOW).certificate]).decode()
    pem, key = KIT.roots_pem, KIT.server_signing_key
    assert fingerprint(KIT) == fingerprint_of(pem, pem, key) == fingerprint_of(f"a note\n{pem}\n{pem}", pem, key)
    changed = [fingerprint_of(other, pem, key), fingerprint_of(pem, other, key), fingerprint_of(pem, pem, "00" * 32)]
    assert len({fingerprint(KIT), *changed}) == 4
    assert fingerprint_of(pem, f"{pem}{other}", key) != fingerprint_of(f"{pem}{other}", pem, key)


def test_fingerprints_are_compared_as_people_type_them() -> None:
    shown = grouped("0123456789abcdef" * 4)
    assert shown == "0123-4567-89AB-CDEF-0123-4567-89AB-CDEF"
    assert same_fingerprint(shown, "0123 4567 89ab cdef 01234567:89ab:cdef ")
    assert not same_fingerprint(shown, shown[:-1])
    assert not same_fingerprint(shown[:4], shown[:4])
    assert not same_fingerprint("", "")


def test_no_floating_point_number_is_lost() -> None:
    kit, data = new_kit(SITE, SIGNER, settings={"a.b": 1e-05, "a.c": 0.1 + 0.2, "a.d": 1e300, "a.e": 3, "a.f": 3.0})
    found = parse_kit(data, "kit").settings
    assert found == kit.settings and type(found["a.e"]) is int and type(found["a.f"]) is float


def test_a_kit_brings_the_root_of_releases_and_one_without_is_as_before() -> None:
    signer = new_signing_key()
    root = '{"signed":{"_type":"root","version":3}}'
    _, data = new_kit(new_keys(), signer, releases_root=root)
    assert parse_kit(data, "kit").releases_root == root
    assert root_version(root) == 3
    _, plain = new_kit(new_keys(), signer)
    assert parse_kit(plain, "kit").releases_root == ""
    assert b"releases_root" not in plain


@pytest.mark.parametrize("root", ["x", "[]", "{}", '{"signed":{"_type":"targets","version":3}}', '{"signed":7}'])
def test_a_kit_with_a_root_that_is_none_is_refused(root: str) -> None:
    _, data = new_kit(new_keys(), new_signing_key(), releases_root=root)
    with pytest.raises(TrustError, match="root of releases cannot be read"):
        parse_kit(data, "kit")
