"""Who may come in: a site that is in the list, with one of its certificates, its own node key and our version."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from common import VERSION, release
from common.deployment.forward import NODE_KEY, VERSION_HEADER, Guard, RefusedError, stamp_of
from common.errors import VERSION_TEXT, TrustError
from common.trust.certificates import UNREADABLE, common_name, serial_of
from server.enrolment.registry import Enrolled, Registry, read_registry

MOST_CONNECTIONS = 4096
"""Of all sites together."""


@dataclass(eq=False)
class Caller:
    """The other end of a connection, as its certificate says. The certificate is of our authority."""

    name: str
    serial: str
    ends: datetime
    crowded: bool = False
    """Whether there are too many connections with this one."""


class Connections(Guard):
    """Open connections, counted by the name in the certificate."""

    def __init__(self, patience: float, most: int, slow: "Counter[str]") -> None:
        """``slow`` counts, by name, the clients that did not get a request's head across in time."""
        self.patience, self._most, self._slow = patience, most, slow
        self._open: Counter[str] = Counter()

    def opened(self, certificate: bytes | None) -> Caller:
        caller = caller_of(certificate or b"")
        self._open[caller.name] += 1
        caller.crowded = self._open[caller.name] > self._most or self._open.total() > MOST_CONNECTIONS
        return caller

    def closed(self, connection: Caller) -> None:
        self._open[connection.name] -= 1
        if not self._open[connection.name]:
            del self._open[connection.name]

    def refuses(self, connection: Caller) -> bool:
        """Those that are too many are told so; but only so many of them."""
        return self._open[connection.name] > 2 * self._most or self._open.total() > 2 * MOST_CONNECTIONS

    def slow(self, connection: Caller) -> None:
        self._slow[connection.name] += 1


def caller_of(certificate: bytes) -> Caller:
    """Read a certificate (DER); one that cannot be read is of nobody."""
    try:
        found = x509.load_der_x509_certificate(certificate)
        name = common_name(found)
        return Caller(name if name.isprintable() else "", serial_of(found), found.not_valid_after_utc)
    except UNREADABLE:
        return Caller("", "", datetime.min.replace(tzinfo=UTC))


class Sites:
    """The list of sites, read anew when its file has changed: who is revoked is out from then on."""

    def __init__(self, path: Path) -> None:
        """Raises TrustError if the list is damaged."""
        self._path, self._seen = path, stamp_of(path)
        self._registry: Registry | None = read_registry(path)

    @property
    def registry(self) -> Registry:
        """Raises RefusedError while the list cannot be read: then nobody comes in."""
        now = stamp_of(self._path)
        if now != self._seen or self._registry is None:
            try:
                self._registry, self._seen = read_registry(self._path), now
            except TrustError as error:
                self._registry = None
                raise RefusedError(503, "site-list", "a list of sites that cannot be read", str(self._path)) from error
        return self._registry


def admit(caller: Caller, registry: Registry, now: datetime) -> Enrolled:
    """Return the site that a certificate is of. Raises RefusedError."""
    if caller.serial in registry.revoked:
        raise RefusedError(403, "revoked", f"certificate {caller.serial} of {caller.name!r}", "one that is not revoked")
    if now > caller.ends:
        when = f"certificate {caller.serial} that ended {caller.ends:%Y-%m-%d %H:%M} UTC"
        raise RefusedError(403, "expired", when, "a renewed one: 'fedreptile-site join --renew'")
    site = registry.sites.get(caller.name)
    if site is None:
        raise RefusedError(403, "unknown-site", f"the name {caller.name[:64]!r}", "the name of an approved site")
    if caller.serial not in site.serials:
        found = f"certificate {caller.serial} of {caller.name!r}"
        raise RefusedError(403, "unknown-certificate", found, "the newest one that was approved")
    if caller.crowded:
        raise RefusedError(429, "connections", "one connection more than a site may have", "fewer at once", 10)
    return site


def check_node(headers: Mapping[str, str], name: str, site: Enrolled, registry: Registry) -> None:
    """Raises RefusedError unless a request is of the site's own SuperNode."""
    key = headers.get(NODE_KEY, "")
    if key == site.node_key:
        return
    owner = next((other for other, enrolled in registry.sites.items() if enrolled.node_key == key), None)
    needed = f"the node key that site {name!r} was approved with"
    if owner is not None:
        raise RefusedError(403, "wrong-node", "the node key of another site", needed)
    raise RefusedError(403, "unknown-node", "a node key of no site" if key else "no node key", needed)


def check_version(headers: Mapping[str, str]) -> None:
    """Raises RefusedError unless major and minor version of the site's installation are those of the server's."""
    theirs = headers.get(VERSION_HEADER, "")
    if release(theirs) != release(VERSION) or not theirs:
        raise RefusedError(426, "version", f"fedreptile {shown_version(theirs)} at the site", f"fedreptile {VERSION}")


def shown_version(text: str) -> str:
    """Return what a site says is a version, if it looks like one."""
    return text if VERSION_TEXT.fullmatch(text) else "unknown"
