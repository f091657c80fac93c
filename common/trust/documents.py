"""Signed JSON documents that pass between a site and its operator: readable in an editor, refused if one byte differs.

A document is an object of three entries: its format, its body, and signatures by name. The bytes of a file must be
exactly those that this module would write for what it reads. So nothing in it can be changed without a trace, not even
a space, and what is signed is the body as this module writes it. Torch-free.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from common.errors import TrustError

MOST_BYTES = 256 * 1024


@dataclass(frozen=True)
class Document:
    body: Mapping[str, Any]
    signatures: Mapping[str, bytes]
    signed: bytes
    """What each signature is over."""


def read_document(path: Path, what: str, form: str, signatures: Collection[str]) -> Document:
    """Read a document. No signature is checked yet.

    Args:
        what: what errors call it, such as "kit".
        form: the format that it must have.
        signatures: the names of the signatures that it must have.

    Raises:
        TrustError: if it is missing, larger than 256 KiB, damaged, or of another format.
    """
    return parse_document(read_bytes(path, what), f"{what} {path}", form, signatures)


def read_bytes(path: Path, what: str) -> bytes:
    """Return the bytes of a file that may be a document. Raises TrustError if it is missing or larger than 256 KiB."""
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except FileNotFoundError as error:
        raise TrustError(f"{what} {path} is not there") from error
    except OSError as error:
        raise TrustError(f"{what} {path} cannot be read: {error.strerror or error}") from error
    if len(data) > MOST_BYTES:
        raise TrustError(f"{what} {path} has more than {MOST_BYTES // 1024} KiB; it is not a {what}")
    return data


def parse_document(data: bytes, name: str, form: str, signatures: Collection[str]) -> Document:
    """Read a document from its bytes, which errors call by a name. Raises TrustError like ``read_document``."""
    try:
        found = json.loads(data.decode("utf-8"), parse_constant=_no_constant)
        json.dumps(found, ensure_ascii=False).encode()  # half of a surrogate pair is no text
        if found.keys() != {"format", "body", "signatures"} or not isinstance(found["body"], dict):
            raise ValueError("its entries are not 'format', 'body' and 'signatures'")
        if found["format"] != form:
            raise ValueError(f"its format is {str(found['format'])[:80]!r}; this version reads {form!r}")
        if found["signatures"].keys() != set(signatures):
            raise ValueError(f"its signatures are not {', '.join(sorted(signatures))}")
        made = {who: bytes.fromhex(text) for who, text in found["signatures"].items()}
        if encoded(form, found["body"], made) != data:
            raise ValueError("it was changed after it was written, be it by a space or the end of a line")
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise TrustError(f"{name} cannot be used: {error}; have it sent again, as an attachment or packed") from error
    return Document(found["body"], made, signed_bytes(form, found["body"]))


def encoded(form: str, body: Mapping[str, Any], signatures: Mapping[str, bytes]) -> bytes:
    """Return the bytes of a document."""
    made = {who: signature.hex() for who, signature in sorted(signatures.items())}
    return _text({"format": form, "body": body, "signatures": made})


def signed_bytes(form: str, body: Mapping[str, Any]) -> bytes:
    """Return what signatures of a document are over: its format and its body."""
    return _text({"format": form, "body": body})


def entry(body: Mapping[str, Any], key: str, kind: type, name: str) -> Any:
    """Return an entry of a body. Raises TrustError if its type is another; ``bool`` does not count as ``int``."""
    value = body[key]
    if type(value) is not kind:
        raise TrustError(f"{name}: {key!r} is a {type(value).__name__}; it must be of type {kind.__name__}")
    return value


def check_keys(body: Mapping[str, Any], wanted: Collection[str], name: str) -> None:
    """Raises TrustError if a body lacks a key or has one more."""
    if differing := sorted(body.keys() ^ set(wanted)):
        raise TrustError(
            f"{name}: its key {differing[0][:80]!r} is missing or not known here; "
            "both ends must run versions of fedreptile that fit together"
        )


def texts(body: Mapping[str, Any], key: str, name: str) -> tuple[str, ...]:
    """Return an entry that is a list of texts. Raises TrustError if it is not."""
    values = entry(body, key, list, name)
    if any(type(value) is not str for value in values):
        raise TrustError(f"{name}: {key!r} must be a list of texts")
    return tuple(values)


def text_table(body: Mapping[str, Any], key: str, name: str) -> dict[str, str]:
    """Return an entry that is a table of texts. Raises TrustError if it is not."""
    values = entry(body, key, dict, name)
    if any(type(value) is not str for value in values.values()):
        raise TrustError(f"{name}: {key!r} must be a table of texts")
    return dict(values)


def grouped(digest: str) -> str:
    """Return the first 32 digits of a digest for people to compare: 'AB12-CD34-…'."""
    return "-".join(digest[start : start + 4] for start in range(0, 32, 4)).upper()


def same_fingerprint(one: str, other: str) -> bool:
    """Compare fingerprints as people type them: letter case, spaces, colons and hyphens do not matter."""
    return _bare(one) == _bare(other) and len(_bare(one)) == 32


def _bare(fingerprint: str) -> str:
    return "".join(letter for letter in fingerprint.lower() if letter not in " -:\t\n")


def _text(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"it holds {name}, which is not JSON")
