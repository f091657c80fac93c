"""The way to the gateway: with the site's certificate, through the HTTP proxy if there is one."""

import asyncio
import json
import logging
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime

import httpx

from client.home import SiteConfig, SiteHome
from common import VERSION
from common.deployment.forward import FROM_HEADER, LARGEST_HEADER, VERSION_HEADER, Pair, Renewed, stamp_of
from common.errors import FedreptileError, SettingsError, TrustError
from common.trust.kit import read_kit, root_version

log = logging.getLogger("fedreptile.relay")

PATIENCE = httpx.Timeout(25.0, connect=8.0)
"""Below the 30 s after which SuperNode itself gives up."""
QUICK = httpx.Timeout(15.0, connect=8.0)
"""For what the server answers at once, so that a connection that is dead is found sooner."""
IDLE_SECONDS = 30.0
"""Time that an idle connection is kept; the gateway keeps it longer."""
RETIRED_SECONDS = 120.0
"""Time after which connections of an old certificate are closed."""
LARGEST_ANSWER = LARGEST_BODY = 256 << 20
SHORT_ANSWER = 64 << 10


class UnavailableError(FedreptileError):
    """The server cannot be asked now; asking again may help.

    Args:
        cause: a short word, under which it is counted.
        message: what was found, for the site's log.
    """

    def __init__(self, cause: str, message: str) -> None:
        super().__init__(f"{cause}: {message}")
        self.cause = cause


@dataclass(frozen=True)
class Answer:
    """Of the SuperLink, or of the gateway about a request that it will never pass on."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    of_gateway: bool = False

    @property
    def time(self) -> float | None:
        """The server's time, Unix seconds."""
        try:
            return parsedate_to_datetime(self.headers["date"]).timestamp()
        except (KeyError, ValueError, TypeError):
            return None


FOR_EVER = (400, 404, 413)
"""Refusals of the gateway that are the same however often one asks."""


class Way:
    """Asks the gateway. ``files`` takes up a certificate or kit that is renewed.

    Args:
        passphrase: of the TLS key, if it is encrypted.
    """

    def __init__(self, home: SiteHome, config: SiteConfig, passphrase: str | None) -> None:
        """Raises TrustError if the kit, a certificate or a key cannot be used."""
        self._home, self._proxy = home, config.proxy
        self._pair = Pair(home.tls_certificate, home.tls_key, passphrase)
        self.largest = LARGEST_BODY
        """Bytes of the largest body that the gateway takes, as it last said."""
        self._client: httpx.AsyncClient | None = None
        self._base = ""
        self.root = 0
        """Version of the root of releases in the kit; 0: the federation makes none."""
        self._plain = _plain_client(home, config)
        self._release_url = config.release_url.rstrip("/")
        self._retired: list[tuple[float, httpx.AsyncClient]] = []
        self._closing: set[asyncio.Task[None]] = set()
        self.files = Renewed(lambda: (self._pair.stamp, stamp_of(home.kit_file)), self._take_up)

    def tidy(self) -> None:
        """Close connections of certificates that were renewed a while ago."""
        now = time.monotonic()
        while self._retired and self._retired[0][0] < now:
            task = asyncio.get_running_loop().create_task(self._retired.pop(0)[1].aclose())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        for client in (self._client, self._plain, *(client for _, client in self._retired)):
            if client is not None:
                await client.aclose()

    async def ask(self, path: str, headers: Mapping[str, str], body: bytes, patience: httpx.Timeout) -> Answer:
        """Ask the server.

        Raises:
            UnavailableError: if it cannot be reached, or the gateway refuses for now.
        """
        assert self._client is not None
        every = {**headers, VERSION_HEADER: VERSION, "accept-encoding": "identity"}
        timeout = {"timeout": patience.as_dict()}
        request = httpx.Request("POST", self._base + path, headers=every, content=body, extensions=timeout)
        try:
            found = await self._client.send(request, stream=True)
            try:
                answer = Answer(found.status_code, await _read(found), found.headers)
            finally:
                await found.aclose()
        except httpx.HTTPError as error:
            raise _unavailable(error) from error
        with suppress(KeyError, ValueError):
            self.largest = min(int(found.headers[LARGEST_HEADER]), LARGEST_BODY)
        if found.headers.get(FROM_HEADER) == "superlink":
            return answer
        return _of_gateway(answer)

    @asynccontextmanager
    async def release(self, name: str) -> AsyncIterator[httpx.Response]:
        """Ask for a file of the releases' repository, of the gateway or where ``release-url`` says.

        Args:
            name: its path in the repository.

        Returns:
            the answer; its status is 200, its body still to be read, or 404.

        Raises:
            UnavailableError: if it cannot be reached, or refuses.
        """
        client, base = (self._plain, self._release_url) if self._plain else (self._client, self._base + "/releases")
        assert client is not None
        headers, timeout = {VERSION_HEADER: VERSION, "accept-encoding": "identity"}, {"timeout": PATIENCE.as_dict()}
        try:
            found = await client.send(
                httpx.Request("GET", f"{base}/{name}", headers=headers, extensions=timeout), stream=True
            )
            try:
                is_gateway = found.headers.get(FROM_HEADER) == "gateway"
                if found.status_code not in (200, 404) or (client is self._client and not is_gateway):
                    _of_gateway(Answer(found.status_code, await _read(found), found.headers))
                    raise UnavailableError("releases", f"status {found.status_code} for {name}")
                if found.status_code == httpx.codes.NOT_FOUND:
                    await _read_short(found)
                yield found
            finally:
                await found.aclose()
        except httpx.HTTPError as error:
            raise _unavailable(error) from error

    def _take_up(self) -> None:
        kit = read_kit(self._home.kit_file)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_verify_locations(cadata=kit.roots_pem)
        except (ssl.SSLError, ValueError) as error:
            raise TrustError(f"{self._home.kit_file} holds roots that cannot be used: {error}") from error
        self._pair.load(context)
        client = client_of(context, self._proxy)
        if self._client is not None:
            self._retired.append((time.monotonic() + RETIRED_SECONDS, self._client))
        self._client, self._base = client, f"https://{kit.address}"
        self.root = root_version(kit.releases_root) if kit.releases_root else 0


