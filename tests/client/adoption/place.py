"""A federation with releases, a real static server of its repository that can be made to lie, and a site."""

import contextlib
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import tomli_w

from client.adoption.fetch import Fetched, Source, fetch, trust_root
from client.home import SiteHome
from server.home import FederationHome
from server.releases.publishing import promote
from server.releases.repository import Repository
from tests.server.releases.made import NOW, put, releases_in

Lie = bytes | Callable[[BaseHTTPRequestHandler], object]


class StaticServer(ThreadingHTTPServer):
    """Serves a folder; what is in ``lies`` it answers by itself. Paths as 'metadata/timestamp.json'."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.lies: dict[str, Lie] = {}
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/releases"


class _Handler(BaseHTTPRequestHandler):
    server: StaticServer

    def do_GET(self) -> None:
        name = self.path.removeprefix("/releases/")
        self.server.asked.append(name)
        lie = next((lie for end, lie in self.server.lies.items() if name.endswith(end)), None)
        if callable(lie):
            with contextlib.suppress(OSError):
                lie(self)
            return
        path = self.server.folder / name
        data = lie if lie is not None else path.read_bytes() if path.is_file() else None
        self.send_response(404 if data is None else 200)
        self.send_header("content-length", str(len(data or b"")))
        self.end_headers()
        self.wfile.write(data or b"")

    def log_message(self, *_: Any) -> None: ...


def endless(handler: BaseHTTPRequestHandler) -> None:
    """Answer without end."""
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b"x" * 65536)


@dataclass
class Place:
    folder: Path
    federation: FederationHome
    server: StaticServer
    site: SiteHome

    @property
    def source(self) -> Source:
        return Source(self.server.url)

    @property
    def metadata(self) -> Path:
        return self.federation.repository / "metadata"

    def release(self, data: bytes, parent: int | None = None, *canaries: str, now: datetime = NOW) -> int:
        number = put(self.federation, data, parent, now).number
        promote(self.federation, number, canaries, None, now)
        return number

    def fetch(self) -> Fetched | None:
        return fetch(self.site, self.source)

    def content(self) -> bytes:
        found = self.fetch()
        assert found is not None
        return found.path.read_bytes()

    def keep(self) -> Path:
        """Return a copy of the repository as it is now."""
        return Path(
            shutil.copytree(self.federation.repository, self.folder / f"kept-{len(list(self.folder.iterdir()))}")
        )


def site_in(folder: Path, federation: FederationHome, name: str = "north") -> SiteHome:
    """Make as much of a site as fetching needs, with the root that its kit would have brought."""
    home = SiteHome(folder / name)
    home.path.mkdir()
    home.config_file.write_text(tomli_w.dumps({"name": name, "data": str(folder.absolute())}), encoding="utf-8")
    trust_root(home, Repository(federation).root_text())
    return home


@contextlib.contextmanager
def static_server(folder: Path) -> Iterator[StaticServer]:
    with StaticServer(folder) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def place_in(folder: Path, now: datetime | None = None) -> Iterator[Place]:
    federation = releases_in(folder, now or datetime.now(UTC))
    with static_server(federation.repository) as server:
        yield Place(folder, federation, server, site_in(folder, federation))
