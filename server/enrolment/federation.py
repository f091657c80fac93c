"""A federation's folder: made whole or not at all, from nothing or with certificates of the operator's own."""

import ssl
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import tomli_w
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from common.errors import SettingsError, TrustError
from common.paths import write_atomically
from common.settings import Settings, Value, as_toml, flatten, read_toml
from common.trust.certificates import (
    Authority,
    PublicKey,
    as_pem,
    chain_problem,
    check_time,
    is_authority,
    issue_server,
    issued_by,
    new_authority,
    read_certificates,
    same_key,
)
from common.trust.folders import new_folder, write_loopback
from common.trust.keys import (
    CertificateKey,
    hex_of,
    new_signing_key,
    new_tls_key,
    private_pem,
    read_certificate_key,
    read_signing_key,
)
from common.trust.kit import fingerprint_of
from common.trust.names import checked_name, split_address
from server.enrolment.registry import Registry, write_registry
from server.home import FederationHome
from server.releases.publishing import make_releases

SERVER_DAYS = 365
OWN_TO_THE_SERVER = ("run.dir", "data.sites")
"""Settings that name folders of the server's machine, which no site agrees to."""


@dataclass(frozen=True)
class OwnServer:
    """Files of a server certificate of the operator's own."""

    certificate: Path
    """The server's, and after it what is between it and its root."""
    key: Path
    chain: Path
    """The roots by which sites know it."""


@dataclass(frozen=True)
class OwnAuthority:
    """Files of an authority of the operator's own, for his sites."""

    certificate: Path
    """The authority's, and all up to its root."""
    key: Path | None
    """None: sites' certificates are issued elsewhere, and given to 'approve'."""


@dataclass(frozen=True)
class Wanted:
    """What a federation is to be."""

    name: str
    address: str
    listen: str
    settings: Path | None = None
    server: OwnServer | None = None
    authority: OwnAuthority | None = None


def make_federation(home: FederationHome, wanted: Wanted, passphrase: str | None, now: datetime) -> None:
    """Make a federation's folder.

    Args:
        passphrase: encrypts the private keys, all but the loopback's; it also opens those of the operator's own.

    Raises:
        TrustError: if something is there already; if name, address, a certificate or a key cannot be used.
        SettingsError: if the settings file is wrong.
    """
    checked_name(wanted.name, "federation")
    host, _ = split_address(wanted.address)
    split_address(wanted.listen)
    settings = _settings_text(wanted.settings)
    with new_folder(home.path) as scratch:
        made = FederationHome(scratch)
        _write_config(made, wanted, settings)
        authority = _write_authority(made, wanted, passphrase, now)
        if wanted.server is None:
            _make_server(made, authority, host, passphrase, now)
        else:
            _copy_server(made, wanted.server, passphrase)
        try_server(made, host, passphrase)
        _write_key(made.signing_key, private_pem(new_signing_key(), passphrase))
        write_loopback(made.loopback, now)
        write_registry(made.registry_file, Registry())
        make_releases(made, passphrase, now)


def renew_server(home: FederationHome, passphrase: str | None, now: datetime, days: float = SERVER_DAYS) -> datetime:
    """Replace the server's certificate by a new one for the same key, from the federation's own authority.

    Returns:
        when the new one ends, UTC.

    Raises:
        TrustError: if the present one is the operator's own, or a key or certificate cannot be read.
    """
    present, authority = read_certificates(home.tls_certificate)[0], read_authority(home, passphrase)
    if not issued_by(present, authority.certificate):
        raise TrustError(
            f"{home.tls_certificate} was not issued by this federation's own authority; "
            f"put your new certificate there, and its key, if that is new too, at {home.tls_key}"
        )
    key = present.public_key()
    if not isinstance(key, PublicKey):
        raise TrustError(f"{home.tls_certificate} is for a {type(key).__name__}; an EC or RSA key is needed")
    renewed = issue_server(authority, [split_address(home.config().address)[0]], key, now, days)
    write_atomically(home.tls_certificate, as_pem([renewed]), 0o644)
    return renewed.not_valid_after_utc


def read_authority(home: FederationHome, passphrase: str | None) -> Authority:
    """Return what signs sites' certificates.

    Raises:
        TrustError: if it is elsewhere, or key or certificate cannot be read or do not belong together.
    """
    if not home.authority_key.exists():
        raise TrustError(
            f"{home.authority_key} is not there, so certificates of sites are issued elsewhere; "
            "have one issued from the request's 'csr' and give it with --certificate"
        )
    certificate, key = read_certificates(home.authority)[0], read_certificate_key(home.authority_key, passphrase)
    if not same_key(certificate, key.public_key()):
        raise TrustError(f"{home.authority_key} is not the key of the first certificate in {home.authority}")
    return Authority(certificate, key)


def agreed_settings(home: FederationHome) -> dict[str, Value]:
    """Return the settings that sites agree to, all of them, 'section.key' -> value.

    Raises:
        SettingsError: if the file that federation.toml names cannot be read or used.
    """
    settings = Settings.from_flat(read_toml(home.path / home.config().settings))
    return {key: value for key, value in flatten(settings).items() if key not in OWN_TO_THE_SERVER}


