"""Running a federation on this machine: the same ServerApp, strategy, Site and door as in production."""

import logging
from collections.abc import Callable, Mapping

from flwr.app import Context, RecordDict
from flwr.serverapp import Grid

from client.app import app as client_app
from common.errors import SettingsError
from common.learning.threads import threads
from common.settings import Settings, Value, flatten
from server.app import app as server_app
from server.launch import run_simulation
from simulations.batched.choice import Resources, choose
from simulations.batched.grid import BatchedGrid
from simulations.batched.memory import keep_freed_memory
from simulations.batched.sites import Sites
from simulations.batched.workers import OwnProcess, Staff, Workers
from simulations.grid import NOTHING, SERVER_NODE, InProcessGrid

# A simulation is a library to whoever runs it: whether its log is shown is theirs to say.
logging.getLogger("fedreptile").addHandler(logging.NullHandler())

Engine = Callable[[Settings, int, Mapping[str, Value], Resources], None]
"""Takes the settings, the number of sites, what all have in their node config, and what of the machine may be used."""
ALL = Resources()


def batched(
    settings: Settings, nodes: int, node_config: Mapping[str, Value] = NOTHING, resources: Resources = ALL
) -> None:
    """Run many sites at a time: in worker processes on a processor, stacked on a GPU."""
    keep_freed_memory()
    choice = choose(settings, nodes, node_config, resources)
    own = {**node_config, "site-device": choice.device}
    staff: Staff
    if choice.workers:
        staff = Workers(choice.workers, settings, own, resources.data_megabytes * 1_000_000, choice.together)
    else:
        staff = OwnProcess(Sites(settings, own, resources.data_megabytes * 1_000_000))
    try:
        _run(settings, BatchedGrid(staff, nodes, choice.together))
    finally:
        staff.close()


def in_process(
    settings: Settings, nodes: int, node_config: Mapping[str, Value] = NOTHING, resources: Resources = ALL
) -> None:
    """Run one site after another in this process, each through the ClientApp: the readable reference."""
    _without(resources, "in-process")
    _run(settings, InProcessGrid(client_app, nodes, flatten(settings), node_config))


def flower(
    settings: Settings, nodes: int, node_config: Mapping[str, Value] = NOTHING, resources: Resources = ALL
) -> None:
    """Run the sites in Flower's own simulation, one process (Ray actor) a core; its log is the progress."""
    _without(resources, "flower")
    if node_config:
        raise SettingsError("Flower's simulation has no node config for sites; use --site with another engine")
    run_simulation(settings, nodes, log=None)


def _run(settings: Settings, grid: Grid) -> None:
    with threads(1):  # also between adaptations: waking a second thread for small sums costs more than it saves
        server_app(grid, Context(grid.run.run_id, SERVER_NODE, {}, RecordDict(), flatten(settings)))


def _without(resources: Resources, engine: str) -> None:
    if resources != ALL:
        raise SettingsError(f"--use is for the batched engine, and --engine is {engine!r}; leave one of them")


ENGINES: dict[str, Engine] = {"batched": batched, "in-process": in_process, "flower": flower}
AUTO = "auto"


def chosen(
    engine: str, settings: Settings, nodes: int, node_config: Mapping[str, Value], resources: Resources
) -> tuple[str, str]:
    """Return the name of the engine to use, and why that one or how it works.

    ``auto`` is the batched engine where that gains anything. Flower's is for who asks for it.

    Raises:
        SettingsError: for an engine that there is not.
    """
    if engine not in (AUTO, *ENGINES):
        raise SettingsError(f"unknown engine {engine!r}; choose {AUTO}, {', '.join(ENGINES)}")
    if engine in (AUTO, "batched"):
        choice = choose(settings, nodes, node_config, resources)
        if engine == "batched" or choice.gains:
            return "batched", choice.reason
    return (engine if engine != AUTO else "in-process"), DESCRIPTIONS[engine]


DESCRIPTIONS = {
    AUTO: "one processor and a network whose layers are not written out: nothing to gain from batches",
    "in-process": "one site after another in this process",
    "flower": "Flower's own simulation, on Ray",
}
