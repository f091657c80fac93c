"""What gateway and relay share: the routes that pass, how much of a body is taken, and serving over TLS.

Torch-free, like all that it imports: each of the two is a small process that runs for months.
"""

import asyncio
import contextlib
import json
import logging
import os
import re
import socket
import ssl
import stat
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import uvicorn
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.supercore.constant import (
    FLEET_HTTP_PUBLIC_KEY_HEADER,
    FLEET_HTTP_SIGNATURE_HEADER,
    FLWR_COMPONENT_NAME_METADATA_KEY,
    FLWR_PACKAGE_NAME_METADATA_KEY,
    FLWR_PACKAGE_VERSION_METADATA_KEY,
)
from h11 import IDLE, SEND_BODY
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from common.errors import DeployError, FedreptileError, TrustError
from common.trust.keys import read_private_key

log = logging.getLogger("fedreptile.forward")

PREFIX = "/v1/fleet/"
SMALL, MESSAGE, LARGE = 64 << 10, 1 << 20, 0
"""Bytes of a body at most; LARGE: what the configuration says."""
ROUTES: Mapping[str, int] = {
    f"{PREFIX}activate-node": SMALL,
    f"{PREFIX}deactivate-node": SMALL,
    f"{PREFIX}send-node-heartbeat": SMALL,
    f"{PREFIX}pull-messages": SMALL,
    f"{PREFIX}get-run": SMALL,
    f"{PREFIX}get-fab": SMALL,
    f"{PREFIX}pull-object": SMALL,
    f"{PREFIX}confirm-message-received": SMALL,
    f"{PREFIX}push-messages": MESSAGE,
    f"{PREFIX}push-object": LARGE,
}
"""All of Flower's API that passes, with POST, and the largest body of each."""
HEALTH = "/health"
RELEASES = "/releases/"
"""Where the files of releases are, with GET."""
RELEASE = re.compile(rf"{RELEASES}(metadata|targets)/[A-Za-z0-9][A-Za-z0-9._-]{{0,199}}")
"""Their paths: two folders, no way out of them."""

NODE_KEY = FLEET_HTTP_PUBLIC_KEY_HEADER
FLOWER_VERSION = FLWR_PACKAGE_VERSION_METADATA_KEY
VERSION_HEADER = "x-fedreptile-version"
FROM_HEADER = "x-fedreptile-from"
"""In answers of the gateway: 'superlink' if it only passes them on, 'gateway' if it refuses."""
LARGEST_HEADER = "x-fedreptile-largest"
"""In answers of the gateway: bytes of the largest body that it takes."""
PROTOBUF = "application/x-protobuf"
PASSED = (
    "content-type",
    "accept",
    NODE_KEY,
    TIMESTAMP_HEADER,
    FLEET_HTTP_SIGNATURE_HEADER,
    FLWR_PACKAGE_NAME_METADATA_KEY,
    FLOWER_VERSION,
    FLWR_COMPONENT_NAME_METADATA_KEY,
)
"""The headers of a request that are passed on; no other is."""
WORD, BASE64 = r"[A-Za-z0-9._+-]{1,32}", r"[A-Za-z0-9+/=]{1,%d}"
PRINTABLE = r"[ -~]{0,4096}"
"""Of headers that are compared with what they must be, or that the relay writes itself."""
FORMS: Mapping[str, str] = {
    "content-type": r"application/(x-)?protobuf",
    "accept": r"application/(x-)?protobuf|\*/\*",
    NODE_KEY: PRINTABLE,
    TIMESTAMP_HEADER: r"[0-9T:.+-]{10,40}",
    FLEET_HTTP_SIGNATURE_HEADER: BASE64 % 200,
    FLWR_PACKAGE_NAME_METADATA_KEY: WORD,
    FLOWER_VERSION: WORD,
    FLWR_COMPONENT_NAME_METADATA_KEY: WORD,
    VERSION_HEADER: PRINTABLE,
    "content-length": r"[0-9]{1,15}",
}
"""What headers look like, so that there is no room in them for anything else."""
HEADER_BYTES = 16 << 10
"""Of a request's line and headers together."""
HANDSHAKE_SECONDS = 10.0
BACKLOG = 512
"""Connections that the system keeps until they are taken."""
MOST_UNFINISHED = 1024
"""Connections at a time that have not shaken hands yet or not asked anything; any further one is closed."""
KEEP_ALIVE_SECONDS = 75
"""Time that an idle connection stays open."""
LINGER_SECONDS = 5.0
"""Time for which the rest of a refused body is thrown away, so that who sends it gets to read why."""
UNSENT = 64 << 10
"""Bytes of an answer that wait in a connection before more of it is read. With TLS asyncio would let 512 KiB wait; a
thousand sites that take a file at once would fill that."""
LET_GO_SECONDS = 3
"""Time for requests under way when the process is asked to end."""
WRITE_SECONDS = 2.0


