"""The one door: all application content that leaves a site passes ``Door.leave`` or ``Door.leave_error``.

The door lets through the five kinds of reply that this module names, checks what is in them
against the site's own policy, enters it in the ledger, seals it and logs names and byte counts. None of the five kinds
has a place for a sample; the sizes of arrays are checked against the agreed ones at the other end. Torch-free.
"""

import contextlib
import hashlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import ArrayRecord, Error, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, no_object_id_recompute

from client.door.ledger import AGAIN, LEFT, REFUSED, Clock, Ledger, Record, now
from client.door.policy import Policy
from client.settings import SiteSettings
from common.errors import FedreptileError, LedgerError, OutboundError, PolicyRefusal
from common.messages import (
    GATE_SCALARS,
    SCALARS,
    ClassTable,
    GateReport,
    Introduction,
    Judged,
    Update,
    encode_class_table,
    encode_gate_report,
    encode_introduction,
    encode_judged,
    encode_update,
    payload_bytes,
)
from common.trust.seals import Facts, digest_of, sealed, unsealed

log = logging.getLogger("fedreptile.outbound")

Content = Update | Judged | ClassTable | Introduction | GateReport

SITE_ERROR = 100
"""Flower error code of a reply that says that the site could not do what was asked."""
POLICY_ERROR = 101
"""Flower error code of a reply that says which clause of the site's policy refused."""


@dataclass(frozen=True)
class Asked:
    """What an answer answers."""

    kind: str
    """Flower's message type."""
    run: str = ""
    """Identity of the run, from the request's seal."""
    round: int = 0
    base: str = ""
    """Digest of the request's content."""
    layout: tuple[str, ...] = ()
    """Names of the parameters that an update holds."""
    begun: datetime | None = None
    """When the work began; None: now."""


@dataclass(frozen=True)
class Passing:
    """Content that the policy lets through, encoded, and what it consists of."""

    kind: str
    record: RecordDict
    classes: tuple[str, ...]
    clauses: tuple[str, ...]
    """The clauses of the policy that allowed it."""

    @property
    def shapes(self) -> dict[str, list[int]]:
        """Name of each array -> its shape."""
        arrays = {key: record for key, record in self.record.items() if isinstance(record, ArrayRecord)}
        return {f"{key}/{name}": list(array.shape) for key, found in arrays.items() for name, array in found.items()}

    @property
    def values(self) -> dict[str, int]:
        """Name of whatever is not an array -> bytes of its text."""
        return {name: size for name, size in payload_bytes(self.record).items() if name not in self.shapes}


