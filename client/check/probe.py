"""The relay's way to the server, step by step, so that it can be said which step fails and why.

Resolve, connect, have the proxy connect, TLS with the site's certificate, one request. Torch-free.
"""

import base64
import http.client
import socket
import ssl
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from cryptography import x509

from client.check.findings import plain
from client.home import SiteConfig
from common.deployment.forward import FROM_HEADER
from common.errors import FedreptileError
from common.trust.certificates import UNREADABLE
from common.trust.names import split_address

MOST_HEAD = 65536
MOST_BODY = 65536


class TroubleError(FedreptileError):
    """A step failed.

    Args:
        step: a key of what is checked: 'proxy', 'name', 'port', 'certificate' (the server's) or 'admission'.
    """

    def __init__(self, step: str, cause: str, fix: str) -> None:
        super().__init__(f"{step}: {cause}; {fix}")
        self.step, self.cause, self.fix = step, cause, fix


@dataclass(frozen=True)
class Proxy:
    host: str
    port: int
    authorization: str
    """Value of the header Proxy-Authorization; empty: none."""
    source: str
    """Who named it: site.toml or the environment."""

    def __str__(self) -> str:
        return f"http://{self.host}:{self.port}"


@dataclass(frozen=True)
class Way:
    """From here to the server."""

    host: str
    port: int
    proxy: Proxy | None
    seconds: float
    """Patience with each step."""

    @property
    def server(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def first(self) -> tuple[str, int]:
        """What this machine itself connects to."""
        return (self.proxy.host, self.proxy.port) if self.proxy else (self.host, self.port)


@dataclass(frozen=True)
class Identity:
    """By what the site shows who it is."""

    certificate: Path
    key: Path
    passphrase: str | None


@dataclass(frozen=True)
class Answer:
    status: int
    date: str
    """The header Date; empty: none."""
    source: str
    """Who says that it answered: 'gateway', 'superlink', or nobody."""
    body: bytes
    at: float
    """When it came, by this machine's clock (Unix seconds)."""


def way_to(address: str, config: SiteConfig, seconds: float) -> Way:
    """Return the way to an address by the site's rule for proxies. Raises TroubleError for a proxy that is none."""
    host, port = split_address(address)
    return Way(host, port, _proxy_for(config, host), seconds)


def resolve(way: Way) -> str:
    """Return the IP address that this machine finds for what it connects to. Raises TroubleError."""
    host, port = way.first
    try:
        return str(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][4][0])
    except (OSError, UnicodeError) as error:
        whose = "the proxy's name" if way.proxy else "the server's name"
        step = "proxy" if way.proxy else "name"
        raise TroubleError(
            step,
            f"{whose} {host!r} is not known here ({getattr(error, 'strerror', None) or error})",
            f"ask the network administrator to have {host} resolved, or add it to the hosts file"
            + (f"; or correct the proxy ({way.proxy.source})" if way.proxy else ""),
        ) from error


def connect(way: Way) -> socket.socket:
    """Return a connection on which the server will answer. Raises TroubleError."""
    opened = _tcp(way)
    if way.proxy is None:
        return opened
    try:
        _tunnel(way, way.proxy, opened)
    except BaseException:
        opened.close()
        raise
    return opened


def handshake(way: Way, opened: socket.socket, roots_pem: str, identity: Identity | None) -> ssl.SSLSocket:
    """Return TLS on a connection, which it takes over, with a server whose certificate is under the roots.

    Raises:
        TroubleError: if the server's certificate does not do, or it does not speak TLS.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=roots_pem)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if identity:
        context.load_cert_chain(identity.certificate, identity.key, lambda: identity.passphrase or "")
    try:
        return context.wrap_socket(opened, server_hostname=way.host)
    except ssl.SSLCertVerificationError as error:
        raise _unverified(way, error) from error
    except OSError as error:
        raise _no_tls(way, error) from error


def ask(way: Way, connection: ssl.SSLSocket, path: str, headers: dict[str, str]) -> Answer:
    """Ask for a path. Raises TroubleError if the server hangs up, refuses the certificate or is silent."""
    talk = http.client.HTTPConnection(way.host, way.port, timeout=way.seconds)
    talk.sock = connection
    try:
        talk.request("GET", path, headers={"Connection": "close", **headers})
        found = talk.getresponse()
        body = found.read(MOST_BODY)
        source = found.headers.get(FROM_HEADER, "")
        return Answer(found.status, found.headers.get("Date", ""), source, body, time.time())
    except (OSError, http.client.HTTPException) as error:
        raise _no_answer(way, error) from error
    finally:
        talk.close()


def shown_certificate(way: Way) -> x509.Certificate | None:
    """Return the certificate that is shown at the server's address, whoever made it; None if it cannot be had.

    Nothing is sent there, and the site's certificate is not shown.
    """
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with connect(way) as opened, context.wrap_socket(opened, server_hostname=way.host) as connection:
            return x509.load_der_x509_certificate(connection.getpeercert(binary_form=True) or b"")
    except (OSError, TroubleError, *UNREADABLE):
        return None


# ------------------------------------------------------------------------------------------------- the proxy


def _proxy_for(config: SiteConfig, host: str) -> Proxy | None:
    """Return the proxy of site.toml, else the environment's, unless that excepts the host; None for 'off'."""
    if config.proxy == "off":
        return None
    if config.proxy:
        return _proxy(config.proxy, "proxy in site.toml")
    found = urllib.request.getproxies()
    url = found.get("https") or found.get("all")
    if not url or urllib.request.proxy_bypass(host):
        return None
    return _proxy(url, "HTTPS_PROXY in the environment")


