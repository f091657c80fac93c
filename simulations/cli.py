"""``fedreptile-sim``: what researchers run."""

import logging
import sys
import time
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from client.data.sites import site_names
from common.checkpoint import NAME, read_checkpoint
from common.cli import read_settings, run_cli
from common.errors import SettingsError
from common.settings import Settings, Value, as_toml, parse_assignments
from simulations.engine import ENGINES
from simulations.evaluate import Evaluation, Protocol, evaluate
from simulations.progress import shown
from simulations.report import write_report
from simulations.sources.prepare import NAMES, Prepared, prepare, prepare_or_digits

app = typer.Typer(help="Federations of many sites on this machine.", no_args_is_help=True)
data_app = typer.Typer(help="Data sets for simulations.", no_args_is_help=True)
app.add_typer(data_app, name="data")
console = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 120)

MAIN_PROTOCOLS = ((5, 1, True), (5, 5, True), (5, 1, False), (5, 5, False))
"""(way, shot, pooled) that the main job is judged by."""

Mirror = Annotated[Path | None, typer.Option(help="Folder that holds data sets, instead of their origins.")]
Assignments = Annotated[list[str], typer.Option("--set", help="Change a setting: key=value, such as inner.steps=5.")]


@app.command()
def run(
    config: Annotated[
        Path | None, typer.Argument(help="TOML file of settings; without: the data set's own recipe.")
    ] = None,
    data: Annotated[str, typer.Option(help=f"{', '.join(NAMES)}, or a folder of site folders.")] = "omniglot",
    out: Annotated[Path | None, typer.Option(help="Folder of the run; the same one resumes it. [runs/DATA]")] = None,
    engine: Annotated[str, typer.Option(help=f"{' or '.join(ENGINES)}.")] = "in-process",
    data_mirror: Mirror = None,
    judge_episodes: Annotated[int, typer.Option(min=0, help="Episodes for each judgement at the end; 0 none.")] = 1000,
    assignments: Assignments = [],  # noqa: B006 - typer copies it
    site: Annotated[list[str], typer.Option(help="Set what sites decide themselves: class-tables=true.")] = [],  # noqa: B006
) -> None:
    """Train over simulated sites, judge on sites never seen, and write a report. Ctrl-C leaves a resumable run."""
    if engine not in ENGINES:
        raise SettingsError(f"unknown engine {engine!r}; choose {' or '.join(ENGINES)}")
    sites, judged_on, name = _data(data, data_mirror)
    nodes = len(site_names(sites))
    folder = (out or Path("runs") / name).resolve()
    fixed: dict[str, Value] = {"run.dir": str(folder), "data.sites": str(sites), "outer.join-sites": nodes}
    settings = read_settings(config, assignments, recipe("" if config else name)).with_values(fixed)
    console.print(f"{nodes} sites from {sites}; {settings.run.rounds} rounds into {folder}")
    node_config = {f"site-{key}": value for key, value in parse_assignments(site).items()}
    began = time.monotonic()
    try:
        with shown(console, settings.run.rounds):
            ENGINES[engine](settings, nodes, node_config)
    except KeyboardInterrupt:
        console.print(f"interrupted; the same command goes on from {folder / NAME}")
        raise
    console.print(f"trained in {time.monotonic() - began:.0f} s")
    if judged_on and judge_episodes:
        _judge_all(folder, judged_on, judge_episodes)
    console.print(f"report: {write_report(folder)}")


@app.command("evaluate")
def evaluate_command(
    checkpoint: Annotated[Path, typer.Argument(help="A run's folder or its checkpoint file.")],
    data: Annotated[Path, typer.Option(help="Sites to judge on, in any layout that the project reads.")],
    way: Annotated[int, typer.Option(min=2)] = 5,
    shot: Annotated[int, typer.Option(min=1)] = 1,
    query: Annotated[int, typer.Option(min=1)] = 5,
    episodes: Annotated[int, typer.Option(min=1)] = 1000,
    pooled: Annotated[bool, typer.Option(help="Draw the classes of an episode from all sites together.")] = False,
    assignments: Assignments = [],  # noqa: B006 - typer copies it
) -> None:
    """Judge a checkpoint on a folder of sites: before and after adaptation, and beside it from scratch."""
    found = read_checkpoint(checkpoint)
    protocol = Protocol(way, shot, query, episodes, pooled)
    with _Counting(protocol) as counting:
        result = evaluate(found, data.resolve(), protocol, parse_assignments(assignments), counting.done)
    result.write(checkpoint if checkpoint.is_dir() else checkpoint.parent)
    console.print(_table([result]))


