"""Sites per second against how many are stacked on a GPU, in fp32 and bf16."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median

import torch
from rich.console import Console
from rich.table import Table

from common.settings import Value
from simulations.batched.many import adapt_many
from simulations.benchmarks.engines.work import OMNIGLOT, Net, one_by_one, works

STACKED = (1, 4, 16, 64, 256, 1024)
ONE_BY_ONE = 16
KINDS: dict[str, dict[str, Value]] = {"fp32": {}, "bf16": {"inner.precision": "bf16"}}


def measure(
    pairs: int, console: Console, device: str = "cuda", stacked: Sequence[int] = STACKED, net: Net = OMNIGLOT
) -> dict[str, float]:
    """Print a table of sites per second and memory, beside one site after another; return sites per second by name.

    Where there is no such device, print why there is no figure.
    """
    if device == "cuda" and not torch.cuda.is_available():
        console.print(f"GPU: no figure: torch {torch.__version__} finds no CUDA device")
        return {}
    name = torch.cuda.get_device_name() if device == "cuda" else device
    table = Table(
        "", "stacked", "sites/s", "to one by one", "peak MB", title=f"Five steps of {net.name} on {name}, {pairs} runs"
    )
    one = works(net.settings, ONE_BY_ONE, device)
    found = {"one by one": _rate(lambda: one_by_one(one), len(one), pairs, device)[0]}
    table.add_row("fp32, one by one", "1", f"{found['one by one']:.0f}", "1.0x", "")
    for kind, changes in KINDS.items():
        for count in stacked:
            prepared = works(net.settings.with_values(changes), count, device)
            rate, memory = _rate(partial(adapt_many, prepared), count, pairs, device)
            found[f"{kind}, {count}"] = rate
            table.add_row(kind, str(count), f"{rate:.0f}", f"{rate / found['one by one']:.1f}x", f"{memory / 1e6:.0f}")
    console.print(table)
    return found


def _rate(work: Callable[[], object], count: int, pairs: int, device: str) -> tuple[float, int]:
    """Return sites per second and the most bytes of the device in use, after two runs that are not counted."""
    cuda = device == "cuda"
    for _ in range(2):
        work()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(pairs):
        if cuda:
            torch.cuda.synchronize()
        began = time.perf_counter()
        work()
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return count / median(seconds), torch.cuda.max_memory_allocated() if cuda else 0