def _proxy(url: str, source: str) -> Proxy:
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        host, port = parts.hostname or "", parts.port or 80
        known = parts.scheme == "http" and bool(host)
    except ValueError:
        known = False
    if not known:
        raise TroubleError(
            "proxy",
            f"{source} is {_without_password(url)!r}, which is not the address of an HTTP proxy",
            "write it as http://host:port, or 'off' in site.toml if there is none",
        )
    authorization = ""
    if parts.username:
        secret = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        authorization = f"Basic {base64.b64encode(secret.encode()).decode()}"
    return Proxy(host, port, authorization, source)


def _without_password(url: str) -> str:
    head, at, tail = url.rpartition("@")
    return f"…@{tail}" if at else head + tail


def _tcp(way: Way) -> socket.socket:
    host, port = way.first
    step, who = ("proxy", f"the proxy {host}:{port}") if way.proxy else ("port", f"{host}:{port}")
    proxied = f"correct the proxy ({way.proxy.source}), or ask the network administrator for it" if way.proxy else ""
    try:
        return socket.create_connection((host, port), way.seconds)
    except ConnectionRefusedError as error:
        cause, advice = f"{who} refuses connections: nothing listens there, or a firewall answers for it", REFUSED
        raise TroubleError(step, cause, proxied or advice) from error
    except TimeoutError as error:
        cause = f"{who} did not answer in {way.seconds:g} s: a firewall drops what is sent there"
        raise TroubleError(step, cause, proxied or OPEN.format(way.server)) from error
    except OSError as error:
        cause = f"{who} cannot be reached: {error.strerror or error}"
        raise TroubleError(step, cause, proxied or OPEN.format(way.server)) from error


OPEN = "ask the network administrator to let this machine connect out to {} (TCP), or to name the proxy"
REFUSED = "ask the operator whether the server is up and listens there; then ask the network administrator"


def _tunnel(way: Way, proxy: Proxy, opened: socket.socket) -> None:
    """Have the proxy connect to the server. Raises TroubleError."""
    head = f"CONNECT {way.server} HTTP/1.1\r\nHost: {way.server}\r\n"
    if proxy.authorization:
        head += f"Proxy-Authorization: {proxy.authorization}\r\n"
    try:
        opened.sendall(f"{head}\r\n".encode())
        status, reason = _status(opened)
    except TimeoutError as error:
        cause = f"the proxy {proxy} took the connection and did not answer in {way.seconds:g} s"
        raise TroubleError("proxy", cause, f"ask the network administrator whether it reaches {way.server}") from error
    except (OSError, ValueError) as error:
        cause = f"what answers at {proxy} is no HTTP proxy"
        raise TroubleError("proxy", cause, f"correct the proxy ({proxy.source})") from error
    if not 200 <= status < 300:
        cause, fix = _proxy_refusal(status, proxy, way)
        raise TroubleError("proxy", f"{cause} ({status} {plain(reason, 80)})", fix)


def _status(opened: socket.socket) -> tuple[int, str]:
    """Read an answer's head, and nothing after it. Raises ValueError if it is not HTTP's."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = opened.recv(1)
        head += byte
        if not byte or len(head) > MOST_HEAD:
            raise ValueError("the answer has no head")
    version, status, *reason = head.split(b"\r\n")[0].decode("latin-1").split(" ", 2)
    if not version.startswith("HTTP/"):
        raise ValueError("the answer is not HTTP")
    return int(status), " ".join(reason)


def _proxy_refusal(status: int, proxy: Proxy, way: Way) -> tuple[str, str]:
    if status == 407:
        if proxy.authorization:
            return f"the proxy {proxy} does not accept the user name and password", f"correct them ({proxy.source})"
        return (
            f"the proxy {proxy} wants a user name and a password",
            "write proxy = 'http://user:password@host:port' in site.toml, or have this machine excepted",
        )
    if status == 403:
        cause = f"the proxy {proxy} forbids connections to {way.server}"
        return cause, f"ask the network administrator to allow CONNECT to {way.server}"
    if status in (502, 503, 504):
        cause = f"the proxy {proxy} cannot reach {way.server}"
        return cause, "ask the network administrator to let the proxy connect there, and the operator if it is up"
    return (
        f"the proxy {proxy} does not connect through (CONNECT) to {way.server}",
        "ask the network administrator for a proxy that does",
    )


# ------------------------------------------------------------------------------------------------------ TLS

EXPIRED, NOT_YET, WRONG_NAME, WRONG_ADDRESS = 10, 9, 62, 64
"""OpenSSL's codes of verification."""
INSPECTED = (
    "if a firewall or proxy here opens TLS, ask the network administrator to except {} from it; if not, the "
    "operator may have a new authority: ask for a new kit"
)


