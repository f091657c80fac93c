"""The relay between SuperNode and a real gateway: what passes, and what SuperNode is told so that it lives on."""

import hashlib
import json
import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from flwr.app import Error
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.proto.fab_pb2 import Fab, GetFabRequest, GetFabResponse
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest, SendNodeHeartbeatResponse
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.message_pb2 import PullObjectRequest, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest, GetRunResponse, Run
from flwr.supercore.constant import FLEET_HTTP_SIGNATURE_HEADER

from client.door.ledger import LEFT, Ledger, Record
from client.enrolment.joining import renew_request
from client.relay import app
from client.relay.__main__ import node_key_of, server_of
from client.relay.door import UNTOLD
from common import VERSION
from common.deployment.forward import PREFIX, VERSION_HEADER
from common.errors import PolicyRefusal, TrustError
from common.trust.certificates import as_pem, issue_server, new_authority, read_certificates, serial_of
from common.trust.keys import new_tls_key, private_pem
from server.enrolment.federation import read_authority, renew_server
from server.enrolment.registry import Registry, read_registry, update_registry
from server.enrolment.sites import revoke
from tests.client.relay.site import (
    NODE,
    RUN,
    RelayedSite,
    asked,
    config,
    delivered,
    http_proxy,
    objects_of,
    pushed,
    reply_to,
)
from tests.server.gateway.world import FAB, Scripted, make_world, wait_until

SELF = Node(node_id=NODE)
BEAT = SendNodeHeartbeatRequest(node=SELF, heartbeat_interval=30.0).SerializeToString()
ALIVE = SendNodeHeartbeatResponse(success=True).SerializeToString()
PULL = PullMessagesRequest(node=SELF).SerializeToString()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RelayedSite]:
    """A relay, a gateway and a scripted SuperLink, all running."""
    world = make_world(tmp_path_factory.mktemp("relay"), "north", "south", megabytes_a_message=1)
    site = RelayedSite(world)
    with world.superlink(), world.gateway(), site.relay():
        yield site


