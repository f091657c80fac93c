"""Files of releases at a real gateway: for enrolled sites, and nothing but the repository's two folders."""

import os
import socket
import ssl
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from server.enrolment.sites import revoke
from server.releases.publishing import promote, publish
from server.releases.registry import About
from server.releases.repository import Repository
from tests.server.gateway.world import World, make_world

TIMESTAMP = "/releases/metadata/timestamp.json"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = make_world(tmp_path, "north")
    with made.gateway():
        yield made


def test_an_enrolled_site_gets_the_files(world: World) -> None:
    data, now = os.urandom(1 << 20), datetime.now(UTC)
    publish(world.server, data, About(), None, now)
    promote(world.server, 1, [], None, now)
    digest = Repository(world.server).digest_of("release-1.safetensors")
    with world.client("north") as client:
        found = client.get(TIMESTAMP)
        assert found.status_code == 200
        assert found.content == (world.server.repository / "metadata" / "timestamp.json").read_bytes()
        whole = client.get(f"/releases/targets/{digest}.release-1.safetensors")
        assert whole.content == data
        assert whole.headers["x-fedreptile-from"] == "gateway"
        assert client.get("/releases/metadata/2.root.json").status_code == 404


def test_strangers_and_revoked_sites_are_refused(world: World) -> None:
    with pytest.raises((httpx.TransportError, ssl.SSLError)), world.client() as client:
        client.get(TIMESTAMP)
    with world.client(pair=world.issue("nobody")) as client:
        refused = client.get(TIMESTAMP)
        assert (refused.status_code, refused.json()["error"]) == (403, "unknown-site")
    with world.client(pair=world.issue("north")) as client:
        assert client.get(TIMESTAMP).json()["error"] == "unknown-certificate"
    with world.client("north") as client:
        assert client.get(TIMESTAMP).status_code == 200
        revoke(world.server, "north", "lost", datetime.now(UTC))
        assert client.get(TIMESTAMP).json()["error"] == "revoked"


def test_the_second_part_of_an_answer_does_not_wait_for_word_of_the_first(tmp_path: Path) -> None:
    """An answer's head and body are two small packets; without this each request took 40 ms."""
    world = make_world(tmp_path, "north")
    with world.gateway() as server, world.client("north") as client:
        client.get(TIMESTAMP)
        [connection] = server.server_state.connections
        taken: socket.socket = connection.transport.get_extra_info("socket")
        assert taken.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_download_that_is_not_read_takes_little_memory(tmp_path: Path) -> None:
    world, data, now = make_world(tmp_path, "north"), os.urandom(16 << 20), datetime.now(UTC)
    publish(world.server, data, About(), None, now)
    name = f"{Repository(world.server).digest_of('release-1.safetensors')}.release-1.safetensors"
    with world.gateway() as server, socket.create_connection(("127.0.0.1", world.port), 30) as plain:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with world.context("north").wrap_socket(plain, server_hostname="localhost") as client:
            client.sendall(f"GET /releases/targets/{name} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
            assert client.recv(15) == b"HTTP/1.1 200 OK"
            [connection] = server.server_state.connections
            held = []
            for _ in range(20):
                time.sleep(0.05)
                held.append(connection.transport.get_write_buffer_size())
    assert 0 < max(held) <= 160 << 10


PATHS = [
    "/releases/",
    "/releases/metadata/",
    "/releases/registry.db",
    "/releases/keys/root.key",
    "/releases/metadata/../../registry.db",
    "/releases/metadata/..%2f..%2fregistry.db",
    "/releases/metadata/%2e%2e/%2e%2e/registry.db",
    "/releases/metadata/..",
    "/releases/metadata/.hidden",
    "/releases/metadata//timestamp.json",
    "/releases/metadata/a/b",
    "/releases/metadata/timestamp.json?x=1",
    "/releases/metadata/timestamp.json%00",
    "/releases/other/timestamp.json",
    "/releases",
]


@pytest.mark.parametrize("path", PATHS)
def test_no_path_leads_out_of_the_repository(world: World, path: str) -> None:
    with world.client("north") as client:
        url = client.base_url.copy_with(raw_path=path.encode())
        assert client.send(httpx.Request("GET", url)).status_code == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS"])
def test_the_files_can_only_be_read(world: World, method: str) -> None:
    before = (world.server.repository / "metadata" / "timestamp.json").read_bytes()
    with world.client("north") as client:
        assert client.request(method, TIMESTAMP).status_code == 404
    assert (world.server.repository / "metadata" / "timestamp.json").read_bytes() == before


def test_links_and_folders_are_no_files(world: World) -> None:
    metadata = world.server.repository / "metadata"
    (metadata / "link.json").symlink_to(world.server.signing_key)
    (metadata / "folder.json").mkdir()
    os.mkfifo(metadata / "pipe.json")
    with world.client("north") as client:
        for name in ("link.json", "folder.json", "pipe.json"):
            assert client.get(f"/releases/metadata/{name}").status_code == 404
        metadata.rename(metadata.with_name("elsewhere"))
        metadata.symlink_to("elsewhere")
        assert client.get(TIMESTAMP).status_code == 404


def test_downloads_count_for_the_limits(tmp_path: Path) -> None:
    world = make_world(tmp_path, "north", megabytes_a_second=0.01)
    publish(world.server, os.urandom(200_000), About(), None, datetime.now(UTC))
    path = f"/releases/targets/{Repository(world.server).digest_of('release-1.safetensors')}.release-1.safetensors"
    with world.gateway(), world.client("north") as client:
        assert client.get(path).status_code == 200
        assert client.get(path).json()["error"] == "megabytes-a-second"