class RefusedError(FedreptileError):
    """A request is refused.

    Args:
        status: of the HTTP answer.
        cause: a short fixed word, under which refusals are counted.
        found, needed: what both ends may know.
        wait: seconds after which it is worth trying again; 0: not said.
    """

    def __init__(self, status: int, cause: str, found: str = "", needed: str = "", wait: int = 0) -> None:
        super().__init__(f"{cause}: found {found or 'nothing'}; needed {needed or 'nothing'}")
        self.status, self.cause, self.found, self.needed, self.wait = status, cause, found, needed, wait

    @property
    def body(self) -> bytes:
        return json.dumps({"error": self.cause, "found": self.found, "needed": self.needed}).encode()


class GoneError(Exception):
    """Who asked has hung up."""


def route_of(scope: Scope) -> str:
    """Return the path of a request, which is one of ``ROUTES`` or ``HEALTH``, or fits ``RELEASE``.

    The bytes as they came are compared, so that no way of writing a path can mean another one here than behind.

    Raises:
        RefusedError: for any other path, method or query.
    """
    path = bytes(scope["raw_path"]).decode("latin-1")
    known = path in ROUTES if scope["method"] == "POST" else scope["method"] == "GET" and is_read(path)
    if not known or scope["query_string"]:
        asked = f"{scope['method']} {path}"[:200]
        raise RefusedError(404, "route", asked, f"POST {PREFIX}… of a node, or GET {HEALTH}")
    return path


def is_read(path: str) -> bool:
    """Say whether a path is one to ask with GET."""
    return path == HEALTH or RELEASE.fullmatch(path) is not None


def headers_of(scope: Scope) -> dict[str, str]:
    """Return the headers that are looked at or passed on.

    Raises:
        RefusedError: if one of them is there twice, or is not in the form that Flower writes.
    """
    found: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        if name not in FORMS:
            continue
        if name in found or not re.fullmatch(FORMS[name], value):
            raise RefusedError(400, "headers", f"{name} twice, or not in its form", "each once, as Flower writes it")
        found[name] = value
    return found


async def read_body(receive: Receive, headers: Mapping[str, str], most: int) -> bytes:
    """Read a request's body, no more of it than is allowed.

    Raises:
        RefusedError: if it is larger; before anything is read if it says so itself.
        GoneError: if the connection ends first.
    """
    _check_size(int(headers.get("content-length", 0)), most)
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise GoneError
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        _check_size(size, most)
        if not message.get("more_body", False):
            return b"".join(parts)


def _check_size(size: int, most: int) -> None:
    if size > most:
        raise RefusedError(413, "too-large", f"a body of {size} bytes or more", f"at most {most} bytes")


async def answer(send: Send, status: int, body: bytes, headers: Mapping[str, str]) -> None:
    """Send a whole answer."""
    every = {**headers, "content-length": str(len(body))}
    encoded = [(name.encode(), value.encode("latin-1")) for name, value in every.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})


async def refuse(scope: Scope, send: Send, error: RefusedError, headers: Mapping[str, str]) -> None:
    """Send a refusal as short JSON: error, found, needed."""
    every = {"content-type": "application/json", **headers}
    if error.wait:
        every["retry-after"] = str(error.wait)
    scope["state"]["linger"]()
    await answer(send, error.status, error.body, every)