@dataclass(frozen=True)
class Door:
    """What a site lets out, and how.

    Without a ledger and a key, as in a simulation, nothing is entered or sealed; the checks are the same.
    """

    site: SiteSettings
    ledger: Ledger | None = None
    key: Ed25519PrivateKey | None = None
    """What seals the answers."""
    clock: Clock = now

    @property
    def policy(self) -> Policy:
        return self.site.policy

    def admit(self, asked: Asked) -> None:
        """Check what can be checked before the work is done. Raises PolicyRefusal."""
        self.policy.check_time(asked.begun or self.clock())
        self._check_traffic(1)

    def leave(self, content: Content, asked: Asked) -> RecordDict:
        """Let content out: check it, enter it in the ledger, seal it.

        Raises:
            PolicyRefusal: if the site's policy does not allow it.
            OutboundError: if it holds what no answer may hold.
            LedgerError: if it cannot be entered.
        """
        passing = self.examine(content, asked)
        self.policy.check_time(asked.begun or self.clock())
        draft = self._sealed(passing.record, asked, "0" * 64)
        if self.ledger is None:
            self._check_traffic(1)
            self._tell(passing, draft)
            return draft
        digest, size = digest_of(passing.record), bytes_of(draft)
        self._check_traffic(size)
        record = Record(
            LEFT,
            asked.run,
            asked.round,
            asked.kind,
            passing.kind,
            passing.shapes,
            tuple(passing.values),
            passing.classes,
            bytes=size,
            sha256=digest,
            clauses=(*passing.clauses, "hours.work", "traffic.bytes-a-day"),
            policy=self.policy.digest,
            base=asked.base,
        )
        answer = draft

        def objects(stamp: str) -> tuple[str, ...]:
            nonlocal answer
            answer = self._sealed(passing.record, asked, stamp)
            return object_ids(answer)

        self.ledger.append(record, objects)
        self._tell(passing, answer)
        return answer

    def _tell(self, passing: Passing, answer: RecordDict) -> None:
        if log.isEnabledFor(logging.INFO):
            names = ", ".join([*passing.shapes, *passing.values])
            log.info("%s leaves %s: %d bytes in %s", passing.kind, self.site.name, bytes_of(answer), names)

    def leave_again(self, answer: RecordDict, asked: Asked) -> RecordDict:
        """Hand out an answer that has left before; the ledger notes it. Raises LedgerError or PolicyRefusal."""
        size = bytes_of(answer)
        self._check_traffic(size)
        if self.ledger is not None:
            digest = digest_of(unsealed(answer))
            record = Record(AGAIN, asked.run, asked.round, asked.kind, bytes=size, sha256=digest, base=asked.base)
            self.ledger.append(replace(record, policy=self.policy.digest), lambda _: object_ids(answer))
        log.info("the answer to %s of round %d leaves %s again", asked.kind, asked.round, self.site.name)
        return answer

    def leave_error(self, error: Exception, asked: Asked) -> Error:
        """Turn an exception into an error that holds no text of the exception.

        Exception texts name paths and values; only the kind of error and a constant sentence leave.
        """
        answer = told(error)
        reason = str(answer.reason)
        refusal = (error.clause,) if isinstance(error, PolicyRefusal) else ()
        if self.ledger is not None:
            record = Record(
                REFUSED if refusal else LEFT,
                asked.run,
                asked.round,
                asked.kind,
                "Error",
                reason=reason,
                bytes=len(reason.encode()),
                sha256=hashlib.sha256(reason.encode()).hexdigest(),
                clauses=refusal,
                policy=self.policy.digest,
                base=asked.base,
            )
            try:
                self.ledger.append(record)
            except LedgerError as failed:
                log.exception("an error cannot be entered in the ledger; the server is told that, which is a constant")
                answer = told(failed)
        log.info("Error leaves %s: %s", self.site.name, answer.reason)
        return answer

    def examine(self, content: Content, asked: Asked) -> Passing:
        """Check content against the policy without letting it out. Raises PolicyRefusal or OutboundError."""
        classes = self.policy.classes
        match content:
            case Update():
                _only_known_scalars(content.scalars)
                self.policy.check_parameters(asked.layout)
                kept = replace(content, scalars=self._reported(content.scalars))
                return Passing("Update", encode_update(kept), (), ("parameters.may-leave", "metrics.may-leave"))
            case Judged():
                _only_known_scalars(content.scalars)
                if content.per_class and not classes.names:
                    raise PolicyRefusal("classes.names", "per-class results name classes")
                named = ("classes.names",) if content.per_class else ()
                kept_judged = replace(content, scalars=self._reported(content.scalars))
                names = tuple(sorted(content.per_class))
                return Passing("Judged", encode_judged(kept_judged), names, ("metrics.may-leave", *named))
            case ClassTable():
                return Passing("ClassTable", self._class_table(content), content.names, TABLE_CLAUSES)
            case Introduction():
                names = tuple(sorted(content.classes.keys() | content.wishes.keys()))
                if names and not classes.names:
                    raise PolicyRefusal("classes.names", "an introduction names classes")
                named = ("classes.names",) if names else ()
                return Passing("Introduction", encode_introduction(content), names, named)
            case GateReport():
                return self._gate_report(content)
            case _:
                raise OutboundError(f"{type(content).__name__} is not a kind of content that leaves a site")

    def _gate_report(self, report: GateReport) -> Passing:
        _only_known_scalars(report.scalars, GATE_SCALARS)
        unknown = any("unknown" in name for name in report.scalars)
        named = bool(
            report.per_class or report.folds[0] or report.by_table[0] or unknown
        )  # the latter tell that the site has the new class
        if named and not self.policy.classes.names:
            raise PolicyRefusal("classes.names", "a report to a gate names classes")
        kept = replace(report, scalars=self._reported(report.scalars))
        clauses = ("metrics.may-leave", *(("classes.names",) if named else ()))
        return Passing("GateReport", encode_gate_report(kept), tuple(sorted(report.per_class)), clauses)

    def _class_table(self, table: ClassTable) -> RecordDict:
        classes = self.policy.classes
        if not classes.tables:
            raise PolicyRefusal("classes.tables", "a class table was asked for")
        if not classes.names:
            raise PolicyRefusal("classes.names", "a class table names classes")
        if few := [n for n, count in zip(table.names, table.counts, strict=True) if count < classes.minimum]:
            raise PolicyRefusal("classes.minimum", f"class {few[0]!r} has fewer than {classes.minimum} inputs")
        if len(table.sums) != len(table.names):
            raise OutboundError("a class table has another number of sums than of names")
        return encode_class_table(table)

    def _reported(self, scalars: Mapping[str, float]) -> dict[str, float]:
        return {name: value for name, value in scalars.items() if self.policy.may_report(name)}

    def _check_traffic(self, size: int) -> None:
        limit = self.policy.traffic.bytes_a_day
        if not limit:
            return
        if self.ledger is None:
            raise OutboundError("traffic.bytes-a-day needs a ledger to count by; set site-ledger")
        gone = self.ledger.bytes_on(self.clock().astimezone(UTC).date().isoformat())
        if gone + size > limit:
            raise PolicyRefusal("traffic.bytes-a-day", f"{gone} bytes left today, {size} more would pass {limit}")

    def _sealed(self, content: RecordDict, asked: Asked, stamp: str) -> RecordDict:
        if self.key is None:
            return content
        facts = Facts(
            asked.run,
            asked.round,
            asked.kind,
            site=self.site.name,
            base=asked.base,
            policy=self.policy.digest,
            ledger=stamp,
        )
        return sealed(content, facts, self.key)


