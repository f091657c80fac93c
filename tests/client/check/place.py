"""A federation made by the operator's commands, its gateway as a real process, and servers that misbehave."""

import contextlib
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import formatdate
from pathlib import Path
from typing import Any

import typer
from cryptography.hazmat.primitives.asymmetric import ec

from client.enrolment.cli import join
from client.home import SiteHome
from common.deployment.forward import FROM_HEADER
from common.deployment.ports import free_port
from common.trust.certificates import Authority, as_pem, issue_server, issue_site, new_authority
from common.trust.keys import new_tls_key, private_pem, read_ec_key, read_signing_key
from common.trust.kit import encode_kit, fingerprint, read_kit
from server.enrolment.cli import app as operator
from server.enrolment.federation import read_authority
from server.home import FederationHome
from tests.commands import commands_of

ROOT = Path(__file__).resolve().parents[3]
NOW = datetime.now(UTC)
Serve = Callable[[socket.socket], None]

joining = typer.Typer()
joining.command()(join)
show, _ = commands_of(joining)
operate, _ = commands_of(operator)

SETTINGS = """\
[data]
size = 8
[model]
width = 4
[episode]
way = 5
shot = 5
query = 2
"""


@dataclass(frozen=True)
class Place:
    """A federation and the sites 'line-1', and 'line-2', which is revoked."""

    federation: FederationHome
    folder: Path
    port: int

    def site(self, name: str, to: Path) -> SiteHome:
        """Return a copy of a site's folder, with a copy of the data that only this test has."""
        home = SiteHome(Path(shutil.copytree(self.folder / name, to / name)))
        shutil.copytree(self.folder / "data", to / "data")
        text = home.config_file.read_text().replace(str(self.folder / "data"), str(to / "data"))
        home.config_file.write_text(text)
        return home

    @property
    def authority(self) -> Authority:
        return read_authority(self.federation, None)

    def sign(self, home: SiteHome, **changes: Any) -> None:
        """Have the operator sign a kit that differs."""
        kit = replace(read_kit(home.kit_file), **changes)
        home.kit_file.write_bytes(encode_kit(kit, read_signing_key(self.federation.signing_key)))

    def dial(self, home: SiteHome, port: int, host: str = "localhost") -> None:
        """Have the site's kit name another address."""
        self.sign(home, address=f"{host}:{port}")

    def own_certificate(self, home: SiteHome, issued: datetime, days: float, by: Authority | None = None) -> None:
        """Give the site another certificate."""
        key = read_ec_key(home.tls_key).public_key()
        one = issue_site(by or self.authority, home.config().name, key, issued, days)
        home.tls_certificate.write_bytes(as_pem([one]))


@contextlib.contextmanager
def place(data: Path) -> Iterator[Place]:
    """Have a federation with a gateway that runs; behind it is a server that is always healthy."""
    with tempfile.TemporaryDirectory(prefix="fedcheck") as scratch, contextlib.ExitStack() as running:
        folder, port = Path(scratch), free_port()
        shutil.copytree(data, folder / "data")
        (folder / "settings.toml").write_text(SETTINGS)
        home = FederationHome(folder / "fed")
        address = ("--address", f"localhost:{port}", "--listen", f"127.0.0.1:{port}")
        operate("new", home.path, "--name", "lines", *address, "--settings", folder / "settings.toml")
        for name in ("line-1", "line-2"):
            site, kit = SiteHome(folder / name), folder / f"{name}.kit"
            show("--home", site.path, "--name", name, "--data", folder / "data")
            operate("approve", site.request_file, "--home", home.path, "--yes", "--out", kit)
            show("--home", site.path, "--kit", kit, "--fingerprint", fingerprint(read_kit(kit)))
        operate("revoke", "line-2", "--home", home.path, "--reason", "laptop was stolen")
        upstream = running.enter_context(serving(over_tls(home.loopback, answering(b"", FROM_HEADER, "nobody"))))
        running.enter_context(_gateway(home, upstream, port))
        yield Place(home, folder, port)