class Budget:
    """Memory for bodies: so many bytes are held at once, and who needs more waits."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.held = 0
        self._changed = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def room(self, size: int) -> AsyncIterator[None]:
        """Have room for a body; a small one always has it."""
        if size <= SMALL:
            yield
            return
        async with self._changed:
            await self._changed.wait_for(lambda: self.held == 0 or self.held + size <= self.most)
            self.held += size
        try:
            yield
        finally:
            async with self._changed:
                self.held -= size
                self._changed.notify_all()


class Complaints:
    """Log lines about refusals: one for each subject and cause in a minute, with how many were left out."""

    SECONDS = 60.0
    MOST = 1000

    def __init__(self, logger: logging.Logger) -> None:
        self._log = logger
        self._told: dict[tuple[str, str], tuple[float, int]] = {}

    def tell(self, subject: str, error: RefusedError) -> None:
        now, key = time.monotonic(), (subject, error.cause)
        since, silent = self._told.get(key, (-self.SECONDS, 0))
        if now - since < self.SECONDS:
            self._told[key] = since, silent + 1
            return
        if len(self._told) >= self.MOST:
            self._told.clear()
        self._told[key] = now, 0
        more = f" ({silent} more since the last such line)" if silent else ""
        self._log.warning("refused %s: %s%s", subject or "a stranger", error, more)


class StateFile:
    """A small file that says how a process stands; written at most every ``WRITE_SECONDS``, and replaced as a whole.

    It only matters while the process runs, so it is not flushed to disk. A disk that is full leaves the old one.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._written, self._when = path, b"", -WRITE_SECONDS

    def write(self, values: Mapping[str, Any], at_once: bool = False) -> None:
        now, data = time.monotonic(), json.dumps(values, indent=1).encode()
        if data == self._written or (now - self._when < WRITE_SECONDS and not at_once):
            return
        scratch = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            scratch.write_bytes(data)
            scratch.replace(self._path)
        except OSError as error:
            with contextlib.suppress(OSError):
                scratch.unlink(missing_ok=True)
            log.warning("%s cannot be written: %s", self._path, error.strerror or error)
        self._written, self._when = data, now


def stamp_of(*paths: Path) -> tuple[tuple[int, ...], ...]:
    """Return what changes when one of some files does; a missing file counts too."""
    stamps: list[tuple[int, ...]] = []
    for path in paths:
        try:
            found = path.stat()
            stamps.append((found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino))
        except OSError:
            stamps.append(())
    return tuple(stamps)


@dataclass(frozen=True)
class Pair:
    """A certificate, with what is between it and its root, and its private key."""

    certificate: Path
    key: Path
    passphrase: str | None = None

    @property
    def stamp(self) -> tuple[tuple[int, ...], ...]:
        return stamp_of(self.certificate, self.key)

    def load(self, context: ssl.SSLContext) -> None:
        """Have a context show this certificate from its next connection on.

        Raises:
            TrustError: if one of the two files cannot be used, or they do not belong together. The context is then as
                it was.
        """
        read_private_key(self.key, self.passphrase)
        for one in (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), context):
            try:
                one.load_cert_chain(self.certificate, self.key, lambda: self.passphrase or "")
            except (OSError, ValueError) as error:
                why = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
                raise TrustError(
                    f"{self.certificate} and {self.key} cannot be used together: {why}; "
                    "they must be a certificate and its private key, PEM"
                ) from error


def server_context(pair: Pair, authority: Path | None = None) -> ssl.SSLContext:
    """Return a context for a server, from TLS 1.2 on.

    Args:
        authority: certificates of those who sign clients; then each client must show a certificate of theirs.

    Raises:
        TrustError: if a file cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Each connection shows its certificate anew: none is taken up again from an earlier one.
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
    if authority is not None:
        try:
            context.load_verify_locations(cafile=authority)
        except OSError as error:
            raise TrustError(f"{authority} cannot be read as certificates of an authority: {error}") from error
        context.verify_mode = ssl.CERT_REQUIRED
    pair.load(context)
    return context


class Renewed:
    """What is made of some files, made again when they have changed; while that fails the old stays in use."""

    def __init__(self, stamp: Callable[[], object], make: Callable[[], None]) -> None:
        """``make`` is called at once, and its errors are the caller's."""
        self._stamp, self._make = stamp, make
        self._seen = stamp()
        make()

    def look(self) -> None:
        now = self._stamp()
        if now == self._seen:
            return
        self._seen = now
        try:
            self._make()
            log.info("renewed certificates are in use")
        except FedreptileError as error:
            log.error("the old certificates stay in use: %s", error)


