"""The second door: what SuperNode sends leaves only if it is of Flower's own form and the ledger has what is in it.

SuperNode and the code that it runs may be anyone's. What they can still say to the server without the ledger is in
the numbers and identifiers that Flower itself needs: times, a duration, signatures, SHA-256 values.
"""

import hashlib
import logging
import math
import re
from base64 import b64encode
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from flwr.proto.error_pb2 import Error
from flwr.proto.fab_pb2 import GetFabRequest, GetFabResponse
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    Message,
    Metadata,
    ObjectTree,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.proto.run_pb2 import GetRunRequest
from google.protobuf.message import DecodeError
from google.protobuf.message import Message as Proto

from client.door.outbound import POLICY_ERROR, SITE_ERROR
from client.door.policy import Policy, read_policy
from common.deployment.forward import PREFIX, RefusedError, stamp_of
from common.errors import CLAUSES, LedgerError, SettingsError

log = logging.getLogger("fedreptile.relay")

REQUESTS: dict[str, type[Proto]] = {
    f"{PREFIX}activate-node": ActivateNodeRequest,
    f"{PREFIX}deactivate-node": DeactivateNodeRequest,
    f"{PREFIX}send-node-heartbeat": SendNodeHeartbeatRequest,
    f"{PREFIX}pull-messages": PullMessagesRequest,
    f"{PREFIX}get-run": GetRunRequest,
    f"{PREFIX}get-fab": GetFabRequest,
    f"{PREFIX}pull-object": PullObjectRequest,
    f"{PREFIX}confirm-message-received": ConfirmMessageReceivedRequest,
    f"{PREFIX}push-messages": PushMessagesRequest,
    f"{PREFIX}push-object": PushObjectRequest,
}

UNTOLD = "Flower error; the site's own log has the details"
"""What the server is told instead of an error text that is not in the ledger."""
ERROR_CODES = frozenset({*range(9), SITE_ERROR, POLICY_ERROR})
"""Flower's own, and ours."""
MESSAGE_OBJECT_BYTES = 4096
MOST_TREE = 100_000
DEEPEST_TREE = 8
SEEN_MESSAGES = 256
ID = re.compile("[0-9a-f]{64}")
NAME = re.compile(r"[A-Za-z0-9_.-]{0,64}")


class Ledger(Protocol):
    """What is known of what the first door has let out (``client.door.ledger.LedgerIndex``)."""

    def has_object(self, object_id: str, /) -> bool: ...

    def has_error(self, sha256: str, /) -> bool: ...


class Code(Protocol):
    """Which code may run (``OwnPolicy``)."""

    def may_run(self, fab: str, /) -> bool: ...


