"""One HTML page about a run, for people who do not read code: needs no network, no script, nothing beside it."""

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from common.checkpoint import Checkpoint, read_checkpoint, write_atomically
from common.errors import CheckpointError
from common.settings import Settings, Value, as_toml, flatten
from server.reptile import RoundReport
from server.rounds import JOURNAL, read_journal
from simulations.evaluate import Evaluation, SiteRow
from simulations.plots import MOST_SITES, accuracy_plot, judged_rounds, lowest_first, sites_plot, traffic_plot

NAME = "report.html"
LARGEST_MATRIX = 20
"""Classes up to which mistakes are shown as a matrix."""
MISTAKES = 10
MOST_ROWS = 200
"""Rows of the table of sites; of more sites, those with most dropped replies come first."""
PATHS = ("run.dir", "data.sites", "model.initial")
"""Settings that hold paths of the machine that ran; of these the page shows the last part."""
CAUSES = {
    "no-reply": "no answer within the deadline",
    "error-reply": "the site answered that it could not do it",
    "not-finite": "the answer held numbers that are not finite",
}
"""In plain words; any other cause means that an answer was not of the agreed form."""


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
class Judged:
    """A judgement, with what the page derives from it."""

    evaluation: Evaluation
    familiar: Sequence[str]
    """Judged sites that bear the name of one that took part in training."""
    plot: Markup | None
    """None where the classes of all sites were mixed."""

    @property
    def judged_sites(self) -> Sequence[str]:
        return judged_sites(self.evaluation)

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


@dataclass(frozen=True)
class RecordedRun:
    """What a run left in its folder."""

    name: str
    checkpoint: Checkpoint
    journal: Sequence[RoundReport]
    judged: Sequence[Evaluation]

    @property
    def trained_sites(self) -> list[str]:
        """Sites of which an update was used at least once, sorted."""
        return sorted({site for line in self.journal for site in line.used})

    @property
    def bytes_up(self) -> int:
        return sum(line.bytes_up for line in self.journal)

    @property
    def bytes_down(self) -> int:
        return sum(line.bytes_down for line in self.journal)

    @property
    def causes(self) -> Mapping[str, int]:
        """Cause -> replies dropped for it, most frequent first."""
        total = sum((Counter(line.causes) for line in self.journal), Counter[str]())
        return dict(total.most_common())


def write_report(run: Path) -> Path:
    """Write ``report.html`` into a run's folder, or replace it, and return its path.

    The page holds pictures of the sites that were judged on, if any were, and no path of this machine.

    Raises:
        CheckpointError: if the checkpoint, the journal or a result of judging cannot be read.
    """
    path = run / NAME
    write_atomically(path, render(read_run(run)).encode())
    return path


def read_run(run: Path) -> RecordedRun:
    """Read a run's folder. Raises CheckpointError naming the file that cannot be read."""
    checkpoint = read_checkpoint(run)
    judged = [_read_judged(path, run) for path in sorted(run.glob("judged-*.json"))]
    return RecordedRun(run.resolve().name, checkpoint, _read_journal(run), judged)


