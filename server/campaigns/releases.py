"""What campaigns have to do with releases: the one that they start from, and the one that they make."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common.checkpoint import RunState, write_checkpoint
from common.releases.artefact import decode, encode
from common.releases.delta import encode_delta
from common.settings import flatten
from common.trust.keys import passphrase_from_environment
from server.campaigns.models import Challenger
from server.campaigns.phases import Lineage
from server.enrolment.bundle import fab_of_installation
from server.home import VARIABLE, FederationHome
from server.releases.publishing import Delta, content, open_registry, promote, publish, put_out, withdraw
from server.releases.registry import About
from server.releases.repository import Repository

log = logging.getLogger("fedreptile.server")

TOLD = (
    *("worst_drop", "worst_site_drop", "ece_rise", "unknown", "tried", "recognised", "interval", "told"),
    *("tried_by_table", "recognised_by_table", "rounding_cost"),
)
"""Of what the gate has found: what stands on a release's card. No site is named there."""


class FederationReleases:
    """The releases of a federation, as a campaign uses them."""

    def __init__(self, home: FederationHome, utc: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.home, self._utc = home, utc

    def register(self, challenger: Challenger, lineage: Lineage) -> int:
        """Raises ReleaseError or TrustError if register, repository or a key cannot be used."""
        data = encode(challenger.artefact)
        digest = hashlib.sha256(data).hexdigest()
        with open_registry(self.home) as registry:
            same = [one for one in registry.all() if (one.about.campaign, one.digest) == (lineage.campaign, digest)]
            if same:  # made by an attempt that was cut off before it could note the number
                put_out(self.home, registry, Repository(self.home, self._secret()), self._utc())
                return same[-1].number
        about, delta = about_of(challenger, lineage), None
        if challenger.difference is not None:
            before = content(self.home, lineage.parent)
            encoded = encode_delta(challenger.difference, before, challenger.artefact)
            if len(encoded) < len(data):
                delta = Delta(lineage.parent, challenger.difference.kind, encoded)
        return publish(self.home, data, about, self._secret(), self._utc(), delta).number

    def promote(self, number: int, sites: Sequence[str] | None) -> None:
        promote(self.home, number, sites or (), self._secret(), self._utc())

    def withdraw(self, number: int, reason: str) -> None:
        with open_registry(self.home) as registry:
            if registry.state(number) == "withdrawn":
                return
        withdraw(self.home, number, reason, self._secret(), self._utc())

    def _secret(self) -> str | None:
        return passphrase_from_environment()


def releases_from_environment() -> FederationReleases | None:
    """Return the releases of the federation that this process was started for; None if it was for none."""
    return FederationReleases(FederationHome.of(None)) if VARIABLE in os.environ else None


def about_of(challenger: Challenger, lineage: Lineage) -> About:
    """Return what the register keeps about a campaign's release."""
    artefact = challenger.artefact
    values = flatten(artefact.settings)
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    verdict = lineage.verdict
    card: Mapping[str, Any] = {
        "class": artefact.settings.campaign.class_,
        "description": artefact.settings.campaign.description,
        "classes": sorted(artefact.prototypes),
        "gate": {key: verdict[key] for key in TOLD if key in verdict},
    }
    if challenger.difference is not None:
        card = {**card, "delta": {"kind": challenger.difference.kind, "rounding": challenger.lost}}
    return About(
        lineage.parent or None,
        lineage.campaign,
        lineage.sites,
        values,
        digest,
        artefact.code_version,
        fab_of_installation()[1],
        dict(verdict),
        card,
    )


def champion_number(home: FederationHome) -> int:
    """Return the number of the release that all sites are meant to run; 0: none.

    Raises:
        ReleaseError: if the federation has no releases' folder yet; it says how to make it.
    """
    with open_registry(home) as registry:
        return registry.pointer().all


def write_champion(home: FederationHome, number: int, path: Path) -> None:
    """Write a release as a checkpoint from which a run can start. Raises ReleaseError or CheckpointError."""
    artefact = decode(content(home, number), f"release {number}")
    state = RunState(0, artefact.params, artefact.slots, {}, {}, prototypes=artefact.prototypes)
    write_checkpoint(path, state, artefact.settings)