class OwnPolicy:
    """The site's policy, read anew when its file has changed. While it cannot be read no code may run."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: Any = None
        self._policy: Policy | None = None

    def may_run(self, fab: str, /) -> bool:
        """Return whether the app bundle with this SHA-256 (hexadecimal) may run."""
        now = stamp_of(self._path)
        if now != self._seen:
            self._seen = now
            try:
                self._policy = read_policy(self._path)
            except SettingsError as error:
                self._policy = None
                log.error("no code may run: %s", error)
        return self._policy is not None and self._policy.may_run(fab)


class SecondDoor:
    """Checks requests of SuperNode and answers of the server.

    Args:
        node_key: the node's public key as Flower sends it: base64 of PEM bytes.
    """

    def __init__(self, node_key: str, ledger: Ledger, code: Code) -> None:
        self.node_key, self._ledger, self._code = node_key, ledger, code
        self._asked: dict[str, Metadata] = {}
        """Messages that came lately, by their id."""

    def request(self, path: str, body: bytes) -> Proto:
        """Return a request that may leave, changed where need be.

        Raises:
            RefusedError: if it may not.
        """
        found = _parsed(REQUESTS[path], body)
        match found:
            case ActivateNodeRequest():
                _need(b64encode(found.public_key).decode() == self.node_key, "node", "the key of another node")
            case GetFabRequest():
                _need(ID.fullmatch(found.hash_str), "form", "a bundle that is not named by its SHA-256")
            case PullObjectRequest():
                _need(ID.fullmatch(found.object_id), "form", "an object that is not named by its SHA-256")
            case ConfirmMessageReceivedRequest():
                _need(ID.fullmatch(found.message_object_id), "form", "a message that is not named by its SHA-256")
            case PullMessagesRequest():
                _need(not found.message_ids, "form", "messages asked for by name")
            case PushMessagesRequest():
                self._push_messages(found)
            case PushObjectRequest():
                self._push_object(found)
        return found

    def came(self, found: PullMessagesResponse) -> None:
        """Take note of messages that the server sent."""
        for message in found.messages_list:
            self._asked[message.metadata.message_id] = message.metadata
        while len(self._asked) > SEEN_MESSAGES:
            del self._asked[next(iter(self._asked))]

    def fab(self, asked: GetFabRequest, found: GetFabResponse) -> None:
        """Raises RefusedError unless a bundle is the one that was asked for and may run."""
        digest = hashlib.sha256(found.fab.content).hexdigest()
        _need(digest == asked.hash_str, "fab-hash", f"a bundle with SHA-256 {digest}", f"SHA-256 {asked.hash_str}")
        self.may_run(digest)

    def may_run(self, fab: str) -> None:
        """Raises RefusedError unless a bundle may run at this site."""
        if not self._code.may_run(fab):
            raise RefusedError(403, "code.fabs", f"bundle {fab[:64]!r}: {CLAUSES['code.fabs']}", "one of the policy's")

    def _push_messages(self, found: PushMessagesRequest) -> None:
        shape = (len(found.messages_list), len(found.message_object_trees), len(found.clientapp_runtime_list) <= 1)
        _need(shape == (1, 1, True), "form", "more or less than one message")
        _need(all(map(math.isfinite, found.clientapp_runtime_list)), "form", "a duration that is no number")
        message, tree = found.messages_list[0], found.message_object_trees[0]
        _need(not message.content.ByteSize(), "form", "content outside of objects")
        self._metadata(message.metadata)
        children = [child.object_id for child in tree.children]
        _need(message.HasField("error") != bool(children), "form", "a message with error and content, or neither")
        self._in_ledger(_descendants(tree))
        real = id_of(message_object(message, children))
        _need(message.metadata.message_id == tree.object_id == real, "form", "an id that is not the message's own")
        if message.HasField("error"):
            message.error.CopyFrom(self._told(message.error))
            tree.object_id = message.metadata.message_id = id_of(message_object(message, children))

    def _push_object(self, found: PushObjectRequest) -> None:
        right = ID.fullmatch(found.object_id) and id_of(found.object_content) == found.object_id
        _need(right, "object-hash", "an object whose id is not its SHA-256")
        _need(NAME.fullmatch(found.session_id), "form", "a session of another form")
        if self._holds(found.object_id):
            return
        _need(len(found.object_content) <= MESSAGE_OBJECT_BYTES, "ledger", f"object {found.object_id}")
        content = self._message_object(found.object_content)
        found.object_content, found.object_id = content, id_of(content)

    def _message_object(self, content: bytes) -> bytes:
        """Return the object of a message, with another error text if the ledger has not the one that is there."""
        head, _, body = content.partition(b"\0")
        words = head.decode("latin-1").split(" ")
        _need(len(words) == 3 and words[0] == "Message", "ledger", f"object {id_of(content)}")
        children = words[1].split(",") if words[1] else []
        message = Message()
        message.CopyFrom(_parsed(Message, body))
        _need(message_object(message, children) == content, "form", "the object of a message in another form")
        _need(message.HasField("error") != bool(children), "form", "a message with error and content, or neither")
        self._metadata(message.metadata)
        self._in_ledger(children)
        if message.HasField("error"):
            message.error.CopyFrom(self._told(message.error))
        return message_object(message, children)

    def _metadata(self, given: Metadata) -> None:
        """Raises RefusedError unless a reply is addressed as Flower addresses one."""
        _need(ID.fullmatch(given.reply_to_message_id), "form", "a reply to a message not named by its SHA-256")
        _need(math.isfinite(given.created_at) and math.isfinite(given.ttl), "form", "a time that is no number")
        asked = self._asked.get(given.reply_to_message_id)
        if asked is None:  # it came before the relay was started
            plain = NAME.fullmatch(given.group_id) and NAME.fullmatch(given.message_type)
            _need(plain, "form", "a reply with another group or type than Flower's")
            return
        theirs = (asked.run_id, asked.group_id, asked.message_type, asked.dst_node_id, asked.src_node_id)
        ours = (given.run_id, given.group_id, given.message_type, given.src_node_id, given.dst_node_id)
        _need(theirs == ours, "form", "a reply that does not fit its message")

    def _told(self, error: Error) -> Error:
        code = error.code if error.code in ERROR_CODES else 0
        if error.reason == UNTOLD or self._says(hashlib.sha256(error.reason.encode()).hexdigest()):
            return Error(code=code, reason=error.reason)
        log.warning("the server is told %r instead of: %.2000r", UNTOLD, error.reason)
        return Error(code=code, reason=UNTOLD)

    def _in_ledger(self, objects: Iterable[str]) -> None:
        for number, item in enumerate(objects):
            _need(number < MOST_TREE and self._holds(item), "ledger", f"object {item[:64]!r}")

    def _holds(self, object_id: str) -> bool:
        try:
            return self._ledger.has_object(object_id)
        except LedgerError as error:
            raise RefusedError(503, "ledger", str(error), "a ledger that can be read") from error

    def _says(self, sha256: str) -> bool:
        try:
            return self._ledger.has_error(sha256)
        except LedgerError as error:
            log.error("%s", error)
            return False


def message_object(message: Message, children: list[str]) -> bytes:
    """Return the object of a message as Flower makes it: without its id and content, with its children's ids."""
    bare = Message(metadata=message.metadata)
    bare.metadata.message_id = ""
    if message.HasField("error"):
        bare.error.CopyFrom(message.error)
    body: bytes = bare.SerializeToString(deterministic=True)
    return f"Message {','.join(children)} {len(body)}".encode() + b"\0" + body


def id_of(content: bytes) -> str:
    """Return the id that Flower gives an object."""
    return hashlib.sha256(content).hexdigest()


def _parsed(kind: type[Proto], body: bytes) -> Any:
    """Raises RefusedError unless all of the bytes are of this kind."""
    found = kind()
    try:
        found.ParseFromString(body)
    except DecodeError as error:
        raise RefusedError(400, "form", f"no {kind.DESCRIPTOR.name}", "Flower's own form") from error
    found.DiscardUnknownFields()
    _need(found.ByteSize() == len(body), "form", f"more than belongs to a {kind.DESCRIPTOR.name}")
    return found


def _descendants(tree: ObjectTree, depth: int = 0) -> Iterator[str]:
    _need(depth < DEEPEST_TREE, "form", "objects in objects without end")
    for child in tree.children:
        yield child.object_id
        yield from _descendants(child, depth + 1)


def _need(there: object, cause: str, found: str, needed: str = "") -> None:
    if not there:
        needed = needed or ("what the ledger has" if cause == "ledger" else "Flower's own form")
        raise RefusedError(403, cause, found, needed)