TABLE_CLAUSES = ("classes.tables", "classes.names", "classes.minimum")


@contextlib.contextmanager
def door_of(site: SiteSettings) -> Iterator[Door]:
    """Have the door of a site that is not enrolled: with a ledger if ``site-ledger`` names one, and no key.

    Raises:
        LedgerError: if the ledger cannot be opened.
    """
    if not site.ledger:
        yield Door(site)
        return
    with Ledger(Path(site.ledger)) as ledger:
        yield Door(site, ledger)


def told(error: Exception) -> Error:
    """Return all that may be told to the server about an exception: its code and a constant."""
    if isinstance(error, FedreptileError):
        return Error(POLICY_ERROR if isinstance(error, PolicyRefusal) else SITE_ERROR, error.told())
    return Error(SITE_ERROR, f"unexpected error: {FedreptileError.public}; the site's own log has the details")


def object_ids(content: RecordDict) -> tuple[str, ...]:
    """Return Flower's ids of all objects that content consists of: its records, arrays and their pieces."""
    with no_object_id_recompute():
        return tuple(get_all_nested_objects(content))


def bytes_of(content: RecordDict) -> int:
    """Return the bytes of all objects that content consists of, as Flower sends them."""
    with no_object_id_recompute():
        return sum(len(item.deflate()) for item in get_all_nested_objects(content).values())


def _only_known_scalars(scalars: Mapping[str, float], known: frozenset[str] = SCALARS) -> None:
    if unknown := sorted(scalars.keys() - known):
        raise OutboundError(f"the scalar {unknown[0]!r} is not one that may leave")
    if lists := [name for name, value in scalars.items() if type(value) not in (int, float)]:
        raise OutboundError(f"the scalar {lists[0]!r} is a {type(scalars[lists[0]]).__name__} and not one number")


def refuse(error: Exception, site: SiteSettings | None, asked: Asked) -> Error:
    """Turn an exception into an error, entered in the ledger if the site is known, is not enrolled and has one."""
    try:
        with door_of(site) if site else contextlib.nullcontext() as door:
            return door.leave_error(error, asked) if door else told(error)
    except LedgerError as failed:
        log.exception("an error cannot be entered in the ledger; the server is told that, which is a constant")
        return told(failed)