def _unverified(way: Way, error: ssl.SSLCertVerificationError) -> TroubleError:
    """Return why the server's certificate does not do."""
    seen, code = shown_certificate(way), error.verify_code
    if code in (WRONG_NAME, WRONG_ADDRESS):
        names = f"; it is for {', '.join(_names(seen))}" if seen and _names(seen) else ""
        return TroubleError(
            "certificate",
            f"the server's certificate is not for {way.host}{names}".replace("; ", ", "),
            "tell the operator: its certificate must have the name that sites dial; or ask for a new kit",
        )
    if code == EXPIRED:
        when = f" on {seen.not_valid_after_utc:%Y-%m-%d %H:%M} UTC" if seen else ""
        return TroubleError(
            "certificate",
            f"the server's certificate expired{when}",
            "tell the operator to renew it ('fedreptile-server enrol renew-server'); or, if it is not "
            f"{time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC now, set this machine's clock",
        )
    if code == NOT_YET:
        when = f" only from {seen.not_valid_before_utc:%Y-%m-%d %H:%M} UTC" if seen else " only later"
        return TroubleError("certificate", f"the server's certificate is good{when}", "set the clock of this machine")
    who = f"issued by {plain(seen.issuer.rfc4514_string())!r}" if seen else f"not accepted ({error.verify_message})"
    return TroubleError(
        "certificate",
        f"the server's certificate is {who}, which is not among the kit's roots",
        INSPECTED.format(way.server),
    )


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, *UNREADABLE):
        return []
    return [plain(str(name.value), 100) for name in found if isinstance(name, x509.DNSName | x509.IPAddress)][:5]


def _no_tls(way: Way, error: OSError) -> TroubleError:
    if isinstance(error, TimeoutError):
        cause = f"{way.server} took the connection and did not begin TLS in {way.seconds:g} s"
        return TroubleError(
            "certificate", cause, "ask the network administrator what stands between; then the operator"
        )
    if isinstance(error, ssl.SSLError) and "alert" in str(error).lower():
        return _refused_certificate(error)
    cause = f"what answers at {way.server} does not speak TLS ({_reason(error)})"
    return TroubleError(
        "certificate", cause, "compare the address in the kit with the operator; then ask for a new kit"
    )


def _no_answer(way: Way, error: Exception) -> TroubleError:
    if isinstance(error, ssl.SSLError) and "alert" in str(error).lower():
        return _refused_certificate(error)
    if isinstance(error, TimeoutError):
        cause = f"{way.server} did not answer in {way.seconds:g} s"
        return TroubleError("admission", cause, "ask the operator to look at the gateway's log")
    return TroubleError(
        "admission",
        f"{way.server} hung up without an answer ({_reason(error)})",
        "ask the operator to look at the gateway's log",
    )


def _refused_certificate(error: ssl.SSLError) -> TroubleError:
    """Return what the server said of the site's certificate by a TLS alert."""
    said = _reason(error)
    causes = {
        "expired": ("the server says that the site's certificate has expired", RENEW),
        "unknown_ca": ("the server does not know who issued the site's certificate", NEW_KIT),
        "required": ("the server wants a certificate and got none", NEW_KIT),
        "revoked": ("the server says that the site's certificate is revoked", NEW_KIT),
    }
    for word, (cause, fix) in causes.items():
        if word in said.lower().replace(" ", "_"):
            return TroubleError("admission", f"{cause} ({said})", fix)
    return TroubleError("admission", f"the server does not accept the site's certificate ({said})", NEW_KIT)


RENEW = "compare this machine's clock and the server's; then renew: 'fedreptile-site join --renew'"
NEW_KIT = "ask the operator to look at 'fedreptile-server enrol list', and for a new kit"


def _reason(error: Exception) -> str:
    return plain(str(getattr(error, "reason", None) or getattr(error, "strerror", None) or error or "closed"))
