"""Rounds from a first or resumed state to the last, with everything kept on disk."""

import contextlib
import dataclasses
import json
import logging
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp import Grid

from common.checkpoint import NAME, RunState, read_checkpoint, write_checkpoint
from common.deployment.lock import hold
from common.errors import CheckpointError, PolicyRefusal, RoundError, SettingsError
from common.learning.params import Params
from common.messages import Introduction
from common.paths import data_home, write_atomically
from common.plan import Plan, plan_for
from common.settings import Settings, flatten
from server.campaigns.phases import Conductor, Releases
from server.collect import collect
from server.reptile import Reptile, RoundReport
from server.roster import PAUSE, Roster
from server.service.runs import JOURNAL, LOCK, MAY_CHANGE, SITES, WAITING, HeldError, read_journal, write_attempt
from server.trust import trust_from_environment

log = logging.getLogger("fedreptile.server")
rounds_log = logging.getLogger("fedreptile.rounds")
"""One record a round, with the report as ``record.report``."""

IDENTITY, ISSUED = "identity", "issued"
"""What names the run in signatures; when the last request was signed."""
ANSWER_SECONDS = 60.0
"""Time that sites have to introduce themselves in a run without rounds."""
LOCK_SECONDS = 90.0
"""A ServerApp that Flower has given up needs about a minute to notice."""


@dataclass(frozen=True)
class RunFolder:
    """Checkpoint and journal of one run."""

    path: Path

    @classmethod
    def of(cls, settings: Settings) -> "RunFolder":
        """Raises SettingsError if ``run.dir`` is relative: Flower starts processes in folders of its own."""
        path = Path(settings.run.dir) if settings.run.dir else data_home() / "runs" / "default"
        if not path.is_absolute():
            raise SettingsError(f"run.dir is {settings.run.dir!r}; give it from the root, such as {Path.cwd() / path}")
        return cls(path)

    @property
    def checkpoint(self) -> Path:
        return self.path / NAME

    @contextlib.contextmanager
    def held(self, attempt: int = 0) -> Iterator[None]:
        """Keep the folder to this process, and note which attempt it is.

        Raises:
            HeldError: if another one has it, such as a run that seemed lost.
        """
        file = hold(self.path / LOCK, LOCK_SECONDS)
        if file is None:
            raise HeldError(f"another process works on the run in {self.path}; stop that one, or wait for its end")
        with file:
            if attempt:
                write_attempt(self.path, attempt)
            yield

    def identity(self) -> str:
        """Return what names this run in signatures: made when the run is begun, the same when it is resumed."""
        file = self.path / IDENTITY
        if not file.exists() or not self.checkpoint.exists():
            write_atomically(file, secrets.token_hex(16).encode())
        return file.read_text(encoding="ascii")

    def append(self, report: RoundReport, seconds: float) -> None:
        with (self.path / JOURNAL).open("a", encoding="utf-8") as file:
            file.write(json.dumps({**dataclasses.asdict(report), "seconds": seconds}) + "\n")

    def note_sites(self, introductions: Mapping[str, Introduction]) -> None:
        """Write what the sites say about themselves, when that has changed."""
        lines = (f"{json.dumps(name)}: {json.dumps(vars(introductions[name]))}" for name in sorted(introductions))
        text = ("{\n" + ",\n".join(lines) + "\n}\n").encode()
        file = self.path / SITES
        if not file.exists() or file.read_bytes() != text:
            write_atomically(file, text)

    def note_waiting(self, text: str) -> None:
        """Write what is waited for, for who watches the run; empty: nothing any more."""
        file = self.path / WAITING
        if text and not (file.exists() and file.read_text(encoding="utf-8") == text):
            log.info("%s", text)
            write_atomically(file, text.encode())
        elif not text:
            file.unlink(missing_ok=True)

    def cut_back(self, rounds: int) -> None:
        """Drop journal lines of later rounds, and a last line that a crash left half-written."""
        lines = [line for line in read_journal(self.path) if line["round"] <= rounds]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        write_atomically(self.path / JOURNAL, text.encode())


def first_state(plan: Plan) -> RunState:
    """Return the state before the first round.

    Raises:
        CheckpointError: if ``model.initial`` names a checkpoint that does not fit the network.
    """
    params: Params = plan.initial
    if plan.settings.model.initial:
        params = read_checkpoint(Path(plan.settings.model.initial)).state.published
        shapes = {name: tuple(value.shape) for name, value in params.items()}
        if shapes != dict(plan.params.entries):
            raise CheckpointError(f"model.initial {plan.settings.model.initial} holds params of another network")
    return RunState(0, params, plan.initial_slots, {}, {})


