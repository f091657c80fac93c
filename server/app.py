"""The ServerApp that Flower starts."""

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from common.log import show_log
from common.settings import Settings
from server.rounds import run_federation

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation that the run config describes. Any error ends the run as failed, with its text."""
    show_log()
    run_federation(grid, Settings.from_flat(context.run_config))
