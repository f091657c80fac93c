"""Fetching files from their public origin: resumed where it broke off, checked before they are used.

A file appears under its name only when it is whole and right. Until then it is NAME.part beside it, which the next
fetch goes on with, if its origin agrees that it still is the same file (NAME.part.etag) or its sum will tell.
"""

import hashlib
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from common.errors import SourceError

TIMEOUT = httpx.Timeout(15.0)
"""Of silence. Ctrl-C too waits as long for a connection that is silent."""
CONNECTIONS = 4
PAUSES = (0.3, 1.0)
"""Seconds before a second and a third try after a broken connection or an error of the server."""
SHOWN_EVERY = 0.1
"""Seconds between calls of a progress."""

INSTEAD = "or give a folder that holds the set with --data-mirror"


class UnreachableError(SourceError):
    """The origin could not be reached, or broke off. What it sent was not wrong."""


class NotThereError(UnreachableError):
    """The origin was reached and does not have the file (any more)."""


class _AgainError(UnreachableError):
    """Something that may well be over at the next try."""


class _StoppedError(Exception):
    """Another file failed, or the user interrupted."""


@dataclass(frozen=True)
class Remote:
    """A file at its origin, where it belongs on this machine, and what is known of it."""

    urls: tuple[str, ...]
    """Where it may be; tried in turn."""
    target: Path
    size: int = 0
    """Bytes; 0: not known."""
    sums: Mapping[str, str] = field(default_factory=dict)
    """``sha256``, ``md5`` or ``git-blob`` (SHA-1 over "blob SIZE\\0" and the content) -> hexadecimal."""


@dataclass(frozen=True)
class Done:
    """How far a fetch is."""

    files: int
    all_files: int
    bytes: int
    all_bytes: int
    """0 if the size of a file is not known."""


Progress = Callable[[Done], None]


def quiet(done: Done) -> None:
    """The progress that shows nothing."""


def fetch_all(remotes: Iterable[Remote], progress: Progress = quiet) -> None:
    """Fetch files, several at a time. Those that are there already and right are kept.

    After an error or Ctrl-C what has come so far stays for the next time. ``progress`` is called in this thread.

    Raises:
        NotThereError: if an origin does not have a file.
        UnreachableError: if an origin cannot be reached or breaks off.
        SourceError: if it sends something else than the published file, or a file cannot be written.
    """
    wanted = list(remotes)
    tally = _Tally(wanted)
    stop = threading.Event()
    with (
        httpx.Client(follow_redirects=True, timeout=TIMEOUT, headers={"Accept-Encoding": "identity"}) as client,
        ThreadPoolExecutor(CONNECTIONS) as workers,
    ):
        fetcher = _Fetcher(client, tally, stop)
        futures = [workers.submit(fetcher.fetch, remote) for remote in wanted]
        try:
            _watch(futures, tally, progress)
        finally:
            stop.set()
            workers.shutdown(cancel_futures=True)


def verify(content: bytes, size: int, sums: Mapping[str, str]) -> str:
    """Return what is wrong with a file's content; "" if its size (0: not known) and sums are right."""
    if size and len(content) != size:
        return f"it has {len(content)} bytes; expected {size}"
    for kind, expected in sums.items():
        found = digest(content, kind)
        if found != expected:
            return f"its {kind} sum is {found}; expected {expected}"
    return ""


def digest(content: bytes, kind: str) -> str:
    """Return a content's sum: 'sha256', 'md5' or 'git-blob'."""
    if kind == "git-blob":
        return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    return hashlib.new(kind, content, usedforsecurity=False).hexdigest()


class _Tally:
    """Counts bytes and finished files of several threads."""

    def __init__(self, remotes: list[Remote]) -> None:
        self._files = 0
        self._bytes: dict[Path, int] = {}
        self._all_files = len(remotes)
        self._all_bytes = sum(remote.size for remote in remotes) if all(remote.size for remote in remotes) else 0
        self._lock = threading.Lock()

    def has(self, target: Path, count: int) -> None:
        with self._lock:
            self._bytes[target] = count

    def finished(self) -> None:
        with self._lock:
            self._files += 1

    def now(self) -> Done:
        with self._lock:
            return Done(self._files, self._all_files, sum(self._bytes.values()), self._all_bytes)


def _watch(futures: list[Future[None]], tally: _Tally, progress: Progress) -> None:
    """Show progress until all is fetched. Raises the first error of a file."""
    waiting: set[Future[None]] = set(futures)
    while waiting:
        done, waiting = wait(waiting, SHOWN_EVERY, FIRST_EXCEPTION)
        for future in done:
            future.result()
        progress(tally.now())


