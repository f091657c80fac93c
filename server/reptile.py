"""Reptile as a strategy of Flower's Message API.

The algorithm itself is ``common.learning.reptile``; here it meets messages. The strategy holds what passes
between rounds (``state``) and what it asked last, nothing else.
"""

import dataclasses
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from common.checkpoint import RunState
from common.errors import PolicyRefusal, UpdateError
from common.learning.params import Params
from common.messages import (
    Candidate,
    ClassTable,
    GateReport,
    GateRequest,
    Request,
    decode_class_table,
    decode_gate_report,
    decode_judged,
    decode_update,
    encode_gate_request,
    encode_request,
    payload_bytes,
)
from common.plan import Plan
from common.trust.seals import Opened
from server.collect import Asked, in_order, sort_out
from server.outer import Updates, advance, step_size, without_quorum
from server.roster import Roster, held_out, sample_sites
from server.trust import NoKeys, Trust, base_of

log = logging.getLogger("fedreptile.server")


@dataclass(frozen=True)
class RoundReport:
    """What happened in a round: one line of the journal."""

    round: int
    step_size: float
    asked: tuple[str, ...]
    used: tuple[str, ...]
    dropped: Mapping[str, str]
    """Site -> why its reply is missing or was not used."""
    quorum: bool
    bytes_down: int
    bytes_up: int
    figures: Mapping[str, float]
    """Mean over the sites whose updates were used."""
    sites: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Judged sites -> accuracy before and after."""
    causes: Mapping[str, int] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)
    """Sites of the run that could not be asked -> why."""
    ledgers: Mapping[str, str] = field(default_factory=dict)
    """Sites whose updates were used -> stamp of the entry in the site's own ledger, which so has a witness."""


@dataclass(frozen=True)
class Question:
    """What an answer has to belong to."""

    round: int
    kind: str
    base: str


