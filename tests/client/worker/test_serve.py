"""The worker as a process of its own, and the ClientApp in front of it: real sockets, real kills."""

import os
import pickle
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, answer_challenge, deliver_challenge
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message
from flwr.common.serde import message_to_proto

from client.app import app
from client.door.ledger import entries, verify
from client.worker import serve, wire
from client.worker.serve import in_time, listen, read_key
from client.worker.wire import NOT_READY, address_of, call, connect, family_of, frame, unframe
from common.errors import DeployError
from common.messages import decode_update
from common.plan import plan_for
from common.trust.seals import unsealed
from tests.client.small import first_request, settings_with, site_on
from tests.client.worker.enrolled import ROOT, Enrolled, enrolled

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the site's own processes meet on a Unix socket here")


@pytest.fixture(scope="module")
def site(digit_sites: Path) -> Iterator[Enrolled]:
    """A site whose worker runs."""
    with enrolled(digit_sites, settings_with()) as found, found.working():
        yield found


def status(site: Enrolled) -> dict[str, object]:
    found: dict[str, object] = call(site.socket, site.socket_key, {"op": "status"})["status"]
    return found


# ---------------------------------------------------------------------------------------------- who may connect


def test_who_has_another_key_is_refused_and_the_worker_goes_on(site: Enrolled, tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"x" * 32)
    with pytest.raises(AuthenticationError):
        connect(site.socket, tmp_path / "key")
    with pytest.raises(DeployError, match="does not answer"):
        call(site.socket, tmp_path / "key", {"op": "status"})
    assert status(site)["site"] == "site-0"


def test_the_socket_is_for_its_owner_and_group_alone(site: Enrolled) -> None:
    assert site.socket.stat().st_mode & 0o777 == 0o660


def test_who_connects_and_says_nothing_holds_nobody_up(site: Enrolled) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(str(site.socket))
        assert status(site)["site"] == "site-0"


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch /tmp/fedreptile-unpickled",)


GARBAGE = {
    "nothing": b"",
    "noise": bytes(range(256)) * 40,
    "no header": b'{"op": "status"',
    "a list": b"[]\n",
    "another question": frame({"op": "data"}),
    "a pickle": pickle.dumps(Evil()),
    "a header with a pickle": b'{"op": "status"}\n' + pickle.dumps(Evil()),
    "deep nesting": b"[" * 200_000 + b"\n",
    "not UTF-8": b"\xff\xfe\n",
}


@pytest.mark.parametrize("case", GARBAGE)
def test_a_frame_that_is_none_closes_the_connection_and_nothing_else(site: Enrolled, case: str) -> None:
    before = status(site)["refused"]
    with connect(site.socket, site.socket_key) as connection:
        connection.send_bytes(GARBAGE[case])
        with pytest.raises(EOFError):
            connection.recv_bytes()
    assert status(site)["refused"] != before
    assert not Path("/tmp/fedreptile-unpickled").exists()


def test_a_frame_that_says_it_is_huge_is_refused_before_there_is_memory_for_it(site: Enrolled) -> None:
    memory = status(site)["memory"]
    assert isinstance(memory, int)
    for size in (4 << 20, 1 << 40):
        with connect(site.socket, site.socket_key) as connection:
            length = struct.pack("!i", size) if size < 1 << 31 else struct.pack("!iQ", -1, size)
            os.write(connection.fileno(), length)
            assert connection.poll(serve.SECONDS / 2), "it waits for all of it"
            with pytest.raises((EOFError, ConnectionResetError)):
                connection.recv_bytes()
    after = status(site)["memory"]
    assert isinstance(after, int) and after < memory + (64 << 20)


def test_a_frame_that_drips_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "SECONDS", 0.1)
    with tempfile.TemporaryDirectory(prefix="fed") as folder, listen(Path(folder) / "s") as listener:
        there = []
        thread = threading.Thread(target=lambda: there.append(listener.accept()))
        thread.start()
        client = Client(address_of(Path(folder) / "s"), family_of())
        thread.join()
        with client, there[0] as server:
            os.write(client.fileno(), struct.pack("!i", 100) + b"drip")
            with pytest.raises((EOFError, OSError)), in_time(server):
                server.recv_bytes()


