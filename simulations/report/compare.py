"""Several runs side by side: those that differ in their seed only stand as one, with its spread over the seeds."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, takewhile
from pathlib import Path
from statistics import fmean, stdev

from rich.table import Table

from common.errors import SettingsError
from common.paths import write_atomically
from common.settings import Value, flatten, parse_toml
from server.service.runs import MAY_CHANGE
from simulations.judging.evaluate import Evaluation, SiteRow
from simulations.report.formats import environment, size
from simulations.report.plots import Curve, Dot, curves_plot, dots_plot, judged_rounds
from simulations.report.recorded import PATHS, RecordedRun, by_training, data_name, read_run

MOST_ROWS = 200
"""Sites of the tables of a page; of more, those with the lowest accuracy in the first run."""
WAYS = ("scratch", "alone", "before", "after")
WAY_NAMES = {"scratch": "from scratch", "alone": "alone", "before": "before", "after": "after"}
SHORT_NAMES = {"scratch": "scratch", "alone": "alone", "before": "before", "after": "adapted"}
IGNORED = (MAY_CHANGE - {"data.sites"}) | {"run.seed", "sites.seed"}
"""Settings that may differ between runs of one group."""


@dataclass(frozen=True)
class Figure:
    """A figure over the seeds of a group: its mean, and the standard deviation if there are two or more."""

    mean: float
    spread: float = math.nan

    @classmethod
    def of(cls, values: Sequence[float | None]) -> "Figure | None":
        """None where a seed has none."""
        present = [value for value in values if value is not None and math.isfinite(value)]
        if not present or len(present) < len(values):
            return None
        return cls(fmean(present), stdev(present) if len(present) > 1 else math.nan)

    def told(self, digits: int, factor: float = 1) -> str:
        parts = [f"{factor * part:.{digits}f}" for part in (self.mean, self.spread) if not math.isnan(part)]
        return "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}".join(parts)


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but their seeds, by seed."""

    name: str
    runs: Sequence[RecordedRun]
    settings: dict[str, Value]
    """Of its first run, those of its federation too."""

    def results(self, test: str) -> list[Evaluation]:
        """Return the results of a test, one for each run; empty if a run lacks it."""
        found = [results[test] for run in self.runs if test in (results := tests_of(run))]
        return found if len(found) == len(self.runs) else []


@dataclass(frozen=True)
class Row:
    """One line of the table of a test: a group, or one of its seeds."""

    name: str
    is_seed: bool
    scratch: Figure | None
    alone: Figure | None
    before: Figure | None
    after: Figure | None
    nll: Figure | None
    ece: Figure | None
    worst: Figure | None
    worst_site: str
    hurt: Figure | None


@dataclass(frozen=True)
class SiteLine:
    """Accuracies of one site, or of a mean over sites, in each group of a test: way -> figure."""

    name: str
    groups: Sequence[dict[str, Figure | None]]
    is_mean: bool = False


@dataclass(frozen=True)
class Test:
    """All that was judged by one protocol."""

    name: str
    groups: Sequence[Group]
    """Those that were judged by it."""
    rows: Sequence[Row]
    sites: Sequence[SiteLine]
    """Means last; empty where the classes of all sites were mixed."""
    alike: bool
    """Whether all runs were judged at the same sites with the same numbers of episodes."""

    @property
    def ways(self) -> list[str]:
        return [way for way in WAYS if way != "alone" or any(row.alone for row in self.rows)]


@dataclass(frozen=True)
class Comparison:
    groups: Sequence[Group]

    @cached_property
    def tests(self) -> list[Test]:
        names = dict.fromkeys(name for group in self.groups for name in tests_of(group.runs[0]) if group.results(name))
        return [_test(name, self.groups) for name in names]

    @property
    def differing(self) -> dict[str, list[str]]:
        """Settings that are not the same in all groups -> the value in each; of paths the last parts."""
        keys = dict.fromkeys(key for group in self.groups for key in group.settings)
        values = {key: [_shown(key, group.settings.get(key)) for group in self.groups] for key in keys}
        return {key: row for key, row in values.items() if len(set(row)) > 1}


