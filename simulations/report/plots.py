"""Plots of a report, as SVG to stand inline in an HTML page: text stays text, the same input gives the same bytes."""

import io
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from server.reptile import RoundReport
from simulations.judging.evaluate import Evaluation, Score, SiteRow

WIDTH = 7.5
"""Inches."""
BEFORE: Mapping[str, Any] = {"color": "#666666", "marker": "o", "markersize": 8, "markerfacecolor": "white"}
AFTER: Mapping[str, Any] = {"color": "#0072B2", "marker": "o", "markersize": 5}
SCRATCH: Mapping[str, Any] = {"color": "#B34700", "marker": "x"}
ALONE: Mapping[str, Any] = {"color": "#00694D", "marker": "D", "markersize": 8, "markerfacecolor": "none"}
"""Told apart by shape as well as by colour (Okabe and Ito's palette, darkened to be read on white)."""
MOST_SITES = 60
"""Sites that a plot by site shows; of more, those with the lowest accuracy."""
LONGEST_NAME = 36
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a site may be called '$x$'
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
    "legend.frameon": False,
}
COLOURS = ("#0072B2", "#B34700", "#00694D", "#8F3E75", "#1A1A1A", "#8A6500", "#2F7FA8")
SHAPES = ("o", "s", "^", "D", "v", "P")
"""A run's colour and shape go round separately, so that 42 runs look different."""
MOST_DOTS = 60
"""Lines of a plot of runs by test."""
NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


@dataclass(frozen=True)
class Curve:
    """Accuracy of a run by round, or the mean over several with its standard deviation."""

    name: str
    rounds: Sequence[int]
    means: Sequence[float]
    spreads: Sequence[float]


@dataclass(frozen=True)
class Dot:
    """What a run reached in a test: way -> (mean, spread), ways being those of ``SiteRow``."""

    test: str
    run: str
    ways: Mapping[str, tuple[float, float]]


def judged_rounds(journal: Sequence[RoundReport]) -> list[RoundReport]:
    """Return the rounds with accuracies before and after adaptation."""
    names = ("accuracy-before", "accuracy-after")
    return [line for line in journal if all(math.isfinite(line.figures.get(name, math.nan)) for name in names)]


def lowest_first(sites: Mapping[str, SiteRow]) -> list[tuple[str, SiteRow]]:
    """Return sites by their accuracy after adaptation, those without one last."""
    return sorted(sites.items(), key=lambda item: (math.isnan(item[1].after), item[1].after, item[0]))


def accuracy_plot(journal: Sequence[RoundReport]) -> Markup:
    """Draw accuracy before and after adaptation over the judged rounds, of which there must be at least one."""
    judged = judged_rounds(journal)
    rounds = [line.round for line in judged]
    with _axes(3.2) as (figure, axes):
        for name, style, line in (("before", BEFORE, "--"), ("after", AFTER, "-")):
            shares = [report.figures[f"accuracy-{name}"] for report in judged]
            axes.plot(rounds, shares, line, label=f"{name} adaptation", markevery=_sparse(len(rounds)), **style)
        _percent(axes.yaxis)
        axes.set_ylim(0, 1.02)
        axes.set_ylabel("right answers")
        _rounds(figure, axes)
        last = judged[-1]
        return _svg(
            figure,
            f"Line plot of accuracy by round, {len(judged)} judged rounds. In round {last.round}: "
            f"{last.figures['accuracy-before']:.1%} before and {last.figures['accuracy-after']:.1%} after adaptation.",
        )


def traffic_plot(journal: Sequence[RoundReport]) -> Markup:
    """Draw the bytes sent to and by all sites up to each round."""
    rounds = [line.round for line in journal]
    down = list(accumulate(line.bytes_down / 1e6 for line in journal))
    up = list(accumulate(line.bytes_up / 1e6 for line in journal))
    with _axes(2.6) as (figure, axes):
        axes.plot(rounds, down, "-", color="#9EC5E8", linewidth=5, label="to the sites")
        axes.plot(rounds, up, "--", color="#1A1A1A", linewidth=1.5, label="from the sites")
        axes.set_ylim(0, None)
        axes.set_ylabel("megabytes so far")
        _rounds(figure, axes)
        return _svg(
            figure,
            f"Line plot of data sent so far by round. After round {rounds[-1]}: "
            f"{down[-1]:.2f} megabytes to the sites and {up[-1]:.2f} from them.",
        )