def load_or_begin(plan: Plan, folder: RunFolder) -> RunState:
    """Return the checkpointed state if the run's folder has one, else the first state.

    Raises:
        CheckpointError: if the checkpoint was made with other settings; it names them.
    """
    if not folder.checkpoint.exists():
        folder.cut_back(0)
        return first_state(plan)
    if not plan.settings.run.resume:
        raise CheckpointError(
            f"{folder.path} already holds a run and run.resume is off; choose another run.dir or remove the folder"
        )
    found = read_checkpoint(folder.checkpoint)
    now, then = flatten(plan.settings), flatten(found.settings)
    if changed := [key for key in now if now[key] != then[key] and key not in MAY_CHANGE]:
        key = changed[0]
        raise CheckpointError(
            f"{folder.path} holds a run with other settings ({key} = {then[key]!r}, now {now[key]!r}"
            f"{', and more' if len(changed) > 1 else ''}); choose another run.dir, or the same settings to resume"
        )
    folder.cut_back(found.state.round)
    log.info("resuming after round %d from %s", found.state.round, folder.checkpoint)
    return found.state


def run_federation(
    grid: Grid,
    settings: Settings,
    now: Callable[[], float] = time.monotonic,
    attempt: int = 0,
    releases: Releases | None = None,
) -> RunState:
    """Run all rounds over a grid, and what follows them in a campaign; return the last state.

    The state is on disk every ``run.checkpoint-seconds``, at the end, and when interrupted.

    Args:
        attempt: Flower's id of the run; 0 if it has none.
        releases: where a campaign releases its model to; None: nowhere.

    Raises:
        RoundError: if too few sites join, or too many rounds in a row have no quorum.
        HeldError: if another process is at it.
        CampaignError: if a campaign does not come to a release at its sites.
        CheckpointError, SettingsError: see ``load_or_begin``.
    """
    plan, folder = plan_for(settings), RunFolder.of(settings)
    with folder.held(attempt):
        if not settings.run.rounds:
            return _introductions(grid, plan, folder)
        return _all_rounds(grid, plan, folder, now, releases)


def _all_rounds(
    grid: Grid, plan: Plan, folder: RunFolder, now: Callable[[], float], releases: Releases | None
) -> RunState:
    settings = plan.settings
    campaign = None
    if settings.campaign.class_:
        campaign = Conductor(folder.path, releases, folder.note_waiting, folder.note_sites, now)
        campaign.check()
    trust = trust_from_environment(folder.identity(), folder.path / ISSUED)
    roster = Roster(trust, tell=folder.note_waiting, only=settings.campaign.site_names)
    strategy = Reptile(plan, load_or_begin(plan, folder), roster, trust)
    wants_tables = campaign.wants_tables if campaign else settings.outer.class_tables and not strategy.state.prototypes
    if (
        strategy.state.round >= settings.run.rounds
        and not wants_tables
        and (campaign is None or campaign.campaign.over)
    ):
        log.info("all %d rounds are done already", settings.run.rounds)
        return strategy.state
    written, noted = now(), -1
    try:
        strategy.roster.wait_for(grid, settings.outer.join_sites, settings.outer.join_deadline)
        if campaign is not None:
            campaign.gather(grid, strategy)
        _check_held_out(strategy)
        strategy.summary()
        while strategy.state.round < settings.run.rounds:
            began = now()
            _one_round(grid, strategy)
            noted = _put_down(folder, strategy, now() - began, noted)
            if strategy.state.failed >= settings.outer.failed_rounds:
                raise _no_quorum(strategy)
            if now() - written >= settings.run.checkpoint_seconds:
                write_checkpoint(folder.checkpoint, strategy.state, settings)
                written = now()
        left_out: dict[str, str] = {}
        if wants_tables and settings.outer.class_tables:
            if campaign is not None:
                campaign.tables_asked()
            published = campaign.challenger(strategy).artefact.params if campaign else strategy.state.published
            strategy.ask_for_class_tables(published)
            replies = collect(grid, strategy.asked, settings.outer.deadline)
            tables = strategy.add_class_tables(replies, left_out.__setitem__)
            strategy.state = dataclasses.replace(strategy.state, prototypes=tables)
    finally:
        folder.note_waiting("")
        if strategy.state.round:
            write_checkpoint(folder.checkpoint, strategy.state, settings)
    if campaign is not None:
        if wants_tables:
            campaign.tables_in(strategy.state.prototypes, left_out)
        campaign.go_on(grid, strategy)
    return strategy.state


