"""Seals: signatures over content and over what it belongs to, so that neither can be exchanged.

The server seals what it asks, a site what it answers (Ed25519, RFC 8032). A seal binds the content to a site, a run,
a round and a kind of message, an answer also to the request that it answers, to the site's policy and to the entry of
the site's ledger. Torch-free, since the process that Flower starts for a message checks nothing and needs none of it.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from common.errors import SealError

SEAL = "seal"
"""Name of the record that holds the seal."""
FORMAT = "1"
NUMBERS = ("round", "issued")


@dataclass(frozen=True)
class Facts:
    """What a seal binds content to."""

    run: str
    """Identity of the run, the same when it is resumed."""
    round: int
    kind: str
    """Flower's message type: 'train', 'evaluate', 'query', 'query.class_table' or 'query.gate'."""
    issued: int = 0
    """Requests: when the server made it, Unix milliseconds by its clock; a site drops what is older than the last."""
    site: str = ""
    """Who answers; empty in a request, which goes to many."""
    base: str = ""
    """Answers: digest of the request's content."""
    policy: str = ""
    """Answers: digest of the site's policy."""
    ledger: str = ""
    """Answers: stamp of the entry in the site's ledger."""


@dataclass(frozen=True)
class Opened:
    """Content without its seal, and what the seal said."""

    content: RecordDict
    facts: Facts
    digest: str
    """SHA-256 of the content, in hexadecimal."""


def digest_of(content: RecordDict) -> str:
    """Return the SHA-256 of all records, in hexadecimal: of names, dtypes, shapes, bytes and values."""
    return hashlib.sha256(_canonical({key: _described(record) for key, record in content.items()})).hexdigest()


def sealed(content: RecordDict, facts: Facts, key: Ed25519PrivateKey) -> RecordDict:
    """Return the content with a seal beside it."""
    digest = digest_of(content)
    signature = key.sign(_signed(facts, digest))
    record = ConfigRecord({**asdict(facts), "content": digest, "signature": signature.hex()})
    return RecordDict({**content, SEAL: record})


def opened(content: RecordDict, key: Ed25519PublicKey, expected: Facts) -> Opened:
    """Check a seal and return the content without it.

    Args:
        expected: each of its fields that is not empty (for ``issued``: not 0) must be what the seal says.

    Raises:
        SealError: cause 'unsigned', 'bad-signature', 'altered' (the content is not what was signed) or
            'replayed' (it was signed for something else).
    """
    facts, digest, signature = _read(content)
    try:
        key.verify(signature, _signed(facts, digest))
    except InvalidSignature as error:
        raise SealError("bad-signature", "the signature was not made with the expected key") from error
    rest = RecordDict({name: record for name, record in content.items() if name != SEAL})
    if digest_of(rest) != digest:
        raise SealError("altered", "the content is not what was signed")
    for item in fields(Facts):
        wanted, found = getattr(expected, item.name), getattr(facts, item.name)
        if wanted not in ("", 0, found):
            raise SealError("replayed", f"it was signed for {item.name} {found!r}; expected {wanted!r}")
    return Opened(rest, facts, digest)


def unsealed(content: RecordDict) -> RecordDict:
    """Return the content without a seal, unchecked: for a site that has no keys, as in a simulation."""
    return RecordDict({name: record for name, record in content.items() if name != SEAL})


def _read(content: RecordDict) -> tuple[Facts, str, bytes]:
    record = content.get(SEAL)
    if record is None:
        raise SealError("unsigned", "it has no seal")
    try:
        if not isinstance(record, ConfigRecord) or record.keys() != {f.name for f in fields(Facts)} | {
            "content",
            "signature",
        }:
            raise TypeError("its entries are not those of a seal")
        if any(type(record[f.name]) is not (int if f.name in NUMBERS else str) for f in fields(Facts)):
            raise TypeError("an entry has the wrong type")
        values: dict[str, Any] = {f.name: record[f.name] for f in fields(Facts)}
        facts = Facts(**values)
        return facts, str(record["content"]), bytes.fromhex(str(record["signature"]))
    except (TypeError, ValueError) as error:
        raise SealError("unsigned", f"its seal cannot be read: {error}") from error


def _signed(facts: Facts, digest: str) -> bytes:
    return _canonical({"format": f"fedreptile-seal-{FORMAT}", "content": digest, **asdict(facts)})


def _described(record: Any) -> Any:
    if isinstance(record, ArrayRecord):
        return [
            "arrays",
            {
                name: [array.dtype, list(array.shape), array.stype, hashlib.sha256(array.data).hexdigest()]
                for name, array in record.items()
            },
        ]
    kind = "config" if isinstance(record, ConfigRecord) else "metrics"
    return [kind, {name: _plain(value) for name, value in record.items()}]


def _plain(value: Any) -> Any:
    """Return a value that JSON writes in one way; floats by their exact hexadecimal form."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return ["bytes", value.hex()]
    return ["float", value.hex()] if isinstance(value, float) else value


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
