"""Private keys: made, written for their owner's eyes alone, and read.

Each end has keys of three kinds. TLS and authority: EC P-256. Flower's node key: EC P-384. Signing: Ed25519. A private
key never leaves the machine on which it was made. With a passphrase a file is an encrypted PKCS8 PEM; without one the
node key is an OpenSSH PEM, as Flower reads it, and the others are PKCS8 PEM. Torch-free.
"""

import getpass
import os
import stat
import sys
from base64 import b64encode
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
    load_ssh_public_key,
)

from common.errors import TrustError

VARIABLE = "FEDREPTILE_PASSPHRASE"
"""Environment variable that holds the passphrase of the private keys."""
MOST_BYTES = 64 * 1024
"""No key file is larger."""

CertificateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
"""Of a server or an authority: EC where it is made here, RSA too where it is the operator's own."""
PrivateKey = CertificateKey | Ed25519PrivateKey

ENCRYPTED = b"-----BEGIN ENCRYPTED PRIVATE KEY-----"
ENCRYPTED_OF_OLD = b"\nProc-Type: 4,ENCRYPTED"
OPENSSH = b"-----BEGIN OPENSSH PRIVATE KEY-----"


def new_tls_key() -> ec.EllipticCurvePrivateKey:
    """Return a new key for TLS or for an authority."""
    return ec.generate_private_key(ec.SECP256R1())


def new_node_key() -> ec.EllipticCurvePrivateKey:
    """Return a new key by which Flower's SuperLink knows a SuperNode."""
    return ec.generate_private_key(ec.SECP384R1())


def new_signing_key() -> Ed25519PrivateKey:
    """Return a new key for seals and kits."""
    return Ed25519PrivateKey.generate()


def private_pem(key: PrivateKey, passphrase: str | None = None) -> bytes:
    """Return a private key as the text of its file: PKCS8 PEM, encrypted if there is a passphrase."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, _encryption(passphrase))


def node_key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a node key as Flower reads it: an OpenSSH PEM, never encrypted."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())


def read_private_key(path: Path, passphrase: str | None = None) -> PrivateKey:
    """Read a private key of either format.

    On POSIX the file must be readable for its owner alone. Windows has no such bits: there the folder's own access
    list decides, which nothing here looks at.

    Raises:
        TrustError: if the file is missing, open to others, not a key of a kind that is used here, or encrypted with
            another passphrase than the one given.
    """
    data = _read_owned(path)
    try:
        key = _load(data, passphrase)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        if _locked(data):
            cause = "needs a passphrase" if passphrase is None else "cannot be read with the given passphrase"
            raise TrustError(f"private key {path} {cause}; set {VARIABLE} to its passphrase") from error
        raise TrustError(
            f"{path} is not a private key that can be read: {error}; a PEM file of an EC, RSA or Ed25519 key is "
            "needed; restore it from a backup"
        ) from error
    if not isinstance(key, PrivateKey):
        raise TrustError(f"private key {path} is a {type(key).__name__}; an EC, RSA or Ed25519 key is needed")
    return key


def read_ec_key(path: Path, passphrase: str | None = None) -> ec.EllipticCurvePrivateKey:
    """Read a site's TLS or node key. Raises TrustError like ``read_private_key``, or if it is no EC key."""
    key = read_private_key(path, passphrase)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise _other_kind(path, "an EC key")
    return key


def read_signing_key(path: Path, passphrase: str | None = None) -> Ed25519PrivateKey:
    """Read a signing key. Raises TrustError like ``read_private_key``, or if it is no Ed25519 key."""
    key = read_private_key(path, passphrase)
    if not isinstance(key, Ed25519PrivateKey):
        raise _other_kind(path, "an Ed25519 key")
    return key


def read_certificate_key(path: Path, passphrase: str | None = None) -> CertificateKey:
    """Read a server's or an authority's key. Raises TrustError like ``read_private_key``, or if it is neither."""
    key = read_private_key(path, passphrase)
    if not isinstance(key, CertificateKey):
        raise _other_kind(path, "an EC or RSA key")
    return key


def is_encrypted(path: Path) -> bool:
    """Say whether a key file needs a passphrase. A file that cannot be read counts as one that needs none."""
    try:
        with path.open("rb") as file:
            return _locked(file.read(MOST_BYTES))
    except OSError:
        return False


