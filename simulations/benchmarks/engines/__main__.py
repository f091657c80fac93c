"""What adapting simulated sites costs: arithmetic, other frameworks, engines, MAML, a GPU.

python -m simulations.benchmarks.engines [--parts work,engines] [--pairs 5] [--sites 10,100] [--out FOLDER]
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from common.errors import FedreptileError
from common.paths import write_atomically
from simulations.benchmarks.engines import maml, plots, runs, stacked, work
from simulations.benchmarks.engines.peers import PEERS
from simulations.engine import ENGINES

NO_OP = {"inner.steps": 0}


def main(given: Sequence[str] | None = None) -> None:
    """Measure the parts that the words name, print their tables, and write figures and plots."""
    asked = _words().parse_args(given)
    console = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 160)
    console.print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}, "
        f"{torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU'}; load {_load()} at the start"
    )
    found: dict[str, Any] = {}
    for part in asked.parts:
        found[part] = PARTS[part](asked, console)
    if asked.out:
        _write(asked.out, found)
        console.print(f"figures and plots: {asked.out}")


def _work(asked: argparse.Namespace, console: Console) -> dict[str, Any]:
    peers = asked.peers
    return {
        name: work.measure(net, asked.pairs, asked.adaptations, peers, console)
        for name, net in work.NETS.items()
        if name in asked.nets
    }


def _engines(asked: argparse.Namespace, console: Console) -> dict[str, Any]:
    return _runs(asked, console, "Work W at every site in every round", asked.sites or [10, 100, 1000], {})


def _overhead(asked: argparse.Namespace, console: Console) -> dict[str, Any]:
    return _runs(asked, console, "No inner step: overhead alone", asked.sites or [10, 100, 1000, 10000], NO_OP)


def _runs(
    asked: argparse.Namespace, console: Console, title: str, numbers: Sequence[int], changes: dict[str, Any]
) -> dict[str, Any]:
    engines = runs.chosen(asked.engines, console)
    with runs.dealt(numbers) as sites:
        return runs.measure(title, engines, sites, asked.pairs, asked.most_ray, changes, console)


def _load() -> str:
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"


PARTS: dict[str, Callable[[argparse.Namespace, Console], dict[str, Any]]] = {
    "work": _work,
    "engines": _engines,
    "overhead": _overhead,
    "maml": lambda asked, console: maml.measure(asked.pairs, console),
    "gpu": lambda asked, console: stacked.measure(asked.pairs, console),
}


def _words() -> argparse.ArgumentParser:
    words = argparse.ArgumentParser(
        prog="python -m simulations.benchmarks.engines", description=(__doc__ or "").splitlines()[0]
    )
    words.add_argument("--parts", type=_among(PARTS), default=list(PARTS), help=f"of {','.join(PARTS)} [all]")
    words.add_argument("--pairs", type=int, default=5, help="paired, alternating runs [5]")
    words.add_argument(
        "--nets", type=_among(work.NETS), default=list(work.NETS), help=f"of {','.join(work.NETS)} [all]"
    )
    words.add_argument("--adaptations", type=int, default=20, help="adaptations of one measurement [20]")
    words.add_argument("--peers", type=_among(PEERS), default=list(PEERS), help=f"of {','.join(PEERS)}, or '' [all]")
    words.add_argument("--engines", type=_among(ENGINES), default=list(ENGINES), help=f"of {','.join(ENGINES)} [all]")
    words.add_argument("--sites", type=_numbers, help="numbers of sites [10,100,1000; without inner steps also 10000]")
    words.add_argument("--most-ray", type=int, default=100, help="most sites of Flower's own engine [100]")
    words.add_argument("--out", type=Path, help="folder for figures.json and plots")
    return words


def _among(known: Sequence[str] | dict[str, Any]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = [name for name in text.split(",") if name]
        if strange := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{', '.join(strange)}; choose of {','.join(known)}")
        return names

    return parse


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def _write(folder: Path, found: dict[str, Any]) -> None:
    write_atomically(folder / "figures.json", json.dumps(found, indent=1).encode())
    if "work" in found:
        plots.by_method(folder / "work.png", found["work"])
    titles = {"engines": "work W", "overhead": "no inner step"}
    if panels := {title: found[part] for part, title in titles.items() if part in found}:
        plots.by_sites(folder / "sites.png", panels)


if __name__ == "__main__":
    try:
        main()
    except FedreptileError as error:
        sys.exit(str(error))
