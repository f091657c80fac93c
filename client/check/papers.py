"""Checks of what lies in the site's folder: site.toml, kit, policy, keys, certificates."""

from collections.abc import Iterator
from datetime import timedelta

from client.check.findings import Finding, NeedsError, Subject, broken, ok, problem, warning
from client.door.policy import fits, read_policy
from client.settings import settings_of
from common.errors import SettingsError, TrustError
from common.trust.certificates import (
    WARN_DAYS,
    check_site_certificate,
    common_name,
    issued_by,
    parse_certificates,
    read_certificates,
    same_key,
)
from common.trust.keys import read_ec_key, read_private_key, read_signing_key
from common.trust.kit import read_kit

RENEW = "have it renewed: 'fedreptile-site join --renew', send request.json, then 'fedreptile-site join --kit'"
AGAIN = "take the kit again: 'fedreptile-site join --kit' with the file that the operator sent"


def check_config(subject: Subject) -> Iterator[Finding]:
    """site.toml can be read, and names the site that the kit is for."""
    try:
        config = subject.home.config()
    except SettingsError as error:
        yield broken("site.toml", error, f"correct {subject.home.config_file}")
        return
    if config.threads < 1:
        yield problem("site.toml", f"threads is {config.threads}", "set it to 1 or more")
        return
    try:
        named = subject.kit.site
    except NeedsError:
        named = config.name
    if named != config.name:
        yield problem(
            "site.toml",
            f"the name is {config.name!r}, and the kit is for {named!r}",
            f"set name = {named!r} in {subject.home.config_file}, or ask the operator for the kit of {config.name!r}",
        )
        return
    yield ok("site.toml", f"site {config.name!r}, device {config.device!r}")


def check_kit(subject: Subject) -> Iterator[Finding]:
    """The kit is there, signed and whole, and this version knows the settings in it."""
    home = subject.home
    subject.need_folder()
    if not home.kit_file.exists():
        yield problem(
            "kit",
            f"there is none ({home.kit_file})",
            f"send {home.request_file} to the operator; then 'fedreptile-site join --kit' with the file he returns",
        )
        return
    try:
        kit = read_kit(home.kit_file)
    except TrustError as error:
        yield broken("kit", error, AGAIN)
        return
    try:
        settings_of(kit)
    except SettingsError as error:
        yield problem(
            "kit",
            f"the agreed settings cannot be used: {error}",
            "install the version of fedreptile that the kit names for the server, or ask for a new kit",
        )
        return
    yield ok("kit", f"federation {kit.federation!r} at {kit.address}, issued {kit.issued[:10]}")


def check_policy(subject: Subject) -> Iterator[Finding]:
    """policy.toml can be read, and lets the server's code run."""
    wanted = subject.kit.fabs
    try:
        policy = read_policy(subject.home.policy_file)
    except SettingsError as error:
        yield broken("policy", error, f"correct {subject.home.policy_file}")
        return
    missing = [fab for fab in wanted if not policy.may_run(fab)]
    if missing and len(missing) == len(wanted):
        yield problem(
            "policy",
            "no code may run: code.fabs has none of the app bundles that the kit names",
            f"if you agree to them, add to code.fabs in {subject.home.policy_file}: {', '.join(missing)}",
        )
    elif missing:
        yield warning(
            "policy",
            f"{len(missing)} of {len(wanted)} app bundles of the kit may not run",
            f"if you agree to them, add to code.fabs in {subject.home.policy_file}: {', '.join(missing)}",
        )
    else:
        closed = "" if policy.works_at(subject.now) else "; no work at this hour (hours.work)"
        yield ok("policy", f"{len(policy.code.fabs)} app bundle(s) may run{closed}")


def check_parameters(subject: Subject) -> Iterator[Finding]:
    """The policy lets all parameters leave that a run's updates hold."""
    subject.need_torch()
    from common.learning.learner import trainable_names
    from common.plan import plan_for

    policy = subject.policy
    try:
        trained = trainable_names(plan_for(subject.settings).initial, subject.settings)
    except SettingsError as error:
        yield problem("model", f"the agreed model cannot be built: {error}", "tell the operator")
        return
    kept = [name for name in trained if not fits(name, policy.parameters.may_leave)]
    if kept:
        yield problem(
            "model",
            f"parameters.may-leave keeps back {kept[0]!r} and {len(kept) - 1} more, so every update is refused",
            f"change {subject.home.policy_file}, or have the operator freeze them (inner.frozen)",
        )
    else:
        yield ok("model", f"{subject.settings.model.network}: {len(trained)} parameter(s) are trained and may leave")


