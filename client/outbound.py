"""The one door: all application content that leaves a site passes ``leave`` or ``leave_error``.

The door lets through the four kinds of reply that this module names, checks what is in them
against the site's own settings, and logs names and byte counts. None of the four kinds has a place
for a sample; the sizes of arrays are checked against the agreed ones at the other end.
"""

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path

from flwr.app import Error, Message, RecordDict

from client.settings import SiteSettings
from common.errors import FedreptileError, OutboundError
from common.messages import (
    SCALARS,
    ClassTable,
    Introduction,
    Judged,
    Update,
    encode_class_table,
    encode_introduction,
    encode_judged,
    encode_update,
    payload_bytes,
)

log = logging.getLogger("fedreptile.outbound")

Content = Update | Judged | ClassTable | Introduction

SITE_ERROR = 100
"""Flower error code of a reply that says that the site could not do what was asked."""


def leave(content: Content, site: SiteSettings, reply_to: Message) -> Message:
    """Turn content into the reply to a message, or refuse.

    Raises:
        OutboundError: if the content holds anything that the site's settings do not allow.
    """
    record = _permitted(content, site)
    try:
        _write_log(site, type(content).__name__, payload_bytes(record))
    except OSError as error:
        raise OutboundError(f"site-log {site.log} cannot be written, so nothing leaves: {error}") from error
    return Message(record, reply_to=reply_to)


def leave_error(error: Exception, site: SiteSettings | None, reply_to: Message) -> Message:
    """Turn an exception into an error reply that holds no text of the exception.

    Exception texts name paths and values; only the kind of error and a constant sentence leave.
    """
    kind, reason = "unexpected error", FedreptileError.public
    if isinstance(error, FedreptileError):
        kind, reason = type(error).__name__, error.public
    text = f"{kind}: {reason}; the site's own log has the details"
    try:
        _write_log(site, "Error", {"reason": len(text)})
    except OSError:
        log.exception("site-log cannot be written; the server is told of an error all the same")
    return Message(Error(SITE_ERROR, text), reply_to=reply_to)


def _permitted(content: Content, site: SiteSettings) -> RecordDict:
    match content:
        case Update():
            _only_known_scalars(content.scalars)
            return encode_update(content)
        case Judged():
            _only_known_scalars(content.scalars)
            if content.per_class and not site.class_names:
                raise OutboundError("per-class results name classes, and site-class-names is off")
            return encode_judged(content)
        case ClassTable():
            if not site.class_tables or not site.class_names:
                raise OutboundError("a class table was asked for, and site-class-tables or site-class-names is off")
            if few := [n for n, count in zip(content.names, content.counts, strict=True) if count < site.min_count]:
                raise OutboundError(f"class {few[0]!r} has fewer than site-min-count = {site.min_count} inputs")
            if len(content.sums) != len(content.names):
                raise OutboundError("a class table has another number of sums than of names")
            return encode_class_table(content)
        case Introduction():
            if content.classes and not site.class_names:
                raise OutboundError("an introduction names classes, and site-class-names is off")
            return encode_introduction(content)
        case _:
            raise OutboundError(f"{type(content).__name__} is not a kind of content that leaves a site")


def _only_known_scalars(scalars: Mapping[str, float]) -> None:
    if unknown := sorted(scalars.keys() - SCALARS):
        raise OutboundError(f"the scalar {unknown[0]!r} is not one that may leave")
    if lists := [name for name, value in scalars.items() if type(value) not in (int, float)]:
        raise OutboundError(f"the scalar {lists[0]!r} is a {type(scalars[lists[0]]).__name__} and not one number")


def _write_log(site: SiteSettings | None, kind: str, sizes: Mapping[str, int]) -> None:
    name = site.name if site else "?"
    log.info("%s leaves %s: %d bytes in %s", kind, name, sum(sizes.values()), ", ".join(sizes))
    if site and site.log:
        line = {"time": time.time(), "site": name, "kind": kind, "bytes": dict(sizes)}
        with Path(site.log).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
