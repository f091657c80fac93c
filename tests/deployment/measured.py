"""What an endurance test measured: a table on the screen, and a file of JSON."""

import contextlib
import json
import os
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from common.deployment.supervisor import read_state
from tests.deployment.deployed import Deployment

PREFIX = "FEDREPTILE_ENDURANCE_"


def wanted(name: str, default: float) -> float:
    """Return what the environment says of an endurance test, such as FEDREPTILE_ENDURANCE_MINUTES."""
    return float(os.environ.get(PREFIX + name, default))


def randomness() -> random.Random:
    """Return where random moments come from; the seed is shown, and FEDREPTILE_ENDURANCE_SEED repeats one."""
    seed = int(wanted("SEED", time.time_ns() % 2**31))
    print(f"seed {seed}: {PREFIX}SEED={seed} repeats the moments")
    return random.Random(seed)


def report(name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], **more: Any) -> None:
    """Show rows as a table, and write them with ``more`` to ``<name>.json`` in FEDREPTILE_ENDURANCE_OUT."""
    table = Table(*columns, title=f"{name} {more}" if more else name, title_justify="left")
    for row in rows:
        table.add_row(*(f"{value:.2f}" if isinstance(value, float) else str(value) for value in row))
    Console(width=140).print(table)
    out = Path(os.environ.get(f"{PREFIX}OUT", "runs/endurance"))
    out.mkdir(parents=True, exist_ok=True)
    found = {"rows": [dict(zip(columns, row, strict=True)) for row in rows], **more}
    (out / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


@dataclass
class Timed:
    """Seconds by what was done."""

    seconds: dict[str, list[float]] = field(default_factory=dict)

    def note(self, name: str, seconds: float) -> None:
        self.seconds.setdefault(name, []).append(seconds)

    def rows(self) -> list[tuple[str, int, float, float]]:
        return [(name, len(all_), statistics.median(all_), max(all_)) for name, all_ in sorted(self.seconds.items())]


def run_folders(deployment: Deployment) -> dict[str, Path]:
    """Return the folders in which supervisors say what they do, by machine."""
    return {"server": deployment.server.run, **{name: home.run for name, home in deployment.sites.items()}}


def resident(deployment: Deployment) -> dict[str, int]:
    """Return the resident memory, in bytes, of every process that lives as long as its machine or the run."""
    pids: dict[str, int] = {}
    for name, folder in run_folders(deployment).items():
        state = read_state(folder)
        if state:
            pids[f"{name} supervisor"] = state["supervisor"]["pid"]
            pids |= {f"{name} {part}": entry["pid"] for part, entry in state["parts"].items() if entry["pid"]}
    for pid, command in deployment.processes():
        if "flwr-serverapp" in command:
            pids["server serverapp"] = pid
    found = {}
    for name, pid in pids.items():
        with contextlib.suppress(OSError, StopIteration, ValueError):
            lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
            found[name] = int(next(line for line in lines if line.startswith("VmRSS:")).split()[1]) << 10
    return found


def disk(deployment: Deployment) -> dict[str, int]:
    """Return the bytes of files by what they are, over the server and all sites."""
    server, sites = deployment.server, list(deployment.sites.values())
    places = {
        "database": [*server.flower.glob("superlink.db*")],
        "server, other files of Flower": [path for path in server.flower.iterdir() if "superlink.db" not in path.name],
        "server, logs": [server.logs],
        "server, runs": [server.runs],
        "sites, files of Flower": [home.flower for home in sites],
        "sites, logs": [home.logs for home in sites],
        "sites, ledger": [home.ledger for home in sites],
        "sites, outbox": [home.outbox for home in sites],
    }
    return {name: sum(map(_size, paths)) for name, paths in places.items()}


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    total = 0
    for file in files:
        with contextlib.suppress(OSError):
            total += file.stat().st_size if file.is_file() else 0
    return total


def sampled(
    seconds: float, pause: float, look: Callable[[], Mapping[str, int]]
) -> list[tuple[float, Mapping[str, int]]]:
    """Return what ``look`` saw, with the second of each look, every ``pause`` seconds."""
    began, found = time.monotonic(), []
    while (now := time.monotonic() - began) < seconds:
        found.append((now, look()))
        time.sleep(min(pause, max(seconds - now, 0.1)))
    return found


SUPERNODE, SUPERNODES = "supernode", "all SuperNodes"


@dataclass(frozen=True)
class Growth:
    """Megabytes of a process in the first and in the last quarter of samples, means."""

    first: float
    last: float

    @property
    def percent(self) -> float:
        return 100 * (self.last / self.first - 1)


def growth(samples: Sequence[Mapping[str, int]]) -> dict[str, Growth]:
    """Return how the resident memory of each process has grown, and of Flower's SuperNodes of all sites together.

    A SuperNode goes up and down by a tenth within minutes, as Python's garbage collector comes round; together they do
    so less.
    """
    quarter, found = max(len(samples) // 4, 1), {}
    for name in sorted(set.intersection(*(set(sample) for sample in samples))):
        values = [sample[name] / 1e6 for sample in samples]
        found[name] = Growth(statistics.mean(values[:quarter]), statistics.mean(values[-quarter:]))
    nodes = [one for name, one in found.items() if name.endswith(f" {SUPERNODE}")]
    found[SUPERNODES] = Growth(sum(one.first for one in nodes), sum(one.last for one in nodes))
    return found