def compare(runs: Sequence[Path]) -> Comparison:
    """Read the folders of runs and group those that differ in nothing but their seed, in the order given.

    Raises:
        SettingsError: if there are fewer than two, or one is there twice.
        CheckpointError: if one cannot be read.
    """
    folders = [run.resolve() for run in runs]
    if len(folders) < 2 or len(set(folders)) < len(folders):
        raise SettingsError(f"give two or more different runs to compare, not {', '.join(map(str, runs)) or 'none'}")
    found = [(folder, read_run(folder)) for folder in folders]
    settings = {folder: _settings_of(run) for folder, run in found}
    order = [settings[folder] for folder, _ in found]
    found.sort(key=lambda item: (order.index(settings[item[0]]), item[1].checkpoint.settings.run.seed))
    grouped = [list(group) for _, group in groupby(found, key=lambda item: settings[item[0]])]
    names = _names([[folder for folder, _ in group] for group in grouped])
    return Comparison(
        [
            Group(name, [run for _, run in group], settings[group[0][0]])
            for name, group in zip(names, grouped, strict=True)
        ]
    )


def write_comparison(comparison: Comparison, out: Path) -> Path:
    """Write the page and return its path. It holds no path of this machine and no input of a site."""
    write_atomically(out, render(comparison).encode())
    return out


def render(comparison: Comparison) -> str:
    """Return the page. Equal runs give equal pages."""
    curves = _curves(comparison.groups)
    page = environment()
    page.filters |= {"share": told_share, "figure": told_number}
    return page.get_template("compare.html.j2").render(
        comparison=comparison,
        seeds=any(len(group.runs) > 1 for group in comparison.groups),
        way_names=WAY_NAMES,
        most_rows=MOST_ROWS,
        curves_plot=curves_plot(curves) if curves else None,
        dots_plot=dots_plot(dots) if (dots := _dots(comparison)) else None,
        traffic=[_traffic(group) for group in comparison.groups],
    )


def comparison_tables(comparison: Comparison) -> list[Table]:
    """Return tables for a terminal: one for each test, then what differs between the runs."""
    return [*(_test_table(test) for test in comparison.tests), _runs_table(comparison)]


def as_markdown(comparison: Comparison) -> str:
    """Return the accuracy of each site as tables in Markdown, one for each test and group."""
    parts = []
    for test in comparison.tests:
        if not test.sites:
            continue
        parts.append(f"### {test.name}\n")
        for place, group in enumerate(test.groups):
            lines = [line for line in test.sites if any(line.groups[place].values())]
            seeds = len(group.runs)
            over = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
            parts.append(f"{_cell(group.name)}: accuracy in %, {over}.\n")
            parts.append(_markdown_table(test, lines, place))
    return "\n".join(parts)


def tests_of(run: RecordedRun) -> dict[str, Evaluation]:
    """Return a run's results by what was asked of it: the protocol, and what was set otherwise for it."""
    found: dict[str, Evaluation] = {}
    for evaluation in run.judged:
        name = evaluation.protocol.name + "".join(f", {key}={value}" for key, value in evaluation.changes.items())
        found[f"{name} on {evaluation.data}" if name in found else name] = evaluation
    return found


def told_share(figure: Figure | None) -> str:
    return figure.told(1, 100) + "\N{NO-BREAK SPACE}%" if figure else "–"


def told_number(figure: Figure | None) -> str:
    return figure.told(3) if figure else "–"


def _settings_of(run: RecordedRun) -> dict[str, Value]:
    """Return all that decides what a run computes: its settings, and how its federation's data were dealt."""
    values = flatten(run.checkpoint.settings)
    if run.federation:
        values = {**parse_toml(run.federation, "federation.toml"), **values}
        del values["data.sites"]  # the federation says it better than where its sites lie
    return {key: value for key, value in values.items() if key not in IGNORED}


def _shown(key: str, value: Value | None) -> str:
    if value is None:
        return "–"
    if key in PATHS:
        return "/".join(str(value).replace("\\", "/").rstrip("/").split("/")[-2:])
    return str(value).lower() if isinstance(value, bool) else str(value)


