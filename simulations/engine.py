"""Running a federation on this machine: the same ServerApp, strategy, ClientApp and Site as in production."""

import logging
from collections.abc import Callable

from flwr.app import Context, RecordDict

from client.app import app as client_app
from common.settings import Settings, flatten
from common.threads import threads
from server.app import app as server_app
from server.launch import run_simulation
from simulations.grid import SERVER_NODE, InProcessGrid

# A simulation is a library to whoever runs it: whether its log is shown is theirs to say.
logging.getLogger("fedreptile").addHandler(logging.NullHandler())

Engine = Callable[[Settings, int], None]


def in_process(settings: Settings, nodes: int) -> None:
    """Run all sites in this process, over an in-process grid."""
    run_config = flatten(settings)
    grid = InProcessGrid(client_app, nodes, run_config)
    with threads(1):  # also between adaptations: waking a second thread for small sums costs more than it saves
        server_app(grid, Context(grid.run.run_id, SERVER_NODE, {}, RecordDict(), run_config))


def flower(settings: Settings, nodes: int) -> None:
    """Run the sites in Flower's own simulation, one process (Ray actor) a core; its log is the progress."""
    run_simulation(settings, nodes, log=None)


ENGINES: dict[str, Engine] = {"in-process": in_process, "flower": flower}
