"""What the relay does with SuperNode's requests: check them, ask the server, and answer so that SuperNode lives on.

SuperNode ends itself on status 401, forgets a message on 403, gives an answer up on most others, and asks again for
ever on 503. So whatever may pass is answered with 503, and the finished answer is kept until the server takes it.
"""

import asyncio
import contextlib
import hashlib
import logging
import time
from base64 import b64decode
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
from flwr.app import Error, Message
from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_HEADER, TIMESTAMP_TOLERANCE
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fab_pb2 import GetFabResponse
from flwr.proto.fleet_pb2 import PullMessagesRequest, PullMessagesResponse, PushMessagesRequest, PushMessagesResponse
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatResponse
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.message_pb2 import PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest, GetRunResponse
from flwr.supercore.constant import FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.date import now
from flwr.supercore.inflatable.inflatable_object import get_object_tree
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature
from google.protobuf.message import DecodeError
from google.protobuf.message import Message as Proto
from starlette.types import Receive, Scope, Send

from client.door.outbound import POLICY_ERROR
from client.relay.door import SecondDoor
from client.relay.presence import ACTIVATE, Presence
from client.relay.releases import Releases
from client.relay.way import PATIENCE, QUICK, Answer, Contact, UnavailableError, Way
from common.deployment.forward import (
    HEALTH,
    NODE_KEY,
    PASSED,
    PREFIX,
    PROTOBUF,
    RELEASES,
    ROUTES,
    Complaints,
    GoneError,
    RefusedError,
    StateFile,
    answer,
    headers_of,
    read_body,
    refuse,
    route_of,
)
from common.errors import PolicyRefusal

log = logging.getLogger("fedreptile.relay")

LARGE_AT_ONCE = 4
"""So many objects are held in memory at once; further ones wait."""
POLL_SECONDS = 0.5
"""Between two looks for a message; SuperNode itself would look every 3 s."""
RETRY_SECONDS = 2.0
"""The same while the server is out of reach."""
HOLD_SECONDS = 10.0
"""Time for which SuperNode's question for messages is held before it is told that there is none; it waits for 30 s."""
FAULTS = 5
"""So often SuperNode asks again when the SuperLink fails (status 500) at the same request; then it is told."""
KNOWN = 1000
"""Runs and failed requests that are remembered."""
STUCK_SECONDS = 10.0
"""SuperNode does one message at a time. If it asks for the next so long after one that it has not answered, that answer
is lost to it, or lies ready until another message comes: it sends an answer per message, whichever is there first."""
MOST_MESSAGES = 500
"""After so many SuperNode starts anew, with nothing under way: it keeps the task and the log of each message in memory
(flwr 1.41, InMemoryCoreState: task_store, task_logs): some 20 kB (docs/endurance.md)."""

HEARTBEAT, PULL = f"{PREFIX}send-node-heartbeat", f"{PREFIX}pull-messages"
PUSH, OBJECT = f"{PREFIX}push-messages", f"{PREFIX}push-object"
GET_RUN, GET_FAB, PULL_OBJECT = f"{PREFIX}get-run", f"{PREFIX}get-fab", f"{PREFIX}pull-object"


START_ANEW = Answer(401, b'{"detail":"the SuperLink does not know this node"}', {"content-type": "application/json"})
"""SuperNode ends, its supervisor starts it again, and the server asks a node that started anew once more."""


