"""``python -P -m client``: ``fedreptile-site``, of which ``check`` works where torch cannot be loaded."""

import typer

from client.check.cli import check
from common.cli import run_cli


def main() -> None:
    try:
        from client.cli import main as whole
    except (ImportError, OSError):  # check says which package, and what to do
        app = typer.Typer(help="Only this works here, because a package cannot be loaded.", no_args_is_help=True)
        app.command()(check)
        app.callback()(lambda: None)
        run_cli(app)
    else:
        whole()


if __name__ == "__main__":
    main()