@app.command()
def report(run: Annotated[Path, typer.Argument(help="A run's folder.")]) -> None:
    """Write one HTML page about a run, with plots and pictures, that needs nothing else to be read."""
    console.print(str(write_report(run.resolve())))


@app.command("settings")
def settings_command(
    data: Annotated[str, typer.Option(help="Start from the recipe of a data set.")] = "",
) -> None:
    """Print every setting with its meaning, as a TOML file to start from."""
    print(as_toml(recipe(data)), end="")


@data_app.command("get")
def data_get(name: Annotated[str, typer.Argument(help=", ".join(NAMES))], data_mirror: Mirror = None) -> None:
    """Fetch a data set, check its sums, and pack it into sites."""
    prepared = _with_download_bar(name, data_mirror, or_digits=False)
    for kind, path in (("to train on", prepared.train), ("to judge on", prepared.judge)):
        console.print(f"{len(site_names(path))} sites {kind}: {path}")


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    run_cli(app)


def _data(data: str, mirror: Path | None) -> tuple[Path, Path | None, str]:
    """Return the sites to train on, those to judge on, and the name of the data."""
    if data in NAMES:
        prepared = _with_download_bar(data, mirror, or_digits=True)
        return prepared.train, prepared.judge, prepared.name
    path = Path(data).resolve()
    return path, None, path.name


def recipe(name: str) -> Settings:
    """Return the settings of a data set's main job; for a folder of one's own the defaults of simulations."""
    if name not in NAMES:
        return Settings().with_values({"run.checkpoint-seconds": 10.0})
    with as_file(files("simulations") / "recipes" / f"{name}.toml") as path:
        return read_settings(path, [])


def _judge_all(folder: Path, sites: Path, episodes: int) -> None:
    found = read_checkpoint(folder)
    results = []
    for way, shot, pooled in MAIN_PROTOCOLS:
        protocol = Protocol(way, shot, episodes=episodes, pooled=pooled)
        with _Counting(protocol) as counting:
            results.append(evaluate(found, sites, protocol, done=counting.done))
        results[-1].write(folder)
    console.print(_table(results))


def _table(results: list[Evaluation]) -> Table:
    episodes = results[0].protocol.episodes
    table = Table(title=f"accuracy on {Path(results[0].data).name}, 95 % interval, {episodes} episodes each")
    for heading in ("protocol", "from scratch", "before", "adapted", "worst site", "hurt"):
        table.add_column(heading)
    for result in results:
        columns = [f"{score.mean:.1%} ± {score.ci95:.1%}" for score in (result.scratch, result.before, result.after)]
        worst, hurt = f"{result.sites[result.worst_site].after:.1%} {result.worst_site}", f"{result.share_hurt:.0%}"
        by_site = ["–", "–"] if result.protocol.pooled else [worst, hurt]
        table.add_row(result.protocol.name, *columns, *by_site)
    return table


class _Counting(Progress):
    """A bar that counts the episodes of a judgement."""

    def __init__(self, protocol: Protocol) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        super().__init__(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._judging = self.add_task(f"judging {protocol.name}", total=protocol.episodes)

    def done(self, count: int) -> None:
        self.update(self._judging, completed=count)


def _with_download_bar(name: str, mirror: Path | None, *, or_digits: bool) -> Prepared:
    columns = (TextColumn(f"fetching {name}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(name, total=None, visible=False)

        def show(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total or None, visible=True)

        return (prepare_or_digits if or_digits else prepare)(name, mirror, show)