def sites_plot(sites: Mapping[str, SiteRow], worst: str) -> Markup:
    """Draw each site's accuracy before, after, from scratch and alone, the best site on top, the worst one marked."""
    names = [name for name, _ in lowest_first(sites)[:MOST_SITES]]
    rows = [sites[name] for name in names]
    with _axes(1.1 + 0.23 * len(names)) as (figure, axes):
        for place, row in enumerate(rows):
            hurt = row.after < row.before
            axes.plot([row.before, row.after], [place, place], ":" if hurt else "-", color="#8a8a8a")
        places = range(len(rows))
        axes.plot([row.scratch for row in rows], places, linestyle="none", label="from scratch", **SCRATCH)
        axes.plot([row.before for row in rows], places, linestyle="none", label="before adaptation", **BEFORE)
        axes.plot([row.after for row in rows], places, linestyle="none", label="after adaptation", **AFTER)
        if alone := [(row.alone, place) for place, row in enumerate(rows) if row.alone is not None]:
            axes.plot(*zip(*alone, strict=True), linestyle="none", label="alone", **ALONE)
        axes.set_yticks(places, [_label(name, name == worst) for name in names])
        axes.set_ylim(-0.7, len(names) - 0.3)
        axes.set_xlim(-0.02, 1.02)
        _percent(axes.xaxis)
        axes.set_xlabel("right answers")
        _legend(figure)
        return _svg(
            figure, f"Plot of accuracy before and after adaptation at {len(names)} sites; the worst is {worst}."
        )


def calibration_plot(found: Evaluation) -> Markup:
    """Draw for each bin of confidence how often answers were right: a reliability diagram."""
    with _axes(4.4) as (figure, axes):
        axes.plot([0, 1], [0, 1], "--", color="#666666", linewidth=1, label="as sure as right")
        _reliability(axes, "from scratch", found.scratch, {**SCRATCH, "alpha": 0.45}, 0.6)
        _reliability(axes, "before adaptation", found.before, BEFORE, 1)
        _reliability(axes, "after adaptation", found.after, AFTER, 1.6)
        axes.set_xlim(0, 1.02)
        axes.set_ylim(-0.02, 1.02)
        axes.set_box_aspect(1)
        _percent(axes.xaxis)
        _percent(axes.yaxis)
        axes.set_xlabel("how sure the model was")
        axes.set_ylabel("right answers")
        figure.legend(loc="outside right upper", markerscale=0.7)
        return _svg(
            figure,
            f"Reliability diagram of {found.protocol.name}: right answers against confidence of "
            f"{sum(count for count, _, _ in found.after.bins)} answers. "
            f"Calibration error {found.before.ece:.1%} before and {found.after.ece:.1%} after adaptation.",
        )


def _reliability(axes: Axes, label: str, score: Score, style: Mapping[str, Any], width: float) -> None:
    """Draw a line through the bins that have answers, with a mark of an area that grows with their number."""
    bins = [part for part in score.bins if part[0]]
    total = sum(count for count, _, _ in bins)
    sure = [confidence / count for count, confidence, _ in bins]
    right = [correct / count for count, _, correct in bins]
    colour, alpha = style["color"], style.get("alpha", 1.0)
    axes.plot(sure, right, "-", linewidth=width, color=colour, alpha=alpha)
    areas = [12 + 300 * count / total for count, _, _ in bins]
    hollow = style.get("markerfacecolor") == "white"
    fill = {"facecolors": "white", "edgecolors": colour} if hollow else {"color": colour}
    axes.scatter(sure, right, areas, marker=style["marker"], alpha=alpha, label=label, zorder=3, **fill)