def _plain_client(home: SiteHome, config: SiteConfig) -> httpx.AsyncClient | None:
    """Return what asks a plain server for releases, without the site's certificate; None if there is none to ask."""
    if not config.release_url:
        return None
    if not config.release_url.startswith(("https://", "http://")):
        raise SettingsError(f"{home.config_file}: release-url is {config.release_url!r}; write https://host/folder")
    return client_of(ssl.create_default_context(), config.proxy)


def client_of(context: ssl.SSLContext, proxy: str) -> httpx.AsyncClient:
    """Return what makes requests.

    Args:
        proxy: URL of an HTTP proxy; empty: what the environment says; 'off': none.

    Raises:
        TrustError: if the proxy is not a URL of one.
    """
    limits = httpx.Limits(max_connections=16, max_keepalive_connections=8, keepalive_expiry=IDLE_SECONDS)
    try:
        return httpx.AsyncClient(
            verify=context,
            trust_env=proxy == "",
            proxy=proxy if proxy not in ("", "off") else None,
            limits=limits,
            follow_redirects=False,
        )
    except (ValueError, httpx.InvalidURL) as error:
        raise TrustError(f"the proxy {proxy!r} cannot be used: {error}; write http://host:port") from error


async def _read_short(found: httpx.Response) -> None:
    """Throw a short answer away: only after its end can the connection be used again, and each site looks in vain for
    the next root whenever it looks for a release. A long one is left, and its connection ends."""
    size = 0
    async for part in found.aiter_raw():
        size += len(part)
        if size > SHORT_ANSWER:
            return


async def _read(found: httpx.Response) -> bytes:
    parts, size = list[bytes](), 0
    async for part in found.aiter_raw():
        size += len(part)
        if size > LARGEST_ANSWER:
            raise UnavailableError("answer", f"the server's answer is larger than {LARGEST_ANSWER} bytes")
        parts.append(part)
    return b"".join(parts)


def _of_gateway(answer: Answer) -> Answer:
    """Return a refusal that is for ever. Raises UnavailableError for all others."""
    if answer.headers.get(FROM_HEADER) != "gateway":
        said = f"status {answer.status} from what is no gateway of fedreptile; is the address right?"
        raise UnavailableError("no-gateway", said)
    try:
        values = json.loads(answer.body)
        cause, found, needed = (_plain(values[key]) for key in ("error", "found", "needed"))
    except (ValueError, KeyError, TypeError):
        cause, found, needed = "gateway", f"status {answer.status}", "an answer"
    if answer.status in FOR_EVER:
        log.warning("the gateway refuses for ever: %s: found %s; needed %s", cause, found, needed)
        return Answer(answer.status, answer.body, answer.headers, of_gateway=True)
    raise UnavailableError(cause, f"the gateway found {found}; needed {needed}")


def _plain(value: object) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in str(value)[:300])


def _unavailable(error: httpx.HTTPError) -> UnavailableError:
    """Return why the server cannot be asked, in a word and a sentence."""
    tls = _cause_of_kind(error, ssl.SSLError)
    text = str(tls or error) or type(error).__name__
    if isinstance(tls, ssl.SSLCertVerificationError):
        return UnavailableError("server-certificate", f"the server's certificate is not accepted: {tls.verify_message}")
    if tls is not None and "alert" in str(tls).lower():
        return UnavailableError("certificate", f"the server does not accept the site's certificate: {text}")
    kinds: list[tuple[type[Exception], str, str]] = [
        (httpx.ProxyError, "proxy", "the proxy does not let through"),
        (httpx.ConnectError, "unreachable", "no connection to the server"),
        (httpx.ConnectTimeout, "unreachable", "no connection to the server in time"),
        (httpx.TimeoutException, "timeout", "no answer in time"),
    ]
    cause, what = next(((cause, what) for kind, cause, what in kinds if isinstance(error, kind)), ("cut", "cut off"))
    return UnavailableError(cause, f"{what}: {text}")


def _cause_of_kind(error: BaseException, kind: type[ssl.SSLError]) -> ssl.SSLError | None:
    seen: BaseException | None = error
    for _ in range(10):
        if seen is None or isinstance(seen, kind):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


@dataclass
class Contact:
    """Whether the server can be reached, for the state file."""

    clock: Callable[[], float] = time.time
    connected: bool = False
    since: float = 0.0
    last: float = 0.0
    cause: str = "not asked yet"

    def reached(self) -> None:
        self.last = self.clock()
        self._change(True, "")

    def lost(self, error: UnavailableError) -> None:
        self._change(False, str(error))

    def _change(self, connected: bool, cause: str) -> None:
        if connected != self.connected or not self.since:
            self.since = self.clock()
            if connected:
                log.info("connected")
        if cause and cause != self.cause:
            log.warning("not connected: %s", cause)
        self.connected, self.cause = connected, cause
