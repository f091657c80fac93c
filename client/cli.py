"""``fedreptile-site``: what site engineers run.

Commands that need torch import it when they run: the supervisor of a site for one shall stay small.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from client.check.cli import check
from client.door.cli import explain, ledger_app
from client.enrolment.cli import join
from client.service.cli import down, status, units, up
from common.cli import run_cli
from common.settings import parse_assignments

if TYPE_CHECKING:
    from common.learning.judge import Judgement

app = typer.Typer(help="One site: its data, its part in a federation, its own model.", no_args_is_help=True)
for command in (join, check, up, status, down, units, explain):
    app.command()(command)
app.add_typer(ledger_app, name="ledger")
console = Console(soft_wrap=True)

Own = Annotated[Path, typer.Option(help="The site's data: a folder of class folders, a .csv table or an .npz file.")]
Label = Annotated[str, typer.Option(help="The column that holds the class.")]
Cache = Annotated[str, typer.Option(help="Folder that keeps decoded pictures; empty: the data home's; 'off': none.")]


@app.command()
def columns(
    tables: Annotated[list[Path], typer.Argument(help="One or several .csv files, such as one of each site.")],
    label: Label = "label",
) -> None:
    """Show the columns of tables, where they differ, and propose the line for data.columns."""
    from client.columns import print_columns
    from client.data.table import read_table

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
    from client.check.data import list_skipped, open_shown
    from client.model import adapt_site
    from common.checkpoint import read_checkpoint
    from common.learning.threads import threads

    found = read_checkpoint(checkpoint)
    found = replace(found, settings=found.settings.with_values(parse_assignments(assignments)))
    own = open_shown(data, found.settings.data, cache, console)
    list_skipped(own, console)
    with threads(1):
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
    from client.data.indexed import as_input
    from client.data.sites import read_new
    from client.model import read_model
    from common.learning.threads import threads

    loaded = read_model(model)
    for path in inputs:
        names, values = read_new(path, loaded.settings.data)
        with threads(1):
            confidence, best = loaded.log_probs(as_input(values, loaded.standardisation)).exp().max(1)
        for name, sure, label in zip(names, confidence.tolist(), best.tolist(), strict=True):
            print(f"{name}\t{loaded.classes[label]}\t{sure:.1%}")


def main() -> None:
    run_cli(app)


def _judged(judgement: "Judgement") -> Table:
    table = Table("class", "held back", "right before", "right after", title="held-back inputs")
    before = judgement.before.per_class()
    for name, (correct, total) in sorted(judgement.after.per_class().items()):
        table.add_row(Text(name), str(total), str(before[name][0]), str(correct))
    table.add_section()
    table.add_row(
        "all", str(judgement.after.total), f"{judgement.before.accuracy:.1%}", f"{judgement.after.accuracy:.1%}"
    )
    return table


if __name__ == "__main__":
    main()
