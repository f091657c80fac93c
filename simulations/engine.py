"""Running a federation on this machine: the same ServerApp, strategy, ClientApp and Site as in production."""

import logging
from collections.abc import Callable, Mapping

from flwr.app import Context, RecordDict

from client.app import app as client_app
from common.errors import SettingsError
from common.learning.threads import threads
from common.settings import Settings, Value, flatten
from server.app import app as server_app
from server.launch import run_simulation
from simulations.grid import NOTHING, SERVER_NODE, InProcessGrid

# A simulation is a library to whoever runs it: whether its log is shown is theirs to say.
logging.getLogger("fedreptile").addHandler(logging.NullHandler())

Engine = Callable[[Settings, int, Mapping[str, Value]], None]
"""Takes the settings, the number of sites, and what all simulated sites have in their node config."""


def in_process(settings: Settings, nodes: int, node_config: Mapping[str, Value] = NOTHING) -> None:
    """Run all sites in this process, over an in-process grid."""
    run_config = flatten(settings)
    grid = InProcessGrid(client_app, nodes, run_config, node_config)
    with threads(1):  # also between adaptations: waking a second thread for small sums costs more than it saves
        server_app(grid, Context(grid.run.run_id, SERVER_NODE, {}, RecordDict(), run_config))


def flower(settings: Settings, nodes: int, node_config: Mapping[str, Value] = NOTHING) -> None:
    """Run the sites in Flower's own simulation, one process (Ray actor) a core; its log is the progress."""
    if node_config:
        raise SettingsError("Flower's simulation has no node config for sites; use --site with the in-process engine")
    run_simulation(settings, nodes, log=None)


ENGINES: dict[str, Engine] = {"in-process": in_process, "flower": flower}
