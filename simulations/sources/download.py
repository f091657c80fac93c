"""Fetching a file from its public origin, checked before it is used."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

from common.errors import SourceError

CHUNK = 1 << 16
TIMEOUT = httpx.Timeout(30.0)

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all (0 if the origin does not say)."""


class UnreachableError(SourceError):
    """The origin could not be reached, or broke off. What it sent was not wrong."""


@dataclass(frozen=True)
class Remote:
    """A file at its origin, with the sums that its publisher or we state."""

    url: str
    sums: Mapping[str, str]
    """``sha256``, ``md5`` or ``git-blob`` (SHA-1 over "blob SIZE\\0" and the content) -> hexadecimal."""


def fetch(remote: Remote, target: Path, progress: Progress = lambda done, total: None) -> Path:
    """Download to ``target``, which appears only when it is whole and its sums are right.

    Raises:
        UnreachableError: if the origin cannot be reached or breaks off.
        SourceError: if it sends something else than the published file.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    try:
        with httpx.stream("GET", remote.url, follow_redirects=True, timeout=TIMEOUT) as response:
            response.raise_for_status()
            total = int(response.headers.get("content-length", 0))
            with part.open("wb") as file:
                for chunk in response.iter_bytes(CHUNK):
                    file.write(chunk)
                    progress(file.tell(), total)
        verify(part, remote.sums)
    except httpx.HTTPError as error:
        part.unlink(missing_ok=True)
        raise UnreachableError(
            f"{remote.url} could not be fetched: {error or type(error).__name__}; check the network "
            "and proxy, or give a folder that holds the data with --data-mirror"
        ) from error
    except OSError as error:
        part.unlink(missing_ok=True)
        raise SourceError(
            f"{part} cannot be written: {error.strerror or error}; make room or choose another place"
        ) from error
    except SourceError:
        part.unlink(missing_ok=True)
        raise
    return part.replace(target)


def verify(file: Path, sums: Mapping[str, str]) -> None:
    """Raises SourceError if a file does not have the sums it should have."""
    for kind, expected in sums.items():
        found = digest(file, kind)
        if found != expected:
            raise SourceError(
                f"{file} has the {kind} sum {found}; expected {expected}: it is damaged or not the published file; "
                "delete it and fetch it again"
            )


def digest(file: Path, kind: str) -> str:
    """Return a file's sum: 'sha256', 'md5' or 'git-blob'."""
    if kind == "git-blob":
        running = hashlib.sha1(b"blob %d\0" % file.stat().st_size, usedforsecurity=False)
    else:
        running = hashlib.new(kind, usedforsecurity=False)
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            running.update(chunk)
    return running.hexdigest()
