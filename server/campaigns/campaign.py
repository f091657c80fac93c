"""How a campaign stands: its phase, what the gate said, who has the release. One JSON file in the run's folder.

Torch-free.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common.errors import CampaignError
from common.paths import write_atomically

FILE = "campaign.json"
CHALLENGER = "challenger.safetensors"
"""The model that the rounds ended with, as a release would hold it; kept whatever the gate says."""
ROUNDS, TABLES, GATE, RELEASE, CANARY, ALL, DONE, FAILED = (
    "rounds",
    "tables",
    "gate",
    "release",
    "canary",
    "all",
    "done",
    "failed",
)
PHASES = (ROUNDS, TABLES, GATE, RELEASE, CANARY, ALL, DONE)
"""In this order; a campaign may end as failed from any of them."""
WAITS, HAS_IT, REFUSED_IT, AWAY = "waits", "has it", "refused it", "not connected"


@dataclass(frozen=True)
class Rollout:
    """A site on the way to the release."""

    stage: str
    """``canary`` or ``all``."""
    state: str = WAITS
    release: int = 0
    """The one that the site says it runs."""
    when: str = ""
    """When it was seen to have it, or to have refused it: ISO 8601, UTC."""


@dataclass(frozen=True)
class Campaign:
    phase: str = ROUNDS
    since: Mapping[str, str] = field(default_factory=dict)
    """Phase -> when it began: ISO 8601, UTC."""
    release: int = 0
    """Number of the release that it has made; 0: none yet."""
    tables: Mapping[str, int] = field(default_factory=dict)
    """Class -> inputs in the class tables that sites let out."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Site -> why its class table, or classes of it, are missing."""
    verdict: Mapping[str, Any] = field(default_factory=dict)
    """What the gate said (``server.campaigns.gate.Verdict``); empty: nothing yet."""
    rollout: Mapping[str, Rollout] = field(default_factory=dict)
    reason: str = ""
    """Why it failed."""

    @property
    def over(self) -> bool:
        return self.phase in (DONE, FAILED)

    def come_to(self, phase: str, now: datetime, **changes: Any) -> "Campaign":
        """Return the campaign in another phase."""
        return replace(self, phase=phase, since={**self.since, phase: _text(now)}, **changes)

    def with_site(self, site: str, stage: str, state: str, release: int, now: datetime) -> "Campaign":
        """Return the campaign with how a site stands; when it came is kept."""
        before = self.rollout.get(site)
        when = "" if state in (WAITS, AWAY) else before.when if before and before.state == state else _text(now)
        stage = before.stage if before else stage
        return replace(self, rollout={**self.rollout, site: Rollout(stage, state, release, when)})


def read_campaign(folder: Path) -> Campaign | None:
    """Return how the campaign in a run's folder stands; None if the run is none or has not begun.

    Raises:
        CampaignError: if its file is damaged.
    """
    path = folder / FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        rollout = {site: Rollout(**values) for site, values in found.pop("rollout").items()}
        campaign = Campaign(**found, rollout=rollout)
        if campaign.phase not in (*PHASES, FAILED):
            raise ValueError(f"its phase is {campaign.phase!r}")
        return campaign
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CampaignError(f"{path} cannot be read as a campaign: {error}; restore it from a backup") from error


def write_campaign(folder: Path, campaign: Campaign) -> None:
    write_atomically(folder / FILE, json.dumps(asdict(campaign), indent=1).encode())


def _text(now: datetime) -> str:
    return now.astimezone(UTC).isoformat(timespec="seconds")