def test_frames_carry_what_was_put_in(site: Enrolled) -> None:
    content = site.asking("train").content
    assert unframe(frame({"op": "message", "x": "é\n"}, content)) == ({"op": "message", "x": "é\n"}, content)


def test_a_kit_with_a_larger_network_lets_larger_frames_in(digit_sites: Path) -> None:
    with enrolled(digit_sites, settings_with()) as site, site.working():
        before, larger = plan_for(site.settings).agreed, settings_with(model__width=128)
        site.renew(larger)
        message = site.asking()
        assert len(frame({}, message.content)) > (before.params + before.slots) * 8 + serve.ROOM
        reply = app(message, site.context())
        assert reply.has_content(), site.log()
        assert decode_update(unsealed(reply.content), plan_for(larger).agreed).delta.size > 300_000


# ------------------------------------------------------------------------------------------------ the ClientApp


def test_the_client_app_replies_with_the_workers_answer(site: Enrolled, digit_sites: Path) -> None:
    message = site.asking("train", 2, "run-app")
    reply = app(message, site.context())
    assert reply.metadata.reply_to_message_id == "asked" and reply.metadata.dst_node_id == message.metadata.src_node_id
    found = decode_update(unsealed(reply.content), plan_for(site.settings).agreed)
    expected = site_on(digit_sites, site.settings).train(first_request(site.settings, 2))
    assert np.array_equal(found.delta, expected.delta)
    *_, entry = entries(site.home.ledger)
    assert reply.content.object_id in entry.objects


def test_the_client_app_replies_with_the_workers_refusal(site: Enrolled) -> None:
    reply = app(site.asking("query.class_table", 2, "run-table"), site.context())
    assert reply.error.code == 101 and "classes.tables" in (reply.error.reason or "")


SHIM = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from flwr.common.serde import message_from_proto
from flwr.proto.message_pb2 import Message as Proto
from flwr.app import Context, RecordDict
import client.app, client.worker.wire, hmac
home, data = Path(sys.argv[3]), Path(sys.argv[4])
message = message_from_proto(Proto.FromString(Path(sys.argv[2]).read_bytes()))
from flwr.supercore.task_identity import TaskIdentity
TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 7
if len(sys.argv) > 5:
    client.worker.wire._exchanged.__defaults__ = (0.5,)
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
    for secret in (data, home / "keys/signing.key", home / "policy.toml", home / "outbox", home / "ledger"):
        for look in (os.listdir, lambda path: open(path, "rb"), lambda path: open(path, "ab")):
            try:
                look(secret)
            except OSError:
                continue
            sys.exit(f"{secret} was opened")