def check_keys(subject: Subject) -> Iterator[Finding]:
    """All private keys are there, can be read, and by their owner alone."""
    home = subject.home
    subject.need_folder()
    readers = {home.tls_key: read_ec_key, home.node_key: read_ec_key, home.signing_key: read_signing_key}
    for path, read in readers.items():
        try:
            read(path, subject.passphrase)
        except TrustError as error:
            yield broken("keys", error, f"chmod 600 {path}")
            return
    try:
        read_private_key(home.loopback / "tls.key")
        ends = min(read_certificates(home.loopback / name)[0].not_valid_after_utc for name in ("ca.crt", "tls.crt"))
    except TrustError as error:
        yield broken("keys", error, f"restore {home.loopback} from a backup, or enrol anew")
        return
    if ends < subject.now:
        yield problem("keys", f"the certificates in {home.loopback} ended on {ends:%Y-%m-%d}", "enrol anew")
        return
    yield ok("keys", "all there, readable for their owner alone")


def check_certificate(subject: Subject) -> Iterator[Finding]:
    """The site's certificate is for its name and key, of the federation's authority, and good now and for a while."""
    found = certificate_trouble(subject)
    if found is not None:
        yield found
        return
    end = read_certificates(subject.home.tls_certificate)[0].not_valid_after_utc
    left = (end - subject.now) / timedelta(days=1)
    if left <= WARN_DAYS:
        yield warning("certificate", f"it ends on {end:%Y-%m-%d}, in {left:.0f} day(s)", RENEW)
    else:
        yield ok("certificate", f"good until {end:%Y-%m-%d}, for {left:.0f} days")


def certificate_trouble(subject: Subject) -> Finding | None:
    """Return why the server would not let in who shows the site's certificate, as far as it can be told from here.

    Raises:
        NeedsError: if kit or key cannot be read, or the clock is known to be wrong.
    """
    home, kit, now = subject.home, subject.kit, subject.time
    try:
        key = read_ec_key(home.tls_key, subject.passphrase).public_key()
    except TrustError as error:
        raise NeedsError("keys") from error
    try:
        one = read_certificates(home.tls_certificate)[0]
    except TrustError as error:
        return broken("certificate", error, AGAIN)
    authorities = parse_certificates(kit.authority_pem.encode(), "the kit's authority")
    issuer, ends, begins = one.issuer.rfc4514_string(), one.not_valid_after_utc, one.not_valid_before_utc
    wrong = (
        (not same_key(one, key), f"{home.tls_certificate} is not for the key {home.tls_key}", AGAIN),
        (common_name(one) != kit.site, f"it is for {common_name(one)!r}, and this site is {kit.site!r}", AGAIN),
        (
            not any(issued_by(one, other) for other in authorities),
            f"it was issued by {issuer!r}, not by the federation's authority",
            AGAIN,
        ),
        (now > ends, f"it expired on {ends:%Y-%m-%d %H:%M} UTC, and here it is {now:%Y-%m-%d %H:%M} UTC", RENEW),
        (now < begins, f"it is good only from {begins:%Y-%m-%d %H:%M} UTC on", SET_CLOCK),
    )
    for is_wrong, cause, fix in wrong:
        if is_wrong:
            return problem("certificate", cause, fix)
    try:
        check_site_certificate(one, kit.site, key, authorities, now)
    except TrustError as error:
        return broken("certificate", error, AGAIN)
    return None


SET_CLOCK = (
    "set this machine's clock by the network's time (Linux: timedatectl set-ntp true; Windows: w32tm /resync; "
    "macOS: sntp -sS time.apple.com)"
)


def check_past(subject: Subject) -> Iterator[Finding]:
    """The clock is not before the kit was issued; how exact it is, the server's answer tells."""
    try:
        _ = subject.time
    except NeedsError as error:
        if str(error) != "clock":
            raise
        issued = f"{subject.kit.issued[:16].replace('T', ' ')} UTC"
        cause = f"it says {subject.now:%Y-%m-%d %H:%M} UTC, but the kit was issued later, at {issued}"
        yield problem("clock", cause, SET_CLOCK)
