"""The ServerApp that Flower starts."""

import contextlib
import os

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from common.errors import FedreptileError, WritingError
from common.log import log_into, show_log
from common.settings import Settings
from server.home import VARIABLE
from server.rounds import RunFolder, run_federation
from server.service.runs import write_outcome

LOG = "server.log"
"""In a run's folder: what the server says about its rounds, such as who was refused and why."""

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation that the run config describes. Any error ends the run as failed, with its text."""
    show_log()
    settings = Settings.from_flat(context.run_config)
    folder = RunFolder.of(settings).path
    deployed = VARIABLE in os.environ  # Flower keeps a ServerApp's output in its database only
    try:
        with log_into(folder / LOG) if deployed else contextlib.nullcontext():
            run_federation(grid, settings, attempt=context.run_id)
    except WritingError:  # no outcome: the steward tries again
        raise
    except FedreptileError as error:
        write_outcome(folder, context.run_id, str(error))
        raise
    write_outcome(folder, context.run_id, "")