class Reptile(Strategy):
    """Move the params along the mean update of the sampled sites; judge on held-out sites.

    It works under Flower's own ``Strategy.start`` (pass ``arrays()`` as the initial arrays) and
    under ``server.rounds``, which adds checkpoints, resuming and a deadline of its own. The state is
    the strategy's: the arrays that Flower hands back and forth are a copy for its use.
    """

    def __init__(self, plan: Plan, state: RunState, roster: Roster, trust: Trust | None = None) -> None:
        self.plan = plan
        self.settings = plan.settings
        self.state = state
        self.roster = roster
        self.trust = trust or NoKeys()
        self.asked = Asked({})
        self.missing: Mapping[str, UpdateError] = {}
        """Sites that were asked last and have sent nothing but perhaps an error, and why."""
        self.report: RoundReport | None = None
        self._question = Question(0, "", "")
        self._bytes_down = 0
        self._held_out: tuple[list[str], frozenset[str]] = ([], frozenset())
        """The sites that were here, and those of them that are only judged."""

    def arrays(self) -> ArrayRecord:
        """Return the global params as one flat array."""
        return ArrayRecord({"params": Array(self.plan.params.pack(self.state.params).numpy())})

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask this round's sample of sites to adapt, and from time to time to judge as well."""
        self.roster.welcome(grid)
        away = self._only_judged()
        names = [name for name in self.roster.free() if name not in away]
        chosen = sample_sites(names, self.state.round, self.settings)
        due = self._judging_is_due(self.state.round + 1) and not self.settings.judge.held_out
        return self._ask(chosen, "train", judge=due)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Check each reply on its own and take the outer step with those that fit, in site-name order.

        An update is added to their mean as soon as all sites before it have answered, and not kept. What does not fit
        is dropped and counted by cause; below the quorum the params stay.
        """
        updates = Updates(self.plan)
        used: dict[str, Mapping[str, float]] = {}
        missing: dict[str, UpdateError] = {}
        dropped: dict[str, UpdateError] = {}
        ledgers: dict[str, str] = {}
        bytes_up = 0
        for site, reply in in_order(self.asked, replies):
            if isinstance(reply, UpdateError):
                missing[site] = reply
                continue
            try:
                bytes_up += sum(payload_bytes(reply.content).values())
                answer = self._opened(site, reply)
                update = decode_update(answer.content, self.plan.agreed)
                updates.add(update)
                used[site] = update.scalars
                ledgers |= {site: answer.facts.ledger} if answer.facts.ledger else {}
            except UpdateError as error:
                dropped[site] = error
        self.missing = missing
        dropped = dict(sorted({**missing, **dropped}.items()))
        for site, why in dropped.items():
            log.warning("round %d: nothing used from site %s: %s", self.state.round + 1, site, why)
        quorum = len(used) >= self.needed(len(self.asked))
        self.report = RoundReport(
            round=self.state.round + 1,
            step_size=step_size(self.state.round, self.settings),
            asked=tuple(self.asked),
            used=tuple(used) if quorum else (),
            dropped={site: str(error) for site, error in dropped.items()},
            quorum=quorum,
            bytes_down=self._bytes_down,
            bytes_up=bytes_up,
            figures=_means(list(used.values())),
            sites={site: _accuracies(scalars) for site, scalars in used.items() if "accuracy-after" in scalars},
            causes=dict(Counter(error.cause for error in dropped.values())),
            absent=self.roster.absent(),
            ledgers=ledgers,
        )
        if not quorum:
            resting = sum(bool(PolicyRefusal.passing(str(error))) for error in dropped.values())
            fault = len(used) + resting < self.needed(len(self.asked))
            self.state = without_quorum(self.state, fault=fault)
            return None, None
        self.state = advance(self.state, updates.mean(), self.settings)
        return self.arrays(), MetricRecord(dict(self.report.figures))

    def needed(self, asked: int) -> int:
        """Return how many usable updates a round with this many asked sites needs; in a campaign never one alone, so
        that no aggregate is one site's update."""
        least = 2 if self.settings.campaign.class_ else 1
        return max(least, math.ceil(self.settings.outer.quorum * asked))

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask the held-out sites to judge, every ``judge.every`` rounds and after the last."""
        due = self._judging_is_due(self.state.round)
        judges = self._only_judged() if due else frozenset()
        free = self.roster.free() if judges else []
        return self._ask([name for name in free if name in judges], "evaluate", judge=True)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Take the mean over the held-out sites that answered, each weighing the same."""
        missing: dict[str, UpdateError] = {}
        judged: dict[str, Mapping[str, float]] = {}
        for site, reply in in_order(self.asked, replies):
            if isinstance(reply, UpdateError):
                log.warning("judging: nothing from site %s: %s", site, reply)
                missing[site] = reply
                continue
            try:
                judged[site] = decode_judged(self._opened(site, reply).content).scalars
            except UpdateError as error:
                log.warning("judging: nothing used from site %s: %s", site, error)
        self.missing = missing
        if not judged or self.report is None:
            return None
        figures = _means(list(judged.values()))
        self.report = dataclasses.replace(
            self.report,
            figures={**self.report.figures, **figures},
            sites={site: _accuracies(scalars) for site, scalars in judged.items()},
        )
        return MetricRecord(dict(figures))

    def ask_for_class_tables(self, params: Params) -> Iterable[Message]:
        """Ask every site for sums of embeddings by class under the params that are to be published."""
        return self._ask(self.roster.free(), "query.class_table", judge=False, params=params)

    def add_class_tables(
        self, replies: Iterable[Message], tell: Callable[[str, str], None] = lambda site, why: None
    ) -> dict[str, tuple[torch.Tensor, int]]:
        """Return sums of embeddings and counts by class name, over the sites that let theirs out.

        Args:
            tell: is told which site has classes that are not in its table, or no table, and why.
        """
        found: dict[str, tuple[torch.Tensor, int]] = {}
        for site, reply in in_order(self.asked, replies):
            if isinstance(reply, UpdateError):
                log.info("no class table from site %s: %s", site, reply)
                tell(site, str(reply))
                continue
            try:
                table = decode_class_table(self._opened(site, reply).content, self.plan.agreed)
                _add_table(found, table)
                if few := sorted(self.roster.introductions[site].classes.keys() - set(table.names)):
                    tell(site, f"classes.minimum: {', '.join(few)}")
            except UpdateError as error:
                log.warning("class table of site %s dropped: %s", site, error)
                tell(site, str(error))
        return dict(sorted(found.items()))

    def ask_for_gate(
        self, champion: Candidate, challenger: Candidate, exact: Params | None = None
    ) -> Iterable[Message]:
        """Ask every site to judge two models on what it holds back.

        Args:
            exact: the challenger's params before they were rounded, if they were.
        """
        number = self.state.round + 1
        before = None if exact is None else self.plan.params.pack(exact).numpy()
        request = GateRequest(number, self.settings.campaign.class_, champion, challenger, before)
        return self._send(
            self.roster.free(), "query.gate", encode_gate_request(request, self.plan.agreed.digest), number
        )

    def gate_reports(self, replies: Iterable[Message]) -> tuple[dict[str, GateReport], dict[str, str]]:
        """Return the checked reports by site, and for the other asked sites why there is none."""
        sorted_out = sort_out(self.asked, replies)
        missing = {site: str(why) for site, why in sorted_out.missing.items()}
        reports: dict[str, GateReport] = {}
        for site, reply in sorted_out.by_site.items():
            try:
                reports[site] = decode_gate_report(self._opened(site, reply).content)
            except UpdateError as error:
                missing[site] = str(error)
        for site, told in missing.items():
            log.warning("gate: nothing used from site %s: %s", site, told)
        return reports, missing

    def summary(self) -> None:
        """Log what the strategy does."""
        outer = self.settings.outer
        log.info(
            "Reptile: step size %g%s, %s sites a round, quorum %g, %s outer step, %d params",
            outer.meta_step_size,
            " to 0" if outer.anneal else "",
            outer.sites_per_round or "all",
            outer.quorum,
            outer.optimizer,
            self.plan.agreed.params,
        )

    def _only_judged(self) -> frozenset[str]:
        """Return the held-out sites of those that are here; worked out anew only when others are."""
        here = self.roster.here
        if here is not self._held_out[0]:
            self._held_out = here, frozenset(held_out(here, self.settings))
        return self._held_out[1]

    def _judging_is_due(self, round_number: int) -> bool:
        every = self.settings.judge.every
        return bool(every) and (round_number % every == 0 or round_number == self.settings.run.rounds)

    def _ask(self, sites: list[str], kind: str, *, judge: bool, params: Params | None = None) -> Iterable[Message]:
        packed = self.plan.params.pack(self.state.params if params is None else params).numpy()
        request = Request(self.state.round + 1, packed, self.plan.slots.pack(self.state.slots).numpy(), judge)
        return self._send(sites, kind, encode_request(request, self.plan.agreed.digest), request.round)

    def _send(self, sites: list[str], kind: str, request: RecordDict, number: int) -> Iterable[Message]:
        """Note what is asked of whom, sealed, and return the messages."""
        self.asked, self._bytes_down = Asked({}), 0
        if not sites:
            return []
        content = self.trust.request(request, number, kind)
        group = str(number)
        self._question = Question(number, kind, base_of(content))
        self.asked = Asked({site: Message(content, self.roster.nodes[site], kind, group_id=group) for site in sites})
        self._bytes_down = len(sites) * sum(payload_bytes(content).values())
        return self.asked.messages()

    def _opened(self, site: str, reply: Message) -> Opened:
        question = self._question
        return self.trust.answer(reply.content, site, question.round, question.kind, question.base)


def _means(scalars: list[Mapping[str, float]]) -> dict[str, float]:
    names = sorted(set().union(*scalars)) if scalars else []
    columns = {name: [row[name] for row in scalars if name in row] for name in names}
    return {name: sum(values) / len(values) for name, values in columns.items()}


def _accuracies(scalars: Mapping[str, float]) -> dict[str, float]:
    return {name: scalars[name] for name in ("accuracy-before", "accuracy-after") if name in scalars}


def _add_table(found: dict[str, tuple[torch.Tensor, int]], table: ClassTable) -> None:
    for name, count, total in zip(table.names, table.counts, table.sums, strict=True):
        before, seen = found.get(name, (torch.zeros(len(total), dtype=torch.float64), 0))
        found[name] = (before + torch.tensor(total, dtype=torch.float64), seen + count)
