"""Checks of the way to the server: what the relay does, step by step, with what the server says to it."""

import json
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

from client.check.findings import Finding, NeedsError, Subject, ok, plain, problem, skipped, warning
from client.check.papers import SET_CLOCK, certificate_trouble
from client.check.probe import Answer, Identity, TroubleError, Way, ask, connect, handshake, resolve, way_to
from common import VERSION
from common.deployment.forward import HEALTH, VERSION_HEADER
from common.trust.certificates import WARN_DAYS

STEPS = {
    "proxy": "proxy",
    "name": "server's name",
    "port": "port",
    "certificate": "server's certificate",
    "admission": "admission",
    "clock": "clock",
}
"""Step of the way -> what was checked, in the order in which they are taken."""
CLOCK_WARNING, CLOCK_PROBLEM = 60.0, 240.0
"""Seconds between this machine's clock and the server's. Flower drops what is signed more than 300 s apart."""


def check_network(subject: Subject) -> Iterator[Finding]:
    """Proxy, name, port, the server's certificate, whether the site is let in, versions, and the clock."""
    done: list[Finding] = []
    try:
        for finding in _steps(subject):
            done.append(finding)
            yield finding
    except TroubleError as error:
        failed = STEPS[error.step]
        yield problem(failed, error.cause, error.fix)
        told = {one.what for one in done} | {failed}
        yield from (skipped(what, failed) for what in STEPS.values() if what not in told)


def _steps(subject: Subject) -> Iterator[Finding]:
    _ = subject.time
    way = way_to(subject.kit.address, subject.config, subject.seconds)
    if way.proxy is None:
        yield ok(STEPS["proxy"], "none")
    address = resolve(way)
    yield ok(STEPS["name"], "the proxy looks it up" if way.proxy else f"{way.host} is {address}")
    with connect(way) as opened:
        if way.proxy:
            yield ok(STEPS["proxy"], f"{way.proxy} ({way.proxy.source}) connects through")
        yield ok(STEPS["port"], f"{way.server} takes connections")
        identity = _identity(subject)
        with handshake(way, opened, subject.kit.roots_pem, identity) as connection:
            yield _server_certificate(connection, subject.now)
            if identity is None:
                yield from (skipped(STEPS[step], "certificate") for step in ("admission", "clock"))
                return
            answer = ask(way, connection, HEALTH, {VERSION_HEADER: VERSION})
    yield _admission(answer, subject, way)
    yield _clock(answer)


def _identity(subject: Subject) -> Identity | None:
    """Return what to show to the server; None if it is known beforehand that it would not do."""
    try:
        if certificate_trouble(subject) is not None:
            return None
    except NeedsError:
        return None
    return Identity(subject.home.tls_certificate, subject.home.tls_key, subject.passphrase)


def _server_certificate(connection: ssl.SSLSocket, now: datetime) -> Finding:
    found = connection.getpeercert() or {}
    end = datetime.fromtimestamp(ssl.cert_time_to_seconds(str(found["notAfter"])), UTC)
    left = (end - now) / timedelta(days=1)
    if left <= WARN_DAYS:
        cause = f"it ends on {end:%Y-%m-%d}, in {left:.0f} day(s)"
        return warning(STEPS["certificate"], cause, "remind the operator ('fedreptile-server enrol renew-server')")
    return ok(
        STEPS["certificate"], f"{connection.server_hostname}, by the federation's authority, until {end:%Y-%m-%d}"
    )


def _admission(answer: Answer, subject: Subject, way: Way) -> Finding:
    what, own = STEPS["admission"], subject.kit.site
    if answer.source not in ("gateway", "superlink"):
        cause = f"what answers at {way.server} is not the gateway of a federation (HTTP status {answer.status})"
        return problem(what, cause, "compare the address in the kit with the operator")
    if answer.status < 300:
        return ok(what, f"the server lets {own} in")
    word, said = _said(answer)
    if word in REFUSALS:
        cause, fix = REFUSALS[word]
        where = "versions" if word == "version" else what
        return problem(where, f"{cause.format(own)}: {said}", fix)
    if answer.status == 403:
        return problem(what, f"the server does not let {own} in ({word}): {said}", LIST)
    if answer.status == 429:
        return warning(what, f"{own} is let in, but has just asked too much: {said}", "check again in a minute")
    cause = f"{own} is let in, but the server behind the gateway does not answer ({answer.status} {word}: {said})"
    return warning(what, cause, "wait a minute; then ask the operator to look at 'fedreptile-server status'")


LIST = "ask the operator to look at 'fedreptile-server enrol list', and for the kit of the last request"
REFUSALS = {
    "version": (
        "the server takes no site with this version of fedreptile",
        "install the server's version here, such as from the operator's wheelhouse",
    ),
    "revoked": (
        "the operator has revoked the certificate of {}",
        "ask the operator why; to come back, join anew with fresh keys in an empty folder",
    ),
    "unknown-site": ("no site of the name {} is enrolled", LIST),
    "unknown-certificate": ("{} is not enrolled with this certificate", LIST),
}
"""What the gateway calls a refusal -> what it means, and what to do."""


def _said(answer: Answer) -> tuple[str, str]:
    """Return the gateway's word for a refusal, and what it says in full."""
    try:
        found = json.loads(answer.body)
        word, seen, needed = (plain(str(found.get(key, ""))) for key in ("error", "found", "needed"))
        return word, f"{seen} (needed: {needed})"
    except (ValueError, AttributeError):
        return "", plain(answer.body.decode("utf-8", "replace"))


def _clock(answer: Answer) -> Finding:
    """Compare this machine's clock with the server's."""
    try:
        ahead = answer.at - parsedate_to_datetime(answer.date).timestamp()
    except (ValueError, TypeError):
        return skipped(STEPS["clock"], "the server's answer has no date")
    apart = abs(ahead)
    cause = f"it is {apart:.0f} s {'ahead of' if ahead > 0 else 'behind'} the server's"
    if apart >= CLOCK_PROBLEM:
        return problem(STEPS["clock"], f"{cause}; from 300 s on nothing is accepted", SET_CLOCK)
    if apart >= CLOCK_WARNING:
        return warning(STEPS["clock"], f"{cause}; from 300 s on nothing is accepted", SET_CLOCK)
    return ok(STEPS["clock"], "within a minute of the server's")