class Guard:
    """What is done about connections. This one lets all of them be."""

    patience: float = 60.0
    """Seconds that a client has to send a whole request."""

    def opened(self, certificate: bytes | None) -> Any:
        """Return what requests of a new connection find in ``scope["state"]["connection"]``.

        Args:
            certificate: the client's, DER; None if it showed none.
        """
        return None

    def closed(self, connection: Any) -> None: ...

    def refuses(self, connection: Any) -> bool:
        """Return whether a new connection is to be closed without a word."""
        return False

    def slow(self, connection: Any) -> None:
        """A client took too long to send the head of a request; its connection ends."""


class GuardedProtocol(H11Protocol):
    """uvicorn's protocol, which knows the client's certificate and does not wait for ever for a request's head.

    A request finds in ``scope["state"]``: ``connection``; ``began``, the loop's time of its first byte; ``abort``,
    which ends the connection at once; and ``linger``, to be called before an answer to a body that was not read.
    """

    def __init__(self, config: uvicorn.Config, state: Any, guard: Guard, unfinished: "set[GuardedProtocol]") -> None:
        """``unfinished``: where it is until it has the head of a request, or the connection is lost."""
        super().__init__(config, state, {}, asyncio.get_running_loop())
        self._guard, self._unfinished = guard, unfinished
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(UNSENT)
        tls = transport.get_extra_info("ssl_object")
        connection = self._guard.opened(tls.getpeercert(binary_form=True) if tls else None)
        self.app_state = {
            "connection": connection,
            "abort": transport.abort,
            "linger": self._linger,
            "began": self.loop.time(),
        }
        if self._guard.refuses(connection):
            transport.abort()
        self._mind()

    def data_received(self, data: bytes) -> None:
        if self._timer is None:
            self.app_state["began"] = self.loop.time()
        super().data_received(data)
        self._mind()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._unfinished.discard(self)
        self._guard.closed(self.app_state["connection"])
        super().connection_lost(exc)

    @property
    def idle(self) -> bool:
        """Whether nothing is under way, neither here nor on the way to the client."""
        answered = self.cycle is None or self.cycle.response_complete
        return answered and not self.transport.get_write_buffer_size()

    def _linger(self) -> None:
        cycle = self.cycle

        def end() -> None:
            if self.cycle is cycle and self.conn.their_state is SEND_BODY:
                self.transport.abort()

        self.loop.call_later(LINGER_SECONDS, end)

    def _mind(self) -> None:
        """Have the timer run from a request's first byte until its head is complete."""
        if self.conn.their_state is not IDLE or self.transport.is_closing():
            self._unfinished.discard(self)
            self._stop_timer()
        elif self._timer is None:
            self._timer = self.loop.call_later(self._guard.patience, self._too_slow)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        self._guard.slow(self.app_state["connection"])
        self.transport.abort()