node = {"site-socket": str(home / "run/worker/site.sock"), "site-socket-key": str(home / "run/worker/site.key")}
reply = client.app.app(message, Context(1, 7, node, RecordDict(), {}))
assert "torch" not in sys.modules
print("answered" if reply.has_content() else reply.error.reason)
"""


def shim(site: Enrolled, message: Message, data: Path, folder: Path, *more: str) -> str:
    message.metadata.__dict__["_message_id"] = "asked"
    (folder / "message").write_bytes(message_to_proto(message).SerializeToString())
    words = [sys.executable, "-c", SHIM, str(ROOT), str(folder / "message"), str(site.home.path), str(data), *more]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    return done.stdout + done.stderr


def test_the_process_that_flower_starts_answers_without_torch(
    site: Enrolled, digit_sites: Path, tmp_path: Path
) -> None:
    assert shim(site, site.asking("train", 1, "run-shim"), digit_sites, tmp_path) == "answered\n"


def test_code_from_the_server_can_ask_the_worker_and_reads_neither_data_nor_keys(
    digit_sites: Path, tmp_path: Path
) -> None:
    """It runs as another user (nobody), as SuperNode and what it starts do at a site that is set up so."""
    if os.geteuid():
        pytest.skip("only root can start a process as another user")
    data = Path(shutil.copytree(digit_sites, tmp_path / "data"))
    data.chmod(0o700)
    with enrolled(data, settings_with()) as site, site.working():
        site.home.path.chmod(0o711)
        site.home.policy_file.chmod(0o600)
        for folder in (site.home.ledger, site.home.outbox):
            folder.mkdir(exist_ok=True)
            folder.chmod(0o700)
        shut = shim(site, site.asking("train", 1, "run-1"), data, tmp_path, "nobody")
        site.home.run.chmod(0o711)
        site.socket.parent.chmod(0o750)
        for path in (site.socket.parent, site.socket, site.socket_key):
            os.chown(path, -1, 65534)
        site.socket_key.chmod(0o640)
        assert shim(site, site.asking("train", 1, "run-2"), data, tmp_path, "nobody") == "answered\n", site.log()
    assert "was opened" not in shut and "answered" not in shut


# -------------------------------------------------------------------------------------------- kills and restarts


def test_a_worker_that_is_killed_in_mid_work_and_started_again_gives_the_answer(digit_sites: Path) -> None:
    settings = settings_with(inner__steps=1000)
    with enrolled(digit_sites, settings) as site:
        message, replies = site.asking("train", 3), []
        with site.working():
            asking = threading.Thread(target=lambda: replies.append(app(message, site.context())))
            asking.start()
            while status(site)["doing"] != "train of round 3":
                time.sleep(0.01)
        with site.working() as second:
            asking.join(60)
            answered = [entry.event for entry in entries(site.home.ledger)]
            again = app(message, site.context())
            assert status(site)["again"] == 1
            second.terminate()
            assert second.wait(30) == 0
        assert verify(site.home.ledger).broken is None
    assert answered == ["left"]
    assert again.content == replies[0].content and replies[0].has_content()
    expected = site_on(digit_sites, settings).train(first_request(settings, 3))
    assert np.array_equal(decode_update(unsealed(again.content), plan_for(settings).agreed).delta, expected.delta)


def test_without_a_worker_the_server_is_told_a_constant(
    site: Enrolled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire._exchanged, "__defaults__", (0.2,))
    context = site.context()
    context.node_config["site-socket"] = str(tmp_path / "secret.sock")
    reply = app(site.asking(), context)
    assert reply.error == NOT_READY and "secret" not in (reply.error.reason or "")


def test_a_worker_that_dies_over_a_message_each_time_is_not_asked_for_ever(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"k" * 32)
    with tempfile.TemporaryDirectory(prefix="fed") as folder:
        path, deaths = Path(folder) / "s", []
        with listen(path) as listener:

            def die() -> None:
                for _ in range(wire.TRIES):
                    with listener.accept() as connection:
                        deliver_challenge(connection, b"k" * 32)
                        answer_challenge(connection, b"k" * 32)
                        connection.recv_bytes()
                        deaths.append(1)

            dying = threading.Thread(target=die)
            dying.start()
            with pytest.raises(DeployError, match="does not answer"):
                call(path, tmp_path / "key", {"op": "ping"}, patience=60)
            dying.join()
    assert len(deaths) == wire.TRIES


# ------------------------------------------------------------------------------------------------------ start


def test_a_worker_that_cannot_start_says_why_and_fails(site: Enrolled) -> None:
    second = site.start()
    assert second.wait(60) == 1
    assert "in use by another process" in site.log()
    assert status(site)["site"] == "site-0"


def test_the_sockets_path_and_key_are_checked(tmp_path: Path) -> None:
    with pytest.raises(DeployError, match="longer than 100 bytes"):
        listen(tmp_path / ("x" * 120))
    with tempfile.TemporaryDirectory(prefix="fed") as folder:
        (Path(folder) / "s").write_bytes(b"mine")
        with pytest.raises(DeployError, match="in the place of the site's socket"):
            listen(Path(folder) / "s")
        assert (Path(folder) / "s").read_bytes() == b"mine"
    (tmp_path / "key").write_bytes(b"short")
    with pytest.raises(DeployError, match="5 bytes"):
        read_key(tmp_path / "key")
    with pytest.raises(DeployError, match="cannot be read"):
        read_key(tmp_path / "none")
