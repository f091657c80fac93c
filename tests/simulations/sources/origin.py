"""A public origin on this machine that serves files, takes up where it broke off, and misbehaves as it is told."""

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus

import numpy as np

CONTENT = np.random.default_rng(5).bytes(200_000)
HALF = len(CONTENT) // 2
CHANGED = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])


@dataclass
class Origin:
    """What is served, and what went on.

    A fault is used up by one request; with ``*`` after it, it stays. They are: a status code, "breaks off",
    "ignores ranges", "another range", "says more", "says less", "says nothing", "sends more", "changed",
    "stalls", "not http", "moved", "moved for ever".
    """

    url: str
    files: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, list[str]] = field(default_factory=dict)
    etags: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    """Path and Range of each request."""
    end: threading.Event = field(default_factory=threading.Event)

    def paths(self) -> list[str]:
        return [path for path, _ in self.asked]

    def fault(self, path: str) -> str:
        waiting = self.faults.get(path, [])
        if waiting and not waiting[0].endswith("*"):
            return waiting.pop(0)
        return waiting[0].removesuffix("*") if waiting else ""


@contextmanager
def serving() -> Iterator[Origin]:
    """Serve on a free port of this machine."""
    server = _Quiet(("127.0.0.1", 0), _Handler)
    server.origin = Origin(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server.origin
    finally:
        server.origin.end.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Quiet(http.server.ThreadingHTTPServer):
    """Says nothing about clients that hang up on it, which is what some tests are about."""

    daemon_threads = False
    origin: Origin

    def handle_error(self, request: object, client_address: object) -> None:
        pass


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Quiet

    def do_GET(self) -> None:
        origin, wanted = self.server.origin, self.headers.get("Range", "")
        origin.asked.append((self.path, wanted))
        fault = origin.fault(self.path)
        content = origin.files.get(self.path)
        if fault.isdecimal() or content is None:
            self.send_error(int(fault or HTTPStatus.NOT_FOUND))
        elif fault == "not http":
            self.wfile.write(b"SSH-2.0-OpenSSH_9.0\r\n")
        elif fault.startswith("moved"):
            self.send_response(HTTPStatus.FOUND)
            self.send_header("Location", self.path if fault == "moved for ever" else "/right")
            self.end_headers()
        else:
            self._serve(CHANGED if fault == "changed" else content, wanted, fault)

    def _serve(self, content: bytes, wanted: str, fault: str) -> None:
        etag = self.server.origin.etags.get(self.path, "")
        begin = int(wanted.removeprefix("bytes=").removesuffix("-") or 0)
        if fault == "ignores ranges" or self.headers.get("If-Range", etag) != etag:
            begin = 0
        if begin and begin >= len(content):
            self.send_error(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
            return
        rest = content[begin:]
        self.send_response(HTTPStatus.PARTIAL_CONTENT if begin else HTTPStatus.OK)
        if etag:
            self.send_header("ETag", etag)
        if begin:
            stated = begin - 10 if fault == "another range" else begin
            self.send_header("Content-Range", f"bytes {stated}-{len(content) - 1}/{len(content)}")
        if fault not in ("says nothing", "sends more"):
            lie = {"says more": 10, "says less": -10}.get(fault, 0)
            self.send_header("Content-Length", str(len(rest) + lie))
        self.end_headers()
        self.wfile.write(rest[: len(rest) // 2] if fault in ("breaks off", "stalls") else rest)
        if fault == "sends more":
            self.wfile.write(b"more")
        if fault == "stalls":
            self.wfile.flush()
            self.server.origin.end.wait(20)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name in the standard library
        pass
