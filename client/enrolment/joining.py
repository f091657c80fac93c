"""A site's folder: keys that never leave it, the request for its operator, and the kit that comes back."""

import os
import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import tomli_w

from client.home import SiteHome
from common.errors import SettingsError, TrustError
from common.paths import write_atomically
from common.settings import Settings, Value, flatten
from common.trust.certificates import (
    check_site_certificate,
    parse_certificates,
    read_certificates,
    same_key,
)
from common.trust.folders import new_folder, write_loopback
from common.trust.keys import (
    new_node_key,
    new_signing_key,
    new_tls_key,
    node_key_pem,
    private_pem,
    read_ec_key,
    read_signing_key,
)
from common.trust.kit import Kit, fingerprint, own_versions, parse_kit, read_kit
from common.trust.names import checked_name
from common.trust.request import Request, SiteKeys, encode_request, read_request

DEVICE = re.compile(r"cpu|mps|(?:cuda|xpu)(?::[0-9]{1,3})?")


@dataclass(frozen=True)
class Taken:
    """What taking a kit came to."""

    kit: Kit
    renewed: bool
    """Whether there was one before."""
    new_fabs: tuple[str, ...]
    """Hashes of app bundles in the kit that were not in the one before; the policy is not changed for them."""


def new_tls_key_of(home: SiteHome) -> Path:
    """Return where a renewed TLS key waits for its certificate."""
    return home.tls_key.with_name("tls.key.new")


def make_site(home: SiteHome, name: str, data: Path, device: str, passphrase: str | None, now: datetime) -> Request:
    """Make a site's folder with fresh keys and the request, whole or not at all.

    Args:
        passphrase: encrypts the private keys, all but the loopback's.

    Raises:
        TrustError: if something is there already, or the name is not allowed.
        SettingsError: if the data are not there, or the device is none.
    """
    checked_name(name)
    if not data.exists():
        raise SettingsError(f"--data {data} is not there; give a folder of class folders, a .csv table or an .npz file")
    if not DEVICE.fullmatch(device):
        raise SettingsError(f"--device {device!r} is none; give 'cpu', 'cuda' or one of several such as 'cuda:1'")
    keys = SiteKeys(new_tls_key(), new_node_key(), new_signing_key())
    with new_folder(home.path) as scratch:
        made = SiteHome(scratch)
        node = private_pem(keys.node, passphrase) if passphrase else node_key_pem(keys.node)
        _write_key(made.node_key, node)
        _write_key(made.tls_key, private_pem(keys.tls, passphrase))
        _write_key(made.signing_key, private_pem(keys.signing, passphrase))
        write_loopback(made.loopback, now)
        values = {"name": name, "data": str(data.absolute()), "device": device}
        write_atomically(made.config_file, tomli_w.dumps(values).encode(), 0o644)
        write_atomically(made.request_file, encode_request(name, keys, now), 0o644)
    return read_request(home.request_file)


def renew_request(home: SiteHome, passphrase: str | None, now: datetime) -> Request:
    """Make a new TLS key beside the present one, which stays in use, and a request for its certificate.

    A new key that waits already is kept, and the request is written again.

    Raises:
        TrustError: if there is no site here that was approved before, or a key cannot be read.
    """
    name, path = home.config().name, new_tls_key_of(home)
    read_certificates(home.tls_certificate)
    node, signing = read_ec_key(home.node_key, passphrase), read_signing_key(home.signing_key, passphrase)
    if not path.exists():
        _write_key(path, private_pem(new_tls_key(), passphrase))
    keys = SiteKeys(read_ec_key(path, passphrase), node, signing)
    write_atomically(home.request_file, encode_request(name, keys, now), 0o644)
    return read_request(home.request_file)


def check_kit(home: SiteHome, kit: Kit, passphrase: str | None, now: datetime) -> Path:
    """Check that a kit is for this site and good now. Who signed it is for a person to decide.

    Returns:
        the file of the private key that its certificate is for.

    Raises:
        TrustError: if it is for another site or key, its certificate was not issued by its authority, has expired or
            is not good yet, or it is older than the kit in use.
    """
    name = home.config().name
    if kit.site != name:
        raise TrustError(f"the kit is for site {kit.site!r}, and this is {name!r}; ask the operator for your own")
    before = present_kit(home)
    if before is not None and datetime.fromisoformat(kit.issued) < datetime.fromisoformat(before.issued):
        raise TrustError(f"the kit was issued at {kit.issued} and the one in use later, at {before.issued}; keep that")
    certificates = parse_certificates(kit.certificate_pem.encode(), "the kit's certificate")
    authorities = parse_certificates(kit.authority_pem.encode(), "the kit's authority")
    for path in filter(Path.exists, (new_tls_key_of(home), home.tls_key)):
        key = read_ec_key(path, passphrase).public_key()
        if same_key(certificates[0], key):
            check_site_certificate(certificates[0], name, key, authorities, now)
            return path
    raise TrustError(
        f"the kit's certificate is for none of the TLS keys in {home.tls_key.parent}; was it made for an earlier "
        f"request? Send {home.request_file} and ask for a kit for that one"
    )


def take_kit(home: SiteHome, data: bytes, passphrase: str | None, now: datetime) -> Taken:
    """Take a kit, whose fingerprint a person has compared, into use. A running site goes on.

    Args:
        data: the bytes of the kit that was compared.

    The first root of releases is taken, the kit is written, then the key takes its place, then the certificate. So
    taking the same kit again makes good whatever a crash left between.

    Raises:
        TrustError: like ``check_kit``; then nothing is changed.
    """
    from client.adoption.fetch import trust_root
    from client.door.policy import write_default_policy

    kit = parse_kit(data, "the kit")
    key = check_kit(home, kit, passphrase, now)
    before = present_kit(home)
    if kit.releases_root:
        trust_root(home, kit.releases_root)
    if not home.policy_file.exists():
        write_default_policy(home.policy_file, kit.fabs)
    write_atomically(home.kit_file, data, 0o644)
    if key != home.tls_key:
        if os.name == "posix":  # the relay's user goes on reading it
            owner = home.tls_key.stat()
            os.chown(key, owner.st_uid, owner.st_gid)
        key.replace(home.tls_key)
    write_atomically(home.tls_certificate, kit.certificate_pem.encode(), 0o644)
    known = before.fabs if before else kit.fabs
    return Taken(kit, before is not None, tuple(fab for fab in kit.fabs if fab not in known))


def present_kit(home: SiteHome) -> Kit | None:
    """Return the kit in use; None before there is one. Raises TrustError if it is damaged."""
    return read_kit(home.kit_file) if home.kit_file.exists() else None


def is_known(home: SiteHome, kit: Kit) -> bool:
    """Say whether a kit is of the federation whose fingerprint was compared before."""
    before = present_kit(home)
    return before is not None and fingerprint(before) == fingerprint(kit)


def differing_settings(kit: Kit) -> dict[str, tuple[Value, Value | None]]:
    """Return the settings to agree to that are not this version's defaults, with those; None where it has none."""
    defaults = flatten(Settings())
    return {
        key: (value, defaults.get(key))
        for key, value in sorted(kit.settings.items())
        if key not in defaults or defaults[key] != value
    }


def skewed_versions(kit: Kit) -> list[str]:
    """Return in words which packages have another version here than at the server."""
    own = own_versions()
    return [
        f"{name} is {own[name]} here and {kit.versions[name]} at the server"
        for name in ("fedreptile", "flwr")
        if name in kit.versions and kit.versions[name] != own[name]
    ]


def _write_key(path: Path, data: bytes) -> None:
    write_atomically(path, data, 0o600)
