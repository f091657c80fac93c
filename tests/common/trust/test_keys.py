"""Private keys: for their owner alone, encrypted if wanted, and of the kind that is needed."""

import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_ssh_private_key,
)

from common.errors import TrustError
from common.trust import keys
from common.trust.keys import PrivateKey


def written(path: Path, data: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(data)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("passphrase", [None, "läng genug"])
def test_each_kind_of_key_comes_back_as_it_was_written(tmp_path: Path, passphrase: str | None) -> None:
    made: list[PrivateKey] = [keys.new_tls_key(), keys.new_node_key(), keys.new_signing_key()]
    for key in made:
        path = written(tmp_path / "a.key", keys.private_pem(key, passphrase))
        found = keys.read_private_key(path, passphrase)
        assert keys.private_pem(found) == keys.private_pem(key)
        assert keys.is_encrypted(path) == (passphrase is not None)


def test_flower_reads_the_node_key_and_so_do_we(tmp_path: Path) -> None:
    key = keys.new_node_key()
    path = written(tmp_path / "node.key", keys.node_key_pem(key))
    theirs = load_ssh_private_key(path.read_bytes(), None)
    assert isinstance(theirs, ec.EllipticCurvePrivateKey)
    assert theirs.public_key() == keys.read_ec_key(path).public_key() == key.public_key()


@pytest.mark.skipif(os.name != "posix", reason="Windows has no bits for group and others")
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601])
def test_a_key_that_others_can_reach_is_refused_with_the_command_that_helps(tmp_path: Path, mode: int) -> None:
    path = written(tmp_path / "tls.key", keys.private_pem(keys.new_tls_key()), mode)
    with pytest.raises(TrustError, match=f"chmod 600 {path}"):
        keys.read_private_key(path)


def test_an_encrypted_key_says_which_variable_to_set(tmp_path: Path) -> None:
    path = written(tmp_path / "tls.key", keys.private_pem(keys.new_tls_key(), "right"))
    with pytest.raises(TrustError, match=r"needs a passphrase; set FEDREPTILE_PASSPHRASE"):
        keys.read_private_key(path)
    with pytest.raises(TrustError, match="cannot be read with the given passphrase"):
        keys.read_private_key(path, "wrong")


def test_a_passphrase_is_no_error_for_a_key_that_needs_none(tmp_path: Path) -> None:
    path = written(tmp_path / "tls.key", keys.private_pem(keys.new_tls_key()))
    assert keys.read_ec_key(path, "not needed")


def test_an_encrypted_rsa_key_in_the_old_form_is_read(tmp_path: Path) -> None:
    key = rsa.generate_private_key(65537, 2048)
    old = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, BestAvailableEncryption(b"secret"))
    path = written(tmp_path / "own.key", old)
    assert keys.read_certificate_key(path, "secret").public_key() == key.public_key()
    assert keys.is_encrypted(path)


@pytest.mark.parametrize("content", [b"", b"no key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_what_is_no_key_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(TrustError, match="is not a private key"):
        keys.read_private_key(written(tmp_path / "a.key", content))


def test_a_missing_and_a_huge_key_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrustError, match="is not there"):
        keys.read_private_key(tmp_path / "none.key")
    with pytest.raises(TrustError, match="more than 65536 bytes"):
        keys.read_private_key(written(tmp_path / "a.key", b"x" * 70_000))


def test_exchanged_key_files_are_noticed(tmp_path: Path) -> None:
    tls = written(tmp_path / "tls.key", keys.private_pem(keys.new_tls_key()))
    signing = written(tmp_path / "signing.key", keys.private_pem(keys.new_signing_key()))
    with pytest.raises(TrustError, match="an Ed25519 key is needed"):
        keys.read_signing_key(tls)
    with pytest.raises(TrustError, match="an EC key is needed"):
        keys.read_ec_key(signing)
    with pytest.raises(TrustError, match="an EC or RSA key is needed"):
        keys.read_certificate_key(signing)


def test_public_keys_come_back_from_their_texts() -> None:
    node, signing = keys.new_node_key().public_key(), keys.new_signing_key().public_key()
    assert keys.node_public_key(keys.openssh_text(node)) == node
    assert keys.hex_of(keys.verify_key(keys.hex_of(signing))) == keys.hex_of(signing)


def test_a_node_key_on_another_curve_is_refused() -> None:
    with pytest.raises(TrustError, match="not an EC key on P-384"):
        keys.node_public_key(keys.openssh_text(keys.new_tls_key().public_key()))


@pytest.mark.parametrize("text", ["", "zz", "AB" * 32, "ab" * 31])
def test_a_signing_key_is_written_in_one_way_only(text: str) -> None:
    with pytest.raises(TrustError, match="public signing key"):
        keys.verify_key(text)


def test_the_passphrase_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FEDREPTILE_PASSPHRASE", "given")
    assert keys.passphrase_from_environment() == keys.passphrase_for(tmp_path) == keys.new_passphrase() == "given"
    monkeypatch.setenv("FEDREPTILE_PASSPHRASE", "")
    assert keys.passphrase_from_environment() is None


def test_without_a_terminal_nobody_is_asked_for_a_passphrase(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FEDREPTILE_PASSPHRASE", raising=False)
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    path = written(tmp_path / "tls.key", keys.private_pem(keys.new_tls_key(), "right"))
    assert keys.passphrase_for(path) is None
    with pytest.raises(TrustError, match="set FEDREPTILE_PASSPHRASE"):
        keys.new_passphrase()


def test_in_a_terminal_it_is_asked_for_only_if_a_key_is_encrypted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("FEDREPTILE_PASSPHRASE", raising=False)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("getpass.getpass", lambda prompt: "typed")
    plain = written(tmp_path / "plain.key", keys.private_pem(keys.new_tls_key()))
    locked = written(tmp_path / "locked.key", keys.private_pem(keys.new_tls_key(), "typed"))
    assert keys.passphrase_for(plain, tmp_path / "none") is None
    assert keys.passphrase_for(plain, locked) == keys.new_passphrase() == "typed"


def test_a_new_passphrase_that_is_mistyped_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDREPTILE_PASSPHRASE", raising=False)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    typed = iter(["one", "two"])
    monkeypatch.setattr("getpass.getpass", lambda prompt: next(typed))
    with pytest.raises(TrustError, match="typed differently"):
        keys.new_passphrase()
