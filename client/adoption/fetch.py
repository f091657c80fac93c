"""Taking the newest release from the server: verified by the rules of TUF, whoever hands the files over. Torch-free,
but for applying a difference.
"""

import logging
import os
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from tuf.api import exceptions
from tuf.api.exceptions import DownloadError, DownloadHTTPError, RepositoryError
from tuf.api.metadata import Metadata, Root, TargetFile
from tuf.ngclient import Updater, UpdaterConfig
from tuf.ngclient.fetcher import FetcherInterface

from client.home import SiteHome
from common.deployment.lock import hold
from common.errors import CheckpointError, DeployError, TrustError, WritingError
from common.paths import read_table, write_atomically
from common.releases.pointer import DELTAS, POINTER, SMALL, card_of, decode_pointer, delta_of, file_of, read_object

log = logging.getLogger("fedreptile.adoption")

LARGEST = 1 << 30
"""Bytes of a release."""
TOTAL_SECONDS = 900.0
"""Time for one file, however slowly it comes."""
PATIENCE = httpx.Timeout(60.0, connect=8.0)
LOCK_SECONDS = 10.0
"""Time to wait for another process that takes a release."""
KEPT = 3
"""Releases of which the file is kept; the newest serve as the start of a difference."""

EXPIRED = (
    "is this machine's clock right? Else the server's process does not run, or someone holds back what is newer: tell "
    "the operator"
)
UNSIGNED = (
    "nothing was taken: tell the operator. If he has made the root of releases anew, move the folder 'releases' away "
    "and take a new kit"
)


@dataclass(frozen=True)
class Source:
    """Where releases come from."""

    url: str
    """Of the folder that holds metadata/ and targets/."""
    authorities: Path | None = None
    """Certificates by which its server is known; None: those of the system."""


@dataclass(frozen=True)
class Fetched:
    """A release that is meant for this site, verified."""

    number: int
    path: Path
    """Its file; ``common.releases.artefact.decode`` reads it."""
    about: dict[str, Any]
    """What the server says about it: number, parent, campaign, card, …"""
    way: str
    """How it came: here, same, delta or full."""
    bytes: int
    """That were fetched for it, metadata not counted."""


def relay_of(home: SiteHome) -> Source:
    """Return the site's own relay, which asks the gateway, or the server that ``release-url`` names.

    Raises:
        DeployError: if the site does not run.
    """
    port = read_table(home.relay_state).get("port")
    if type(port) is not int:
        raise DeployError(f"{home.relay_state} does not say where the relay is; start the site: 'fedreptile-site up'")
    return Source(f"https://127.0.0.1:{port}/releases", home.loopback / "ca.crt")


def trust_root(home: SiteHome, text: str) -> bool:
    """Take the root of releases from a kit as the first that is trusted, unless there is one already.

    Returns:
        whether it was taken.

    Raises:
        TrustError: if it is not a root that is signed by its own keys.
    """
    try:
        root: Metadata[Root] = Metadata.from_bytes(text.encode())
        root.signed.verify_delegate(Root.type, root.signed_bytes, root.signatures)
    except (RepositoryError, ValueError, AttributeError) as error:
        raise TrustError(f"the kit's root of releases cannot be used: {error}; ask for the kit again") from error
    if _trusted(home) is not None:
        return False
    write_atomically(home.releases / "metadata" / "root.json", text.encode(), 0o644)
    return True


def fetch(home: SiteHome, source: Source | None = None) -> Fetched | None:
    """Return the newest release that is meant for this site, fetched if it is not here yet; None if there is none.

    Args:
        source: None: the site's own relay.

    Raises:
        DeployError: if the server cannot be reached, or another process fetches.
        TrustError: if anything is not signed as it must be, is older than what was seen before, has expired, or is not
            the file that was signed.
        WritingError: if a file cannot be written.
    """
    with _taking(home, source) as taking:
        return taking.newest()


def newest_number(home: SiteHome, source: Source | None = None) -> int:
    """Return the number of the newest release that is meant for this site; 0 if there is none. Fetches what says so
    only. Raises like ``fetch``."""
    with _taking(home, source) as taking:
        return taking.number()