def _introductions(grid: Grid, plan: Plan, folder: RunFolder) -> RunState:
    """Have the sites that are connected say what they are, have and wish, and nothing else."""
    roster = Roster(trust_from_environment(folder.identity(), folder.path / ISSUED))
    until = time.monotonic() + ANSWER_SECONDS
    roster.welcome(grid)
    while roster.waiting and time.monotonic() < until:
        time.sleep(PAUSE)
        roster.welcome(grid)
    folder.note_sites(roster.introductions)
    return first_state(plan)


def _one_round(grid: Grid, strategy: Reptile) -> None:
    """Take one round by the hooks that Flower's own ``Strategy.start`` calls, with our deadline."""
    outer, number = strategy.settings.outer, strategy.state.round + 1
    arrays, config = ArrayRecord(), ConfigRecord()  # the strategy has its own state
    strategy.roster.wait_for_share(grid, outer.quorum, outer.deadline)
    strategy.configure_train(number, arrays, config, grid)
    enough = strategy.needed(len(strategy.asked))
    strategy.aggregate_train(number, collect(grid, strategy.asked, outer.deadline, enough))
    _note_missing(grid, strategy, number)
    assert strategy.report is not None
    strategy.report = dataclasses.replace(strategy.report, absent=strategy.roster.absent())
    strategy.configure_evaluate(number, arrays, config, grid)
    strategy.aggregate_evaluate(number, collect(grid, strategy.asked, outer.deadline))
    _note_missing(grid, strategy, number)


def _put_down(folder: RunFolder, strategy: Reptile, seconds: float, noted: int) -> int:
    """Put a round on record, and what sites say about themselves if there are news since ``noted``; return these."""
    report, roster = strategy.report, strategy.roster
    assert report is not None
    folder.append(report, seconds)
    if roster.news != noted:
        folder.note_sites(roster.introductions)
    rounds_log.info(_told(report, strategy.settings.run.rounds), extra={"report": report})
    return roster.news


def _note_missing(grid: Grid, strategy: Reptile, number: int) -> None:
    """Those that have not answered in time are at work still; those whose policy refuses for now rest."""
    roster, deadline = strategy.roster, strategy.settings.outer.deadline
    missing = {site: why for site, why in strategy.missing.items() if site in roster.nodes}
    silent = {site: strategy.asked.ids(site) for site, why in missing.items() if why.cause == "no-reply"}
    roster.keep_busy(grid, silent, number, deadline)
    roster.let_rest(grid, {site: str(why) for site, why in missing.items() if PolicyRefusal.passing(str(why))})


def _told(report: RoundReport, rounds: int) -> str:
    """Return a round in one line for the log."""
    figures = report.figures
    accuracy = (
        f", accuracy {figures['accuracy-before']:.1%} before and {figures['accuracy-after']:.1%} after adaptation"
        if "accuracy-after" in figures
        else ""
    )
    used, asked = len(report.used), len(report.asked)
    return f"round {report.round} of {rounds}: used {used} of {asked} updates, {report.bytes_up} bytes{accuracy}"


def _check_held_out(strategy: Reptile) -> None:
    held, here = strategy.settings.judge.held_out, len(strategy.roster.nodes)
    if held >= here:
        raise RoundError(f"judge.held-out is {held} and {here} sites joined, so none is left to train; lower it")


def _no_quorum(strategy: Reptile) -> RoundError:
    assert strategy.report is not None
    outer, needed = strategy.settings.outer, strategy.needed(len(strategy.report.asked))
    reasons = "; ".join(f"{site}: {why}" for site, why in strategy.report.dropped.items()) or "no site was there to ask"
    rounds = "1 round" if outer.failed_rounds == 1 else f"{outer.failed_rounds} rounds in a row"
    return RoundError(
        f"{rounds} had fewer than {needed} usable updates; the run stops after round {strategy.state.round} and can be "
        f"resumed. Missing in the last: {reasons}"
    )
