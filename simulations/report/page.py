"""One HTML page about a run, for people who do not read code: needs no network, no script, nothing beside it."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean

from markupsafe import Markup

from common.paths import write_atomically
from common.settings import Settings, Value, as_toml, flatten, meanings
from server.reptile import RoundReport
from simulations.judging.evaluate import Evaluation, Score, SiteRow
from simulations.report.examples import telling_columns
from simulations.report.formats import environment
from simulations.report.plots import (
    MOST_SITES,
    accuracy_plot,
    calibration_plot,
    judged_rounds,
    lowest_first,
    sites_plot,
    traffic_plot,
)
from simulations.report.recorded import PATHS, RecordedRun, by_training, data_name, read_run, shown_settings

NAME = "report.html"
LARGEST_MATRIX = 20
"""Classes up to which mistakes are shown as a matrix."""
MISTAKES = 10
MOST_ROWS = 200
"""Rows of the table of sites; of more sites, those with most dropped replies come first."""
CAUSES = {
    "no-reply": "no answer within the deadline",
    "error-reply": "the site answered that it could not do it",
    "not-finite": "the answer held numbers that are not finite",
}
"""In plain words; any other cause means that an answer was not of the agreed form."""
SHOWN_AS = {"image": "pictures", "vector": "curves", "table": "rows"}
"""What the examples are, by ``data.kind``."""


@dataclass(frozen=True)
class SiteCount:
    """What the journal tells of one site."""

    name: str
    asked: int
    used: int
    causes: Mapping[str, int]
    """Cause -> rounds in which the site's reply was dropped for it."""

    @property
    def dropped(self) -> int:
        return sum(self.causes.values())

    @property
    def unused(self) -> int:
        """Rounds in which the reply was fine, but too few other sites' were."""
        return self.asked - self.used - self.dropped


@dataclass(frozen=True)
class Cell:
    count: int
    share: float
    """Of the inputs of the row's class."""
    hit: bool


@dataclass(frozen=True)
class GroupMean:
    """Mean over judged sites that took part in training, or over those that never did; each site weighs the same."""

    trained: bool
    count: int
    after: float
    before: float
    scratch: float
    alone: float | None


@dataclass(frozen=True)
class Judged:
    """A judgement, with what the page derives from it."""

    evaluation: Evaluation
    trained_sites: Sequence[str]
    """All sites that took part in training."""

    @property
    def judged_sites(self) -> Sequence[str]:
        """Names of the sites that were judged on, also where their classes were mixed."""
        return self.evaluation.judged_sites or sorted(self.evaluation.sites)

    @property
    def held_back(self) -> Sequence[str]:
        """Judged sites that took part in training and are judged on what they held back from it."""
        if self.evaluation.protocol.pooled:
            trained = any(row.trained for row in self.evaluation.sites.values())
            return self._named_like_trained if trained else []
        return [name for name, row in sorted(self.evaluation.sites.items()) if row.trained]

    @property
    def familiar(self) -> Sequence[str]:
        """Other judged sites that bear the name of one that took part in training."""
        return sorted(set(self._named_like_trained) - set(self.held_back))

    @property
    def _named_like_trained(self) -> Sequence[str]:
        return sorted(set(self.judged_sites) & set(self.trained_sites))

    @property
    def scores(self) -> Sequence[tuple[str, Score]]:
        """The ways that were judged, by what they are called."""
        found = self.evaluation
        rows = [("after adaptation", found.after), ("before adaptation", found.before), ("from scratch", found.scratch)]
        return [*rows, ("alone", found.alone)] if found.alone else rows

    @property
    def plot(self) -> Markup | None:
        """None where the classes of all sites were mixed."""
        found = self.evaluation
        return None if found.protocol.pooled or not found.sites else sites_plot(found.sites, found.worst_site)

    @property
    def calibration(self) -> Markup | None:
        """None where no query was counted."""
        counted = sum(count for count, _, _ in self.evaluation.after.bins)
        return calibration_plot(self.evaluation) if counted else None

    @property
    def means(self) -> Sequence[GroupMean]:
        """Of sites that took part in training and of those that never did, as far as they were judged."""
        groups = by_training(self.evaluation.sites)
        return [_mean(trained, [self.evaluation.sites[name] for name in names]) for trained, names in groups.items()]

    @property
    def telling(self) -> Sequence[Sequence[int]]:
        """For each shown episode of a table: places of the columns that differ most between its classes."""
        return [sorted(telling_columns(episode.support)) for episode in self.evaluation.shown]

    @property
    def unchanged(self) -> bool:
        """Whether adaptation changed nothing at all."""
        return self.evaluation.before == self.evaluation.after

    @property
    def rows(self) -> Sequence[tuple[str, SiteRow]]:
        """Sites, lowest accuracy after adaptation first."""
        return lowest_first(self.evaluation.sites)

    @property
    def queries(self) -> int:
        return sum(count for _, _, count in self.evaluation.confusion)

    @property
    def wrong(self) -> int:
        return sum(count for _, _, count in self.mistakes)

    @cached_property
    def mistakes(self) -> Sequence[tuple[str, str, int]]:
        """(true class, predicted class, inputs), most frequent first."""
        wrong = [row for row in self.evaluation.confusion if row[0] != row[1]]
        return sorted(wrong, key=lambda row: -row[2])

    @cached_property
    def classes(self) -> Sequence[str]:
        return sorted({name for true, predicted, _ in self.evaluation.confusion for name in (true, predicted)})

    @property
    def matrix(self) -> Sequence[Sequence[Cell]] | None:
        """One row for each true class, one cell for each predicted one; None with too many classes."""
        if not 0 < len(self.classes) <= LARGEST_MATRIX:
            return None
        counts = {(true, predicted): count for true, predicted, count in self.evaluation.confusion}
        totals = {name: sum(counts.get((name, other), 0) for other in self.classes) or 1 for name in self.classes}
        return [
            [
                Cell(count := counts.get((true, name), 0), count / totals[true], hit=true == name)
                for name in self.classes
            ]
            for true in self.classes
        ]


