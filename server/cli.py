"""``fedreptile-server``: what the operator of a federation runs."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from common.cli import run_cli
from common.settings import Settings, flatten
from server.campaigns.cli import app as campaign
from server.enrolment.cli import app as enrol
from server.pages.cli import ui
from server.releases.cli import app as release
from server.service.cli import ask, down, run, status, stop, units, up, wheelhouse
from server.service.runs import read_journal

if TYPE_CHECKING:
    from common.checkpoint import Checkpoint

app = typer.Typer(help="A federation: its sites, its server, its runs.", no_args_is_help=True)
for command in (up, status, down, run, ask, stop, ui, units, wheelhouse):
    app.command()(command)
app.add_typer(enrol, name="enrol")
app.add_typer(release, name="release")
app.add_typer(campaign, name="campaign")
console = Console(soft_wrap=True)

Journal = Sequence[Mapping[str, Any]]


@app.command()
def show(folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")]) -> None:
    """Show how far a run is, its settings and what its sites contributed."""
    from common.checkpoint import read_checkpoint  # here, because it imports torch, which the server does not need

    checkpoint, journal = read_checkpoint(folder), read_journal(folder)
    for table in (summary(checkpoint, journal), changed_settings(checkpoint.settings), sites(journal), drops(journal)):
        if table.row_count:
            console.print(table)


def summary(checkpoint: "Checkpoint", journal: Journal) -> Table:
    """Return the rounds done and the last value of each figure, with its round."""
    table = _table("Run", "", "value", "round")
    state, settings = checkpoint.state, checkpoint.settings
    table.add_row("rounds done", f"{state.round} of {settings.run.rounds}", "")
    table.add_row("rounds without quorum in a row", str(state.failed), "")
    table.add_row("written by version", checkpoint.code_version, "")
    last = {name: (value, line["round"]) for line in journal for name, value in line["figures"].items()}
    for name, (value, number) in sorted(last.items()):
        table.add_row(name, f"{value:.4g}", str(number))
    return table


def changed_settings(settings: Settings) -> Table:
    """Return the settings that differ from their defaults."""
    table, defaults = (
        _table("Settings that differ from the defaults", "setting", "value", "default"),
        flatten(Settings()),
    )
    for key, value in flatten(settings).items():
        if value != defaults[key]:
            table.add_row(key, Text(str(value)), str(defaults[key]))
    return table


def sites(journal: Journal) -> Table:
    """Return for each site in how many rounds it was asked and its update was used."""
    asked, used = _count(journal, "asked"), _count(journal, "used")
    table = _table("Sites", "site", "rounds asked", "rounds used")
    for site in sorted(asked):
        table.add_row(Text(site), str(asked[site]), str(used[site]))
    return table


def drops(journal: Journal) -> Table:
    """Return how many replies were missing or not used, by cause."""
    counts: Counter[str] = Counter()
    for line in journal:
        counts.update(line["causes"])
    table = _table("Replies not used", "cause", "replies")
    for cause, count in counts.most_common():
        table.add_row(cause, str(count))
    return table


def _count(journal: Journal, key: str) -> Counter[str]:
    return Counter(site for line in journal for site in line[key])


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column)
    return table


def main() -> None:
    run_cli(app)


if __name__ == "__main__":
    main()
