"""``fedreptile-site``: what site engineers run.

Commands that need torch import it when they run: the supervisor of a site for one shall stay small.
"""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from client.adoption.cli import adopt
from client.check.cli import check
from client.door.cli import explain, ledger_app
from client.enrolment.cli import join
from client.line.cli import COMMANDS as AT_THE_LINE
from client.service.cli import down, status, units, up
from common.cli import run_cli

app = typer.Typer(help="One site: its data, its part in a federation, its own model.", no_args_is_help=True)
for command in (join, check, up, status, down, units, explain, *AT_THE_LINE, adopt):
    app.command()(command)
app.add_typer(ledger_app, name="ledger")
console = Console(soft_wrap=True)

Label = Annotated[str, typer.Option(help="The column that holds the class.")]


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


def main() -> None:
    run_cli(app)


if __name__ == "__main__":
    main()
