"""Whole simulations, typed as a command, by engine: from the command to the first and third round, a round, memory."""

import math
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import numpy as np
from rich.console import Console
from rich.table import Table

from client.data.packed import write_packed
from common.settings import Settings, Value, flatten
from server.service.runs import JOURNAL
from simulations.benchmarks.engines import NoFigureError
from simulations.benchmarks.engines.tree import started
from simulations.benchmarks.engines.work import OMNIGLOT
from simulations.engine import ENGINES
from simulations.sources.pool import INPUTS, open_pool
from simulations.sources.prepare import find_mirror, prepare

WAY, DRAWINGS = 5, 20
ROUNDS = 3
LOOK_SECONDS = 0.005
MOST_SECONDS = 3600.0
RAY = "flower"


@dataclass(frozen=True)
class Run:
    """What one command took, in wall seconds from its start unless said."""

    first: float
    third: float
    per_round: float
    """Mean of the rounds after the first."""
    cpu_per_round: float
    """CPU seconds of all its processes."""
    memory: float
    """Bytes, most at once."""


@contextmanager
def dealt(numbers: Sequence[int]) -> Iterator[dict[int, Path]]:
    """Have sites of five characters with 20 drawings each, by number of sites; of Omniglot, where it is at hand."""
    with tempfile.TemporaryDirectory(prefix="fr-") as scratch:
        pool, characters = _pool(Path(scratch))
        yield {number: _deal(Path(scratch) / f"sites-{number}", pool, characters, number) for number in numbers}


def _pool(scratch: Path) -> tuple[Path, int]:
    """Return an array of drawings, 20 of each character in turn, and how many characters it has."""
    if find_mirror(None) is None:  # what the drawings show makes no difference to time
        drawings = np.random.default_rng(0).integers(0, 256, (200 * DRAWINGS, 1, 28, 28), dtype=np.uint8)
        np.save(scratch / INPUTS, drawings)
        return scratch / INPUTS, 200
    folder = prepare("omniglot", Settings().data)
    return folder / INPUTS, len(open_pool(folder).inputs) // DRAWINGS


def _deal(folder: Path, pool: Path, characters: int, number: int) -> Path:
    order = np.random.default_rng(0).permutation(characters)
    drawn = [order[np.arange(site * WAY, (site + 1) * WAY) % characters] for site in range(number)]
    sites = {
        f"site-{i:05d}": {f"c{c}": list(range(c * DRAWINGS, (c + 1) * DRAWINGS)) for c in own}
        for i, own in enumerate(drawn)
    }
    write_packed(folder, pool, sites, {"name": f"{number} sites of {WAY} characters"})
    return folder


def run(engine: str, sites: Path, rounds: int, changes: Mapping[str, Value]) -> Run:
    """Type the command, and watch the run's journal grow.

    Raises:
        NoFigureError: if the command ends before its rounds are done, or takes over an hour; with its last words.
    """
    default = flatten(Settings())
    values = {key: value for key, value in flatten(OMNIGLOT.settings).items() if value != default[key]}
    values |= {"run.rounds": rounds, "outer.sites-per-round": 0, "judge.every": 0, **changes}
    assignments = [word for key, value in values.items() for word in ("--set", f"{key}={_as_typed(value)}")]
    with tempfile.TemporaryDirectory(prefix="fr-") as scratch:
        folder, log = Path(scratch), Path(scratch) / "log.txt"
        words = [sys.executable, "-m", "simulations", "run", "--data", str(sites), "--out", str(folder / "run")]
        began = time.perf_counter()
        with started([*words, "--engine", engine, *assignments], log, Path(__file__).resolve().parents[3]) as (
            process,
            tree,
        ):
            ends: list[float] = []
            cpu: list[float] = []
            while len(ends) < rounds:
                over = process.poll() is not None
                done, now = _lines(folder / "run" / JOURNAL), time.perf_counter() - began
                if done > len(ends):
                    cpu += [tree.cpu()] * (done - len(ends))
                    ends += [now] * (done - len(ends))
                elif over or now > MOST_SECONDS:
                    last = " / ".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-4:])
                    raise NoFigureError(f"engine {engine} has done {done} of {rounds} rounds: {last}")
                time.sleep(LOOK_SECONDS)
            tree.look()
            if process.poll() is None:
                process.wait(MOST_SECONDS)
    later = max(len(ends) - 1, 1)
    return Run(ends[0], ends[min(2, rounds - 1)], (ends[-1] - ends[0]) / later, (cpu[-1] - cpu[0]) / later, tree.peak)