class Relay:
    """The ASGI app.

    Args:
        state: the file that says how the relay stands.
        port: where it listens, for who wants releases.
    """

    def __init__(self, way: Way, door: SecondDoor, state: Path, port: int) -> None:
        self._way, self._door = way, door
        self._node_key = bytes_to_public_key(b64decode(door.node_key))
        self.contact = Contact()
        self._state = StateFile(state)
        self._presence = Presence(door.node_key, state)
        self._releases, self._port = Releases(way), port
        self._refused: Counter[str] = Counter()
        self._bytes_out = self._bytes_in = 0
        self._complaints = Complaints(log)
        self._memory = asyncio.Semaphore(LARGE_AT_ONCE)
        self._faults: dict[bytes, int] = {}
        self._fabs: dict[int, str] = {}
        """Run -> SHA-256 of its app bundle."""
        self._waiting: list[PullMessagesResponse] = []
        """Messages that the server has given and SuperNode has not got yet."""
        self._given: dict[str, float] = {}
        """Id of a message that SuperNode has got and not answered -> when."""
        self._handed = 0
        """Messages that this SuperNode has got."""
        self._refusal: Message | None = None
        """The last one, since what is sent again must be the same."""
        self._pulling = asyncio.Lock()
        self._stopping = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            path, headers = route_of(scope), headers_of(scope)
            if path == HEALTH:
                raise RefusedError(404, "route", HEALTH, f"POST {PREFIX}…")
            if path.startswith(RELEASES):
                await self._release(path, scope, send)
                return
            self._check_node(headers)
            if path in (OBJECT, PULL_OBJECT, GET_FAB):
                async with self._memory:
                    found = await self._answer(path, headers, receive)
            else:
                found = await self._answer(path, headers, receive)
            await answer(send, found.status, found.body, {"content-type": found.headers.get("content-type", PROTOBUF)})
        except RefusedError as error:
            self._note(error)
            await refuse(scope, send, error, {})
        except UnavailableError as error:
            self.contact.lost(error)
            await refuse(scope, send, RefusedError(503, error.cause, str(error), "a server that answers"), {})
        except GoneError:
            return

    async def _release(self, path: str, scope: Scope, send: Send) -> None:
        """Pass a file of a release on. Whether that works says nothing about the connection of SuperNode."""
        try:
            self._bytes_in += await self._releases.pass_on(path, scope, send)
        except UnavailableError as error:
            await refuse(scope, send, RefusedError(503, error.cause, str(error), "a server that answers"), {})

    def _check_node(self, headers: Mapping[str, str]) -> None:
        """Raises RefusedError unless the site's own SuperNode has signed a request, just now by this machine's clock.

        One whose time alone is wrong was sent twice, or the clock was set meanwhile; SuperNode then signs anew.
        """
        own = "the site's own SuperNode"
        if headers.get(NODE_KEY, "") != self._door.node_key:
            raise RefusedError(403, "node", "another node key than the site's", own)
        try:
            signed = headers[TIMESTAMP_HEADER]
            signature = b64decode(headers[FLEET_HTTP_SIGNATURE_HEADER], validate=True)
            good = verify_signature(self._node_key, signed.encode("ascii"), signature)
            age = (now() - datetime.fromisoformat(signed)).total_seconds()
        except (KeyError, ValueError, TypeError) as error:
            raise RefusedError(403, "node", "no signature of the node's", own) from error
        if not good:
            raise RefusedError(403, "node", "a signature by another key than the node's", own)
        if not -SYSTEM_TIME_TOLERANCE < age < TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE:
            raise RefusedError(503, "node", f"a signature that was made {age:.0f} s ago", "a new one")

    def every_second(self) -> None:
        """Write how the relay stands."""
        self._way.tidy()
        self._write()

    def stopping(self) -> None:
        self._stopping = True
        self._write(at_once=True)

    async def closing(self) -> None:
        await self._way.close()

    async def _answer(self, path: str, headers: Mapping[str, str], receive: Receive) -> Answer:
        body = await read_body(receive, headers, ROUTES[path] or self._way.largest)
        passed = {name: headers[name] for name in PASSED if name in headers}
        if path == PUSH:
            self._note_answered(body)
        request = self._door.request(path, body)
        match path:
            case _ if path == PULL:
                return await self._pull(passed, request, receive)
            case _ if path == ACTIVATE:
                self._given.clear()
                self._handed = 0
                return await self._presence.activate(self._ask, passed, request)
            case _ if path == GET_RUN:
                return await self._get_run(passed, request)
            case _ if path == GET_FAB:
                found = await self._ask(path, passed, request)
                if found.status == httpx.codes.OK:
                    self._door.fab(request, _parsed(GetFabResponse, found))
                return found
            case _ if path == PUSH:
                return await self._push(passed, request, body)
            case _:
                return await self._ask(path, passed, request)

    def _note_answered(self, body: bytes) -> None:
        """SuperNode does not keep what it has tried to send, also if it may not leave."""
        with contextlib.suppress(DecodeError):
            for message in PushMessagesRequest.FromString(body).messages_list:
                self._given.pop(message.metadata.reply_to_message_id, None)

    async def _push(self, headers: Mapping[str, str], request: Any, body: bytes) -> Answer:
        """Announce a reply; where the second door changed its id, SuperNode still knows it by its own."""
        found = await self._ask(PUSH, headers, request)
        own = PushMessagesRequest.FromString(body).messages_list[0].metadata.message_id
        sent = request.messages_list[0].metadata.message_id
        if own == sent or found.status != httpx.codes.OK:
            return found
        told = _parsed(PushMessagesResponse, found)
        wanted = [own if item == sent else item for item in told.objects_to_push]
        told.ClearField("objects_to_push")
        told.objects_to_push.extend(wanted)
        return _ok(told)

    async def _get_run(self, headers: Mapping[str, str], request: Any) -> Answer:
        found = await self._ask(GET_RUN, headers, request)
        if found.status == httpx.codes.OK:
            self._door.may_run(_parsed(GetRunResponse, found).run.fab_hash)
        return found

    async def _pull(self, headers: Mapping[str, str], request: Any, receive: Receive) -> Answer:
        """Wait for a message; none that the site's policy refuses to run code for reaches SuperNode."""
        if self._given and time.monotonic() - min(self._given.values()) >= STUCK_SECONDS:
            log.warning("SuperNode asks for messages and has not answered the last one: it is made to start anew")
            self._given.clear()
            return START_ANEW
        if self._handed >= MOST_MESSAGES and not self._given and not self._waiting:
            log.info("SuperNode has had %d messages and starts anew, since it keeps something of each", self._handed)
            self._handed = 0
            return START_ANEW
        gone = asyncio.ensure_future(receive())
        end = time.monotonic() + HOLD_SECONDS
        try:
            async with self._pulling:
                while True:
                    found, pause = await self._look(headers, request), POLL_SECONDS
                    if isinstance(found, Answer):
                        return found
                    if found is not None and gone.done():
                        self._waiting.insert(0, found)
                    elif found is not None:
                        self._door.came(found)
                        self._given[found.messages_list[0].metadata.message_id] = time.monotonic()
                        self._handed += 1
                        return _ok(found)
                    if not self.contact.connected:
                        pause = RETRY_SECONDS
                    if self._stopping or gone.done() or time.monotonic() + pause > end:
                        return _ok(PullMessagesResponse())
                    await asyncio.wait({gone}, timeout=pause)
        finally:
            gone.cancel()

    async def _look(
        self, headers: Mapping[str, str], request: PullMessagesRequest
    ) -> PullMessagesResponse | Answer | None:
        """Return a message whose code may run, or what the server says instead, or None."""
        try:
            if not self._waiting:
                self._presence.node = request.node.node_id
                await self._presence.make_sure(self._ask, headers)
                found = await self._ask_for_messages(headers, request)
                if found.status != httpx.codes.OK:
                    return found
                if not _parsed(PullMessagesResponse, found).messages_list:
                    return None
                self._waiting.append(_parsed(PullMessagesResponse, found))
            message = self._waiting[0].messages_list[0]
            if await self._may_run(headers, request.node, message):
                return self._waiting.pop(0)
            self._waiting.pop(0)
        except UnavailableError as error:
            self.contact.lost(error)
        return None

    async def _ask_for_messages(self, headers: Mapping[str, str], request: PullMessagesRequest) -> Answer:
        try:
            return await self._ask(PULL, headers, request)
        except UnavailableError as error:
            self._presence.failed(error)
            raise

    async def _may_run(self, headers: Mapping[str, str], node: Node, message: MessageProto) -> bool:
        """Return whether the code of a message's run may run; if the policy forbids it, the server is told."""
        run = message.metadata.run_id
        if run not in self._fabs:
            found = await self._ask(GET_RUN, headers, GetRunRequest(node=node, run_id=run))
            if found.status != httpx.codes.OK:
                log.info("a message is dropped, since its run %d is over (status %d)", run, found.status)
                return False
            while len(self._fabs) >= KNOWN:
                del self._fabs[next(iter(self._fabs))]
            self._fabs[run] = _parsed(GetRunResponse, found).run.fab_hash
        try:
            self._door.may_run(self._fabs[run])
        except RefusedError as error:
            await self._tell_refusal(headers, node, message)
            self._note(error)
            return False
        return True

    async def _tell_refusal(self, headers: Mapping[str, str], node: Node, asked: MessageProto) -> None:
        """Reply to a message, in SuperNode's place, that the site's policy refuses the code."""
        if self._refusal is None or self._refusal.metadata.reply_to_message_id != asked.metadata.message_id:
            reason = PolicyRefusal("code.fabs", "").told()
            self._refusal = Message(Error(POLICY_ERROR, reason), reply_to=message_from_proto(asked))
        reply = self._refusal
        content, tree, proto = reply.deflate(), get_object_tree(reply), message_to_proto(reply)
        proto.metadata.message_id = tree.object_id
        announced = await self._ask(
            PUSH, headers, PushMessagesRequest(node=node, messages_list=[proto], message_object_trees=[tree])
        )
        if announced.status != httpx.codes.OK:
            return
        told = _parsed(PushMessagesResponse, announced)
        for item in told.objects_to_push:
            pushed = PushObjectRequest(
                node=node,
                run_id=asked.metadata.run_id,
                object_id=item,
                object_content=content,
                session_id=told.session_id,
            )
            await self._ask(OBJECT, headers, pushed)

    async def _ask(self, path: str, headers: Mapping[str, str], request: Proto) -> Answer:
        """Ask the server; return what SuperNode may be told as it is.

        Raises:
            UnavailableError: for all after which SuperNode shall ask again.
        """
        body = request.SerializeToString(deterministic=True)
        found = await self._way.ask(path, headers, body, QUICK if path in (PULL, HEARTBEAT) else PATIENCE)
        self.contact.reached()
        self._bytes_out += len(body)
        self._bytes_in += len(found.body)
        if found.status == httpx.codes.OK:
            return _checked_heartbeat(found) if path == HEARTBEAT else found
        self._check_status(path, headers, body, found)
        return found

    def _check_status(self, path: str, headers: Mapping[str, str], body: bytes, found: Answer) -> None:
        """Raises UnavailableError for a status that SuperNode would take for the end of something that may go on."""
        said = f"the server answered {path} with status {found.status}: {found.body[:200]!r}"
        if found.status == httpx.codes.UNAUTHORIZED and (why := _clock_is_off(headers, found)):
            raise UnavailableError("clock", why)
        if found.status in (502, 503, 504):
            raise UnavailableError("superlink", said)
        if found.status == httpx.codes.UNAUTHORIZED and not found.of_gateway:
            log.warning("the SuperLink does not know this node any more; SuperNode starts anew")
            return
        if path == ACTIVATE and found.status == httpx.codes.PRECONDITION_FAILED:
            return
        if path in (HEARTBEAT, ACTIVATE):  # any other status would be the end of SuperNode or of its heartbeats
            raise UnavailableError("superlink", said)
        if found.status == httpx.codes.INTERNAL_SERVER_ERROR:
            key = hashlib.sha256(path.encode() + body).digest()
            while len(self._faults) >= KNOWN:
                del self._faults[next(iter(self._faults))]
            self._faults[key] = self._faults.get(key, 0) + 1
            if self._faults[key] < FAULTS:
                raise UnavailableError("superlink", said)

    def _note(self, error: RefusedError) -> None:
        self._refused[error.cause] += 1
        self._complaints.tell("a request of the site's own SuperNode", error)

    def _write(self, at_once: bool = False) -> None:
        contact = self.contact
        values = {
            "connected": contact.connected,
            "since": round(contact.since, 1),
            "last-answer": round(contact.last, 1) or None,
            "cause": contact.cause,
            "refused": dict(self._refused),
            "bytes-out": self._bytes_out,
            "bytes-in": self._bytes_in,
            "node": str(self._presence.node),
            "port": self._port,
        }
        self._state.write(values, at_once)


