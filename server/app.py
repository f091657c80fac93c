"""The ServerApp that Flower starts."""

import logging

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from common.settings import Settings
from server.rounds import run_federation

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation that the run config describes. Any error ends the run as failed, with its text."""
    if not logging.getLogger().handlers:
        logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    run_federation(grid, Settings.from_flat(context.run_config))
