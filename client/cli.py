"""``fedreptile-site``: what site engineers run."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from client.columns import print_columns
from client.data.indexed import IndexedData, as_input
from client.data.sites import open_own, read_new
from client.data.table import read_table
from client.model import adapt_site, read_model
from common.checkpoint import read_checkpoint
from common.cli import run_cli
from common.learning.judge import Judgement
from common.learning.threads import threads
from common.paths import cache_folder
from common.settings import DataSettings, Settings, parse_assignments, read_toml

app = typer.Typer(
    help="One site: its data, and a model adapted to it. Nothing here uses the network.", no_args_is_help=True
)
console = Console(soft_wrap=True)

Own = Annotated[Path, typer.Option(help="The site's data: a folder of class folders, a .csv table or an .npz file.")]
Label = Annotated[str, typer.Option(help="The column that holds the class.")]
Cache = Annotated[str, typer.Option(help="Folder that keeps decoded pictures; empty: the data home's; 'off': none.")]


@app.command()
def check(
    data: Own,
    settings: Annotated[
        Path | None, typer.Option(help="The federation's settings file; only [data] counts here.")
    ] = None,
    assignments: Annotated[
        list[str], typer.Option("--set", help="Read it with another setting: key=value, such as data.size=64.")
    ] = [],  # noqa: B006 - typer copies it
    cache: Cache = "",
) -> None:
    """Read the site's data as a run would: classes, counts, and everything that cannot be used."""
    agreed = read_toml(settings) if settings else {}
    own = {key: value for key, value in agreed.items() if key.startswith("data.") and key != "data.sites"}
    found = _open(data, Settings.from_flat({**own, **parse_assignments(assignments)}).data, cache)
    table = Table("class", "inputs")
    for name in found.classes():
        table.add_row(Text(name), str(found.count(name)))
    console.print(table)
    _list_skipped(found)


@app.command()
def columns(
    tables: Annotated[list[Path], typer.Argument(help="One or several .csv files, such as one of each site.")],
    label: Label = "label",
) -> None:
    """Show the columns of tables, where they differ, and propose the line for data.columns."""
    named = {path.stem: path for path in tables}
    if len(named) < len(tables):
        named = {str(path): path for path in tables}
    print_columns({name: read_table(path, label) for name, path in named.items()}, label, console)


@app.command()
def adapt(
    checkpoint: Annotated[Path, typer.Argument(help="A run's folder or its checkpoint file.")],
    data: Own,
    out: Annotated[Path, typer.Option(help="Where to write the site's model.")] = Path("site-model.safetensors"),
    hold_back: Annotated[float, typer.Option(min=0, max=0.9, help="Part of each class kept to judge on.")] = 0.3,
    others: Annotated[bool, typer.Option(help="Also recognise classes of other sites, if they let them out.")] = True,
    assignments: Annotated[
        list[str], typer.Option("--set", help="Adapt with another setting: key=value, such as adapt.steps=10.")
    ] = [],  # noqa: B006 - typer copies it
    cache: Cache = "",
) -> None:
    """Adapt the shared model to the site's classes, judge it on held-back inputs, and write it."""
    found = read_checkpoint(checkpoint)
    found = replace(found, settings=found.settings.with_values(parse_assignments(assignments)))
    own = _open(data, found.settings.data, cache)
    _list_skipped(own)
    model, judgement = adapt_site(found, own, hold_back, others=others, standardisation=own.standardisation)
    model.write(out)
    console.print(_judged(judgement) if judgement.after.total else "no input was held back, so the model is not judged")
    if judgement.after.correct < judgement.before.correct:
        console.print("adaptation made it worse here: try gentler steps (--set adapt.learning-rate=0.01), or none")
    console.print(Text(f"model of {len(model.classes)} classes: {out}"))


@app.command()
def classify(
    model: Annotated[Path, typer.Argument(help="A site's model.")],
    inputs: Annotated[list[Path], typer.Argument(help="Pictures, or files of rows or arrays like the site's own.")],
) -> None:
    """Say what new pictures, rows or arrays show, each with its confidence."""
    loaded = read_model(model)
    for path in inputs:
        names, values = read_new(path, loaded.settings.data)
        confidence, best = loaded.log_probs(as_input(values, loaded.standardisation)).exp().max(1)
        for name, sure, label in zip(names, confidence.tolist(), best.tolist(), strict=True):
            print(f"{name}\t{loaded.classes[label]}\t{sure:.1%}")


def main() -> None:
    with threads(1):
        run_cli(app)


def _open(path: Path, data: DataSettings, cache: str) -> IndexedData:
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        reading = bar.add_task("reading", total=None)
        return open_own(
            path.resolve(),
            data,
            cache_folder(cache),
            lambda done, total: bar.update(reading, completed=done, total=total),
        )


def _list_skipped(data: IndexedData) -> None:
    if data.skipped:
        console.print(f"{len(data.skipped)} thing(s) cannot be used and are skipped:")
    for item in data.skipped:
        console.print(Text(f"  {item.where}: {item.reason}"))


def _judged(judgement: Judgement) -> Table:
    table = Table("class", "held back", "right before", "right after", title="held-back inputs")
    before = judgement.before.per_class()
    for name, (correct, total) in sorted(judgement.after.per_class().items()):
        table.add_row(Text(name), str(total), str(before[name][0]), str(correct))
    table.add_section()
    table.add_row(
        "all", str(judgement.after.total), f"{judgement.before.accuracy:.1%}", f"{judgement.after.accuracy:.1%}"
    )
    return table