@pytest.fixture
def site(made: RelayedSite, monkeypatch: pytest.MonkeyPatch) -> RelayedSite:
    monkeypatch.setattr(app, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(app, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(app, "HOLD_SECONDS", 0.4)
    monkeypatch.setattr(app, "STUCK_SECONDS", float("inf"))  # most tests never answer the messages that they get
    script(made.world.upstream)
    return made


def script(upstream: Scripted, fab: str = FAB) -> None:
    """Have the SuperLink answer as if it had no message, and a run of an app bundle."""
    upstream.asked.clear()
    upstream.replies.clear()
    answers = {
        "send-node-heartbeat": ALIVE,
        "pull-messages": PullMessagesResponse().SerializeToString(),
        "get-run": GetRunResponse(run=Run(run_id=RUN, fab_hash=fab)).SerializeToString(),
        "push-object": b"\x08\x01",
    }
    for route, answer in answers.items():
        upstream.replies[PREFIX + route] = always(answer)
    upstream.replies[f"{PREFIX}push-messages"] = takes_all


def always(answer: bytes) -> Callable[[bytes], tuple[int, bytes]]:
    return lambda _: (200, answer)


def takes_all(body: bytes) -> tuple[int, bytes]:
    """Answer an announced reply as the SuperLink does: all of its objects are wanted."""
    request = PushMessagesRequest.FromString(body)
    tree = request.message_object_trees[0]
    wanted = [tree.object_id, *(child.object_id for child in tree.children)]
    results = {request.messages_list[0].metadata.message_id: 0}
    found = PushMessagesResponse(results=results, objects_to_push=wanted, session_id="s1")
    return 200, found.SerializeToString()


def told(site: RelayedSite, route: str) -> bytes:
    """Return the body of the only request to a route that reached the SuperLink."""
    (found,) = [one.body for one in site.world.upstream.asked if one.path == PREFIX + route]
    return found


def refused(found: httpx.Response) -> tuple[int, str]:
    return found.status_code, found.json()["error"]


def test_a_request_passes_with_the_version_and_nothing_else_added(site: RelayedSite) -> None:
    headers = site.signed(datetime.now(UTC).isoformat())
    found = site.post("send-node-heartbeat", BEAT, cookie="x", **headers)
    assert (found.status_code, found.content) == (200, ALIVE)
    (sent,) = site.world.upstream.asked
    assert sent.body == BEAT and headers.items() <= sent.headers.items()
    assert not {"cookie", "user-agent", VERSION_HEADER} & sent.headers.keys()
    wait_until(lambda: site.state().get("connected"))
    seen = site.world.server.run / "seen.json"
    wait_until(lambda: json.loads(seen.read_bytes())["north"]["version"] == VERSION)
    assert site.state()["bytes-out"] >= len(BEAT) and site.state()["last-answer"] > 0


@pytest.mark.parametrize("path", ["/v1/control/start-run", "/v1/control/list-nodes", "/v1/runtime/acquire-task", "/"])
def test_control_and_runtime_routes_do_not_pass(site: RelayedSite, path: str) -> None:
    assert refused(site.post(f"../..{path}")) == (404, "route")
    assert not site.world.upstream.asked


@pytest.mark.parametrize("route", ["register-node", "unregister-node", "%2e%2e/control/start-run", "/get-run"])
def test_other_paths_do_not_pass(site: RelayedSite, route: str) -> None:
    assert refused(site.post(route)) == (404, "route")
    assert not site.world.upstream.asked


def test_another_node_does_not_pass(site: RelayedSite) -> None:
    found = site.post("send-node-heartbeat", BEAT, flwr_public_key=site.world.node_keys["south"])
    assert refused(found) == (403, "node") and not site.world.upstream.asked


SIGNATURES = {"none": "", "no base64": "AAA", "no signature": "AAAA", "of another time": "", "another's": "south"}


@pytest.mark.parametrize("case", SIGNATURES)
def test_who_knows_only_the_public_key_of_the_node_gets_no_message(site: RelayedSite, case: str) -> None:
    time, waiting = datetime.now(UTC).isoformat(), delivered(asked(77))
    site.world.upstream.replies[f"{PREFIX}pull-messages"] = always(waiting)
    headers = site.signed(time, by=SIGNATURES[case] if case == "another's" else "")
    if case == "of another time":
        headers[TIMESTAMP_HEADER] = (datetime.now(UTC) + timedelta(seconds=1)).isoformat()
    elif case != "another's":
        headers[FLEET_HTTP_SIGNATURE_HEADER] = SIGNATURES[case]
    if case == "none":
        del headers[FLEET_HTTP_SIGNATURE_HEADER]
    node = site.state().get("node")
    other = PullMessagesRequest(node=Node(node_id=666)).SerializeToString()
    assert refused(site.send("pull-messages", other, headers)) == (403, "node")
    assert not site.world.upstream.asked and site.state().get("node") == node


@pytest.mark.parametrize("seconds", [-400, 60])
def test_what_was_signed_at_another_time_does_not_pass_and_may_be_sent_again(site: RelayedSite, seconds: float) -> None:
    headers = site.signed((datetime.now(UTC) + timedelta(seconds=seconds)).isoformat())
    assert refused(site.send("send-node-heartbeat", BEAT, headers)) == (503, "node")
    assert not site.world.upstream.asked


def test_a_node_cannot_be_activated_with_another_key(site: RelayedSite) -> None:
    body = ActivateNodeRequest(public_key=b"another", heartbeat_interval=30).SerializeToString()
    assert refused(site.post("activate-node", body)) == (403, "node") and not site.world.upstream.asked


@pytest.mark.parametrize("more", [b"\xfa\x3e\x03abc", b"\xff\xff"])
def test_bytes_that_flower_does_not_send_do_not_pass(site: RelayedSite, more: bytes) -> None:
    status, cause = refused(site.post("send-node-heartbeat", BEAT + more))
    assert (status in (400, 403), cause) == (True, "form") and not site.world.upstream.asked


def test_a_body_that_is_too_large_does_not_pass(site: RelayedSite) -> None:
    assert refused(site.post("send-node-heartbeat", bytes(70_000))) == (413, "too-large")


def test_what_the_gateway_will_never_take_is_not_asked_for_ever(site: RelayedSite) -> None:
    content = config(b"x" * 3_000_000)
    site.enter(content)
    site.post("send-node-heartbeat", BEAT)
    site.world.upstream.asked.clear()
    (name, data) = max(objects_of(content).items(), key=lambda item: len(item[1]))
    found = site.post(
        "push-object", PushObjectRequest(node=SELF, object_id=name, object_content=data).SerializeToString()
    )
    assert refused(found) == (413, "too-large") and not site.world.upstream.asked


def test_the_superlinks_401_makes_supernode_start_anew(site: RelayedSite) -> None:
    site.world.upstream.replies[f"{PREFIX}get-run"] = lambda _: (401, b'{"detail":"Invalid SuperNode authentication"}')
    found = site.post("get-run", GetRunRequest(node=SELF, run_id=1).SerializeToString())
    assert found.status_code == 401


@pytest.mark.parametrize(("minutes", "where"), [(10, "ahead of"), (-10, "behind"), (0.2, "ahead of")])
def test_a_401_because_of_the_clock_does_not_end_supernode(
    site: RelayedSite, minutes: float, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock is the whole machine's: SuperNode signs by it, and the relay looks at it."""
    monkeypatch.setattr(app, "now", lambda: datetime.now(UTC) + timedelta(minutes=minutes))
    site.world.upstream.replies[f"{PREFIX}get-run"] = lambda _: (401, b"{}")
    signed = site.signed((datetime.now(UTC) + timedelta(minutes=minutes)).isoformat())
    found = site.send("get-run", GetRunRequest(node=SELF, run_id=1).SerializeToString(), signed)
    assert refused(found) == (503, "clock") and where in found.json()["found"]


def test_the_superlinks_403_passes(site: RelayedSite) -> None:
    site.world.upstream.replies[f"{PREFIX}get-run"] = lambda _: (403, b'{"code":2007,"detail":"x"}')
    assert site.post("get-run", GetRunRequest(node=SELF, run_id=1).SerializeToString()).status_code == 403


@pytest.mark.parametrize("status", [400, 403, 404, 412, 500, 502, 503])
def test_no_failure_ends_the_heartbeats(site: RelayedSite, status: int) -> None:
    site.world.upstream.replies[f"{PREFIX}send-node-heartbeat"] = lambda _: (status, b"{}")
    assert refused(site.post("send-node-heartbeat", BEAT)) == (503, "superlink")


def test_a_heartbeat_that_the_superlink_does_not_know_makes_supernode_start_anew(site: RelayedSite) -> None:
    site.world.upstream.replies[f"{PREFIX}send-node-heartbeat"] = lambda _: (200, b"")
    assert site.post("send-node-heartbeat", BEAT).status_code == 401


def test_a_superlink_that_fails_is_asked_again_but_not_for_ever(site: RelayedSite) -> None:
    site.world.upstream.replies[f"{PREFIX}pull-object"] = lambda _: (500, b"{}")
    body = PullObjectRequest(node=SELF, run_id=1, object_id="cd" * 32).SerializeToString()
    assert [site.post("pull-object", body).status_code for _ in range(6)] == [503] * 4 + [500] * 2


def test_supernode_waits_for_messages_at_the_relay(site: RelayedSite) -> None:
    message, looks = asked(), []

    def later(_: bytes) -> tuple[int, bytes]:
        looks.append(1)
        return 200, delivered(message) if len(looks) == 3 else PullMessagesResponse().SerializeToString()

    site.world.upstream.replies[f"{PREFIX}pull-messages"] = later
    assert site.post("pull-messages", PULL).content == delivered(message)
    site.world.upstream.replies[f"{PREFIX}pull-messages"] = lambda _: (200, b"")
    assert site.post("pull-messages", PULL).content == b""


def test_a_message_for_a_supernode_that_has_hung_up_is_kept_for_the_next(site: RelayedSite) -> None:
    message, looks = asked(2), []

    def slow(_: bytes) -> tuple[int, bytes]:
        looks.append(1)
        time.sleep(0.5)
        return 200, delivered(message)

    site.world.upstream.replies[f"{PREFIX}pull-messages"] = slow
    with pytest.raises(httpx.ReadTimeout):
        site.send("pull-messages", PULL, site.signed(datetime.now(UTC).isoformat()), patience=0.2)
    site.world.upstream.replies[f"{PREFIX}pull-messages"] = lambda _: (200, b"")
    wait_until(lambda: looks)
    assert site.post("pull-messages", PULL).content == delivered(message)


def test_a_supernode_that_keeps_an_answer_to_itself_is_made_to_start_anew(
    site: RelayedSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.post("activate-node", activation(site))
    monkeypatch.setattr(app, "STUCK_SECONDS", 0.3)
    first, second = asked(1), asked(2)
    for message in (first, second):
        site.world.upstream.replies[f"{PREFIX}pull-messages"] = always(delivered(message))
        assert site.post("pull-messages", PULL).status_code == 200
        site.post("push-messages", pushed(reply_to(message, Error(2, "x"))).SerializeToString())
    time.sleep(0.4)
    assert site.post("pull-messages", PULL).status_code == 200, "all was answered, if only with what may not pass"
    time.sleep(0.4)
    assert site.post("pull-messages", PULL).status_code == 401
    assert site.post("pull-messages", PULL).status_code == 200, "once only"
    site.post("activate-node", activation(site))
    monkeypatch.setattr(app, "STUCK_SECONDS", 0.0)
    assert site.post("pull-messages", PULL).status_code == 200, "what its predecessor got is nothing to a new one"


def test_a_supernode_that_has_had_many_messages_starts_anew_when_nothing_is_under_way(
    site: RelayedSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.post("activate-node", activation(site))
    monkeypatch.setattr(app, "MOST_MESSAGES", 2)
    for message in (asked(1), asked(2)):
        site.world.upstream.replies[f"{PREFIX}pull-messages"] = always(delivered(message))
        assert site.post("pull-messages", PULL).status_code == 200
        script(site.world.upstream)
        assert site.post("pull-messages", PULL).status_code == 200, "it is at work on one"
        site.post("push-messages", pushed(reply_to(message, Error(2, "x"))).SerializeToString())
    assert site.post("pull-messages", PULL).status_code == 401
    assert site.post("pull-messages", PULL).status_code == 200, "the next one counts from the start"


def activation(site: RelayedSite) -> bytes:
    key = b64decode(site.world.node_keys[site.name])
    return bytes(ActivateNodeRequest(public_key=key, heartbeat_interval=30).SerializeToString())


def test_a_supernode_that_was_killed_is_activated_though_the_superlink_has_it_online(site: RelayedSite) -> None:
    site.post("pull-messages", PULL)  # by which the relay knows the node's id
    online = [True]

    def deactivate(body: bytes) -> tuple[int, bytes]:
        assert DeactivateNodeRequest.FromString(body).node_id == NODE
        online[0] = False
        return 200, b""

    def activate(_: bytes) -> tuple[int, bytes]:
        return (412, b"{}") if online[0] else (200, ActivateNodeResponse(node_id=NODE).SerializeToString())

    site.world.upstream.replies[f"{PREFIX}deactivate-node"] = deactivate
    site.world.upstream.replies[f"{PREFIX}activate-node"] = activate
    assert ActivateNodeResponse.FromString(site.post("activate-node", activation(site)).content).node_id == NODE


def test_a_node_that_the_superlink_does_not_know_yet_is_tried_again(site: RelayedSite) -> None:
    site.world.upstream.replies[f"{PREFIX}activate-node"] = lambda _: (412, b"{}")
    assert refused(site.post("activate-node", activation(site))) == (503, "not-active")


def test_the_server_is_made_to_ask_again_when_a_message_may_have_been_lost(site: RelayedSite) -> None:
    upstream, failures = site.world.upstream, [503]
    upstream.replies[f"{PREFIX}activate-node"] = always(ActivateNodeResponse(node_id=NODE).SerializeToString())
    upstream.replies[f"{PREFIX}pull-messages"] = lambda _: (failures.pop(), b"{}") if failures else (200, b"")
    assert site.post("pull-messages", PULL).status_code == 200
    assert [path.removeprefix(PREFIX) for path in upstream.paths()][:4] == [
        "pull-messages",
        "deactivate-node",
        "activate-node",
        "pull-messages",
    ]
    assert upstream.paths().count(f"{PREFIX}activate-node") == 1


def test_a_message_whose_code_may_not_run_is_refused_in_supernodes_place(site: RelayedSite) -> None:
    run, upstream = 99, site.world.upstream
    message = asked(3, run)
    given = iter([delivered(message)])
    upstream.replies[f"{PREFIX}pull-messages"] = lambda _: (200, next(given, b""))
    upstream.replies[f"{PREFIX}get-run"] = lambda _: (
        200,
        GetRunResponse(run=Run(run_id=run, fab_hash="cd" * 32)).SerializeToString(),
    )
    assert site.post("pull-messages", PULL).content == b""
    announced = PushMessagesRequest.FromString(told(site, "push-messages"))
    assert announced.messages_list[0].metadata.reply_to_message_id == message.object_id
    sent = PushObjectRequest.FromString(told(site, "push-object"))
    assert (
        sent.object_id == hashlib.sha256(sent.object_content).hexdigest() == announced.message_object_trees[0].object_id
    )
    error = MessageProto.FromString(sent.object_content.partition(b"\0")[2]).error
    assert (error.code, error.reason) == (101, PolicyRefusal("code.fabs", "").told())
    wait_until(lambda: site.state()["refused"].get("code.fabs"))


def test_get_run_of_code_that_may_not_run_does_not_pass(site: RelayedSite) -> None:
    script(site.world.upstream, "cd" * 32)
    assert refused(site.post("get-run", GetRunRequest(node=SELF, run_id=1).SerializeToString())) == (403, "code.fabs")


def get_fab(site: RelayedSite, hash_asked: str, content: bytes) -> httpx.Response:
    answer = GetFabResponse(fab=Fab(hash_str=hash_asked, content=content)).SerializeToString()
    site.world.upstream.replies[f"{PREFIX}get-fab"] = lambda _: (200, answer)
    return site.post("get-fab", GetFabRequest(node=SELF, hash_str=hash_asked, run_id=RUN).SerializeToString())


def test_a_bundle_with_another_hash_does_not_reach_supernode(site: RelayedSite) -> None:
    assert refused(get_fab(site, FAB, b"other code")) == (403, "fab-hash")


def test_a_bundle_reaches_supernode_only_while_the_policy_has_it(site: RelayedSite) -> None:
    code = b"a bundle"
    digest = hashlib.sha256(code).hexdigest()
    assert refused(get_fab(site, digest, code)) == (403, "code.fabs")
    policy = site.home.policy_file
    before = policy.read_text(encoding="utf-8")
    try:
        policy.write_text(f"[code]\nfabs = ['{FAB}', '{digest}']\n", encoding="utf-8")
        assert GetFabResponse.FromString(get_fab(site, digest, code).content).fab.content == code
        policy.write_text("[code]\nfabs = damaged", encoding="utf-8")
        assert refused(get_fab(site, digest, code)) == (403, "code.fabs")
    finally:
        policy.write_text(before, encoding="utf-8")


def push_object(site: RelayedSite, name: str, content: bytes) -> httpx.Response:
    body = PushObjectRequest(node=SELF, run_id=RUN, session_id="s1", object_id=name, object_content=content)
    return site.post("push-object", body.SerializeToString())


def test_an_answer_that_the_ledger_has_leaves(site: RelayedSite) -> None:
    content = config(b"update")
    site.enter(content)
    reply = reply_to(asked(), content)
    found = site.post("push-messages", pushed(reply).SerializeToString())
    assert found.status_code == 200
    assert told(site, "push-messages") == pushed(reply).SerializeToString()
    for name, data in objects_of(reply).items():
        assert push_object(site, name, data).status_code == 200
    assert len(site.world.upstream.asked) == 1 + len(objects_of(reply))


def test_an_answer_that_the_ledger_does_not_have_stays(site: RelayedSite) -> None:
    reply = reply_to(asked(), config(b"data of patients"))
    assert refused(site.post("push-messages", pushed(reply).SerializeToString())) == (403, "ledger")
    for name, data in objects_of(reply).items():
        assert refused(push_object(site, name, data)) == (403, "ledger")
    assert not site.world.upstream.asked
    wait_until(lambda: site.state()["refused"].get("ledger", 0) >= 4)


def test_an_object_under_the_id_of_another_stays(site: RelayedSite) -> None:
    content = config(b"left before")
    site.enter(content)
    for name in objects_of(content):
        assert refused(push_object(site, name, b"data of patients")) == (403, "object-hash")
    assert not site.world.upstream.asked


def test_an_error_that_the_ledger_has_leaves_as_it_is(site: RelayedSite) -> None:
    reason = "SettingsError: the settings cannot be used"
    with Ledger(site.home.ledger) as ledger:
        digest = hashlib.sha256(reason.encode()).hexdigest()
        ledger.append(Record(LEFT, content="Error", reason=reason, sha256=digest))
    reply = reply_to(asked(), Error(100, reason))
    assert site.post("push-messages", pushed(reply).SerializeToString()).status_code == 200
    assert told(site, "push-messages") == pushed(reply).SerializeToString()


def test_the_text_of_any_other_error_stays_here(site: RelayedSite) -> None:
    reply = reply_to(asked(), Error(2, "KeyError: '/data/patients/Smith.dcm'"))
    found = site.post("push-messages", pushed(reply).SerializeToString())
    assert PushMessagesResponse.FromString(found.content).objects_to_push == [reply.object_id]
    ((name, data),) = objects_of(reply).items()
    assert push_object(site, name, data).status_code == 200
    announced = PushMessagesRequest.FromString(told(site, "push-messages"))
    sent = PushObjectRequest.FromString(told(site, "push-object"))
    assert (
        sent.object_id == announced.messages_list[0].metadata.message_id == announced.message_object_trees[0].object_id
    )
    assert sent.object_id == hashlib.sha256(sent.object_content).hexdigest()
    for error in (
        announced.messages_list[0].error,
        MessageProto.FromString(sent.object_content.split(b"\0", 1)[1]).error,
    ):
        assert (error.code, error.reason) == (2, UNTOLD)
    assert b"Smith" not in b"".join(one.body for one in site.world.upstream.asked)


def test_an_unreachable_server_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "HOLD_SECONDS", 0.2)
    monkeypatch.setattr(app, "RETRY_SECONDS", 0.05)
    site = RelayedSite(make_world(tmp_path, "north"))
    script(site.world.upstream)
    with site.relay(), site.world.superlink():
        assert refused(site.post("send-node-heartbeat", BEAT)) == (503, "unreachable")
        wait_until(lambda: site.state().get("cause", "").startswith("unreachable"))
        pulled = site.post("pull-messages", PULL)
        assert (pulled.status_code, pulled.content) == (200, b"")
        for _ in range(2):
            with site.world.gateway():
                assert site.post("send-node-heartbeat", BEAT).status_code == 200
            assert refused(site.post("send-node-heartbeat", BEAT))[0] == 503
        revoke(site.world.server, "north", "left", datetime.now(UTC))
        with site.world.gateway():
            assert refused(site.post("send-node-heartbeat", BEAT)) == (503, "revoked")
        assert not site.state()["connected"]


def test_a_superlink_that_is_down_is_waited_for(tmp_path: Path) -> None:
    site = RelayedSite(make_world(tmp_path, "north"))
    with site.world.gateway(), site.relay():
        assert refused(site.post("send-node-heartbeat", BEAT)) == (503, "superlink")


@pytest.mark.parametrize("host", ["localhost", "elsewhere.example"])
def test_a_server_that_is_not_the_kits_is_not_spoken_to(tmp_path: Path, host: str) -> None:
    """Of a foreign authority, or of the right one and for another name."""
    world = make_world(tmp_path, "north")
    now, key = datetime.now(UTC), new_tls_key()
    authority = new_authority("lines", now) if host == "localhost" else read_authority(world.server, None)
    world.server.tls_key.write_bytes(private_pem(key))
    world.server.tls_certificate.write_bytes(as_pem([issue_server(authority, (host,), key.public_key(), now, 30)]))
    site = RelayedSite(world)
    with world.superlink(), world.gateway(), site.relay():
        assert refused(site.post("send-node-heartbeat", BEAT)) == (503, "server-certificate")
    assert not world.upstream.asked


@pytest.mark.parametrize("by", ["site.toml", "environment"])
def test_the_way_out_is_through_the_http_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    site = RelayedSite(make_world(tmp_path, "north"))
    script(site.world.upstream)
    for name in ("NO_PROXY", "no_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with http_proxy() as proxy, site.world.superlink(), site.world.gateway():
        if by == "environment":
            monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        else:
            _add(site, f"proxy = '{proxy.url.replace('//', '//me:secret@')}'")
        with site.relay():
            assert site.post("send-node-heartbeat", BEAT).content == ALIVE
            assert proxy.lines == [f"CONNECT localhost:{site.world.port} HTTP/1.1"]
            assert len(proxy.authorizations) == (by == "site.toml")
        proxy.forbids = True
        with site.relay():
            assert refused(site.post("send-node-heartbeat", BEAT)) == (503, "proxy")


def test_no_proxy_is_used_where_the_site_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = RelayedSite(make_world(tmp_path, "north"))
    script(site.world.upstream)
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    _add(site, "proxy = 'off'")
    with site.world.superlink(), site.world.gateway(), site.relay():
        assert site.post("send-node-heartbeat", BEAT).content == ALIVE


def _add(site: RelayedSite, line: str) -> None:
    with site.home.config_file.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def test_both_ends_are_renewed_while_they_run(tmp_path: Path) -> None:
    site = RelayedSite(make_world(tmp_path, "north"))
    world = site.world
    script(world.upstream)
    with world.superlink(), world.gateway(), site.relay():
        assert site.post("send-node-heartbeat", BEAT).status_code == 200
        renew_server(world.server, None, datetime.now(UTC))
        world.give_kit(site.home, renew_request(site.home, None, datetime.now(UTC)))
        newest = serial_of(read_certificates(site.home.tls_certificate)[0])

        def only_newest(found: Registry) -> Registry:
            return replace(found, sites={"north": replace(found.sites["north"], serials=(newest,))})

        update_registry(world.server.registry_file, only_newest)
        assert read_registry(world.server.registry_file).sites["north"].serials == (newest,)
        wait_until(lambda: site.post("send-node-heartbeat", BEAT).status_code == 200)


def test_a_renewed_pair_that_does_not_fit_leaves_the_old_one_in_use(site: RelayedSite) -> None:
    good = site.home.tls_certificate.read_bytes()
    try:
        site.home.tls_certificate.write_bytes(site.world.sites["south"].tls_certificate.read_bytes())
        time.sleep(1.5)  # it looks every second
        assert site.post("send-node-heartbeat", BEAT).status_code == 200
    finally:
        site.home.tls_certificate.write_bytes(good)


def test_the_node_key_is_known_without_the_private_one(made: RelayedSite, tmp_path: Path) -> None:
    assert node_key_of(made.home, None) == made.world.node_keys["north"]
    moved = made.home.request_file.rename(tmp_path / "request.json")
    try:
        assert node_key_of(made.home, None) == made.world.node_keys["north"]
    finally:
        moved.rename(made.home.request_file)


def test_without_its_kit_a_relay_does_not_start(tmp_path: Path) -> None:
    site = RelayedSite(make_world(tmp_path, "north"))
    site.home.kit_file.unlink()
    with pytest.raises(TrustError, match=r"kit .*kit\.json is not there"):
        server_of(site.home, 1)
