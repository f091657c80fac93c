"""What the in-process federation costs beside a bare loop over the same adaptations, and its memory at 1000 sites.

python -m simulations.benchmarks.federation
"""

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
from common.settings import Settings, Value
from simulations.engine import in_process
from simulations.federation import deal, read_federation
from simulations.reference import centralised_reptile
from simulations.sources.pool import INPUTS, open_pool
from simulations.sources.prepare import prepare

PAIRS = 5
ROUNDS = 40
SITES, SAMPLED, CLASSES = 1000, 100, 20


def main() -> None:
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
    peak = subprocess.run(
        [sys.executable, "-m", "simulations.benchmarks.federation", "memory"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()[-1]
    console.print(f"{SITES} sites, {SAMPLED} sampled, 113,221 params: peak memory {float(peak):.2f} GB")


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


def memory() -> float:
    """Run two rounds over 1000 sites that share one packed set; return this process's peak memory in GB."""
    folder = Path(tempfile.mkdtemp())
    pool_folder = prepare("omniglot", Settings().data)
    order = np.random.default_rng(0).permutation(len(open_pool(pool_folder).inputs) // 20)
    drawn = [order[np.arange(site * 7, site * 7 + CLASSES) % len(order)] for site in range(SITES)]
    sites = {f"site-{i:04d}": {f"c{c}": list(range(c * 20, c * 20 + 20)) for c in own} for i, own in enumerate(drawn)}
    origin = {"name": "omniglot, 1000 sites of 20 characters"}
    write_packed(folder / "sites", pool_folder / INPUTS, sites, origin)
    settings = Settings.from_flat(
        {
            "run.rounds": 2,
            "run.dir": str(folder / "run"),
            "data.sites": str(folder / "sites"),
            "model.width": 64,
            "model.head": "linear",
            "inner.learning-rate": 0.1,
            "inner.batch-size": 10,
            "outer.sites-per-round": SAMPLED,
            "outer.join-sites": SITES,
        }
    )
    in_process(settings, SITES)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


if __name__ == "__main__":
    if sys.argv[1:] == ["memory"]:
        print(memory())
    else:
        main()