@contextmanager
def _taking(home: SiteHome, source: Source | None) -> Iterator["_Taking"]:
    root = _trusted(home)
    if root is None:
        raise TrustError(
            f"{home.releases / 'metadata'} holds no root of releases; take a kit of a federation that makes releases: "
            "'fedreptile-site join --kit'"
        )
    try:
        file = hold(home.releases / ".lock", LOCK_SECONDS)
        if file is None:
            raise DeployError(f"another process is taking a release (it holds {home.releases / '.lock'}); try again")
        with file:
            fetcher = _Fetcher(source or relay_of(home))
            with fetcher.client:
                yield _Taking(home, fetcher, root)
    except OSError as error:
        raise WritingError(f"{home.releases} cannot be written: {error.strerror or error}") from error
    except (DownloadError, RepositoryError) as error:
        raise _told(error) from error


class _Taking:
    """One time that the server is asked."""

    def __init__(self, home: SiteHome, fetcher: "_Fetcher", root: bytes) -> None:
        self._home, self._folder, self._seen = home, home.releases / "targets", home.releases / "newest"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._bytes = 0
        self._updater = Updater(
            str(home.releases / "metadata"),
            f"{fetcher.base}/metadata/",
            str(self._folder),
            f"{fetcher.base}/targets/",
            fetcher,
            UpdaterConfig(max_root_rotations=256, max_delegations=0),
            bootstrap=root,
        )

    def number(self) -> int:
        """Return the number of the release that is meant for this site; 0: none."""
        self._updater.refresh()
        number = decode_pointer(self._small(POINTER)).of(self._home.config().name)
        self._check_number(number)
        return number

    def newest(self) -> Fetched | None:
        number = self.number()
        if not number:
            return None
        about = read_object(self._small(card_of(number)), card_of(number))
        info, path = self._info(file_of(number), LARGEST), self._folder / file_of(number)
        way = self._take(number, info, path)
        write_atomically(self._seen, str(number).encode(), 0o644)
        self._tidy(path)
        return Fetched(number, path, about, way, self._bytes)

    def _check_number(self, number: int) -> None:
        try:
            before = int(self._seen.read_text(encoding="ascii"))
        except (FileNotFoundError, ValueError):
            before = 0
        if number < before:
            raise TrustError(
                f"the server names release {number} and had named {before} before; numbers never go down: ask the "
                "operator, who takes a release back with 'fedreptile-server release withdraw'"
            )

    def _take(self, number: int, info: TargetFile, path: Path) -> str:
        """Have a release's file in its place; return how that came."""
        if _is(path, info):
            return "here"
        for other in self._here():
            if _is(other, info):
                write_atomically(path, other.read_bytes(), 0o644)
                return "same"
        for other in self._here():
            if (made := self._by_delta(number, other, info)) is not None:
                write_atomically(path, made, 0o644)
                return "delta"
        self._download(info, path)
        return "full"

    def _by_delta(self, number: int, base: Path, info: TargetFile) -> bytes | None:
        """Return a release's file made from another one; None if there is no difference from that, or it is no use."""
        known = int(base.stem.removeprefix("release-"))
        for kind in DELTAS:
            found = self._updater.get_targetinfo(delta_of(number, known, kind))
            if found is None or not found.length < info.length:
                continue
            path = self._folder / "difference"
            try:
                from common.releases.delta import apply_delta

                self._download(found, path)
                made = apply_delta(base.read_bytes(), path.read_bytes(), found.path)
                info.verify_length_and_hashes(made)
                return made
            except (CheckpointError, exceptions.LengthOrHashMismatchError, DownloadHTTPError) as error:
                log.warning("%s is of no use, so release %d is taken whole: %s", found.path, number, error)
            finally:
                path.unlink(missing_ok=True)
        return None

    def _here(self) -> list[Path]:
        """Return the releases that are here, the newest first."""
        found = {
            int(path.stem.removeprefix("release-")): path
            for path in self._folder.glob("release-*.safetensors")
            if path.stem.removeprefix("release-").isdecimal()
        }
        return [found[number] for number in sorted(found, reverse=True)]

    def _info(self, name: str, most: int) -> TargetFile:
        info = self._updater.get_targetinfo(name)
        if info is None:
            raise TrustError(f"the server's releases have no {name}; tell the operator")
        if info.length > most:
            raise TrustError(f"the server's {name} has {info.length} bytes; at most {most} are taken")
        return info

    def _small(self, name: str) -> bytes:
        path = self._folder / name
        info = self._info(name, SMALL)
        if not _is(path, info):
            self._download(info, path)
        return path.read_bytes()

    def _download(self, info: TargetFile, path: Path) -> None:
        """Have a verified file in its place, whole or not at all."""
        scratch = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            self._updater.download_target(info, str(scratch))
            with scratch.open("rb+") as file:
                os.fsync(file.fileno())
            scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)
        self._bytes += info.length

    def _tidy(self, newest: Path) -> None:
        for path in [one for one in self._here() if one != newest][KEPT - 1 :]:
            path.unlink()
            path.with_suffix(".json").unlink(missing_ok=True)