class Service(Protocol):
    """An ASGI app that is served."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...

    def every_second(self) -> None:
        """Do what is to be done from time to time."""

    def stopping(self) -> None:
        """Let go of requests that wait for something; the server ends."""

    async def closing(self) -> None:
        """Close what is still open; no request comes any more."""


class Server(uvicorn.Server):
    """uvicorn with guarded connections, which looks every second whether certificates were renewed."""

    def __init__(
        self,
        service: Service,
        address: tuple[str, int],
        context: ssl.SSLContext,
        guard: Guard,
        renewed: Sequence[Renewed],
    ) -> None:
        host, port = address
        super().__init__(
            uvicorn.Config(
                service,
                host,
                port,
                http=GuardedProtocol,
                ws="none",
                lifespan="off",
                loop="asyncio",
                log_config=None,
                log_level=logging.WARNING,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=LET_GO_SECONDS,
                h11_max_incomplete_event_size=HEADER_BYTES,
            )
        )
        self._service, self._context, self._guard, self._renewed = service, context, guard, renewed
        self._unfinished: set[GuardedProtocol] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._complaints = Complaints(log)
        self.servers = []  # none of asyncio's: connections are counted before the handshake

    async def startup(self, sockets: object = None) -> None:
        await self.lifespan.startup()
        for listening in await _listen(self.config.host, self.config.port):
            self._begin(self._accept(listening))
        self.started = True

    async def _accept(self, listening: socket.socket) -> None:
        """Take connections for ever. Those that are not finished are counted from here on, before any handshake."""
        loop = asyncio.get_running_loop()
        with listening:
            while True:
                try:
                    connection, _ = await loop.sock_accept(listening)
                except ConnectionAbortedError:  # who dialled is gone already
                    continue
                except OSError as error:  # such as no more files than this process may have
                    log.error("no connection can be taken: %s", error.strerror or error)
                    await asyncio.sleep(1.0)
                    continue
                if len(self._unfinished) < MOST_UNFINISHED:
                    protocol = GuardedProtocol(self.config, self.server_state, self._guard, self._unfinished)
                    self._unfinished.add(protocol)
                    self._begin(self._shake_hands(connection, protocol))
                else:
                    connection.close()
                    found = f"more than {MOST_UNFINISHED} connections that ask nothing"
                    self._complaints.tell("", RefusedError(503, "unfinished", found, "fewer of them"))

    async def _shake_hands(self, connection: socket.socket, protocol: GuardedProtocol) -> None:
        # asyncio does so only for sockets that name their protocol. Else the second part of an answer waits until the
        # other end has said that it has the first: 40 ms for every request.
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            with contextlib.suppress(OSError):  # no certificate, a foreign one, no TLS, too slow, gone
                await asyncio.get_running_loop().connect_accepted_socket(
                    lambda: protocol, connection, ssl=self._context, ssl_handshake_timeout=HANDSHAKE_SECONDS
                )
        finally:
            if protocol.transport is None:  # it will never hear of the connection, so not of its end either
                self._unfinished.discard(protocol)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def on_tick(self, counter: int) -> bool:
        if counter % 10 == 0:
            for item in self._renewed:
                item.look()
            self._service.every_second()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: object = None) -> None:
        for task in self._tasks:
            task.cancel()
        self._service.stopping()
        self._hang_up(idle=True)  # a farewell in TLS would wait for the other end's
        await super().shutdown()
        self._hang_up(idle=False)
        await self._service.closing()
        await asyncio.sleep(0)

    def _hang_up(self, idle: bool) -> None:
        for connection in list(self.server_state.connections):
            if isinstance(connection, GuardedProtocol) and (not idle or connection.idle):
                connection.transport.abort()

    def run_until_told(self) -> None:
        """Serve until a signal says to end, or until the supervisor that started this process is no more.

        Raises:
            DeployError: if the address cannot be listened on.
        """
        self._end_with_supervisor()
        with contextlib.suppress(KeyboardInterrupt):
            self.run()

    def _end_with_supervisor(self) -> None:
        """A supervisor holds the other end of standard input; without one it is a terminal, a file or nothing."""
        try:
            piped = stat.S_ISFIFO(os.fstat(0).st_mode)
        except OSError:
            piped = False
        if not piped:
            return

        def wait() -> None:
            with contextlib.suppress(OSError):
                while os.read(0, 4096):
                    pass
            self.should_exit = True

        threading.Thread(target=wait, daemon=True, name="supervisor-watch").start()


async def _listen(host: str, port: int) -> list[socket.socket]:
    """Return sockets that listen at all addresses of a host. Raises DeployError if that cannot be."""
    found: list[socket.socket] = []
    try:
        infos = await asyncio.get_running_loop().getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        for family, address in dict.fromkeys((info[0], info[4]) for info in infos):
            found.append(socket.create_server(address, family=family, backlog=BACKLOG))
            found[-1].setblocking(False)
    except OSError as error:
        for one in found:
            one.close()
        raise DeployError(f"{host}:{port} cannot be listened on: {error.strerror or error}") from error
    return found
