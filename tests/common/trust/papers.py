"""A federation's and a site's keys in memory, with a request and a kit of theirs."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.trust.certificates import Authority, as_pem, issue_site, new_authority
from common.trust.keys import hex_of, new_node_key, new_signing_key, new_tls_key
from common.trust.kit import Kit, encode_kit, own_versions
from common.trust.request import SiteKeys

NOW = datetime.now(UTC).replace(microsecond=0)
FAB = "ab" * 32


def new_keys() -> SiteKeys:
    return SiteKeys(new_tls_key(), new_node_key(), new_signing_key())


def new_kit(
    site: SiteKeys, signer: Ed25519PrivateKey, authority: Authority | None = None, **changes: Any
) -> tuple[Kit, bytes]:
    """Return a kit for line-3, good for 90 days, and its file; ``changes`` are entries that are to differ."""
    authority = authority or new_authority("lines", NOW)
    kit = Kit(
        federation="lines",
        site="line-3",
        address="fed.example.org:8443",
        roots_pem=as_pem([authority.certificate]).decode(),
        authority_pem=as_pem([authority.certificate]).decode(),
        certificate_pem=as_pem([issue_site(authority, "line-3", site.tls.public_key(), NOW, 90)]).decode(),
        server_signing_key=hex_of(signer.public_key()),
        fabs=(FAB,),
        settings={"inner.steps": 7, "outer.deadline": 0.1, "data.kind": "image", "data.invert": False},
        versions=own_versions(),
        issued=NOW.isoformat(),
        expires=(NOW + timedelta(days=90)).isoformat(),
    )
    kit = replace(kit, **changes)
    return kit, encode_kit(kit, signer)
