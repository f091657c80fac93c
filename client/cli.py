"""``fedreptile-site``: what site engineers run."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from client.data.folder import FolderData, open_folder, unit_range
from client.data.images import read_image
from client.model import adapt_site, read_model
from common.checkpoint import read_checkpoint
from common.cli import run_cli
from common.errors import SiteDataError
from common.learning.judge import Judgement
from common.settings import DataSettings, parse_assignments
from common.threads import threads

app = typer.Typer(
    help="One site: its data, and a model adapted to it. Nothing here uses the network.", no_args_is_help=True
)
console = Console(soft_wrap=True)

Folder = Annotated[Path, typer.Option(help="The site's folder: one folder a class, images in it.")]


@app.command()
def check(
    data: Folder,
    channels: Annotated[int, typer.Option(help="1 grey, 3 colour, 4 with transparency.")] = 1,
    size: Annotated[int, typer.Option(min=4, help="Pixels that images are resized to.")] = 28,
) -> None:
    """Read the site's data as a run would: classes, counts, and every file that cannot be read."""
    found = open_folder(data.resolve(), DataSettings(channels=channels, size=size))
    table = Table("class", "images")
    for name in found.classes():
        table.add_row(Text(name), str(found.count(name)))
    console.print(table)
    _list_corrupt(found)


@app.command()
def adapt(
    checkpoint: Annotated[Path, typer.Argument(help="A run's folder or its checkpoint file.")],
    data: Folder,
    out: Annotated[Path, typer.Option(help="Where to write the site's model.")] = Path("site-model.safetensors"),
    hold_back: Annotated[float, typer.Option(min=0, max=0.9, help="Part of each class kept to judge on.")] = 0.3,
    others: Annotated[bool, typer.Option(help="Also recognise classes of other sites, if they let them out.")] = True,
    assignments: Annotated[
        list[str], typer.Option("--set", help="Adapt with another setting: key=value, such as adapt.steps=10.")
    ] = [],  # noqa: B006 - typer copies it
) -> None:
    """Adapt the shared model to the site's classes, judge it on held-back images, and write it."""
    found = read_checkpoint(checkpoint)
    found = replace(found, settings=found.settings.with_values(parse_assignments(assignments)))
    own = open_folder(data.resolve(), found.settings.data)
    _list_corrupt(own)
    model, judgement = adapt_site(found, own, hold_back, others=others)
    model.write(out)
    console.print(_judged(judgement) if judgement.after.total else "no image was held back, so the model is not judged")
    if judgement.after.correct < judgement.before.correct:
        console.print("adaptation made it worse here: try gentler steps (--set adapt.learning-rate=0.01), or none")
    console.print(Text(f"model of {len(model.classes)} classes: {out}"))


@app.command()
def classify(
    model: Annotated[Path, typer.Argument(help="A site's model.")],
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
) -> None:
    """Say what images show, each with its confidence."""
    loaded = read_model(model)
    shape = loaded.settings.data
    for path in images:
        try:
            pixels = read_image(path, shape.channels, shape.size, invert=shape.invert)
        except SiteDataError as error:
            raise SiteDataError(f"{path}: {error}") from error
        confidence, best = loaded.log_probs(unit_range(pixels[None])).exp()[0].max(0)
        print(f"{path}\t{loaded.classes[int(best)]}\t{float(confidence):.1%}")


def main() -> None:
    with threads(1):
        run_cli(app)


def _list_corrupt(data: FolderData) -> None:
    if data.corrupt:
        console.print(f"{len(data.corrupt)} file(s) cannot be read and are skipped:")
    for item in data.corrupt:
        console.print(Text(f"  {item.path}: {item.reason}"))


def _judged(judgement: Judgement) -> Table:
    table = Table("class", "held back", "right before", "right after", title="held-back images")
    before = judgement.before.per_class()
    for name, (correct, total) in sorted(judgement.after.per_class().items()):
        table.add_row(Text(name), str(total), str(before[name][0]), str(correct))
    table.add_section()
    table.add_row(
        "all", str(judgement.after.total), f"{judgement.before.accuracy:.1%}", f"{judgement.after.accuracy:.1%}"
    )
    return table
