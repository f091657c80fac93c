"""``fedreptile-sim``: what researchers run."""

import logging
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from client.data.sites import site_names
from common.checkpoint import NAME, read_checkpoint
from common.cli import run_cli
from common.errors import CheckpointError, SettingsError
from common.paths import write_atomically
from common.settings import Value, flatten, parse_assignments
from simulations.batched.choice import parse_resources
from simulations.engine import AUTO, ENGINES, chosen
from simulations.federation import READY, Dealt, Federation, deal, read_federation
from simulations.judging.evaluate import Evaluation, evaluate, open_judged, parse_protocol
from simulations.judging.workers import judge_run
from simulations.progress import shown
from simulations.report.tracking import Tracker, tracked
from simulations.sources.cli import data_app, dealt_visibly
from simulations.sources.download import UnreachableError

app = typer.Typer(help="Federations of many sites on this machine.", no_args_is_help=True)
app.add_typer(data_app, name="data")
console = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 120)
log = logging.getLogger("fedreptile.simulations")

MAIN_JOB, WITHOUT_NETWORK = "omniglot", "digits"
DESCRIPTION = "federation.toml"
"""In a run's folder: the federation that it ran, as a file to run again."""

Source = Annotated[str, typer.Argument(help=f"A TOML file, or one that is ready: {', '.join(READY)}.")]
Mirror = Annotated[Path | None, typer.Option(help="Folder that holds data sets, instead of their origins.")]
Assignments = Annotated[list[str], typer.Option("--set", help="Change a setting: key=value, such as inner.steps=5.")]


@app.command()
def run(  # noqa: PLR0913, PLR0917 - each is an option
    federation: Source = "",
    data: Annotated[
        Path | None, typer.Option(help="Sites of your own, in any layout that the project reads, as they are.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; the same one resumes it. [runs/NAME]")] = None,
    engine: Annotated[str, typer.Option(help=f"{AUTO}, {', '.join(ENGINES)}.")] = AUTO,
    use: Annotated[
        list[str], typer.Option(help="What of this machine to use: workers=4, together=20, data-megabytes=500.")
    ] = [],  # noqa: B006
    data_mirror: Mirror = None,
    assignments: Assignments = [],  # noqa: B006 - typer copies it
    site: Annotated[list[str], typer.Option(help="Set what sites decide themselves: class-tables=true.")] = [],  # noqa: B006
    track: Annotated[list[str], typer.Option(help="Also write to tensorboard=FOLDER or mlflow=URI.")] = [],  # noqa: B006
) -> None:
    """Train over simulated sites, judge on what no site trained on, and write a report.

    Without a federation and --data: the main job, Omniglot. Ctrl-C leaves a run that the same command goes on with.
    """
    _check_assignments(assignments, data)
    described = read_federation(federation or ("" if data else MAIN_JOB), assignments)
    if data:
        described, dealt = _own(described, data), Dealt(data.resolve(), None)
    else:
        _check_dealt(described)
        described, dealt = _dealt(described, data_mirror, assignments)
    nodes = len(site_names(dealt.train))
    folder = (out or Path("runs") / described.name).resolve()
    node_config = {f"site-{key}": value for key, value in parse_assignments(site).items()}
    resources = parse_resources(parse_assignments(use))
    fixed: dict[str, Value] = {"run.dir": str(folder), "data.sites": str(dealt.train), "outer.join-sites": nodes}
    described = described.with_values(fixed)
    settings = described.settings
    engine, reason = chosen(engine, settings, nodes, node_config, resources)
    _begin(folder, described, dealt)
    console.print(f"{nodes} sites from {dealt.train}; {settings.run.rounds} rounds into {folder}")
    console.print(f"engine: {engine} ({reason})")
    with tracked(settings, described.name, **_trackers(track)) as tracker:
        began = time.monotonic()
        try:
            with shown(console, settings.run.rounds):
                ENGINES[engine](settings, nodes, node_config, resources)
        except KeyboardInterrupt:
            console.print(f"interrupted; the same command goes on from {folder / NAME}")
            raise
        console.print(f"trained in {time.monotonic() - began:.0f} s")
        if dealt.judge and described.described.judging.episodes:
            _judge_all(folder, described, dealt, dealt.judge, tracker)
        else:
            console.print("not judged: nothing is held out or back (sites.held-out, sites.held-back), or no episodes")
        page = _report(folder)
        tracker.page(page)
    console.print(f"report: {page}")