def _clock_is_off(headers: Mapping[str, str], found: Answer) -> str:
    """Return how far this machine's clock is from the server's if that is why it refuses; else an empty text."""
    try:
        signed = datetime.fromisoformat(headers[TIMESTAMP_HEADER]).timestamp()
    except (KeyError, ValueError):
        return ""
    if found.time is None:
        return ""
    age = found.time - signed
    # The server's time has whole seconds, hence the one that is taken off.
    if 1 - SYSTEM_TIME_TOLERANCE <= age < TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE - 1:
        return ""
    where = f"{abs(age):.0f} s {'behind' if age > 0 else 'ahead of'} the server's"
    return f"this machine's clock is {where}; set it"


def _checked_heartbeat(found: Answer) -> Answer:
    """Return an answer after which SuperNode starts anew if the server does not know it; else the answer itself."""
    if _parsed(SendNodeHeartbeatResponse, found).success:
        return found
    return START_ANEW


def _parsed(kind: type[Proto], found: Answer) -> Any:
    """Raises UnavailableError if an answer is not of this kind."""
    result = kind()
    try:
        result.ParseFromString(found.body)
    except DecodeError as error:
        raise UnavailableError("answer", f"the server's answer is no {kind.DESCRIPTOR.name}") from error
    return result


def _ok(found: Proto) -> Answer:
    return Answer(200, found.SerializeToString(deterministic=True), {"content-type": PROTOBUF})
