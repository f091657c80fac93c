"""Sites let in, renewed and put out."""

from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from cryptography import x509

from common.errors import DeployError, TrustError
from common.paths import write_atomically
from common.trust.certificates import (
    as_pem,
    check_site_certificate,
    issue_site,
    read_certificates,
    serial_of,
)
from common.trust.keys import header_of, hex_of, openssh_text, read_signing_key
from common.trust.kit import Kit, encode_kit, own_versions, parse_kit
from common.trust.names import checked_name
from common.trust.request import Request
from server.enrolment.bundle import fab_of_installation
from server.enrolment.federation import agreed_settings, read_authority
from server.enrolment.nodes import register_node, unregister_node
from server.enrolment.registry import Enrolled, Registry, read_registry, update_registry
from server.home import FederationHome
from server.releases.repository import Repository

SITE_DAYS = 365.0


@dataclass(frozen=True)
class Approval:
    """What was asked for, and on what terms it is granted."""

    request: Request
    labels: tuple[str, ...] = ()
    """If there are none, a renewed site keeps those that it has."""
    days: float = SITE_DAYS
    certificate: Path | None = None
    """One that was issued elsewhere from the request; None: the federation's own authority issues one."""


@dataclass(frozen=True)
class Approved:
    kit: Kit
    node_id: int
    """0 while the SuperLink does not know the node."""
    problem: str = ""
    """Why the SuperLink, though it runs, did not register the node."""


def is_renewal(registry: Registry, request: Request) -> bool:
    """Say whether a request renews the certificate of a site with the same node and signing keys.

    Raises:
        TrustError: if its name or a key belongs to someone else, or a key to a revoked site.
    """
    node, signing = header_of(request.node_key), hex_of(request.signing_key)
    if barred := registry.barred.get(node) or registry.barred.get(signing):
        raise TrustError(
            f"the request of {request.name!r} has a key of the revoked site {barred!r}, which is never let in again; "
            "have the site make fresh keys: an empty folder, 'fedreptile-site join', a new request"
        )
    for name, site in registry.sites.items():
        if name == request.name:
            if (site.node_key, site.signing_key) != (node, signing):
                raise TrustError(
                    f"site {name!r} is enrolled with other keys; if it made fresh ones because it lost its own, "
                    f"revoke it first: 'fedreptile-server enrol revoke {name} --reason ...'; otherwise have it take "
                    "another name"
                )
            return True
        if name.lower() == request.name.lower():
            raise TrustError(
                f"site {name!r} differs from {request.name!r} only in letter case; have it take another name"
            )
        if site.node_key == node or site.signing_key == signing:
            raise TrustError(f"a key of the request of {request.name!r} is that of site {name!r}; have it make its own")
    return False


def approve(home: FederationHome, approval: Approval, passphrase: str | None, now: datetime) -> Approved:
    """Issue a site's certificate, enter it, have its node registered, and return its signed kit.

    A renewed site's earlier certificates stay good until their own end.

    Raises:
        TrustError: if the request may not be approved, the certificate cannot be used, or keys cannot be read.
        SettingsError: if federation.toml or the settings cannot be used.
        ReleaseError: if the repository of releases cannot be read.
    """
    request = approval.request
    is_renewal(read_registry(home.registry_file), request)
    for label in approval.labels:
        checked_name(label, "label")
    certificate = _certificate(home, approval, passphrase, now)
    kit = _kit(home, request, certificate, passphrase, now)
    node_id, problem = 0, ""
    try:
        node_id = register_node(home, request.name, openssh_text(request.node_key)) or 0
    except DeployError as error:
        problem = str(error)
    entered = Enrolled(
        node_key=header_of(request.node_key),
        signing_key=hex_of(request.signing_key),
        serials=(serial_of(certificate),),
        expires=kit.expires,
        approved=now.isoformat(timespec="seconds"),
        node_id=node_id,
        labels=approval.labels,
    )
    update_registry(home.registry_file, lambda registry: _with(registry, request, entered))
    return Approved(kit, node_id, problem)


def write_kit(home: FederationHome, kit: Kit, path: Path, passphrase: str | None) -> None:
    """Sign a kit and write it. Raises TrustError if it would not be read at the site, or the key cannot be read."""
    data = encode_kit(kit, read_signing_key(home.signing_key, passphrase))
    parse_kit(data, f"kit of {kit.site}")
    write_atomically(path, data, 0o644)


def revoke(home: FederationHome, name: str, reason: str, now: datetime) -> bool:
    """Put a site out at once: its certificates are revoked and its keys never let in again.

    Returns:
        whether the SuperLink knows it too; if not, 'up' tells it.

    Raises:
        TrustError: if no such site is enrolled, or the reason is empty or holds control characters.
    """
    if not reason.strip() or not reason.isprintable():
        raise TrustError("the reason is empty or holds control characters; say in one line why the site is revoked")
    node_ids: list[int] = []

    def without(registry: Registry) -> Registry:
        site = registry.sites.get(name)
        if site is None:
            known = ", ".join(sorted(registry.sites)) or "none"
            raise TrustError(f"site {name!r} is not enrolled; enrolled are: {known}")
        node_ids.append(site.node_id)
        why = f"{now.isoformat(timespec='seconds')} {name}: {reason.strip()}"
        return replace(
            registry,
            sites={other: values for other, values in registry.sites.items() if other != name},
            revoked={**registry.revoked, **dict.fromkeys(site.serials, why)},
            barred={**registry.barred, site.node_key: name, site.signing_key: name},
        )

    update_registry(home.registry_file, without)
    try:
        return node_ids[0] == 0 or unregister_node(home, node_ids[0])
    except DeployError:
        return False


def _with(registry: Registry, request: Request, entered: Enrolled) -> Registry:
    if is_renewal(registry, request):
        before = registry.sites[request.name]
        entered = replace(
            entered,
            serials=tuple(dict.fromkeys((*before.serials, *entered.serials))),
            node_id=entered.node_id or before.node_id,
            labels=entered.labels or before.labels,
        )
    return replace(registry, sites={**registry.sites, request.name: entered})


def _certificate(home: FederationHome, approval: Approval, passphrase: str | None, now: datetime) -> x509.Certificate:
    request, authorities = approval.request, read_certificates(home.authority)
    if approval.certificate is None:
        certificate = issue_site(read_authority(home, passphrase), request.name, request.tls_key, now, approval.days)
    else:
        certificate = read_certificates(approval.certificate)[0]
    check_site_certificate(certificate, request.name, request.tls_key, authorities, now)
    if serial_of(certificate) in read_registry(home.registry_file).revoked:
        raise TrustError(f"the certificate in {approval.certificate} is revoked; have a new one issued")
    return certificate


def _kit(
    home: FederationHome, request: Request, certificate: x509.Certificate, passphrase: str | None, now: datetime
) -> Kit:
    config = home.config()
    return Kit(
        federation=config.name,
        site=request.name,
        address=config.address,
        roots_pem=as_pem(read_certificates(home.chain)).decode(),
        authority_pem=as_pem(read_certificates(home.authority)).decode(),
        certificate_pem=as_pem([certificate]).decode(),
        server_signing_key=hex_of(read_signing_key(home.signing_key, passphrase).public_key()),
        fabs=(fab_of_installation()[1],),
        settings=agreed_settings(home),
        versions=own_versions(),
        issued=now.isoformat(timespec="seconds"),
        expires=certificate.not_valid_after_utc.isoformat(timespec="seconds"),
        releases_root=Repository(home).root_text() if home.repository.is_dir() else "",
    )