def _names(groups: Sequence[Sequence[Path]]) -> list[str]:
    """Name each group after what its folders' names begin with; if that does not tell them apart, after all of them."""
    names = [_common_name([folder.name for folder in folders]) for folders in groups]
    if len(set(names)) == len(names) and all(names):
        return names
    return [", ".join(f"{folder.parent.name}/{folder.name}" for folder in folders) for folders in groups]


def _common_name(names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    same = takewhile(lambda signs: len(set(signs)) == 1, zip(*names, strict=False))
    return "".join(signs[0] for signs in same).rstrip("0123456789").rstrip("-_. ")


def _test(name: str, everyone: Sequence[Group]) -> Test:
    groups = [group for group in everyone if group.results(name)]
    rows = [row for group in groups for row in _rows(group, group.results(name))]
    results = [result for group in groups for result in group.results(name)]
    judged = {(tuple(sorted(result.sites)), result.protocol.episodes, result.data) for result in results}
    return Test(name, groups, rows, _site_lines(name, groups), alike=len(judged) <= 1)


def _rows(group: Group, results: Sequence[Evaluation]) -> Iterator[Row]:
    yield _row(group.name, False, results)
    if len(results) > 1:
        for run, result in zip(group.runs, results, strict=True):
            yield _row(f"seed {run.checkpoint.settings.run.seed}", True, [result])


def _row(name: str, is_seed: bool, results: Sequence[Evaluation]) -> Row:
    pooled = results[0].protocol.pooled
    means = {site: Figure.of([result.sites[site].after for result in results]) for site in _common_sites(results)}
    known = {site: figure.mean for site, figure in means.items() if figure}
    worst = "" if pooled or not known else min(known, key=lambda site: known[site])
    return Row(
        name,
        is_seed,
        Figure.of([result.scratch.mean for result in results]),
        Figure.of([result.alone.mean if result.alone else None for result in results]),
        Figure.of([result.before.mean for result in results]),
        Figure.of([result.after.mean for result in results]),
        Figure.of([result.after.nll for result in results]),
        Figure.of([result.after.ece for result in results]),
        means[worst] if worst else None,
        worst,
        None if pooled else Figure.of([result.share_hurt for result in results]),
    )


def _site_lines(test: str, groups: Sequence[Group]) -> list[SiteLine]:
    """Return a line for each site, lowest accuracy first, and then means over them."""
    results = [group.results(test) for group in groups]
    if any(result.protocol.pooled for found in results for result in found):
        return []
    names = sorted({site for found in results for site in _common_sites(found)})
    lines = [SiteLine(name, [_of_sites(found, [name]) for found in results]) for name in names]
    lines.sort(key=lambda line: min((group["after"].mean for group in line.groups if group["after"]), default=2.0))
    return lines + _mean_lines(results)


def _mean_lines(results: Sequence[Sequence[Evaluation]]) -> list[SiteLine]:
    """Return the mean over all sites; where there are both, before it over those that trained and over the others."""
    everything: dict[str, SiteRow] = {
        name: row for found in results for one in found for name, row in one.sites.items()
    }
    groups = by_training(everything)
    called = {True: "mean of sites that trained", False: "mean of sites that never did"}
    kinds = {called[trained]: names for trained, names in groups.items()} if len(groups) > 1 else {}
    means = {**kinds, "mean": list(everything)}
    return [
        SiteLine(
            name,
            [_of_sites(found, [site for site in sites if site in _common_sites(found)]) for found in results],
            True,
        )
        for name, sites in means.items()
    ]


def _of_sites(results: Sequence[Evaluation], sites: Sequence[str]) -> dict[str, Figure | None]:
    """Return for each way the mean over sites, each weighing the same, as a figure over the seeds."""
    if not sites or not set(sites) <= set(_common_sites(results)):
        return dict.fromkeys(WAYS)
    return {way: Figure.of([_mean_of(result, sites, way) for result in results]) for way in WAYS}


def _mean_of(result: Evaluation, sites: Sequence[str], way: str) -> float | None:
    values = [getattr(result.sites[site], way) for site in sites]
    return None if None in values else fmean(values)


def _common_sites(results: Sequence[Evaluation]) -> list[str]:
    """Return the sites that all of the results have."""
    return sorted(set.intersection(*(set(result.sites) for result in results))) if results else []


def _curves(groups: Sequence[Group]) -> list[Curve]:
    """Return accuracy by round, as the mean over those seeds of a group that were judged in that round."""
    found = []
    for group in groups:
        by_round: dict[int, list[float]] = {}
        for run in group.runs:
            for line in judged_rounds(run.journal):
                by_round.setdefault(line.round, []).append(line.figures["accuracy-after"])
        if by_round:
            figures = [Figure(fmean(values), stdev(values) if len(values) > 1 else 0.0) for values in by_round.values()]
            found.append(Curve(group.name, list(by_round), [f.mean for f in figures], [f.spread for f in figures]))
    return found


def _dots(comparison: Comparison) -> list[Dot]:
    return [
        Dot(
            test.name,
            row.name,
            {way: (figure.mean, figure.spread) for way in WAYS if (figure := getattr(row, way)) is not None},
        )
        for test in comparison.tests
        for row in test.rows
        if not row.is_seed
    ]


def _traffic(group: Group) -> dict[str, str]:
    """Return what a group took, as means over its seeds."""
    sites = [len(run.trained_sites) for run in group.runs]
    return {
        "name": group.name,
        "seeds": ", ".join(str(run.checkpoint.settings.run.seed) for run in group.runs),
        "data": data_name(group.runs[0].checkpoint.settings),
        "rounds": " / ".join(dict.fromkeys(str(run.checkpoint.state.round) for run in group.runs)),
        "sites": " / ".join(dict.fromkeys(map(str, sites))) if all(run.journal for run in group.runs) else "–",
        "down": size(fmean(run.bytes_down for run in group.runs)),
        "up": size(fmean(run.bytes_up for run in group.runs)),
    }


def _test_table(test: Test) -> Table:
    unlike = "" if test.alike else "; not all judged alike, on the same data and sites"
    table = Table(title=f"{test.name}: accuracy, ECE and sites made worse in %{unlike}")
    for heading in ("run", *(SHORT_NAMES[way] for way in test.ways)):
        table.add_column(heading)
    for heading in ("NLL", "ECE", "worst site", "worse"):
        table.add_column(heading)
    for row in test.rows:
        worst = f"{_in_percent(row.worst)} {row.worst_site}".strip()
        ways = [_in_percent(getattr(row, way)) for way in test.ways]
        cells = [*ways, told_number(row.nll), _in_percent(row.ece), worst, _in_percent(row.hurt)]
        table.add_row(f"  {row.name}" if row.is_seed else row.name, *cells, style="dim" if row.is_seed else None)
    return table


def _runs_table(comparison: Comparison) -> Table:
    table = Table(title="what the runs took, and the settings that differ")
    table.add_column("")
    traffic = [_traffic(group) for group in comparison.groups]
    for group in comparison.groups:
        table.add_column(group.name)
    headings = {
        "seeds": "seeds",
        "rounds": "rounds",
        "sites": "sites that trained",
        "down": "sent to sites",
        "up": "came back",
    }
    for key, heading in headings.items():
        table.add_row(heading, *(row[key] for row in traffic))
    for key, values in comparison.differing.items():
        table.add_row(key, *values)
    return table


def _markdown_table(test: Test, lines: Sequence[SiteLine], place: int) -> str:
    ways = [way for way in test.ways if any(line.groups[place][way] for line in lines)]
    rows = [["site", *(SHORT_NAMES[way] for way in ways)], ["---", *("---:" for _ in ways)]]
    for line in lines:
        name = f"**{_cell(line.name)}**" if line.is_mean else _cell(line.name)
        rows.append([name, *(_in_percent(line.groups[place][way]) for way in ways)])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _in_percent(figure: Figure | None) -> str:
    return figure.told(1, 100) if figure else "–"


def _cell(text: str) -> str:
    """Return a name as text of Markdown, where signs such as | and * would mean something."""
    return "".join(f"\\{sign}" if sign in "\\|*_`<>[]&#" else sign for sign in " ".join(text.split()))
