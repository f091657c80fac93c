"""Names of sites and addresses of servers, as they come from outside."""

import ipaddress
import re

from common.errors import TrustError

MOST_CHARACTERS = 64
NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9_-])?")
RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(10))}
"""Windows takes these for devices, with any ending."""
HOST = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,62})(?:\.[A-Za-z0-9_-]{1,63})*")


def checked_name(name: str, what: str = "site") -> str:
    """Return the name if it is safe as part of a path, in a certificate and in a log.

    Raises:
        TrustError: unless it is 1 to 64 letters, digits, hyphens, dots and underscores (ASCII), begins with a letter or
            digit, does not end in a dot, and is no device of Windows.
    """
    if len(name) <= MOST_CHARACTERS and NAME.fullmatch(name) and name.partition(".")[0].lower() not in RESERVED:
        return name
    shown = name if len(name) <= MOST_CHARACTERS else name[:MOST_CHARACTERS] + "…"
    raise TrustError(
        f"the {what}'s name is {shown!r}; it must be 1 to {MOST_CHARACTERS} letters, digits, hyphens, dots and "
        "underscores, begin with a letter or digit, not end in a dot, and not be a device of Windows such as 'con'"
    )


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of ``host:port`` or ``[IPv6]:port``; the host without brackets.

    Raises:
        TrustError: if it is of another form, or the port is not 1 to 65535.
    """
    host, colon, port = address.rpartition(":")
    inner = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    number = int(port) if port.isascii() and port.isdigit() and len(port) <= 5 else 0
    known = (":" in inner and is_ip(inner)) if inner != host else HOST.fullmatch(host) is not None
    if colon and known and 0 < number < 65536:
        return inner, number
    raise TrustError(f"the address is {address[:300]!r}; it must be host:port, such as fed.example.org:8443")


def is_ip(host: str) -> bool:
    """Say whether a host is an IP address and not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