@app.command("evaluate")
def evaluate_command(
    checkpoint: Annotated[Path, typer.Argument(help="A run's folder or its checkpoint file.")],
    data: Annotated[Path, typer.Option(help="Sites to judge on, in any layout that the project reads.")],
    protocol: Annotated[
        str, typer.Option(help="N-way K-shot, 'pooled' after it mixes all sites' classes.")
    ] = "5-way 1-shot",
    query: Annotated[int, typer.Option(min=1, help="Queries of each class.")] = 5,
    episodes: Annotated[int, typer.Option(min=1)] = 1000,
    train: Annotated[
        Path | None, typer.Option(help="What sites of the same names trained on, if --data is what they held back.")
    ] = None,
    assignments: Assignments = [],  # noqa: B006 - typer copies it
) -> None:
    """Judge a checkpoint on a folder of sites: before and after adaptation, and beside it from scratch."""
    found, changes = read_checkpoint(checkpoint), parse_assignments(assignments)
    judging = parse_protocol(protocol, query, episodes)
    read_with = found.settings.with_values(changes).data
    sites = open_judged(data.resolve(), read_with, train.resolve() if train else None)
    with _Bar() as bar:
        result = evaluate(
            found, sites, data.resolve().name, judging, changes=changes, done=lambda n: bar.show("judging", n, episodes)
        )
    result.write(checkpoint if checkpoint.is_dir() else checkpoint.parent)
    console.print(_table([result]))


@app.command()
def report(run: Annotated[Path, typer.Argument(help="A run's folder.")]) -> None:
    """Write one HTML page about a run, with plots and pictures, that needs nothing else to be read."""
    console.print(str(_report(run.resolve())))


@app.command("compare")
def compare_command(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs.")],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("compare.html"),
    markdown: Annotated[bool, typer.Option(help="Print tables in Markdown instead of the terminal's.")] = False,
) -> None:
    """Show runs side by side, those that differ in their seed only as one with its spread; and write a page."""
    from simulations.report.compare import as_markdown, compare, comparison_tables, write_comparison

    compared = compare([run.resolve() for run in runs])
    page = write_comparison(compared, out)
    if markdown:
        print(as_markdown(compared))
        return
    for table in comparison_tables(compared):
        console.print(table)
    console.print(f"page: {page}")


@app.command("settings")
def settings_command(federation: Source = "") -> None:
    """Print every setting with its meaning, as a TOML file to start from."""
    print(read_federation(federation).as_toml(), end="")


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    run_cli(app)


def _report(run: Path) -> Path:
    from simulations.report.page import write_report  # here: plots take long to import, and rounds need none

    return write_report(run)


def _own(described: Federation, data: Path) -> Federation:
    """Name a federation of the user's own sites after their folder."""
    if described.described.federation.set:
        raise SettingsError(
            f"federation.set is {described.described.federation.set!r} and --data {data} is given; leave one away"
        )
    path = data.resolve()
    return replace(described, name=path.stem if path.is_file() else path.name)


FIXED = {"run.dir": "--out", "data.sites": "--data", "outer.join-sites": "nothing: all sites take part"}
"""Settings that the command decides, and what to give instead."""


def _check_assignments(assignments: list[str], data: Path | None) -> None:
    """Raises SettingsError for a setting that would be overwritten, or would do nothing beside --data."""
    for key in parse_assignments(assignments):
        if key in FIXED:
            raise SettingsError(f"--set {key} is decided by the command; give {FIXED[key]}")
        if data and key.partition(".")[0] in ("federation", "sites", "judging"):
            raise SettingsError(
                f"--set {key} is for data sets that are dealt to sites, but --data {data} holds sites as they are; "
                "leave one away"
            )


def _check_dealt(described: Federation) -> None:
    """Raises SettingsError for what a federation that is dealt cannot do; before anything is trained."""
    settings = described.settings
    if settings.judge.held_out:
        raise SettingsError(
            "judge.held-out is for sites of your own (--data); here name what never trains in [sites], such as "
            f"sites.held-out-number = {settings.judge.held_out}"
        )
    if settings.model.head == "linear" and (
        wide := [each.name for each in described.described.protocols if each.way > settings.episode.way]
    ):
        raise SettingsError(
            f"judging.protocols has {wide[0]!r}, but the linear head is trained with episode.way = "
            f"{settings.episode.way}; judge by as many ways, or use the prototype head"
        )


