"""What the in-process federation costs beside a bare loop over the same adaptations, and what 100,000 sites cost.

python -m simulations.benchmarks.federation
python -m simulations.benchmarks.federation memory --sites 100000 --sampled 1000 --engine in-process
"""

import argparse
import logging
import multiprocessing
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
from rich.console import Console
from rich.table import Table

from client.data.packed import write_packed
from client.data.sites import open_site_data, site_names
from client.site import Site, Work
from common.learning.reptile import Adapted
from common.settings import Settings, Value
from server.service.runs import read_journal
from simulations.engine import ALL, ENGINES, in_process
from simulations.federation import deal, read_federation
from simulations.grid import NOTHING
from simulations.reference import centralised_reptile
from simulations.sources.pool import INPUTS, open_pool
from simulations.sources.prepare import prepare

PAIRS = 5
ROUNDS = 40
CLASSES, DRAWERS = 20, 20
"""Characters at each of many sites; pictures of each."""
ME = [sys.executable, "-m", "simulations.benchmarks.federation"]


def main(sites: int, sampled: int, engine: str) -> None:
    console = Console(soft_wrap=True)
    console.print(f"{platform.machine()}, Python {platform.python_version()}, one process, one thread an adaptation")
    pairs = [overhead_pair() for _ in range(PAIRS)]
    table = Table(
        "", "bare loop", "in-process federation", "ratio", title=f"{ROUNDS} rounds of the main job, CPU seconds"
    )
    for number, (bare, federated) in enumerate(pairs, 1):
        table.add_row(f"pair {number}", f"{bare:.2f}", f"{federated:.2f}", f"{federated / bare:.3f}")
    table.add_row("median", "", "", f"{median(federated / bare for bare, federated in pairs):.3f}")
    console.print(table)
    subprocess.run([*ME, "memory", f"--sites={sites}", f"--sampled={sampled}", f"--engine={engine}"], check=True)


def overhead_pair() -> tuple[float, float]:
    """Return CPU seconds of the bare loop and of the federation, doing the same adaptations."""
    main_job = read_federation("omniglot")
    sites = deal(main_job).train
    names = site_names(sites)
    with tempfile.TemporaryDirectory() as run:
        changes: dict[str, Value] = {
            "run.rounds": ROUNDS,
            "run.dir": run,
            "data.sites": str(sites),
            "judge.every": 0,
            "outer.join-sites": len(names),
        }
        settings = main_job.settings.with_values(changes)
        data = {name: open_site_data(sites, name, settings.data) for name in names}
        bare = cpu_seconds(lambda: centralised_reptile(data, settings))
        return bare, cpu_seconds(lambda: in_process(settings, len(names)))


def cpu_seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def memory(sites: int, sampled: int, engine: str) -> None:
    """Write a packed set of many sites, and have a process of its own run rounds over it: writing needs memory too."""
    with tempfile.TemporaryDirectory() as folder:
        write_many(Path(folder) / "sites", sites)
        sizes = [f"--sites={sites}", f"--sampled={sampled}", f"--engine={engine}"]
        subprocess.run([*ME, "rounds", *sizes, f"--folder={folder}"], check=True)


def write_many(folder: Path, sites: int) -> None:
    """Write a packed set in which each site has 20 of Omniglot's characters, some of which other sites have too."""
    pool_folder = prepare("omniglot", Settings().data)
    order = np.random.default_rng(0).permutation(len(open_pool(pool_folder).inputs) // DRAWERS)
    own = {int(c): (f"c{c}", range(c * DRAWERS, (c + 1) * DRAWERS)) for c in order}
    drawn = (order[np.arange(site * 7, site * 7 + CLASSES) % len(order)].tolist() for site in range(sites))
    dealt = {f"site-{site:06d}": dict(own[c] for c in classes) for site, classes in enumerate(drawn)}
    write_packed(folder, pool_folder / INPUTS, dealt, {"name": f"omniglot, {sites} sites of {CLASSES} characters"})


class RoundEnds(logging.Handler):
    """Notes when rounds end, and how much of this process's CPU time went into single adaptations until then."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[float] = []
        """Wall clock."""
        self.beyond: list[float] = []
        """CPU seconds of this process without adaptations."""
        self._adapting = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        self.ends.append(time.perf_counter())
        self.beyond.append(time.process_time() - self._adapting)

    def timed(self, adapt: Callable[[Site, Work], Adapted]) -> Callable[[Site, Work], Adapted]:
        def timing(site: Site, work: Work) -> Adapted:
            began = time.process_time()
            adapted = adapt(site, work)
            self._adapting += time.process_time() - began
            return adapted

        return timing


def many_rounds(folder: Path, sites: int, sampled: int, engine: str) -> None:
    """Run three rounds; print what they cost. One inner step: what is measured is all but the arithmetic."""
    settings = Settings.from_flat(
        {
            "run.rounds": 3,
            "run.dir": str(folder / "run"),
            "data.sites": str(folder / "sites"),
            "model.width": 64,
            "model.head": "linear",
            "judge.every": 0,
            "inner.steps": 1,
            "inner.batch-size": 5,
            "outer.sites-per-round": sampled,
            "outer.join-sites": sites,
            "outer.join-deadline": 3600.0,
        }
    )
    ends = RoundEnds()
    log = logging.getLogger("fedreptile.rounds")
    log.addHandler(ends)
    log.setLevel(logging.INFO)
    Site.adapt = ends.timed(Site.adapt)  # type: ignore[assignment, method-assign]
    began = time.perf_counter()
    ENGINES[engine](settings, sites, NOTHING, ALL)
    seconds = [line["seconds"] for line in read_journal(folder / "run")]
    between = (ends.beyond[-1] - ends.beyond[0]) / (len(ends.ends) - 1) / sampled
    for worker in multiprocessing.active_children():
        worker.join(10)  # whose memory is known when it has ended
    print(
        f"{sites} sites, {sampled} sampled, 113,221 params, engine {engine}: "
        f"peak memory {peak(resource.RUSAGE_SELF):.2f} GB, of a worker {peak(resource.RUSAGE_CHILDREN):.2f} GB; "
        f"{ends.ends[0] - seconds[0] - began:.1f} s until the first round begins; {median(seconds):.2f} s a round; "
        f"{1e3 * between:.2f} CPU ms per sampled site beyond its adaptation"
    )


def peak(whose: int) -> float:
    """Return the most memory in GB that this process has had, or the largest of those that it has started."""
    return resource.getrusage(whose).ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=("all", "memory", "rounds"), default="all")
    parser.add_argument("--sites", type=int, default=100_000)
    parser.add_argument("--sampled", type=int, default=1000)
    parser.add_argument("--engine", choices=sorted(ENGINES), default="in-process")
    parser.add_argument("--folder", type=Path, help="of the part 'rounds': where 'memory' has put its sites")
    given = parser.parse_args()
    if given.part == "rounds":
        many_rounds(given.folder, given.sites, given.sampled, given.engine)
    else:
        {"all": main, "memory": memory}[given.part](given.sites, given.sampled, given.engine)
