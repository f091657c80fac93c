"""A federation and sites as enrolment makes them, with a scripted server in the SuperLink's place; all in threads."""

import contextlib
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from unittest.mock import patch

import httpx
import tomli_w
from cryptography.hazmat.primitives.asymmetric import ec
from starlette.types import Receive, Scope, Send

from client.enrolment.joining import make_site, take_kit
from client.home import SiteHome
from common import VERSION
from common.deployment.forward import NODE_KEY, PROTOBUF, VERSION_HEADER, Guard, Pair, Server, answer, server_context
from common.deployment.ports import free_port
from common.trust.certificates import as_pem, issue_site
from common.trust.keys import header_of, new_tls_key, private_pem
from common.trust.request import Request
from server.enrolment.federation import Wanted, make_federation, read_authority
from server.enrolment.sites import Approval, approve, write_kit
from server.gateway.__main__ import server_of
from server.home import FederationHome

FAB = "ab" * 32
PATIENCE = 30.0

Reply = tuple[int, bytes]


@dataclass
class Asked:
    """A request that reached the SuperLink's place."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


def echoed(body: bytes) -> Reply:
    return 200, body


@dataclass
class Scripted:
    """Stands in the SuperLink's place: keeps what it is asked and answers by path, else with what it was sent."""

    asked: list[Asked] = field(default_factory=list)
    replies: dict[str, Callable[[bytes], Reply]] = field(default_factory=dict)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.asked.append(Asked(scope["method"], scope["path"], headers, body))
        status, data = self.replies.get(scope["path"], echoed)(body)
        kind = PROTOBUF if status == 200 else "application/json"
        await answer(send, status, data, {"content-type": kind, "x-inner": "secret"})

    def every_second(self) -> None: ...

    def stopping(self) -> None: ...

    async def closing(self) -> None: ...

    def paths(self) -> list[str]:
        return [one.path for one in self.asked]


@dataclass
class World:
    folder: Path
    upstream: Scripted = field(default_factory=Scripted)
    port: int = field(default_factory=free_port)
    inner_port: int = field(default_factory=free_port)
    sites: dict[str, SiteHome] = field(default_factory=dict)
    node_keys: dict[str, str] = field(default_factory=dict)

    @property
    def server(self) -> FederationHome:
        return FederationHome(self.folder / "federation")

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    def headers(self, name: str, **more: str) -> dict[str, str]:
        """Return the headers that the relay of a site sends."""
        own = {NODE_KEY: self.node_keys[name], VERSION_HEADER: VERSION, "content-type": PROTOBUF}
        return own | {key.replace("_", "-"): value for key, value in more.items()}

    def enrol(self, name: str) -> SiteHome:
        home = self.sites[name] = SiteHome(self.folder / name)
        request = make_site(home, name, self.folder, "cpu", None, datetime.now(UTC))
        self.give_kit(home, request)
        self.node_keys[name] = header_of(request.node_key)
        return home

    def give_kit(self, home: SiteHome, request: Request) -> None:
        now, kit = datetime.now(UTC), self.folder / "kit.json"
        with patch("server.enrolment.sites.fab_of_installation", lambda: (b"", FAB)):
            approved = approve(self.server, Approval(request), None, now)
        write_kit(self.server, approved.kit, kit, None)
        take_kit(home, kit.read_bytes(), None, now)

    def issue(self, name: str, now: datetime | None = None, days: float = 30) -> Path:
        """Have the authority sign a certificate that the list of sites does not know; return the file with its key."""
        key = new_tls_key()
        certificate = issue_site(
            read_authority(self.server, None), name, key.public_key(), now or datetime.now(UTC), days
        )
        return written(self.folder / f"{name}-extra.pem", as_pem([certificate]), key)

    def client(self, name: str | None = None, pair: Path | None = None) -> httpx.Client:
        """Return a client with a site's certificate, another one, or none."""
        return httpx.Client(base_url=self.url, verify=self.context(name, pair), trust_env=False, timeout=PATIENCE)

    def context(self, name: str | None = None, pair: Path | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.server.chain))
        if name is not None:
            context.load_cert_chain(self.sites[name].tls_certificate, self.sites[name].tls_key)
        if pair is not None:
            context.load_cert_chain(pair)
        return context

    @contextlib.contextmanager
    def superlink(self) -> Iterator[None]:
        """Have the scripted server running."""
        loopback = self.server.loopback
        context = server_context(Pair(loopback / "tls.crt", loopback / "tls.key"))
        with serving(Server(self.upstream, ("127.0.0.1", self.inner_port), context, Guard(), [])):
            yield

    @contextlib.contextmanager
    def gateway(self) -> Iterator[Server]:
        server = server_of(self.server, f"127.0.0.1:{self.inner_port}")
        with serving(server):
            yield server


def written(path: Path, certificates: bytes, key: ec.EllipticCurvePrivateKey) -> Path:
    """Write certificates and their key into one file."""
    path.write_bytes(certificates + private_pem(key))
    path.chmod(0o600)
    return path


def make_world(folder: Path, *names: str, **config: float) -> World:
    """Make a federation and enrol sites; ``config`` changes federation.toml."""
    world = World(folder)
    now, port = datetime.now(UTC), world.port
    make_federation(world.server, Wanted("lines", f"localhost:{port}", f"127.0.0.1:{port}"), None, now)
    if config:
        with world.server.config_file.open("a", encoding="utf-8") as file:
            file.write(tomli_w.dumps({key.replace("_", "-"): value for key, value in config.items()}))
    for name in names:
        world.enrol(name)
    return world


@contextlib.contextmanager
def serving(server: Server) -> Iterator[None]:
    """Have a server running in a thread."""
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_until(lambda: server.started or not thread.is_alive())
    assert thread.is_alive()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        assert not thread.is_alive()


def wait_until(there: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.02)
