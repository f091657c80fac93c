"""Names of the files of a repository, and the one that says which release a site is meant to run. Torch-free."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from common.errors import TrustError

FORMAT = "fedreptile-pointer-1"
POINTER = "release.json"
SMALL = 1 << 20
"""Bytes of the pointer, or of what is said about a release, at most."""
DELTAS = ("int8", "bf16")
"""Kinds of differences."""


@dataclass(frozen=True)
class Pointer:
    all: int = 0
    """The release for every site; 0: none yet."""
    canaries: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    """Newer ones -> the sites that try them: names, or in the file marks of them."""

    def of(self, site: str) -> int:
        """Return the number of the release that a site is meant to run; 0: none."""
        tried = (number for number, sites in self.canaries.items() if site in sites or mark_of(site, number) in sites)
        return max([self.all, *tried])


def mark_of(site: str, number: int) -> str:
    """Return what stands in the pointer for a site's name, so that sites do not read each other's."""
    return hashlib.sha256(f"{FORMAT}\0{number}\0{site}".encode()).hexdigest()


def encode_pointer(pointer: Pointer) -> bytes:
    """Return the file of a pointer, with marks in place of names."""
    marks = {
        str(number): sorted(mark_of(site, number) for site in sites)
        for number, sites in sorted(pointer.canaries.items())
    }
    return json.dumps({"format": FORMAT, "all": pointer.all, "canaries": marks}, sort_keys=True).encode()


def decode_pointer(data: bytes) -> Pointer:
    """Read a pointer. Raises TrustError if it is damaged or of another format."""
    found = read_object(data, POINTER)
    try:
        if found.keys() != {"format", "all", "canaries"} or found["format"] != FORMAT:
            raise ValueError(f"its format is {str(found.get('format'))[:80]!r}; this version reads {FORMAT!r}")
        everywhere, canaries = found["all"], {int(number): tuple(marks) for number, marks in found["canaries"].items()}
        if type(everywhere) is not int or min([everywhere, *canaries]) < 0:
            raise ValueError("a number in it is none of a release")
    except (ValueError, TypeError, AttributeError) as error:
        raise TrustError(
            f"the server's {POINTER} cannot be used: {error}; both ends must run versions that fit together"
        ) from error
    return Pointer(everywhere, canaries)


def read_object(data: bytes, name: str) -> dict[str, Any]:
    """Return the JSON object of a file of the repository. Raises TrustError if it is none."""
    try:
        found = json.loads(data)
        if not isinstance(found, dict):
            raise ValueError("it is no JSON object")
    except (ValueError, RecursionError) as error:
        raise TrustError(f"the server's {name} cannot be read: {error}; tell the operator") from error
    return found


def file_of(number: int) -> str:
    """Return the name of a release's file."""
    return f"release-{number}.safetensors"


def card_of(number: int) -> str:
    """Return the name of the file that says what a release is."""
    return f"release-{number}.json"


def delta_of(number: int, base: int, kind: str) -> str:
    """Return the name of the difference from one release to another."""
    return f"release-{number}-from-{base}.{kind}.delta"
