"""The ServerApp that Flower starts."""

import contextlib
import os

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from common.errors import FedreptileError, WritingError
from common.log import log_into, show_log
from common.settings import Settings
from server.campaigns.phases import Releases
from server.home import VARIABLE
from server.rounds import RunFolder, run_federation
from server.service.runs import HeldError, write_outcome

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
            run_federation(grid, settings, attempt=context.run_id, releases=releases_for(settings))
    except (WritingError, HeldError):  # no outcome: the steward tries again, or follows who is at it
        raise
    except FedreptileError as error:
        write_outcome(folder, context.run_id, str(error))
        raise
    write_outcome(folder, context.run_id, "")


def releases_for(settings: Settings) -> Releases | None:
    """Return where a campaign's model is released to; None for other runs, and where there is no federation."""
    if not settings.campaign.class_:
        return None
    from server.campaigns.releases import releases_from_environment  # here: only campaigns need it

    return releases_from_environment()