@dataclass(frozen=True)
class SettingRow:
    key: str
    value: Value
    default: Value
    meaning: str

    @property
    def changed(self) -> bool:
        return self.value != self.default


def write_report(run: Path) -> Path:
    """Write ``report.html`` into a run's folder, or replace it, and return its path.

    The page holds inputs of the sites that were judged on, if any were, and no path of this machine.

    Raises:
        CheckpointError: if the checkpoint, the journal or a result of judging cannot be read.
    """
    path = run / NAME
    write_atomically(path, render(read_run(run)).encode())
    return path


def render(run: RecordedRun) -> str:
    """Return the page. Equal runs give equal pages."""
    settings = run.checkpoint.settings
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            run=run,
            settings=settings,
            data=data_name(settings),
            kind=settings.data.kind,
            shown_as=SHOWN_AS[settings.data.kind],
            judged=[Judged(evaluation, run.trained_sites) for evaluation in run.judged],
            accuracy_plot=accuracy_plot(run.journal) if judged_rounds(run.journal) else None,
            traffic_plot=traffic_plot(run.journal) if run.journal else None,
            sites=site_counts(run.journal),
            causes=CAUSES,
            setting_rows=setting_rows(settings),
            file="federation.toml" if run.federation else "settings.toml",
            toml=_without_initial(run.federation) if run.federation else as_toml(settings, PATHS),
            most_rows=MOST_ROWS,
            most_plotted=MOST_SITES,
            most_mistakes=MISTAKES,
        )
    )


def site_counts(journal: Sequence[RoundReport]) -> list[SiteCount]:
    """Count by site how often it was asked and used, those with most dropped replies first."""
    asked = Counter(site for line in journal for site in line.asked)
    used = Counter(site for line in journal for site in line.used)
    causes: dict[str, Counter[str]] = {}
    for line in journal:
        for site, why in line.dropped.items():
            causes.setdefault(site, Counter())[why.partition(":")[0]] += 1
    rows = [SiteCount(name, asked[name], used[name], causes.get(name, {})) for name in asked]
    return sorted(rows, key=lambda row: (-row.dropped, row.name))


def setting_rows(settings: Settings) -> list[SettingRow]:
    """Return every setting with its default; of paths the last part only."""
    meaning, defaults = meanings(settings), flatten(Settings())
    return [SettingRow(key, value, defaults[key], meaning[key]) for key, value in shown_settings(settings).items()]


def _mean(trained: bool, rows: Sequence[SiteRow]) -> GroupMean:
    alone = [row.alone for row in rows if row.alone is not None]
    return GroupMean(
        trained,
        len(rows),
        fmean(row.after for row in rows),
        fmean(row.before for row in rows),
        fmean(row.scratch for row in rows),
        fmean(alone) if alone else None,
    )


def _without_initial(federation: str) -> str:
    """Leave out the checkpoint that a run began from, which is a path of the machine that ran."""
    return re.sub(r"^initial *=.*\n?", "", federation, flags=re.MULTILINE)
