"""Signatures of a run: what the server asks is sealed with its key, what a site answers is checked with the site's."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from flwr.app import RecordDict

from common.errors import SealError, UpdateError
from common.paths import write_atomically
from common.trust.keys import passphrase_from_environment, read_private_key
from common.trust.seals import Facts, Opened, digest_of, opened, sealed, unsealed
from server.enrolment.registry import Registry, read_registry
from server.home import VARIABLE, FederationHome


class Trust(Protocol):
    """How a run knows that content is what was sent, by whom it says it was."""

    def request(self, content: RecordDict, round_number: int, kind: str) -> RecordDict:
        """Return what to send to sites."""

    def answer(self, content: RecordDict, site: str, round_number: int, kind: str, base: str) -> Opened:
        """Check what a site sent. Raises UpdateError."""

    def check_name(self, node: int, name: str) -> None:
        """Raises UpdateError if the node is not the site that it says it is."""


class NoKeys:
    """A run without signatures: simulations, and SuperNodes that nobody enrolled."""

    def request(self, content: RecordDict, round_number: int, kind: str) -> RecordDict:
        return content

    def answer(self, content: RecordDict, site: str, round_number: int, kind: str, base: str) -> Opened:
        return Opened(unsealed(content), Facts("", round_number, kind, site=site), "")

    def check_name(self, node: int, name: str) -> None:
        return None


class Keys:
    """The keys of an enrolled federation. Who is revoked counts at once, in the middle of a run too.

    Args:
        issued_file: holds when the last request was signed, so that times only grow, whatever the clock does.
    """

    def __init__(
        self,
        key: Ed25519PrivateKey,
        registry_file: Path,
        run: str,
        issued_file: Path,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._key = key
        self._file = registry_file
        self._run = run
        self._issued_file = issued_file
        self._now = now

    def request(self, content: RecordDict, round_number: int, kind: str) -> RecordDict:
        return sealed(content, Facts(self._run, round_number, kind, issued=self._issue()), self._key)

    def _issue(self) -> int:
        """Return the time in milliseconds since 1970, and later than at the last call."""
        try:
            last = int(self._issued_file.read_text(encoding="ascii"))
        except (OSError, ValueError):  # the run's first request, or a file that a crash spoilt
            last = 0
        issued = max(int(self._now() * 1000), last + 1)
        write_atomically(self._issued_file, str(issued).encode())
        return issued

    def answer(self, content: RecordDict, site: str, round_number: int, kind: str, base: str) -> Opened:
        enrolled = self._registry().sites.get(site)
        if enrolled is None:
            raise SealError("not-enrolled", f"site {site!r} is not enrolled, or was revoked")
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(enrolled.signing_key))
        return opened(content, key, Facts(self._run, round_number, kind, site=site, base=base))

    def check_name(self, node: int, name: str) -> None:
        enrolled = self._registry().name_of_node(node)
        if enrolled != name:
            raise UpdateError("wrong-name", f"a site says that it is {name!r}; its node is enrolled as {enrolled!r}")

    def _registry(self) -> Registry:
        return read_registry(self._file)


def trust_from_environment(run: str, issued_file: Path) -> Trust:
    """Return the keys of the federation that this process was started for, or ``NoKeys`` if it was for none.

    Raises:
        TrustError: if the federation's signing key cannot be read.
    """
    if VARIABLE not in os.environ:
        return NoKeys()
    home = FederationHome.of(None)
    key = read_private_key(home.signing_key, passphrase_from_environment())
    assert isinstance(key, Ed25519PrivateKey)
    return Keys(key, home.registry_file, run, issued_file)


def base_of(content: RecordDict) -> str:
    """Return the digest by which an answer names the request that it belongs to."""
    return digest_of(unsealed(content))