def federation_fingerprint(home: FederationHome, passphrase: str | None) -> str:
    """Return what tells this federation from all others, for people to compare.

    Raises:
        TrustError: if a certificate or the signing key cannot be read.
    """
    roots, authority = (path.read_text(encoding="utf-8") for path in (home.chain, home.authority))
    return fingerprint_of(roots, authority, hex_of(read_signing_key(home.signing_key, passphrase).public_key()))


def try_server(home: FederationHome, host: str, passphrase: str | None) -> None:
    """Shake hands with the server's certificate within this process, as a site will over the network.

    Raises:
        TrustError: if key and certificate do not belong together, or a site would refuse them; with the reason.
    """
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    client = ssl.create_default_context(cafile=str(home.chain))
    try:
        server.load_cert_chain(home.tls_certificate, home.tls_key, passphrase or "")
        _shake_hands(server, client, host)
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "verify_message", "") or str(error)
        raise TrustError(
            f"sites would refuse the server's certificate for {host!r}: {reason}; needed are a certificate for that "
            "name, its key, what is between it and its root in the certificate's file, and the root in the chain"
        ) from error


def _shake_hands(server: ssl.SSLContext, client: ssl.SSLContext, host: str) -> None:
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(back, there, server_hostname=host), server.wrap_bio(there, back, server_side=True)]
    for _ in range(4):
        for end in list(ends):
            try:
                end.do_handshake()
                ends.remove(end)
            except ssl.SSLWantReadError:
                continue
    if ends:
        raise ValueError("the handshake does not end")


def _settings_text(path: Path | None) -> bytes:
    if path is None:
        return as_toml(Settings()).encode()
    Settings.from_flat(read_toml(path))
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"settings file {path} cannot be read: {error}") from error


def _write_config(home: FederationHome, wanted: Wanted, settings: bytes) -> None:
    values = {"name": wanted.name, "address": wanted.address, "listen": wanted.listen, "settings": "settings.toml"}
    write_atomically(home.config_file, tomli_w.dumps(values).encode(), 0o644)
    write_atomically(home.path / "settings.toml", settings, 0o644)


def _write_authority(home: FederationHome, wanted: Wanted, passphrase: str | None, now: datetime) -> Authority | None:
    """Write the authority for sites, made here or the operator's own; return it if its key is here."""
    if wanted.authority is None:
        made = new_authority(wanted.name, now)
        write_atomically(home.authority, as_pem([made.certificate]), 0o644)
        _write_key(home.authority_key, private_pem(made.key, passphrase))
        return made
    path, certificates = wanted.authority.certificate, read_certificates(wanted.authority.certificate)
    if problem := chain_problem(certificates):
        raise TrustError(f"{path}: {problem}")
    for one in certificates:
        check_time(one, f"{path}: {one.subject.rfc4514_string()}", now)
    write_atomically(home.authority, as_pem(certificates), 0o644)
    if wanted.authority.key is None:
        return None
    key = _own_key(wanted.authority.key, certificates[0], path, passphrase)
    _write_key(home.authority_key, private_pem(key, passphrase))
    return Authority(certificates[0], key)


def _make_server(
    home: FederationHome, authority: Authority | None, host: str, passphrase: str | None, now: datetime
) -> None:
    if authority is None:
        raise TrustError(
            "the authority's key is not given, so the server's certificate cannot be made here; "
            "give it with --certificate, --key and --chain"
        )
    key = new_tls_key()
    certificate = issue_server(authority, [host], key.public_key(), now, SERVER_DAYS)
    write_atomically(home.tls_certificate, as_pem([certificate]), 0o644)
    write_atomically(home.chain, home.authority.read_bytes(), 0o644)
    _write_key(home.tls_key, private_pem(key, passphrase))


def _copy_server(home: FederationHome, own: OwnServer, passphrase: str | None) -> None:
    certificates, roots = read_certificates(own.certificate), read_certificates(own.chain)
    if wrong := next((one for one in roots if not is_authority(one)), None):
        raise TrustError(f"{own.chain}: {wrong.subject.rfc4514_string()} is no authority; give the roots only")
    key = _own_key(own.key, certificates[0], own.certificate, passphrase)
    write_atomically(home.tls_certificate, as_pem(certificates), 0o644)
    write_atomically(home.chain, as_pem(roots), 0o644)
    _write_key(home.tls_key, private_pem(key, passphrase))


def _own_key(path: Path, certificate: x509.Certificate, beside: Path, passphrase: str | None) -> CertificateKey:
    key = read_certificate_key(path, passphrase)
    if not same_key(certificate, key.public_key()):
        raise TrustError(f"{path} is not the key of the first certificate in {beside}")
    if isinstance(key, ec.EllipticCurvePrivateKey) and not isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1):
        raise TrustError(f"{path} is an EC key on {key.curve.name}; P-256 or P-384 is needed")
    return key


def _write_key(path: Path, data: bytes) -> None:
    write_atomically(path, data, 0o600)
