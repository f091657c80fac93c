"""A site's relay before a gateway and a scripted SuperLink; a small real HTTP proxy."""

import contextlib
import json
import socket
import socketserver
import ssl
import threading
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.app.message.message import make_message, remove_content_from_message
from flwr.app.metadata import Metadata
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import PullMessagesResponse, PushMessagesRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.constant import FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.date import now
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.primitives.asymmetric import sign_message

from client.door.ledger import LEFT, Ledger, Record
from client.door.outbound import object_ids
from client.home import SiteHome
from client.relay.__main__ import server_of
from common.deployment.forward import PREFIX, VERSION_HEADER
from common.deployment.ports import free_port
from common.trust.keys import read_ec_key
from tests.server.gateway.world import World, serving

NODE, RUN = 7, 11


@dataclass
class RelayedSite:
    world: World
    name: str = "north"
    port: int = field(default_factory=free_port)

    @property
    def home(self) -> SiteHome:
        return self.world.sites[self.name]

    @contextlib.contextmanager
    def relay(self) -> Iterator[None]:
        with serving(server_of(self.home, self.port)):
            yield

    def post(self, route: str, body: bytes = b"", **headers: str) -> httpx.Response:
        """Ask as SuperNode does."""
        signed = self.signed(now().isoformat())
        return self.send(route, body, signed | {key.replace("_", "-"): value for key, value in headers.items()})

    def send(self, route: str, body: bytes, headers: dict[str, str], patience: float = 30.0) -> httpx.Response:
        context = ssl.create_default_context(cafile=str(self.home.loopback / "ca.crt"))
        with httpx.Client(verify=context, trust_env=False, timeout=patience) as client:
            return client.post(f"https://127.0.0.1:{self.port}{PREFIX}{route}", content=body, headers=headers)

    def signed(self, time: str, by: str = "") -> dict[str, str]:
        """Return SuperNode's headers, signed for a time with the key of this site's node or of another's."""
        key = read_ec_key(self.world.sites[by or self.name].node_key)
        signature = b64encode(sign_message(key, time.encode())).decode()
        headers = self.world.headers(self.name) | {TIMESTAMP_HEADER: time, FLEET_HTTP_SIGNATURE_HEADER: signature}
        return {name: value for name, value in headers.items() if name != VERSION_HEADER}

    def state(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(self.home.relay_state.read_bytes())
            return found
        except OSError:
            return {}

    def enter(self, content: RecordDict) -> None:
        """Enter content in the ledger, as the first door does."""
        with Ledger(self.home.ledger) as ledger:
            ledger.append(Record(LEFT, content="Update"), lambda _: object_ids(content))


def asked(number: int = 1, run: int = RUN) -> Message:
    """Return a message of the server's to the node."""
    made = make_message(metadata_of(run_id=run, group_id=str(number)), RecordDict({"x": ConfigRecord({"n": number})}))
    made.metadata.__dict__["_message_id"] = made.object_id
    return made


def metadata_of(**changes: Any) -> Metadata:
    values = {
        "run_id": RUN,
        "message_id": "",
        "src_node_id": 1,
        "dst_node_id": NODE,
        "reply_to_message_id": "",
        "group_id": "1",
        "created_at": now().timestamp(),
        "ttl": 3600.0,
        "message_type": "train",
    }
    return Metadata(**{**values, **changes})


def delivered(message: Message) -> bytes:
    """Return the server's answer with a message."""
    proto = message_to_proto(remove_content_from_message(message))
    response = PullMessagesResponse(messages_list=[proto], message_object_trees=[get_object_tree(message)])
    return bytes(response.SerializeToString())


def reply_to(message: Message, content: RecordDict | Error) -> Message:
    either = {"error": content} if isinstance(content, Error) else {"content": content}
    reply: Message = Message(**either, reply_to=message)
    reply.metadata.__dict__["_message_id"] = reply.object_id
    return reply


def pushed(reply: Message) -> PushMessagesRequest:
    """Return the request by which SuperNode announces a reply."""
    return PushMessagesRequest(
        node=Node(node_id=NODE),
        messages_list=[message_to_proto(remove_content_from_message(reply))],
        message_object_trees=[get_object_tree(reply)],
        clientapp_runtime_list=[0.5],
    )


def objects_of(found: Message | RecordDict) -> dict[str, bytes]:
    """Return all objects that a message or content consists of, by their ids."""
    return {name: item.deflate() for name, item in get_all_nested_objects(found).items()}


def config(value: bytes) -> RecordDict:
    return RecordDict({"x": ConfigRecord({"value": value})})


class _Connect(socketserver.StreamRequestHandler):
    """One CONNECT, and then bytes in both directions."""

    server: "HttpProxy"

    def handle(self) -> None:
        line = self.rfile.readline().decode()
        head = iter(self.rfile.readline, b"\r\n")
        authorization = [one for one in head if one.lower().startswith(b"proxy-authorization:")]
        self.server.lines.append(line.strip())
        self.server.authorizations.extend(one.split(b":", 1)[1].strip() for one in authorization)
        method, target, _ = line.split(" ")
        if method != "CONNECT" or self.server.forbids:
            self.wfile.write(b"HTTP/1.1 403 Forbidden\r\n\r\n")
            return
        host, _, port = target.rpartition(":")
        with socket.create_connection((host, int(port)), 10.0) as inner:
            self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            back = threading.Thread(target=_copy, args=(inner, self.connection), daemon=True)
            back.start()
            _copy(self.connection, inner)
            back.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    for one in (source, target):
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)


class HttpProxy(socketserver.ThreadingTCPServer):
    """An HTTP proxy that lets CONNECT through, and keeps what it was asked for."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Connect)
        self.lines: list[str] = []
        self.authorizations: list[bytes] = []
        self.forbids = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextlib.contextmanager
def http_proxy() -> Iterator[HttpProxy]:
    with HttpProxy() as proxy:
        thread = threading.Thread(target=proxy.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield proxy
        proxy.shutdown()
        thread.join()
