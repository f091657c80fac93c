"""What passes over the socket between the ClientApp and the site's worker: frames of JSON and protobuf, never pickle.

Only bytes are sent, each frame a line of JSON and after it the content. Torch-free, and light to import, since Flower
starts a process for every message.
"""

import hashlib
import json
import logging
import sys
import time
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as Proto
from google.protobuf.message import DecodeError

from common import VERSION
from common.errors import DeployError

log = logging.getLogger("fedreptile.client")

PATIENCE = 120.0
"""Seconds that a worker is waited for while it is started again."""
TRIES = 3
"""How often one message is handed to a worker that dies over it."""
PAUSE = 0.25
"""Seconds between two tries to connect."""
KEY_BYTES = 32
LONGEST_HEADER = 1 << 20
NOT_READY = Error(100, DeployError("").told())
"""What the server is told if the worker does not answer. A constant, so that it may pass without an entry in the
ledger, which only the worker can write."""

Header = dict[str, Any]


def frame(header: Header, content: RecordDict | None = None) -> bytes:
    """Return a frame."""
    body = b"" if content is None else recorddict_to_proto(content).SerializeToString(deterministic=True)
    return json.dumps(header).encode() + b"\n" + body


def unframe(data: bytes) -> tuple[Header, RecordDict]:
    """Read a frame. Raises DeployError if it is not one."""
    end = data.find(b"\n", 0, LONGEST_HEADER)
    try:
        header = json.loads(data[: max(end, 0)])
        if not isinstance(header, dict):
            raise TypeError(f"its header is a {type(header).__name__}")
        return header, recorddict_from_proto(Proto.FromString(data[end + 1 :]))
    except (DecodeError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DeployError(f"a frame on the site's socket cannot be read: {error}") from error


def forward(message: Message, context: Context, socket: str, key_file: str) -> RecordDict | Error:
    """Hand a message to the site's worker and return what that lets out.

    A worker that is being started again is waited for, and a message whose connection broke is handed over again: the
    worker keeps its answers. What cannot be answered becomes an error without any text from this machine.
    """
    metadata = message.metadata
    header: Header = {
        "op": "message",
        "type": metadata.message_type,
        "run": metadata.run_id,
        "message": metadata.message_id,
        "group": metadata.group_id,
        "config": dict(context.run_config),
        "version": VERSION,
    }
    try:
        found, content = unframe(_exchanged(frame(header, message.content), Path(socket), Path(key_file)))
        if found["answer"] == "content":
            return content
        return Error(int(found["code"]), str(found["reason"]))
    except Exception as error:
        log.error("the site's worker did not answer", exc_info=error)
        return NOT_READY


def call(socket: Path, key_file: Path, header: Header, patience: float = 0.0) -> Header:
    """Ask the worker something that holds no content, such as {"op": "status"}.

    Raises:
        DeployError: if it does not answer.
    """
    return unframe(_exchanged(frame(header), socket, key_file, patience))[0]


def connect(socket: Path, key_file: Path) -> "Connection[Any, Any]":
    """Connect to the worker.

    Raises:
        OSError, EOFError or AuthenticationError: if there is none, or the key is not the one that it asks for.
    """
    return Client(address_of(socket), family_of(), authkey=key_file.read_bytes())  # type: ignore[return-value, unused-ignore]


def address_of(socket: Path) -> str:
    """Return what a socket's path stands for: itself, on Windows a pipe of this machine."""
    if sys.platform == "win32":
        return rf"\\.\pipe\fedreptile-{hashlib.sha256(str(socket).encode()).hexdigest()[:32]}"
    return str(socket)


def family_of() -> str:
    return "AF_PIPE" if sys.platform == "win32" else "AF_UNIX"


def _exchanged(request: bytes, socket: Path, key_file: Path, patience: float = PATIENCE) -> bytes:
    """Send a frame and return the answer. Raises DeployError."""
    broken, since = 0, time.monotonic()
    while True:
        sent = False
        try:
            with connect(socket, key_file) as connection:
                sent = True
                connection.send_bytes(request)
                return connection.recv_bytes()
        except (OSError, EOFError, AuthenticationError) as error:
            broken += sent
            since = time.monotonic() if sent else since
            if broken >= TRIES or time.monotonic() - since >= patience:
                raise DeployError(
                    f"the site's worker at {socket} does not answer ({error or type(error).__name__}); see "
                    "'fedreptile-site status'"
                ) from error
            time.sleep(PAUSE)
