"""The worker's socket: who may connect, how large a frame may be, and one piece of work at a time."""

import contextlib
import logging
import os
import queue
import socket
import stat
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, Listener, answer_challenge, deliver_challenge
from pathlib import Path
from typing import Any

from flwr.app import Error, RecordDict

from client.home import LONGEST_SOCKET
from client.worker.wire import KEY_BYTES, NOT_READY, Header, address_of, family_of, frame, unframe
from client.worker.worker import Worker
from common.errors import DeployError

log = logging.getLogger("fedreptile.worker")

CONNECTIONS = 16
"""At once; more are closed, and the ClientApp tries again."""
SECONDS = 30.0
"""For a stranger to show that he has the key, and for a frame that has begun to arrive."""
ROOM = 1 << 20
"""Bytes that a frame may have beyond the arrays that were agreed on."""

Job = tuple[Header, RecordDict, "Future[RecordDict | Error]"]


class Server:
    """Answers on a socket until the process ends."""

    def __init__(self, worker: Worker, path: Path, key_file: Path) -> None:
        """Begin to listen. Raises DeployError if the socket or its key cannot be used."""
        self.worker = worker
        self.key = read_key(key_file)
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._free = threading.BoundedSemaphore(CONNECTIONS)
        self._listener = listen(path)

    @property
    def most(self) -> int:
        """Bytes of a frame at most, by the kit that is in use."""
        return (self.worker.sizes.params + self.worker.sizes.slots) * 8 + ROOM

    def run(self) -> None:
        """Answer for ever. The work is done in one thread, in the order in which it came."""
        threading.Thread(target=self._work, name="work", daemon=True).start()
        while True:
            try:
                connection = self._listener.accept()
            except OSError as error:
                log.warning("a connection could not be taken: %s", error)
                continue
            if not self._free.acquire(blocking=False):
                connection.close()
                continue
            threading.Thread(target=self._attend, args=(connection,), daemon=True).start()

    def _work(self) -> None:
        self.worker.warm()
        while True:
            header, content, done = self._jobs.get()
            try:
                done.set_result(self.worker.answer(header, content))
            except BaseException as error:
                log.critical("the worker failed over a message", exc_info=error)
                done.set_result(NOT_READY)

    def _attend(self, connection: "Connection[Any, Any]") -> None:
        try:
            with connection:
                with in_time(connection):
                    deliver_challenge(connection, self.key)
                    answer_challenge(connection, self.key)
                while True:
                    connection.poll(None)
                    self.worker.look_at_kit()
                    with in_time(connection):
                        data = connection.recv_bytes(self.most)
                    connection.send_bytes(self._answer(data))
        except EOFError:
            pass
        except (OSError, AuthenticationError, DeployError) as error:
            self.worker.refused["socket"] += 1
            log.warning("a connection to the site's socket was closed: %s", error or type(error).__name__)
        finally:
            self._free.release()

    def _answer(self, data: bytes) -> bytes:
        """Raises DeployError for what is not a frame, or asks for nothing that there is."""
        header, content = unframe(data)
        match header.get("op"):
            case "ping":
                return frame({"answer": "pong"})
            case "status":
                return frame({"answer": "status", "status": self.worker.status()})
            case "message":
                done: Future[RecordDict | Error] = Future()
                self._jobs.put((header, content, done))
                found = done.result()
                if isinstance(found, Error):
                    return frame({"answer": "error", "code": found.code, "reason": found.reason})
                return frame({"answer": "content"}, found)
            case other:
                raise DeployError(f"a frame on the site's socket asks for {other!r:.80}")


def read_key(file: Path) -> bytes:
    """Return the key that a socket asks for. Raises DeployError if it is missing or too short."""
    try:
        key = file.read_bytes()
    except OSError as error:
        raise DeployError(
            f"the socket's key {file} cannot be read: {error.strerror}; start the site with 'up'"
        ) from error
    if len(key) < KEY_BYTES:
        raise DeployError(f"the socket's key {file} has {len(key)} bytes; it must have at least {KEY_BYTES}")
    return key


def listen(path: Path) -> Listener:
    """Return a listener in the place of one that a process left behind which is no more.

    The socket is open to its group, so that SuperNode's user may connect; who may reach it at all its folder decides.

    Raises:
        DeployError: if it cannot be made, or its path is too long or something else than a socket.
    """
    if sys.platform != "win32":
        if len(os.fsencode(path)) > LONGEST_SOCKET:
            raise DeployError(
                f"the socket's path {path} is longer than {LONGEST_SOCKET} bytes, more than systems allow; put the "
                "site's folder somewhere with a shorter path"
            )
        if path.exists():
            if not stat.S_ISSOCK(path.stat().st_mode):
                raise DeployError(f"{path} is in the place of the site's socket; remove it")
            path.unlink()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        listener = Listener(address_of(path), family_of(), backlog=CONNECTIONS)
        if sys.platform != "win32":
            path.chmod(0o660)
        return listener
    except OSError as error:
        raise DeployError(f"the site's socket {path} cannot be made: {error.strerror or error}") from error


@contextlib.contextmanager
def in_time(connection: "Connection[Any, Any]") -> Iterator[None]:
    """Break a connection whose other end takes too long (not on Windows, where pipes have no such thing)."""
    if sys.platform == "win32":
        yield
        return
    timer = threading.Timer(SECONDS, _break, (connection.fileno(),))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _break(descriptor: int) -> None:
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as same:
        same.shutdown(socket.SHUT_RDWR)
