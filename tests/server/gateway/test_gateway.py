"""The gateway over real TLS: who gets through, what gets through, and how much of it."""

import contextlib
import json
import os
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from cryptography.x509 import load_der_x509_certificate

from common import VERSION
from common.deployment import forward
from common.deployment.forward import FROM_HEADER, PREFIX, SMALL, VERSION_HEADER, RefusedError
from common.errors import TrustError
from common.trust.certificates import as_pem, issue_server, issue_site, new_authority, read_certificates
from common.trust.keys import new_tls_key, private_pem, read_private_key
from server.enrolment.federation import read_authority, renew_server
from server.enrolment.registry import read_registry, update_registry
from server.enrolment.sites import revoke
from server.gateway.__main__ import server_of
from server.gateway.admission import Caller, admit
from tests.server.gateway.world import World, make_world, wait_until, written

HEARTBEAT, OBJECT = f"{PREFIX}send-node-heartbeat", f"{PREFIX}push-object"
MEGABYTE = 1 << 20


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A gateway that waits 2 s for a request and takes bodies of 1 MiB, with two sites; the SuperLink is scripted."""
    made = make_world(
        tmp_path_factory.mktemp("gateway"), "north", "south", seconds_a_request=2.0, megabytes_a_message=1
    )
    with made.superlink(), made.gateway():
        yield made


@pytest.fixture(autouse=True)
def _nothing_asked(request: pytest.FixtureRequest) -> None:
    if "world" in request.fixturenames:
        request.getfixturevalue("world").upstream.asked.clear()


def refusal(found: httpx.Response) -> tuple[int, str]:
    assert found.headers[FROM_HEADER] == "gateway"
    said = found.json()
    assert said["found"] and said["needed"]
    return found.status_code, said["error"]


def raw(world: World, head: str, name: str = "north") -> bytes:
    """Send bytes as they are and return all that comes until the connection ends."""
    with dial(world, name) as opened:
        opened.sendall(head.replace("\r\n", "\r\nConnection: close\r\n", 1).encode())
        return received(opened)


@contextlib.contextmanager
def dial(world: World, name: str) -> Iterator[ssl.SSLSocket]:
    with (
        socket.create_connection(("127.0.0.1", world.port), 20.0) as plain,
        world.context(name).wrap_socket(plain, server_hostname="localhost") as opened,
    ):
        yield opened


def received(opened: socket.socket) -> bytes:
    found = b""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while data := opened.recv(65536):
            found += data
    return found


def test_a_request_of_a_site_reaches_the_superlink_with_the_headers_that_it_needs_only(world: World) -> None:
    headers = world.headers(
        "north", flwr_timestamp="2026-01-01T00:00:00+00:00", flwr_signature="c2ln", cookie="x", x_other="y"
    )
    with world.client("north") as client:
        found = client.post(HEARTBEAT, content=b"beat", headers=headers)
    assert (found.status_code, found.content, found.headers[FROM_HEADER]) == (200, b"beat", "superlink")
    assert "date" in found.headers and "x-inner" not in found.headers
    (asked,) = world.upstream.asked
    assert (asked.method, asked.path, asked.body) == ("POST", HEARTBEAT, b"beat")
    ours = {"host", "content-length", "accept-encoding"}
    kept = {"content-type", "accept", "flwr-public-key", "flwr-timestamp", "flwr-signature"}
    assert set(asked.headers) == ours | kept


def test_an_answer_of_the_superlink_passes_with_its_status(world: World) -> None:
    world.upstream.replies[HEARTBEAT] = lambda _: (401, b'{"detail":"Invalid SuperNode authentication"}')
    try:
        with world.client("north") as client:
            found = client.post(HEARTBEAT, content=b"", headers=world.headers("north"))
    finally:
        world.upstream.replies.clear()
    assert (found.status_code, found.headers[FROM_HEADER]) == (401, "superlink")
    assert found.json()["detail"] == "Invalid SuperNode authentication"


def test_health_says_who_asks_and_which_version_is_here(world: World) -> None:
    with world.client("north") as client:
        found = client.get("/health")
    assert found.status_code == 200 and found.json() == {"site": "north", "version": VERSION}
    assert world.upstream.paths() == ["/health"]


def test_without_a_certificate_nothing_is_answered(world: World) -> None:
    with world.client() as client, pytest.raises(httpx.TransportError):
        client.post(HEARTBEAT, content=b"", headers=world.headers("north"))
    assert not world.upstream.asked


def test_a_certificate_of_a_foreign_authority_is_refused(world: World, tmp_path: Path) -> None:
    now, key = datetime.now(UTC), new_tls_key()
    foreign = new_authority("lines", now)
    pair = written(tmp_path / "foreign.pem", as_pem([issue_site(foreign, "north", key.public_key(), now, 30)]), key)
    with world.client(pair=pair) as client, pytest.raises(httpx.TransportError):
        client.post(HEARTBEAT, content=b"", headers=world.headers("north"))
    assert not world.upstream.asked


def test_an_expired_certificate_is_refused(world: World) -> None:
    home, then = world.sites["north"], datetime.now(UTC) - timedelta(minutes=30)
    key = read_private_key(home.tls_key)
    old = issue_site(read_authority(world.server, None), "north", key.public_key(), then, 0.01)  # type: ignore[arg-type]
    pair = world.folder / "expired.pem"
    pair.write_bytes(as_pem([old]) + home.tls_key.read_bytes())
    with world.client(pair=pair) as client, pytest.raises(httpx.TransportError):
        client.post(HEARTBEAT, content=b"", headers=world.headers("north"))
    assert not world.upstream.asked


def test_plaintext_is_not_answered(world: World) -> None:
    with socket.create_connection(("127.0.0.1", world.port), 20.0) as opened:
        opened.sendall(f"POST {HEARTBEAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n".encode())
        assert b"HTTP" not in received(opened)
    assert not world.upstream.asked


def test_tls_before_1_2_is_refused(world: World) -> None:
    context = world.context("north")
    with pytest.warns(DeprecationWarning):
        context.minimum_version = ssl.TLSVersion.TLSv1
    with pytest.warns(DeprecationWarning):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    with socket.create_connection(("127.0.0.1", world.port), 20.0) as plain, pytest.raises(OSError):
        context.wrap_socket(plain, server_hostname="localhost")


def test_a_revoked_site_is_out_at_once_also_on_a_connection_that_is_open(world: World) -> None:
    world.enrol("east")
    headers = world.headers("east")
    with world.client("east") as client:
        assert client.post(HEARTBEAT, content=b"", headers=headers).status_code == 200
        revoke(world.server, "east", "stolen", datetime.now(UTC))
        found = client.post(HEARTBEAT, content=b"", headers=headers)
    assert refusal(found) == (403, "revoked")
    assert world.upstream.paths() == [HEARTBEAT]


def test_the_node_key_of_another_site_is_refused(world: World) -> None:
    with world.client("north") as client:
        found = client.post(HEARTBEAT, content=b"", headers=world.headers("south"))
    assert refusal(found) == (403, "wrong-node") and not world.upstream.asked


@pytest.mark.parametrize("key", ["", "bm9uZQ=="])
def test_an_unknown_node_key_is_refused(world: World, key: str) -> None:
    with world.client("north") as client:
        found = client.post(HEARTBEAT, content=b"", headers={**world.headers("north"), "flwr-public-key": key})
    assert refusal(found) == (403, "unknown-node") and not world.upstream.asked


def test_a_certificate_with_a_name_that_was_never_approved_is_refused(world: World) -> None:
    with world.client(pair=world.issue("west")) as client:
        found = client.post(HEARTBEAT, content=b"", headers=world.headers("north"))
    assert refusal(found) == (403, "unknown-site") and not world.upstream.asked


def test_a_certificate_that_the_list_of_sites_does_not_know_is_refused(world: World) -> None:
    with world.client(pair=world.issue("south")) as client:
        found = client.post(HEARTBEAT, content=b"", headers=world.headers("south"))
    assert refusal(found) == (403, "unknown-certificate") and not world.upstream.asked


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/start-run",
        "/v1/control/list-nodes",
        "/v1/control/stop-run",
        "/v1/runtime/acquire-task",
        "/v1/runtime/push-messages",
        f"{PREFIX}register-node",
        f"{PREFIX}unregister-node",
        "/docs",
        "/openapi.json",
        "/",
        f"/{HEARTBEAT}",
        f"{PREFIX}/send-node-heartbeat",
        f"{PREFIX}../control/start-run",
        f"{PREFIX}%2e%2e/control/start-run",
        f"{PREFIX}..%2fcontrol%2fstart-run",
        "/v1%2ffleet%2fsend-node-heartbeat",
        "/v1/fleet/%73end-node-heartbeat",
        f"{HEARTBEAT}/",
        f"{HEARTBEAT}?x=1",
        f"{HEARTBEAT};x",
        f"{HEARTBEAT}%00",
        "/V1/Fleet/send-node-heartbeat",
    ],
)
def test_no_other_path_reaches_the_superlink(world: World, path: str) -> None:
    key = world.node_keys["north"]
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nflwr-public-key: {key}\r\n{VERSION_HEADER}: {VERSION}\r\n"
    found = raw(world, f"{head}Content-Length: 0\r\n\r\n")
    assert found.startswith(b"HTTP/1.1 404 ") and b'"error": "route"' in found
    assert not world.upstream.asked


@pytest.mark.parametrize(
    "line",
    [
        f"POST https://127.0.0.1{HEARTBEAT} HTTP/1.1",
        f"GET {HEARTBEAT} HTTP/1.1",
        f"PUT {HEARTBEAT} HTTP/1.1",
        "POST /health HTTP/1.1",
        "CONNECT 127.0.0.1:1 HTTP/1.1",
        "OPTIONS * HTTP/1.1",
    ],
)
def test_no_other_method_or_form_reaches_the_superlink(world: World, line: str) -> None:
    found = raw(world, f"{line}\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
    assert found.startswith(b"HTTP/1.1 404 ") and not world.upstream.asked


def test_a_websocket_is_not_opened(world: World) -> None:
    asked = f"GET {HEARTBEAT} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    with dial(world, "north") as opened:
        opened.sendall(asked.encode())
        assert opened.recv(12) == b"HTTP/1.1 404" and not world.upstream.asked


def test_a_header_that_is_there_twice_is_refused(world: World) -> None:
    key = world.node_keys["north"]
    head = f"POST {HEARTBEAT} HTTP/1.1\r\nHost: x\r\nflwr-public-key: {key}\r\nflwr-public-key: {key}\r\n\r\n"
    assert raw(world, head).startswith(b"HTTP/1.1 400 ") and not world.upstream.asked


@pytest.mark.parametrize("theirs", ["", "9.9.0", "0.2.0", "0.10.0", "0.1\x7f"])
def test_another_version_is_refused_and_both_are_named(world: World, theirs: str) -> None:
    headers = {**world.headers("north"), VERSION_HEADER: theirs}
    with world.client("north") as client:
        found = client.post(HEARTBEAT, content=b"", headers=headers)
    if theirs.isprintable():
        assert refusal(found) == (426, "version")
        assert (theirs or "unknown") in found.json()["found"] and VERSION in found.json()["needed"]
    else:
        assert found.status_code == 400
    assert not world.upstream.asked


def test_another_patch_of_the_same_version_is_let_in(world: World) -> None:
    headers = {**world.headers("north"), VERSION_HEADER: "0.1.99"}
    with world.client("north") as client:
        assert client.post(HEARTBEAT, content=b"", headers=headers).status_code == 200


def large(world: World, path: str, framing: str) -> str:
    key = world.node_keys["north"]
    return (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nflwr-public-key: {key}\r\n{VERSION_HEADER}: {VERSION}\r\n{framing}\r\n\r\n"
    )


@pytest.mark.parametrize(
    ("path", "most"), [(HEARTBEAT, SMALL), (f"{PREFIX}push-messages", MEGABYTE), (OBJECT, MEGABYTE)]
)
def test_a_body_that_says_it_is_too_large_is_refused_before_it_is_read(world: World, path: str, most: int) -> None:
    found = raw(world, large(world, path, f"Content-Length: {most + 1}"))
    assert found.startswith(b"HTTP/1.1 413 ") and not world.upstream.asked


def test_who_sends_too_much_gets_to_read_why_and_then_the_connection_ends(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.deployment.forward.LINGER_SECONDS", 0.5)
    for _ in range(5):
        with world.client("north") as client:
            found = client.post(OBJECT, content=bytes(20 * MEGABYTE), headers=world.headers("north"))
        assert refusal(found) == (413, "too-large")
    with dial(world, "north") as opened:
        opened.sendall(large(world, OBJECT, f"Content-Length: {2 * MEGABYTE}").encode())
        assert received(opened).startswith(b"HTTP/1.1 413 ")


def test_a_body_of_the_largest_size_passes(world: World) -> None:
    with world.client("north") as client:
        found = client.post(OBJECT, content=bytes(MEGABYTE), headers=world.headers("north"))
    assert found.status_code == 200 and len(found.content) == MEGABYTE


@pytest.mark.parametrize("path", [HEARTBEAT, OBJECT])
def test_a_body_in_chunks_without_end_is_refused_and_cut_off(
    world: World, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr("common.deployment.forward.LINGER_SECONDS", 0.2)
    piece, end = "x" * 16384, time.monotonic() + 30
    before = refused_of(world, "north", "too-large")
    with dial(world, "north") as opened, pytest.raises(OSError):
        opened.sendall(large(world, path, "Transfer-Encoding: chunked").encode())
        while time.monotonic() < end:
            opened.sendall(f"{len(piece):x}\r\n{piece}\r\n".encode())
    wait_until(lambda: refused_of(world, "north", "too-large") > before)
    assert not world.upstream.asked


def test_a_head_that_comes_too_slowly_ends_the_connection(world: World) -> None:
    before = refused_of(world, "north", "slow")
    with dial(world, "north") as opened:
        opened.sendall(f"POST {HEARTBEAT} HTTP/1.1\r\nHost: x\r\nX-Slow: ".encode())
        with contextlib.suppress(OSError):
            for _ in range(200):
                opened.sendall(b"x")
                opened.settimeout(0.1)
                with contextlib.suppress(TimeoutError):
                    assert opened.recv(1) == b""
                    break
            else:
                pytest.fail("the connection is still open")
    wait_until(lambda: refused_of(world, "north", "slow") > before)


def test_a_connection_on_which_nothing_is_asked_ends(world: World) -> None:
    with dial(world, "north") as opened:
        assert received(opened) == b""


def test_a_body_that_comes_too_slowly_is_refused(world: World) -> None:
    found = raw(world, large(world, HEARTBEAT, "Content-Length: 10") + "slow")
    assert found.startswith(b"HTTP/1.1 408 ") and b'"slow"' in found and not world.upstream.asked


def test_an_answer_that_is_not_read_ends_the_connection(world: World) -> None:
    before = refused_of(world, "north", "slow")
    world.upstream.replies[HEARTBEAT] = lambda _: (200, bytes(64 * MEGABYTE))
    try:
        with dial(world, "north") as opened:
            opened.sendall(large(world, HEARTBEAT, "Content-Length: 0").encode())
            wait_until(lambda: refused_of(world, "north", "slow") > before)
    finally:
        world.upstream.replies.clear()


def test_a_handshake_that_is_never_finished_harms_nobody(world: World) -> None:
    with socket.create_connection(("127.0.0.1", world.port), 20.0) as opened, world.client("north") as client:
        opened.sendall(b"\x16\x03\x01")
        assert client.post(HEARTBEAT, content=b"", headers=world.headers("north")).status_code == 200


def closed(opened: socket.socket, patience: float = 20.0) -> bool:
    """Return whether the other end closes a connection without a word."""
    opened.settimeout(patience)
    try:
        return opened.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def test_strangers_who_ask_nothing_take_no_more_connections_than_they_may_and_make_room_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(forward, "MOST_UNFINISHED", 4)
    monkeypatch.setattr(forward, "HANDSHAKE_SECONDS", 8.0)
    world = make_world(tmp_path, "north")
    headers = world.headers("north")
    with world.superlink(), world.gateway() as server, world.client("north") as client, contextlib.ExitStack() as stack:

        def stranger() -> socket.socket:
            return stack.enter_context(socket.create_connection(("127.0.0.1", world.port), 20.0))

        assert client.post(HEARTBEAT, content=b"", headers=headers).status_code == 200
        silent = stack.enter_context(dial(world, "north"))
        wait_until(lambda: len(server._unfinished) == 1)
        strangers = [stranger() for _ in range(3)]
        wait_until(lambda: len(server._unfinished) == 4)
        strangers[0].sendall(b"\x16\x03\x01")  # a handshake that drips
        assert [closed(stranger()) for _ in range(3)] == [True] * 3
        assert not closed(strangers[0], 0.5), "the newest are refused"
        assert client.post(HEARTBEAT, content=b"", headers=headers).status_code == 200, "a site that is in stays in"
        assert "refused a stranger: unfinished" in caplog.text
        assert all(closed(one) for one in strangers), "the time for a handshake is limited"
        wait_until(lambda: len(server._unfinished) == 1)
        with world.client("north") as other:
            assert other.post(HEARTBEAT, content=b"", headers=headers).status_code == 200
        silent.sendall(large(world, HEARTBEAT, "Content-Length: 0").encode())
        wait_until(lambda: not server._unfinished)


def test_connections_that_are_lost_in_the_handshake_are_not_counted_for_ever(tmp_path: Path) -> None:
    world = make_world(tmp_path, "north")
    context = world.context()
    with world.gateway() as server:
        for said in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01"):
            with socket.create_connection(("127.0.0.1", world.port), 20.0) as opened:
                opened.sendall(said)
                wait_until(lambda: len(server._unfinished) < 3)
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", world.port), 20.0) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as shaken,
        ):
            assert received(shaken) == b""
        with contextlib.ExitStack() as stack:
            for _ in range(2):
                one = stack.enter_context(socket.create_connection(("127.0.0.1", world.port), 20.0))
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # it ends with a reset
            wait_until(lambda: server._unfinished)
        wait_until(lambda: not server._unfinished)


def test_a_site_can_hold_only_so_many_connections_that_are_answered_with_no(tmp_path: Path) -> None:
    world = make_world(tmp_path, "north", connections_a_site=1)
    with world.superlink(), world.gateway(), contextlib.ExitStack() as stack:
        opened = [stack.enter_context(dial(world, "north")) for _ in range(3)]
        assert closed(opened[2]) and not any(closed(one, 0.5) for one in opened[:2])


@pytest.mark.skipif(not Path("/proc/self/limits").exists(), reason="limits are read from /proc")
def test_it_may_have_as_many_files_as_the_system_allows(tmp_path: Path) -> None:
    world = make_world(tmp_path, "north")
    command = (
        f"ulimit -S -n 30; exec {sys.executable} -m server.gateway --home {world.server.path} --upstream 127.0.0.1:1"
    )
    process = subprocess.Popen(["sh", "-c", command], cwd=Path(__file__).resolve().parents[3], stdin=subprocess.PIPE)
    try:
        wait_until(lambda: _connects(world.port))
        limits = Path(f"/proc/{process.pid}/limits").read_text(encoding="ascii").splitlines()
        soft, hard = next(line.split()[3:5] for line in limits if line.startswith("Max open files"))
        assert soft == hard != "30"
        with contextlib.ExitStack() as stack:
            for _ in range(40):
                stack.enter_context(socket.create_connection(("127.0.0.1", world.port), 20.0))
            with world.client("north") as client:
                assert refusal(client.get("/health")) == (503, "superlink")
    finally:
        process.kill()
        process.communicate()


def refused_of(world: World, name: str, cause: str) -> int:
    try:
        found = json.loads((world.server.run / "seen.json").read_bytes())
        return int(found[name]["refused"].get(cause, 0))
    except (OSError, KeyError):
        return 0


def test_what_was_seen_of_a_site_is_written_for_status(world: World) -> None:
    headers = world.headers("south", flwr_package_version="1.41.0")
    with world.client("south") as client:
        client.post(HEARTBEAT, content=b"12345", headers=headers)
        client.post(HEARTBEAT, content=b"", headers={**headers, VERSION_HEADER: "9.9"})
    with world.client(pair=world.issue("nobody")) as client:
        client.post(HEARTBEAT, content=b"", headers=headers)
    wait_until(lambda: refused_of(world, "", "unknown-site") and refused_of(world, "south", "version"))
    seen = json.loads((world.server.run / "seen.json").read_bytes())["south"]
    assert (seen["version"], seen["flower"]) == (VERSION, "1.41.0")
    assert seen["requests"] >= 1 and seen["bytes-in"] >= 5 and seen["bytes-out"] >= 5
    assert abs(seen["last-seen"] - datetime.now(UTC).timestamp()) < 60


def test_a_list_of_sites_that_cannot_be_read_lets_nobody_in(world: World) -> None:
    headers, path = world.headers("north"), world.server.registry_file
    good = path.read_bytes()
    try:
        path.write_bytes(good[:-5])
        with world.client("north") as client:
            assert refusal(client.post(HEARTBEAT, content=b"", headers=headers)) == (503, "site-list")
    finally:
        path.write_bytes(good)
    with world.client("north") as client:
        assert client.post(HEARTBEAT, content=b"", headers=headers).status_code == 200


def shown_serial(world: World) -> int:
    with dial(world, "north") as opened:
        return load_der_x509_certificate(opened.getpeercert(binary_form=True) or b"").serial_number


def test_a_renewed_certificate_of_the_server_is_shown_without_a_restart(world: World) -> None:
    headers, before = world.headers("north"), shown_serial(world)
    with world.client("north") as client:
        assert client.post(HEARTBEAT, content=b"", headers=headers).status_code == 200
        renew_server(world.server, None, datetime.now(UTC))
        after = read_certificates(world.server.tls_certificate)[0].serial_number
        wait_until(lambda: shown_serial(world) == after)
        assert after != before
        assert client.post(HEARTBEAT, content=b"", headers=headers).status_code == 200


def test_a_certificate_that_does_not_fit_its_key_is_not_taken_up(world: World) -> None:
    before, good = shown_serial(world), world.server.tls_certificate.read_bytes()
    now, key = datetime.now(UTC), new_tls_key()
    other = issue_server(read_authority(world.server, None), ("localhost",), key.public_key(), now, 30)
    try:
        world.server.tls_certificate.write_bytes(as_pem([other]))
        time.sleep(2.5)  # it looks every second
        assert shown_serial(world) == before
    finally:
        world.server.tls_certificate.write_bytes(good)


def test_a_key_with_a_passphrase_is_used_with_it_and_refused_without(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = type(world.server)(tmp_path / "federation")
    shutil.copytree(world.server.path, home.path)
    key = read_private_key(home.tls_key)
    home.tls_key.write_bytes(private_pem(key, "sesame"))
    monkeypatch.delenv("FEDREPTILE_PASSPHRASE", raising=False)
    with pytest.raises(TrustError, match="needs a passphrase"):
        server_of(home, "127.0.0.1:1")
    monkeypatch.setenv("FEDREPTILE_PASSPHRASE", "sesame")
    server_of(home, "127.0.0.1:1")


def test_without_a_superlink_it_says_so(tmp_path: Path) -> None:
    world = make_world(tmp_path, "north")
    with world.gateway(), world.client("north") as client:
        assert refusal(client.post(HEARTBEAT, content=b"", headers=world.headers("north"))) == (503, "superlink")
        assert refusal(client.get("/health")) == (503, "superlink")
        with world.superlink():
            assert client.post(HEARTBEAT, content=b"", headers=world.headers("north")).status_code == 200


def test_rates_and_connections_of_a_site_are_limited(tmp_path: Path) -> None:
    world = make_world(tmp_path, "north", "south", requests_a_second=0.5, connections_a_site=2)
    with world.superlink(), world.gateway(), contextlib.ExitStack() as stack:
        north = [stack.enter_context(world.client("north")) for _ in range(3)]
        headers = world.headers("north")
        assert [client.get("/health").status_code for client in north] == [200, 200, 429]
        found = [north[0].post(HEARTBEAT, content=b"", headers=headers) for _ in range(5)]
        assert [one.status_code for one in found][:3] == [200] * 3
        assert refusal(found[-1]) == (429, "requests-a-second") and int(found[-1].headers["retry-after"]) >= 1
        with world.client("south") as other:
            assert other.post(HEARTBEAT, content=b"", headers=world.headers("south")).status_code == 200


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_memory_is_bounded_whatever_is_sent(tmp_path: Path) -> None:
    world = make_world(tmp_path, "north", megabytes_a_message=8, seconds_a_request=5.0)
    words = [sys.executable, "-P", "-m", "server.gateway", "--home", str(world.server.path)]
    root = Path(__file__).resolve().parents[3]
    process = subprocess.Popen(
        [*words, "--upstream", f"127.0.0.1:{world.inner_port}"],
        env={**os.environ, "PYTHONPATH": str(root)},
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: _connects(world.port))
        with world.superlink():
            with world.client("north") as client:
                client.post(OBJECT, content=bytes(8 * MEGABYTE), headers=world.headers("north"))
            before, sent = _peak(process.pid), 0
            with contextlib.ExitStack() as stack:
                opened = [stack.enter_context(dial(world, "north")) for _ in range(12)]
                for one in opened:  # each says that it has a body of the largest size, and sends most of it
                    one.sendall(large(world, OBJECT, f"Content-Length: {8 * MEGABYTE}").encode())
                    one.settimeout(0.2)
                for one in opened:
                    with contextlib.suppress(OSError):
                        for _ in range(120):
                            one.sendall(bytes(65536))
                            sent += 65536
            with dial(world, "north") as one, contextlib.suppress(OSError):
                one.sendall(large(world, OBJECT, "Transfer-Encoding: chunked").encode())
                for _ in range(2000):
                    one.sendall(b"10000\r\n" + bytes(65536) + b"\r\n")
            assert sent > 8 * MEGABYTE
            assert _peak(process.pid) - before < 40 * 1024
        assert process.stdin is not None
        process.stdin.close()  # as when its supervisor is no more
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.communicate()


def _connects(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
        return True
    return False


def _peak(pid: int) -> int:
    """Return the most memory that a process has had, KiB."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def test_the_certificate_of_an_open_connection_does_not_outlive_its_end(world: World) -> None:
    registry = read_registry(world.server.registry_file)
    serial, now = registry.sites["north"].serials[0], datetime.now(UTC)
    admit(Caller("north", serial, now + timedelta(seconds=1)), registry, now)
    with pytest.raises(RefusedError, match="expired"):
        admit(Caller("north", serial, now), registry, now + timedelta(seconds=1))


def test_the_list_of_sites_is_not_changed_by_the_gateway(world: World) -> None:
    registry = read_registry(world.server.registry_file)
    assert update_registry(world.server.registry_file, lambda found: found) == registry