class _Fetcher(FetcherInterface):
    """Asks over HTTP. How much is taken, TUF's client decides; how long it takes, is decided here."""

    def __init__(self, source: Source) -> None:
        """Raises DeployError if the certificates cannot be read."""
        try:
            context = ssl.create_default_context(cafile=str(source.authorities) if source.authorities else None)
        except OSError as error:
            raise DeployError(f"{source.authorities} cannot be read as a certificate: {error}") from error
        self.base = source.url.rstrip("/")
        self.client = httpx.Client(verify=context, trust_env=source.authorities is None, timeout=PATIENCE)

    def _fetch(self, url: str) -> Iterator[bytes]:
        end = time.monotonic() + TOTAL_SECONDS
        headers = {"accept-encoding": "identity"}
        try:
            with self.client.stream("GET", url, headers=headers) as found:
                if found.status_code != httpx.codes.OK:
                    raise DownloadHTTPError(f"status {found.status_code}: {_said(found)}", found.status_code)
                for part in found.iter_raw():
                    if time.monotonic() > end:
                        raise exceptions.SlowRetrievalError(f"it was not complete in {TOTAL_SECONDS:.0f} s")
                    yield part
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise DownloadError(str(error) or type(error).__name__) from error


def _said(found: httpx.Response) -> str:
    """Return the beginning of what a server says beside its status."""
    text = next(found.iter_raw(), b"")[:300].decode("utf-8", "replace")
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _trusted(home: SiteHome) -> bytes | None:
    """Return the newest root that is trusted; None if there is none. TUF's client replaces its link in two steps."""
    folder = home.releases / "metadata"
    with suppress(OSError):
        return (folder / "root.json").read_bytes()
    kept = {int(path.name.partition(".")[0]): path for path in (folder / "root_history").glob("[0-9]*.root.json")}
    return kept[max(kept)].read_bytes() if kept else None


def _is(path: Path, info: TargetFile) -> bool:
    try:
        with path.open("rb") as file:
            info.verify_length_and_hashes(file)
    except (OSError, exceptions.LengthOrHashMismatchError):
        return False
    return True


def _told(error: Exception) -> TrustError | DeployError:
    """Return in words what TUF's client refused."""
    ask = "nothing was taken: tell the operator"
    kinds: list[tuple[type[Exception], str, str]] = [
        (exceptions.DownloadLengthMismatchError, "the server sends more than was signed", ask),
        (exceptions.ExpiredMetadataError, "what the server says about releases has expired", EXPIRED),
        (exceptions.BadVersionNumberError, "the server says something older about releases than before", ask),
        (exceptions.UnsignedMetadataError, "what the server says about releases is not signed as it must be", UNSIGNED),
        (exceptions.LengthOrHashMismatchError, "a file of a release is not the one that was signed", ask),
    ]
    for kind, what, advice in kinds:
        if isinstance(error, kind):
            return TrustError(f"{what}: {error}; {advice}")
    if isinstance(error, DownloadError):
        return DeployError(f"releases cannot be fetched: {error}; is the site up, and the server reachable?")
    return TrustError(f"what the server says about releases cannot be used: {error}; {ask}")