def passphrase_from_environment() -> str | None:
    """Return what ``$FEDREPTILE_PASSPHRASE`` says; None if it is not set or empty."""
    return os.environ.get(VARIABLE) or None


def passphrase_for(*paths: Path) -> str | None:
    """Return the passphrase for key files: the environment's, else what is typed if one is encrypted, else None.

    Where nobody can type (no terminal) it is None, and reading an encrypted key says what to set.
    """
    given = passphrase_from_environment()
    if given is None and sys.stdin.isatty():
        locked = next(filter(is_encrypted, paths), None)
        return getpass.getpass(f"Passphrase of {locked}: ") if locked else None
    return given


def new_passphrase() -> str:
    """Return the passphrase for new keys: the environment's, else typed twice.

    Raises:
        TrustError: if there is neither, or the two differ.
    """
    if given := passphrase_from_environment():
        return given
    if not sys.stdin.isatty():
        raise TrustError(f"no passphrase is given: set {VARIABLE}, or run this in a terminal")
    first = getpass.getpass("New passphrase for the private keys: ")
    if not first or getpass.getpass("Again: ") != first:
        raise TrustError("the passphrase is empty or was typed differently the second time; start again")
    return first


def openssh_text(key: ec.EllipticCurvePublicKey) -> str:
    """Return a node's public key as one line, such as ``ssh-keygen`` writes."""
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def node_public_key(text: str) -> ec.EllipticCurvePublicKey:
    """Read a node's public key from its line. Raises TrustError if it is not a P-384 key in OpenSSH's format."""
    try:
        key = load_ssh_public_key(text.encode())
    except (ValueError, UnsupportedAlgorithm, NotImplementedError) as error:
        raise TrustError(f"the node's public key is not in OpenSSH's format: {error}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise TrustError("the node's public key is not an EC key on P-384")
    if openssh_text(key) != text:
        raise TrustError(
            "the node's public key has more in its line than kind and key, such as a comment; leave it out"
        )
    return key


def header_of(key: ec.EllipticCurvePublicKey) -> str:
    """Return a node's public key as Flower sends it in a header, and as the registry keeps it: base64 of PEM bytes."""
    return b64encode(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)).decode()


def hex_of(key: Ed25519PublicKey) -> str:
    """Return a public signing key as the 64 hexadecimal digits of its raw bytes."""
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw).hex()


def verify_key(text: str) -> Ed25519PublicKey:
    """Return the public signing key of 64 hexadecimal digits in lower case. Raises TrustError if they are none."""
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(text))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise TrustError(f"the public signing key cannot be read: {error}") from error
    if hex_of(key) != text:
        raise TrustError("the public signing key is not written as 64 hexadecimal digits in lower case")
    return key


def _encryption(passphrase: str | None) -> KeySerializationEncryption:
    return BestAvailableEncryption(passphrase.encode()) if passphrase else NoEncryption()


def _load(data: bytes, passphrase: str | None) -> object:
    if data.startswith(OPENSSH):
        return load_ssh_private_key(data, None)
    # A passphrase for a file that has none is no error: the environment's counts for all keys.
    password = passphrase.encode() if passphrase and _locked(data) else None
    return load_pem_private_key(data, password)


def _read_owned(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(MOST_BYTES + 1)
    except FileNotFoundError as error:
        raise TrustError(f"private key {path} is not there; restore it from a backup, or enrol anew") from error
    except OSError as error:
        raise TrustError(f"private key {path} cannot be read: {error.strerror or error}") from error
    if os.name == "posix" and stat.S_IMODE(mode) & 0o077:
        raise TrustError(
            f"private key {path} can be read or written by others (mode {stat.S_IMODE(mode):04o}); "
            f"it must be its owner's alone: chmod 600 {path}"
        )
    if len(data) > MOST_BYTES:
        raise TrustError(f"{path} has more than {MOST_BYTES} bytes; it is not a private key")
    return data


def _locked(data: bytes) -> bool:
    return data.startswith(ENCRYPTED) or ENCRYPTED_OF_OLD in data


def _other_kind(path: Path, wanted: str) -> TrustError:
    return TrustError(f"private key {path} is of another kind; {wanted} is needed: were files exchanged?")