def _as_typed(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _lines(journal: Path) -> int:
    try:
        return journal.read_bytes().count(b"\n")
    except OSError:
        return 0


def chosen(names: Sequence[str], console: Console) -> list[str]:
    """Return engines to measure, Flower's first as the baseline; those that cannot run here are named and left out."""
    found = [name for name in names if name in ENGINES]
    for name in set(names) - set(found):
        console.print(f"engine {name}: no figure: it is not built here")
    if RAY in found and find_spec("ray") is None:
        console.print(f"engine {RAY}: no figure: Ray is not installed; pip install 'fedreptile[ray]'")
        found.remove(RAY)
    return sorted(found, key=lambda name: name != RAY)


def measure(
    title: str,
    engines: Sequence[str],
    sites: Mapping[int, Path],
    pairs: int,
    most_ray: int,
    changes: Mapping[str, Value],
    console: Console,
) -> dict[str, dict[str, dict[str, float]]]:
    """Run every engine with every number of sites, in turn; print medians, and return them by number and engine.

    Args:
        most_ray: Flower's own engine is left out with more sites than these: its rounds take minutes.
        changes: settings that differ from those of W.
    """
    columns = (
        "sites",
        "engine",
        "1st round s",
        "3rd round s",
        "a round s",
        "ms a site",
        "CPU ms a site",
        "cores busy",
        "peak MB",
    )
    ratios = (f"Ray / it: {name}" for name in ("1st", "3rd", "a round", "CPU"))
    table = Table(*columns, *ratios, title=f"{title}; medians of {pairs} paired commands")
    found: dict[str, dict[str, dict[str, float]]] = {}
    for number, folder in sites.items():
        taking_part = [engine for engine in engines if engine != RAY or number <= most_ray]
        runs: dict[str, list[Run]] = {engine: [] for engine in taking_part}
        for pair in range(pairs):
            for engine in taking_part[:: 1 if pair % 2 == 0 else -1]:
                try:
                    runs[engine].append(run(engine, folder, ROUNDS, changes))
                except NoFigureError as error:
                    console.print(f"no figure: {error}")
        found[str(number)] = {}
        for engine, times in runs.items():
            if times:
                figures = {name: median(asdict(each)[name] for each in times) for name in asdict(times[0])}
                found[str(number)][engine] = figures
                table.add_row(*_row(number, engine, figures), *_ratios(runs.get(RAY, []), times))
    console.print(table)
    if RAY in engines and any(number > most_ray for number in sites):
        console.print(f"{RAY} only up to {most_ray} sites (--most-ray): its rounds take minutes with more")
    return found


def _row(number: int, engine: str, figures: Mapping[str, float]) -> tuple[str, ...]:
    first, third, a_round = (f"{figures[name]:.2f}" for name in ("first", "third", "per_round"))
    a_site, cpu = (f"{figures[name] / number * 1000:.2f}" for name in ("per_round", "cpu_per_round"))
    busy, memory = figures["cpu_per_round"] / figures["per_round"], figures["memory"] / 1e6
    return (str(number), engine, first, third, a_round, a_site, cpu, _shown(busy, ".1f"), _shown(memory, ".0f"))


def _ratios(base: Sequence[Run], times: Sequence[Run]) -> list[str]:
    """Return how many times less than Flower's own engine a command took, pair by pair."""
    if len(base) != len(times) or not base:
        return ["–"] * 4
    pairs = [(asdict(theirs), asdict(ours)) for theirs, ours in zip(base, times, strict=True)]
    return [
        _shown(median(theirs[name] / ours[name] if ours[name] else math.nan for theirs, ours in pairs), ".1f")
        for name in ("first", "third", "per_round", "cpu_per_round")
    ]


def _shown(value: float, form: str) -> str:
    return "–" if math.isnan(value) else f"{value:{form}}"