def curves_plot(curves: Sequence[Curve]) -> Markup:
    """Draw accuracy after adaptation over the judged rounds of several runs, of which there must be at least one."""
    with _axes(3.4 + 0.12 * len(curves)) as (figure, axes):
        for number, curve in enumerate(curves):
            colour, shape = COLOURS[number % len(COLOURS)], SHAPES[number % len(SHAPES)]
            low, high = ([m + sign * s for m, s in zip(curve.means, curve.spreads, strict=True)] for sign in (-1, 1))
            axes.fill_between(curve.rounds, low, high, color=colour, alpha=0.12, linewidth=0)
            look: dict[str, Any] = {
                "color": colour,
                "marker": shape,
                "markersize": 4,
                "markevery": _sparse(len(curve.rounds)),
            }
            axes.plot(curve.rounds, curve.means, label=_label(curve.name), **look)
        _percent(axes.yaxis)
        axes.set_ylim(0, 1.02)
        axes.set_ylabel("right answers")
        _rounds(figure, axes)
        last = "; ".join(f"{curve.name} {curve.means[-1]:.1%} in round {curve.rounds[-1]}" for curve in curves)
        return _svg(figure, f"Line plot of accuracy after adaptation by round, {len(curves)} runs: {last}.")


def dots_plot(dots: Sequence[Dot]) -> Markup:
    """Draw what runs reached in tests, one line for each run in each test, the first on top."""
    shown = dots[:MOST_DOTS]
    looks = {"scratch": ("from scratch", SCRATCH), "before": ("before adaptation", BEFORE)}
    looks |= {"after": ("after adaptation", AFTER), "alone": ("alone", ALONE)}
    places = _places(shown)
    with _axes(1.4 + 0.26 * max(places)) as (figure, axes):
        for way, (label, style) in looks.items():
            found = [(dot.ways[way], place) for dot, place in zip(shown, places, strict=True) if way in dot.ways]
            if found:
                means, spreads = [mean for (mean, _), _ in found], [0 if math.isnan(s) else s for (_, s), _ in found]
                axes.errorbar(
                    means, [p for _, p in found], xerr=spreads, elinewidth=1, linestyle="none", label=label, **style
                )
        axes.set_yticks(places, [_label(dot.run) for dot in shown])
        for dot, place in zip(shown, places, strict=True):
            if dot == next(other for other in shown if other.test == dot.test):
                axes.text(0.01, place - 0.75, dot.test, fontweight="bold", transform=axes.get_yaxis_transform())
        axes.set_ylim(max(places) + 0.7, min(places) - 1.3)
        axes.set_xlim(-0.02, 1.02)
        _percent(axes.xaxis)
        axes.set_xlabel("right answers")
        _legend(figure)
        told = "; ".join(f"{dot.test}, {dot.run}: {dot.ways['after'][0]:.1%}" for dot in shown if "after" in dot.ways)
        return _svg(figure, f"Plot of accuracy by test and run. After adaptation: {told}.")


def _places(dots: Sequence[Dot]) -> list[float]:
    """Return where each line stands, downwards from 0, with room above the first of each test for its name."""
    tests = list(dict.fromkeys(dot.test for dot in dots))
    return [number + 1.2 * tests.index(dot.test) for number, dot in enumerate(dots)]


@contextmanager
def _axes(height: float) -> Iterator[tuple[Figure, Axes]]:
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        # Names may be in any script: the reader's browser has the fonts that are missing here.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font", category=UserWarning)
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        yield figure, figure.add_subplot()


def _rounds(figure: Figure, axes: Axes) -> None:
    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(left=0)
    _legend(figure)


def _legend(figure: Figure) -> None:
    figure.legend(loc="outside upper left", ncols=4, columnspacing=1.2)


def _percent(axis: Axis) -> None:
    axis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))


def _sparse(count: int) -> int:
    """Return the step at which about 40 of so many points get a marker."""
    return max(1, count // 40)


def _label(name: str, is_worst: bool = False) -> str:
    short = name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"
    return f"worst site: {short}" if is_worst else short


def _svg(figure: Figure, description: str) -> Markup:
    """Return a figure as an ``<svg>`` element that tells its description to those who do not see it."""
    stream = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": description}):  # ids that differ between the plots of a page
        figure.savefig(stream, format="svg", metadata=NO_METADATA)
    text = stream.getvalue()
    text = text[text.index("<svg ") :]
    # Numbered ids (figure_1, text_2) are used by nothing and would be there twice in a page of two plots.
    text = re.sub(r' id="[A-Za-z0-9]+(?:\.[a-z0-9]+)*_\d+"', "", text)
    # Safe as it is: matplotlib escapes the names that it writes.
    head = Markup('<svg role="img" aria-label="{}" ').format(escape(description))
    return head + Markup(text.removeprefix("<svg "))
