"""PNG plots of the benchmark: CPU time by method, wall time of a site against how many there are."""

import io
from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from common.paths import write_atomically
from simulations.benchmarks.engines.work import LIMIT
from simulations.report.plots import COLOURS, SHAPES, STYLE, WIDTH

Figures = Mapping[str, Mapping[str, float]]


def by_method(path: Path, work: Mapping[str, Figures]) -> None:
    """Draw CPU milliseconds of one adaptation, one panel for each network, with the GEMM limit as a line."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.0 + 1.9 * len(work)), layout="constrained")
        for axes, (net, figures) in zip(figure.subplots(len(work), squeeze=False)[:, 0], work.items(), strict=True):
            rows = {name: row["cpu-ms"] for name, row in figures.items()}
            limit = rows.pop(LIMIT)
            bars = axes.barh(list(rows), list(rows.values()), color=COLOURS[0], height=0.6)
            axes.bar_label(bars, fmt="%.1f", padding=3)
            axes.axvline(limit, color=COLOURS[1], linestyle="--")
            axes.invert_yaxis()
            axes.grid(axis="y", visible=False)
            axes.set(title=f"{net} (dashed: GEMM limit, {limit:.1f} ms)", xlabel="CPU ms per adaptation", xmargin=0.1)
        _save(figure, path)


def by_sites(path: Path, panels: Mapping[str, Mapping[str, Figures]]) -> None:
    """Draw wall milliseconds of a round per site against the number of sites, a line for each engine."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
        for axes, (title, found) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
            engines = sorted({engine for figures in found.values() for engine in figures})
            for place, engine in enumerate(engines):
                here = {int(number): figures[engine] for number, figures in found.items() if engine in figures}
                each = [figures["per_round"] / number * 1000 for number, figures in here.items()]
                axes.plot(list(here), each, color=COLOURS[place], marker=SHAPES[place], label=engine)
            axes.set(title=title, xlabel="sites", ylabel="wall ms a site and round", xscale="log", yscale="log")
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_locator(LogLocator(subs=(1,) if axis is axes.xaxis else (1, 2, 5)))
                axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
                axis.set_minor_formatter(NullFormatter())
            axes.legend()
        _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=150)
    write_atomically(path, drawn.getvalue())
