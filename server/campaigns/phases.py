"""A campaign after its rounds, one phase after another. What is done is on disk before the next phase begins."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import torch
from flwr.serverapp import Grid

from common.errors import CampaignError, ReleaseError
from common.messages import Introduction
from common.paths import write_atomically
from common.releases.artefact import encode
from server.campaigns.campaign import (
    ALL,
    AWAY,
    CANARY,
    CHALLENGER,
    DONE,
    FAILED,
    GATE,
    HAS_IT,
    REFUSED_IT,
    RELEASE,
    ROUNDS,
    TABLES,
    WAITS,
    Campaign,
    read_campaign,
    write_campaign,
)
from server.campaigns.gate import judge_challenger
from server.campaigns.models import Challenger, candidate_of, challenger_of, champion_of
from server.collect import collect
from server.reptile import Reptile
from server.service.runs import read_journal

log = logging.getLogger("fedreptile.server")

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 10.0
"""Seconds between questions to sites which release they run: each costs a site a process."""
GATHER_SECONDS = 15.0
"""Time for which the sites of a campaign are waited for when enough of them are here."""
ANSWER_SECONDS = 30.0
"""Time that a site has for the answer."""


@dataclass(frozen=True)
class Lineage:
    """Where a release comes from."""

    parent: int
    """0: none."""
    campaign: str
    """Name of the run."""
    sites: tuple[str, ...]
    """Those whose updates are in it."""
    verdict: Mapping[str, Any]


class Releases(Protocol):
    """Where releases are kept and published."""

    def register(self, challenger: Challenger, lineage: Lineage) -> int:
        """Keep and publish a release, to nobody yet; return its number. For the same campaign and content it is the
        same, so that it may be done again."""

    def promote(self, number: int, sites: Sequence[str] | None) -> None:
        """Have some sites adopt a release; None: all."""

    def withdraw(self, number: int, reason: str) -> None:
        """Have all sites go back, by a release of a higher number with the content of its parent. Once only."""


class Conductor:
    """Takes a campaign through its phases.

    Args:
        folder: the run's.
        releases: None: there is nowhere to release to, as in a simulation; the campaign ends with the gate.
        note_sites: is given what the sites say about themselves.
    """

    def __init__(
        self,
        folder: Path,
        releases: Releases | None,
        note_waiting: Callable[[str], None] = lambda text: None,
        note_sites: Callable[[Mapping[str, Introduction]], None] = lambda said: None,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.folder, self.releases = folder, releases
        self._note_waiting, self._note_sites = note_waiting, note_sites
        self._now, self._sleep = now, sleep
        found = read_campaign(folder)
        self.campaign = found or Campaign().come_to(ROUNDS, _utc())
        if found is None:
            self._write(self.campaign)

    def check(self) -> None:
        """Raises CampaignError if the campaign has failed before."""
        if self.campaign.phase == FAILED:
            raise CampaignError(f"the campaign has failed: {self.campaign.reason}; begin another one")

    def gather(self, grid: Grid, strategy: Reptile) -> None:
        """Wait a little for those sites of the campaign that are not here yet.

        Raises:
            CampaignError: if those that are here name their classes and none has the new one.
        """
        roster, new_class = strategy.roster, strategy.settings.campaign.class_
        began = self._now()
        while away := sorted(roster.expected - set(roster.here)):
            if self._now() - began >= GATHER_SECONDS:
                log.warning("the campaign begins without %s", ", ".join(away))
                break
            self._note_waiting(f"waiting for {', '.join(away)}")
            self._sleep(FIRST_PAUSE)
            roster.welcome(grid)
        self._note_waiting("")
        self._note_sites(roster.introductions)
        classes = [roster.introductions[site].classes for site in roster.here]
        if self.campaign.phase == ROUNDS and all(classes) and not any(new_class in names for names in classes):
            raise CampaignError(
                f"no site that is here has a class {new_class!r}; label inputs of it at one site, under just this name"
            )

    @property
    def wants_tables(self) -> bool:
        """Whether class tables are still to be asked for."""
        return self.campaign.phase in (ROUNDS, TABLES)

    def tables_asked(self) -> None:
        self._write(self.campaign.come_to(TABLES, _utc()))

    def tables_in(self, tables: Mapping[str, tuple[torch.Tensor, int]], left_out: Mapping[str, str]) -> None:
        """Note which class tables have come; the run's checkpoint holds them already."""
        counts = {name: count for name, (_, count) in tables.items()}
        self._write(self.campaign.come_to(GATE, _utc(), tables=counts, left_out=dict(left_out)))

    @staticmethod
    def challenger(strategy: Reptile) -> Challenger:
        """Return what the rounds have come to, as it is to be judged and released."""
        return challenger_of(strategy.plan, strategy.state)

    def go_on(self, grid: Grid, strategy: Reptile) -> None:
        """Do what is left of the campaign.

        Raises:
            CampaignError: if the gate does not pass, or a site that goes first refuses the release or does not come.
        """
        steps = {GATE: self._gate, RELEASE: self._release, CANARY: self._canary, ALL: self._all}
        try:
            while not self.campaign.over:
                log.info("campaign: %s", self.campaign.phase)
                steps[self.campaign.phase](grid, strategy)
        finally:
            self._note_waiting("")
        self.check()

    def _gate(self, grid: Grid, strategy: Reptile) -> None:
        settings = strategy.settings
        new_class = settings.campaign.class_
        made = self.challenger(strategy)
        challenger = made.artefact
        write_atomically(self.folder / CHALLENGER, encode(challenger))
        champion, notes = champion_of(strategy.plan)
        champion_side, challenger_side = (candidate_of(one, strategy.plan) for one in (champion, challenger))
        absent = strategy.roster.absent()
        strategy.ask_for_gate(champion_side, challenger_side, made.exact if made.difference else None)
        reports, missing = strategy.gate_reports(collect(grid, strategy.asked, settings.outer.deadline))
        faults = []
        if new_class not in challenger.prototypes:
            whys = "; ".join(f"{site}: {why}" for site, why in self.campaign.left_out.items())
            told = f"{new_class!r} is in no class table, so that sites without it will not recognise it" + (
                f" ({whys})" if whys else ""
            )
            if settings.gate.least_by_table:
                faults.append(f"{told}; gate.least-by-table is {settings.gate.least_by_table:g}")
            else:
                notes.append(told)
        if lost := sorted(champion.prototypes.keys() - challenger.prototypes.keys()):
            notes.append(f"no site let out its table of {', '.join(lost)}: sites without them recognise them no more")
        asked = {*settings.campaign.site_names, *strategy.asked, *absent}
        verdict = judge_challenger(new_class, settings.gate, asked, reports, {**absent, **missing}, notes, faults)
        if not verdict.passed:
            self._fail(f"the gate has not passed: {'; '.join(verdict.reasons)}", verdict=asdict(verdict))
            return
        self._write(self.campaign.come_to(DONE if self.releases is None else RELEASE, _utc(), verdict=asdict(verdict)))

    def _release(self, grid: Grid, strategy: Reptile) -> None:
        assert self.releases is not None
        used = {site for line in read_journal(self.folder) for site in line["used"]}
        parent = strategy.settings.campaign.release
        lineage = Lineage(parent, self.folder.name, tuple(sorted(used)), self.campaign.verdict)
        number = self.releases.register(self.challenger(strategy), lineage)
        self._write(self.campaign.come_to(CANARY, _utc(), release=number))

    def _canary(self, grid: Grid, strategy: Reptile) -> None:
        assert self.releases is not None
        first = self._first_sites(strategy)
        number = self.campaign.release
        self._note(strategy, CANARY, first)
        self.releases.promote(number, first)
        self._wait(grid, strategy, CANARY, lambda: first)
        states = {site: self.campaign.rollout[site].state for site in first}
        if late := {site: state for site, state in states.items() if state != HAS_IT}:
            told = "; ".join(f"{site}: {state}" for site, state in late.items())
            reason = f"release {number} is withdrawn, since not all sites that go first have it ({told})"
            self._fail(self._withdrawn(number, reason))
            return
        self._write(self.campaign.come_to(ALL, _utc()))

    def _withdrawn(self, number: int, reason: str) -> str:
        """Withdraw a release; return the reason, and why that was not possible if it was not."""
        assert self.releases is not None
        try:
            self.releases.withdraw(number, reason)
        except ReleaseError as error:
            return f"{reason}; it could not be withdrawn: {error}"
        return reason

    def _all(self, grid: Grid, strategy: Reptile) -> None:
        assert self.releases is not None
        self.releases.promote(self.campaign.release, None)
        self._wait(
            grid, strategy, ALL, lambda: sorted({*strategy.roster.nodes, *strategy.settings.campaign.site_names})
        )
        self._write(self.campaign.come_to(DONE, _utc()))

    def _first_sites(self, strategy: Reptile) -> list[str]:
        """Return the sites that go first: those that were chosen, else one without the class, as most
        sites are."""
        chosen = strategy.settings.campaign
        if chosen.canary_names:
            return list(chosen.canary_names)
        if before := [site for site, one in self.campaign.rollout.items() if one.stage == CANARY]:
            return sorted(before)  # of an attempt that was cut off
        said, here = strategy.roster.introductions, strategy.roster.here
        return ([site for site in here if chosen.class_ not in said[site].classes] or here)[:1]

    def _wait(self, grid: Grid, strategy: Reptile, stage: str, sites: Callable[[], Sequence[str]]) -> None:
        """Ask sites which release they run until all that are here say this one, or that they refused it, or time is
        up. Sites that go first are waited for even if they are not here."""
        roster, deadline = strategy.roster, strategy.settings.outer.deadline
        began, pause = self._now(), FIRST_PAUSE
        while True:
            roster.welcome(grid)
            roster.ask_anew(grid, min(ANSWER_SECONDS, deadline))
            self._note_sites(roster.introductions)
            self._note(strategy, stage, sites())
            rollout = self.campaign.rollout
            open_ones = (WAITS, AWAY) if stage == CANARY else (WAITS,)
            waiting = [site for site in sites() if rollout[site].state in open_ones]
            if not waiting or self._now() - began >= deadline:
                return
            self._note_waiting(f"waiting for {', '.join(waiting)} to adopt release {self.campaign.release}")
            self._sleep(pause)
            pause = min(1.5 * pause, LONGEST_PAUSE)

    def _note(self, strategy: Reptile, stage: str, sites: Sequence[str]) -> None:
        """Note how the sites stand that are to have the release."""
        campaign, number = self.campaign, self.campaign.release
        for site in sites:
            said = strategy.roster.introductions.get(site)
            release, refused = (said.release, said.refused) if said else (0, 0)
            state = AWAY if site not in strategy.roster.nodes else WAITS
            if release >= number:
                state = HAS_IT
            elif refused == number:
                state = REFUSED_IT
            campaign = campaign.with_site(site, stage, state, release, _utc())
        if campaign != self.campaign:
            self._write(campaign)

    def _fail(self, reason: str, **changes: Any) -> None:
        self._write(self.campaign.come_to(FAILED, _utc(), reason=reason, **changes))

    def _write(self, campaign: Campaign) -> None:
        write_campaign(self.folder, campaign)
        self.campaign = campaign


def _utc() -> datetime:
    return datetime.now(UTC)
