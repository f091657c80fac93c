"""Work W and an MLP's: one adaptation of five Adam steps on batches of ten, by method, in CPU time of one thread."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from statistics import median

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from client.data.indexed import IndexedData, Standardisation
from client.settings import SiteSettings
from client.site import Work
from common.learning.params import difference
from common.learning.reptile import Adapted, adapt
from common.learning.threads import threads
from common.messages import Request
from common.plan import plan_for
from common.settings import Settings, Value
from simulations.batched.layers import product
from simulations.batched.many import adapt_many
from simulations.batched.sites import FastSite, Sent
from simulations.benchmarks.engines.peers import PEERS, Peer, opened

GEMM_SIZES = (256, 384, 512, 768, 1024)
PLAIN = "plain loop: load_state_dict, autograd, Adam"
LIMIT = "GEMM limit"
"""In the figures: the least CPU time at the measured peak."""
SHARED: dict[str, Value] = {
    "model.head": "linear",
    "model.normalisation": "batch",
    "inner.optimizer": "adam",
    "inner.learning-rate": 1e-3,
    "inner.steps": 5,
    "inner.batch-size": 10,
    "episode.shot": 10,
}


@dataclass(frozen=True)
class Net:
    """A network that is adapted, as settings of this project and as everybody writes it."""

    name: str
    settings: Settings
    layers: tuple[tuple[int, int, int], ...]
    """Of each layer: output positions, inputs of one of them (input channels x taps), outputs of it."""
    module: Callable[[], nn.Sequential]

    def flops(self) -> int:
        """Return the floating-point operations of one adaptation in convolutions and linear layers.

        Two for each multiply-add, three passes (forward, gradient of weights, gradient of inputs); the first layer
        has no gradient of inputs. Taps that fall on padding count, as they do in every implementation measured here.
        """
        passes = [2] + [3] * (len(self.layers) - 1)
        of_one = sum(2 * times * places * inputs * outputs for times, (places, inputs, outputs) in self._with(passes))
        return of_one * self.settings.inner.batch_size * self.settings.inner.steps

    def _with(self, passes: Sequence[int]) -> Iterator[tuple[int, tuple[int, int, int]]]:
        return zip(passes, self.layers, strict=True)


def _omniglot() -> nn.Sequential:
    blocks: list[nn.Module] = []
    for inputs, outputs in pairwise((1, 64, 64, 64, 64)):
        blocks += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(256, 5))


def _mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(784, 200), nn.BatchNorm1d(200), nn.ReLU(), nn.Linear(200, 10))


OMNIGLOT = Net(
    "omniglot",
    Settings.from_flat({**SHARED, "model.width": 64, "model.depth": 4, "episode.way": 5}),
    ((14 * 14, 9, 64), (7 * 7, 576, 64), (4 * 4, 576, 64), (2 * 2, 576, 64), (1, 256, 5)),
    _omniglot,
)
MLP = Net(
    "mlp",
    Settings.from_flat(
        {
            **SHARED,
            "data.kind": "vector",
            "data.size": 784,
            "model.network": "mlp",
            "model.width": 200,
            "model.depth": 1,
            "episode.way": 10,
        }
    ),
    ((1, 784, 200), (1, 200, 10)),
    _mlp,
)
NETS = {net.name: net for net in (OMNIGLOT, MLP)}


@dataclass(frozen=True)
class Spent:
    """Seconds of one adaptation."""

    cpu: float
    wall: float


Method = Callable[[], Spent]
"""Does as many adaptations as it was made for, and returns what one of them took."""


class RandomSite(FastSite):
    """A site with random inputs, as many of each class as an episode takes."""

    @cached_property
    def parts(self) -> tuple[IndexedData, IndexedData]:
        episode, shape = self.settings.episode, self.settings.data.shape
        draw = np.random.default_rng(list(self.site.name.encode()))
        inputs = draw.random((episode.way * episode.shot, *shape), dtype=np.float32)
        rows = {f"class {c}": np.arange(c * episode.shot, (c + 1) * episode.shot) for c in range(episode.way)}
        as_they_are = Standardisation(np.zeros(1), np.ones(1))
        return IndexedData(inputs, rows, as_they_are), IndexedData(inputs, {}, as_they_are)


def works(settings: Settings, count: int, device: str = "cpu") -> list[Work]:
    """Prepare one adaptation at each of many sites, from the same params."""
    plan = plan_for(settings, device)
    params, slots = (
        layout.pack(values).cpu().numpy()
        for layout, values in ((plan.params, plan.initial), (plan.slots, plan.initial_slots))
    )
    request = Request(1, params, slots, judge=False)
    sent = Sent()
    return [RandomSite(SiteSettings(f"site {i}", "", device), settings, sent).prepare(request) for i in range(count)]


def plain_loop(net: Net, prepared: Sequence[Work]) -> list[dict[str, Tensor]]:
    """Adapt as everybody writes it; return the updates."""
    module, inner = net.module(), net.settings.inner
    start = {name: value.clone() for name, value in module.state_dict().items()}
    updates = []
    for work in prepared:
        support = work.episode.support
        module.load_state_dict(start)
        optimizer = torch.optim.Adam(module.parameters(), lr=inner.learning_rate, betas=(0.0, 0.999))
        order = torch.randperm(len(support))
        for step in range(inner.steps):
            rows = order[step * inner.batch_size : (step + 1) * inner.batch_size]
            optimizer.zero_grad()
            cross_entropy(module(support.inputs[rows]), support.labels[rows]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        updates.append(difference(dict(module.named_parameters()), {n: start[n] for n, _ in module.named_parameters()}))
    return updates


def one_by_one(prepared: Sequence[Work]) -> list[Adapted]:
    """Adapt with the one-site ``adapt``."""
    return [
        adapt(work.plan.learner, work.params, work.episode.support, work.inner, work.generator, work.slots)
        for work in prepared
    ]


def gemm_peak(seconds: float = 0.02) -> float:
    """Return the most float32 operations per CPU second that one thread reaches in square matrix products, by whichever
    library is the faster one: MKL (``torch.mm``) or oneDNN."""
    best = 0.0
    for size in GEMM_SIZES:
        left, right = torch.rand(size, size), torch.rand(size, size)
        repeats = max(1, round(seconds * 5e10 / (2 * size**3)))
        for multiply in (torch.mm, product):
            multiply(left, right)
            began = time.process_time()
            for _ in range(repeats):
                multiply(left, right)
            best = max(best, 2 * size**3 * repeats / (time.process_time() - began))
    return best


def methods(net: Net, count: int) -> dict[str, Method]:
    """Return what this project and the plain loop do, by name, the baseline first."""
    prepared = works(net.settings, count)
    return {
        PLAIN: lambda: timed(lambda: plain_loop(net, prepared), count),
        "adapt, one site after another": lambda: timed(lambda: one_by_one(prepared), count),
        "adapt_many, batched": lambda: timed(lambda: adapt_many(prepared), count),
    }


def timed(work: Callable[[], object], count: int) -> Spent:
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return Spent((time.process_time() - cpu) / count, (time.perf_counter() - wall) / count)


def alternating(todo: Mapping[str, Method], pairs: int) -> dict[str, list[Spent]]:
    """Do every method once, unmeasured, and then in turn, each second time in reverse."""
    for method in todo.values():
        method()
    found: dict[str, list[Spent]] = {name: [] for name in todo}
    for pair in range(pairs):
        for name in list(todo)[:: 1 if pair % 2 == 0 else -1]:
            found[name].append(todo[name]())
    return found


@contextmanager
def _with_peers(net: Net, count: int, names: Sequence[str], console: Console) -> Iterator[dict[str, Method]]:
    """Have other frameworks as methods, each in a process of its own that ends with the block."""
    with ExitStack() as stack:
        found: dict[str, Method] = {}
        for name in names:
            peer = stack.enter_context(opened(PEERS[name], net.name, count, console))
            if peer:
                console.print(f"{PEERS[name].title}: first round, with compiling, {peer.first:.1f} s")
                found[PEERS[name].title] = _rounds(peer)
        yield found


def _rounds(peer: Peer) -> Method:
    return lambda: Spent(*(seconds / peer.clients for seconds in peer.round()))


def measure(net: Net, pairs: int, count: int, peers: Sequence[str], console: Console) -> dict[str, dict[str, float]]:
    """Print a table of all methods beside the plain loop; return its figures.

    Args:
        count: adaptations of one measurement.
        peers: names of ``PEERS`` to measure too.
    """
    peaks: list[float] = []
    with threads(1), _with_peers(net, count, peers, console) as others:
        todo = {**methods(net, count), **others}
        plain = todo[PLAIN]

        def with_peak() -> Spent:
            peaks.append(gemm_peak())
            return plain()

        figures = _figures(net, alternating({**todo, PLAIN: with_peak}, pairs), peaks[1:])
    best = max(peaks[1:])
    title = (
        f"One adaptation, {net.name}: {net.flops() / 1e6:.0f} MFLOP, at the measured peak of {best / 1e9:.0f} GFLOP/s "
        f"{net.flops() / best * 1e3:.1f} ms; medians of {pairs} paired runs of {count} adaptations"
    )
    table = Table("", "CPU ms", "wall ms", "throughput to plain loop", "of GEMM limit", title=title)
    for name, row in figures.items():
        cells = (f"{row['cpu-ms']:.1f}", f"{row['wall-ms']:.1f}", f"{row['times-plain']:.2f}x", f"{row['of-gemm']:.0%}")
        table.add_row(name, *cells)
    console.print(table)
    return {**figures, LIMIT: {"cpu-ms": net.flops() / best * 1e3}}


def _figures(net: Net, spent: Mapping[str, Sequence[Spent]], peaks: Sequence[float]) -> dict[str, dict[str, float]]:
    """Return medians by method; ratios are those of each pair, with the peak that was measured in it."""
    return {
        name: {
            "cpu-ms": median(each.cpu for each in times) * 1e3,
            "wall-ms": median(each.wall for each in times) * 1e3,
            "times-plain": median(base.cpu / each.cpu for base, each in zip(spent[PLAIN], times, strict=True)),
            "of-gemm": median(net.flops() / peak / each.cpu for peak, each in zip(peaks, times, strict=True)),
        }
        for name, times in spent.items()
    }