@dataclass(frozen=True)
class _Fetcher:
    """Fetches one file after the other, in any thread."""

    client: httpx.Client
    tally: _Tally
    stop: threading.Event

    def fetch(self, remote: Remote) -> None:
        try:
            if not _is_whole(remote):
                remote.target.parent.mkdir(parents=True, exist_ok=True)
                self._from_one_of(remote)
            self.tally.has(remote.target, remote.target.stat().st_size)
        except OSError as error:
            raise SourceError(
                f"{remote.target} cannot be written: {error.strerror or error}; make room or choose another place "
                "with FEDREPTILE_HOME"
            ) from error
        self.tally.finished()

    def _from_one_of(self, remote: Remote) -> None:
        *others, last = remote.urls
        for url in others:
            try:
                return self._with_patience(url, remote)
            except NotThereError:
                continue
        return self._with_patience(last, remote)

    def _with_patience(self, url: str, remote: Remote) -> None:
        for pause in PAUSES:
            try:
                return self._once(url, remote)
            except _AgainError:
                if self.stop.wait(pause):
                    raise _StoppedError from None
        return self._once(url, remote)

    def _once(self, url: str, remote: Remote) -> None:
        part = _Part(remote)
        begin, condition = part.resumable()
        try:
            with self.client.stream("GET", url, headers=condition) as response:
                resumed = _is_rest(response, url, begin, part)
                _check_length(response, url, remote, begin if resumed else 0)
                part.take(response, self.tally, self.stop, append=resumed)
        except httpx.HTTPError as error:
            kind = _AgainError if isinstance(error, httpx.TransportError) else UnreachableError
            raise kind(f"{url} could not be fetched: {error or type(error).__name__}; {_HELP}") from error
        if wrong := part.wrong():
            part.discard()
            raise _AgainError(f"{url} was resumed, but {wrong}; {_HELP}") if resumed else _changed(url, wrong)
        part.keep()


def _is_whole(remote: Remote) -> bool:
    return remote.target.is_file() and not verify(remote.target.read_bytes(), remote.size, remote.sums)


def _is_rest(response: httpx.Response, url: str, begin: int, part: "_Part") -> bool:
    """Return whether the rest of a file comes, and not the whole. Raises UnreachableError if it is neither."""
    if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
        part.discard()
    _check_status(response, url)
    resumed = response.status_code == httpx.codes.PARTIAL_CONTENT
    if resumed and not (begin and response.headers.get("content-range", "").startswith(f"bytes {begin}-")):
        part.discard()
        raise _AgainError(f"{url} sends another part of the file than the one asked for; {_HELP}")
    return bool(resumed)


class _Part:
    """What has come of a file so far."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote
        self.path = remote.target.with_name(f"{remote.target.name}.part")
        self.etag = remote.target.with_name(f"{remote.target.name}.part.etag")

    def resumable(self) -> tuple[int, dict[str, str]]:
        """Return how many bytes are there to go on from, and the headers that ask for the rest."""
        size = self.path.stat().st_size if self.path.exists() else 0
        known = self.etag.read_text(encoding="ascii") if self.etag.exists() else ""
        if not size or not (known or self._remote.sums) or size >= (self._remote.size or size + 1):
            return 0, {}
        return size, {"Range": f"bytes={size}-"} | ({"If-Range": known} if known else {})

    def take(self, response: httpx.Response, tally: _Tally, stop: threading.Event, *, append: bool) -> None:
        """Write what comes. Raises SourceError if it is more than the file's known size."""
        if not append:
            self._note(response.headers.get("etag", ""))
        with self.path.open("ab" if append else "wb") as file:
            for chunk in response.iter_raw():
                if stop.is_set():
                    raise _StoppedError
                file.write(chunk)
                tally.has(self._remote.target, file.tell())
                if self._remote.size and file.tell() > self._remote.size:
                    break

    def wrong(self) -> str:
        """Return what is wrong with the content, "" if nothing."""
        return verify(self.path.read_bytes(), self._remote.size, self._remote.sums)

    def keep(self) -> None:
        """Give it the file's name."""
        self.path.replace(self._remote.target)
        self.etag.unlink(missing_ok=True)

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self.etag.unlink(missing_ok=True)

    def _note(self, etag: str) -> None:
        """Keep an ETag, which only tells whether the bytes are the same if it is a strong one (RFC 9110, 13.1.5)."""
        if etag.startswith('"') and etag.isascii():
            self.etag.write_text(etag, encoding="ascii")
        else:
            self.etag.unlink(missing_ok=True)


_HELP = f"check the network and proxy, {INSTEAD}"


def _check_status(response: httpx.Response, url: str) -> None:
    code = response.status_code
    if code in (httpx.codes.NOT_FOUND, httpx.codes.GONE):
        raise NotThereError(
            f"{url} is not there ({code}): the origin has moved or removed it; wait for a new catalogue, {INSTEAD}"
        )
    if code >= 500 or code in (httpx.codes.TOO_MANY_REQUESTS, httpx.codes.REQUEST_TIMEOUT):
        raise _AgainError(
            f"{url} cannot be had now: the server answers {code} {response.reason_phrase}; try later, {INSTEAD}"
        )
    if code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
        raise _AgainError(f"{url} has no more bytes than are here already, but they are not the file; {_HELP}")
    if code not in (httpx.codes.OK, httpx.codes.PARTIAL_CONTENT):
        raise UnreachableError(f"{url} is refused: the server answers {code} {response.reason_phrase}; {_HELP}")


def _check_length(response: httpx.Response, url: str, remote: Remote, begin: int) -> None:
    """Raises SourceError if the server announces a file of another size than the published one."""
    stated = response.headers.get("content-length", "")
    if remote.size and stated.isdigit() and begin + int(stated) != remote.size:
        raise _changed(url, f"the server says that it has {begin + int(stated)} bytes; expected {remote.size}")


def _changed(url: str, wrong: str) -> SourceError:
    return SourceError(
        f"{url} is not the published file: {wrong}; it was changed there or on the way: try again, or from another "
        f"network, {INSTEAD}"
    )