@contextlib.contextmanager
def _gateway(home: FederationHome, upstream: int, port: int) -> Iterator[None]:
    home.run.mkdir(exist_ok=True)
    words = [
        sys.executable,
        "-P",
        "-m",
        "server.gateway",
        "--home",
        str(home.path),
        "--upstream",
        f"127.0.0.1:{upstream}",
    ]
    with (home.path / "gateway.log").open("wb") as log:
        process = subprocess.Popen(words, cwd=home.run, stdin=subprocess.PIPE, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 60
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                assert process.poll() is None and time.monotonic() < deadline, (home.path / "gateway.log").read_text()
                time.sleep(0.05)
            yield
        finally:
            process.kill()
            process.wait()
            if process.stdin:
                process.stdin.close()


# ------------------------------------------------------------------------------------- servers that misbehave


@contextlib.contextmanager
def serving(serve: Serve) -> Iterator[int]:
    """Have a server on loopback that does something with each connection; give its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=_accept, args=(server, serve), daemon=True).start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)


def _accept(server: socket.socket, serve: Serve) -> None:
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        threading.Thread(target=_quietly, args=(serve, connection), daemon=True).start()


def _quietly(serve: Serve, connection: socket.socket) -> None:
    with contextlib.suppress(OSError), connection:
        serve(connection)


def answering(body: bytes, *header: str, status: int = 200, ahead: float = 0.0) -> Serve:
    """Return what reads a request's head and answers; its clock may be ahead by some seconds."""

    def serve(connection: socket.socket) -> None:
        head_of(connection)
        lines = [f"HTTP/1.1 {status} x", f"Date: {formatdate(time.time() + ahead, usegmt=True)}", ": ".join(header)]
        lines += [f"Content-Length: {len(body)}", "Content-Type: application/json", "", ""]
        connection.sendall("\r\n".join(lines).encode() + body)

    return serve


def over_tls(folder: Path, serve: Serve) -> Serve:
    """Return what speaks TLS with tls.crt and tls.key of a folder, and then does what it is given."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "tls.crt", folder / "tls.key")

    def wrapped(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as inner:
            serve(inner)

    return wrapped


def certified(folder: Path, by: Authority, host: str = "localhost", days: float = 90) -> Path:
    """Write tls.crt and tls.key of a server into a new folder."""
    key: ec.EllipticCurvePrivateKey = new_tls_key()
    folder.mkdir()
    (folder / "tls.crt").write_bytes(as_pem([issue_server(by, [host], key.public_key(), NOW, days)]))
    (folder / "tls.key").write_bytes(private_pem(key))
    return folder


def proxying(status: int = 200, reason: str = "no") -> Serve:
    """Return a proxy that connects through, or answers all with a status."""

    def serve(connection: socket.socket) -> None:
        words = head_of(connection).split(b" ")
        if status != 200 or words[0] != b"CONNECT":
            connection.sendall(f"HTTP/1.1 {status} {reason}\r\nContent-Length: 0\r\n\r\n".encode())
            return
        host, _, port = words[1].decode().rpartition(":")
        with socket.create_connection((host, int(port)), 5) as other:
            connection.sendall(b"HTTP/1.1 200 ok\r\n\r\n")
            back = threading.Thread(target=_copy, args=(other, connection), daemon=True)
            back.start()
            _copy(connection, other)
            back.join()

    return serve


def head_of(connection: socket.socket) -> bytes:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        if not (more := connection.recv(1)):
            raise OSError("the other end hung up")
        head += more
    return head


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def swallowing() -> Iterator[int]:
    """Have a port that takes no connection and refuses none, as behind a firewall that drops."""
    with socket.socket() as server, contextlib.ExitStack() as waiting:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(3):  # fill the queue of connections
            one = waiting.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(server.getsockname())
        time.sleep(0.05)
        yield server.getsockname()[1]


def stranger() -> Authority:
    """Return an authority of someone else, such as a firewall that opens TLS."""
    return new_authority("Corporate Inspection", NOW)