def _begin(folder: Path, described: Federation, dealt: Dealt) -> None:
    """Write down in the run's folder what it runs. Raises CheckpointError if it holds a run on other sites."""
    file, checkpoint = folder / DESCRIPTION, folder / NAME
    if file.exists():
        before = read_federation(str(file)).dealing
        changed = [key for key, value in described.dealing.items() if before.get(key) != value]
        if changed and checkpoint.exists():
            raise CheckpointError(
                f"{folder} holds a run of another deal ({changed[0]} = {before.get(changed[0])!r}, now "
                f"{described.dealing[changed[0]]!r}); choose another --out"
            )
    elif checkpoint.exists() and (sites := read_checkpoint(folder).settings.data.sites) != str(dealt.train):
        raise CheckpointError(f"{folder} holds a run on {sites}, now {dealt.train}; choose another --out")
    if described.described.federation.set:
        write_atomically(file, described.as_toml().encode())


def _trackers(words: list[str]) -> dict[str, str]:
    given = {key: str(value) for key, value in parse_assignments(words).items()}
    if unknown := given.keys() - {"tensorboard", "mlflow"}:
        raise SettingsError(f"--track {min(unknown)}: unknown; give tensorboard=FOLDER or mlflow=URI")
    return given


def _dealt(described: Federation, mirror: Path | None, assignments: list[str]) -> tuple[Federation, Dealt]:
    """Deal a data set to sites; where nothing can be reached, scikit-learn's digits instead of the main job's, said so.

    A source that was reached and has a wrong sum is an error, not a reason to fall back.
    """
    try:
        return described, dealt_visibly(described, mirror)
    except UnreachableError as error:
        if described.name != MAIN_JOB:
            raise
        log.warning("%s", error)
        log.warning("using scikit-learn's handwritten digits instead of omniglot: other data, other figures")
        other = read_federation(WITHOUT_NETWORK, assignments)
        return other, deal(other)


def _judge_all(folder: Path, described: Federation, dealt: Dealt, judge: Path, tracker: Tracker) -> None:
    judging, settings = described.described.judging, described.settings
    steps = judging.alone_steps if judging.alone else 0
    if steps and (unlike := [key for key, value in flatten(settings).items() if key in PLAIN and value != PLAIN[key]]):
        console.print(f"without what sites reach alone, which is plain Reptile with SGD, since {unlike[0]} is set")
        steps = 0
    for stale in folder.glob(f"judged-{described.name}-*.json"):
        stale.unlink()
    try:
        with _Bar() as bar:
            protocols = described.described.protocols
            results = judge_run(folder, described.name, dealt.train, judge, protocols, steps, bar.show)
    except KeyboardInterrupt:
        console.print("interrupted; the run is trained, and the same command judges it again")
        raise
    for result in results:
        tracker.judged(result)
    console.print(_table(results))


PLAIN: dict[str, Value] = {
    "model.initial": "",
    "inner.optimizer": "sgd",
    "outer.optimizer": "plain",
    "outer.layer-step-sizes": "",
    "outer.average": 0.0,
}
"""What training a site alone, by the reference, can do of what a federation can."""


def _table(results: list[Evaluation]) -> Table:
    first = results[0]
    table = Table(title=f"accuracy on {first.data}, 95 % interval, {first.protocol.episodes} episodes each")
    alone = any(result.alone for result in results)
    for heading in (
        "protocol",
        "from scratch",
        *(["alone"] if alone else []),
        "before",
        "adapted",
        "worst site",
        "hurt",
    ):
        table.add_column(heading)
    for result in results:
        scores = [result.scratch, *([result.alone] if alone else []), result.before, result.after]
        columns = [f"{score.mean:.1%} ± {score.ci95:.1%}" if score else "–" for score in scores]
        worst, hurt = f"{result.sites[result.worst_site].after:.1%} {result.worst_site}", f"{result.share_hurt:.0%}"
        by_site = ["–", "–"] if result.protocol.pooled else [worst, hurt]
        table.add_row(result.protocol.name, *columns, *by_site)
    return table


class _Bar(Progress):
    """A bar that counts to a total, and then another."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        super().__init__(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._bars: dict[str, TaskID] = {}

    def show(self, what: str, done: int, total: int) -> None:
        if what not in self._bars:
            self._bars[what] = self.add_task(what, total=total)
        self.update(self._bars[what], completed=done)