def render(run: RecordedRun) -> str:
    """Return the page. Equal runs give equal pages."""
    environment = Environment(
        loader=PackageLoader("simulations"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"percent": percent, "number": number, "size": size, "folder": folder_name}
    settings = run.checkpoint.settings
    return environment.get_template("report.html.j2").render(
        run=run,
        settings=settings,
        data=folder_name(settings.data.sites),
        judged=[_judged(run, evaluation) for evaluation in run.judged],
        judged_rounds=judged_rounds(run.journal),
        accuracy_plot=accuracy_plot(run.journal) if judged_rounds(run.journal) else None,
        traffic_plot=traffic_plot(run.journal) if run.journal else None,
        sites=site_counts(run.journal),
        causes=CAUSES,
        setting_rows=setting_rows(settings),
        toml=as_toml(settings, PATHS),
        most_rows=MOST_ROWS,
        most_plotted=MOST_SITES,
        most_mistakes=MISTAKES,
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


def judged_sites(evaluation: Evaluation) -> list[str]:
    """Return the names of the sites that were judged on, also where their classes were mixed."""
    if not evaluation.protocol.pooled:
        return sorted(evaluation.sites)
    return sorted({true.partition("/")[0] for true, _, _ in evaluation.confusion})


def setting_rows(settings: Settings) -> list[SettingRow]:
    """Return every setting with its default; of paths the last part only."""
    meanings = {
        f"{section.name}.{item.name}".replace("_", "-"): item.metadata["meaning"]
        for section in dataclasses.fields(settings)
        for item in dataclasses.fields(getattr(settings, section.name))
    }
    values, defaults = flatten(settings), flatten(Settings())
    shown = {key: folder_name(str(value)) if key in PATHS else value for key, value in values.items()}
    return [SettingRow(key, value, defaults[key], meanings[key]) for key, value in shown.items()]


def percent(share: float) -> str:
    return f"{share:.1%}".replace("%", "\N{NO-BREAK SPACE}%") if math.isfinite(share) else "–"


def number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "–"


def size(count: int) -> str:
    """Return a number of bytes in the largest unit that fits."""
    for unit, least in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= least:
            return f"{count / least:.1f}\N{NO-BREAK SPACE}{unit}"
    return f"{count}\N{NO-BREAK SPACE}bytes"


def folder_name(path: str) -> str:
    """Return the last part of a path of any machine."""
    return path.replace("\\", "/").rstrip("/").rpartition("/")[2]


def _judged(run: RecordedRun, evaluation: Evaluation) -> Judged:
    familiar = sorted(set(judged_sites(evaluation)) & set(run.trained_sites))
    if evaluation.protocol.pooled or not evaluation.sites:
        return Judged(evaluation, familiar, None)
    return Judged(evaluation, familiar, sites_plot(evaluation.sites, evaluation.worst_site))


def _read_journal(run: Path) -> list[RoundReport]:
    try:
        return [_built(RoundReport, line, f"line {number}") for number, line in enumerate(read_journal(run), 1)]
    except (OSError, ValueError) as error:
        path = run / JOURNAL
        raise CheckpointError(
            f"{path} is not a journal that can be read: {error}; move it away for a report without it"
        ) from error


def _read_judged(path: Path, run: Path) -> Evaluation:
    try:
        found: Evaluation = _built(Evaluation, json.loads(path.read_bytes()), "it")
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a result of judging that can be read: {error}; remove it, "
            f"or make it anew with 'fedreptile-sim evaluate {run} --data FOLDER'"
        ) from error
    return found


def _built(kind: Any, value: Any, where: str) -> Any:
    """Build a value of a type from what JSON made of it: the inverse of ``asdict`` and ``json``.

    Keys that a dataclass does not have are left out. Raises ValueError that says where what is wrong.
    """
    inner = get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _built_dataclass(kind, _of(dict, value, where), where)
    if get_origin(kind) is Mapping:
        return {key: _built(inner[1], item, f"{where}: {key}") for key, item in _of(dict, value, where).items()}
    if get_origin(kind) in (Sequence, tuple):
        items = _of(list, value, where)
        kinds = inner if get_origin(kind) is tuple and ... not in inner else inner[:1] * len(items)
        if len(kinds) != len(items):
            raise ValueError(f"{where} has {len(items)} parts; expected {len(kinds)}")
        return tuple(
            _built(part, item, f"{where}[{i}]") for i, (part, item) in enumerate(zip(kinds, items, strict=True))
        )
    return float(value) if kind is float and type(value) is int else _of(kind, value, where)


def _built_dataclass(kind: Any, values: Mapping[str, Any], where: str) -> Any:
    hints = get_type_hints(kind)
    for item in dataclasses.fields(kind):
        needed = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        if needed and item.name not in values:
            raise ValueError(f"{where} has no {item.name!r}")
    return kind(**{key: _built(hints[key], value, f"{where}: {key}") for key, value in values.items() if key in hints})


def _of(kind: type, value: Any, where: str) -> Any:
    if type(value) is not kind:
        raise ValueError(f"{where} is {str(value)[:40]!r}; expected {kind.__name__}")
    return value
