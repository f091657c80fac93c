"""What mixed precision and gradient checkpointing do to the adaptation of a transformer of about 100 million params.

python -m simulations.benchmarks.big_model [--pairs 3] [--steps 2] [--size 96] [--batch 20] [--threads 1]

Each kind is measured in a process of its own, and the kinds take turns. The activation memory is the peak, over a
step, of what torch's allocator gave out since before it, without the gradients that are done by then.
"""

import argparse
import json
import math
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median

import torch
import torch.nn.functional as F
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

from common.learning.episode import Examples
from common.learning.learner import Learner, build_learner
from common.learning.params import Params, difference, on_device
from common.learning.reptile import adapt, initial_slots
from common.settings import Settings, Value

SIZE_VARIABLE = "FEDREPTILE_BENCHMARK_TRANSFORMER"
"""Blocks and width of the network, as in "14 768"."""
PATCH, HEAD_WIDTH, WAY, SHOT = 16, 64, 5, 10
MEGABYTE = 1 << 20

KINDS: Mapping[str, Mapping[str, Value]] = {
    "full": {},
    "full + checkpointing": {"inner.checkpointing": True},
    "bf16": {"inner.precision": "bf16"},
    "bf16 + checkpointing": {"inner.precision": "bf16", "inner.checkpointing": True},
}


class Block(nn.Module):
    """Attention and two layers, each added to what came in: [n, tokens, width] to the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = max(1, width // HEAD_WIDTH)
        self.attention_norm, self.layers_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries_keys_values, self.joined = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        parts = self.queries_keys_values(self.attention_norm(hidden)).unflatten(2, (3, self.heads, -1))
        queries, keys, values = parts.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2).flatten(2)
        hidden = hidden + self.joined(attended)
        changed: Tensor = hidden + self.narrow(F.gelu(self.wide(self.layers_norm(hidden))))
        return changed


class Transformer(nn.Module):
    """A vision transformer (Dosovitskiy et al. 2021): pictures [n, channels, size, size] to embeddings [n, width]."""

    def __init__(self, channels: int, size: int, blocks: int, width: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, width, PATCH, stride=PATCH)
        self.places = nn.Parameter(0.02 * torch.randn((size // PATCH) ** 2, width))
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)

    def forward(self, pictures: Tensor) -> Tensor:
        hidden = self.patches(pictures).flatten(2).transpose(1, 2) + self.places
        for block in self.blocks:
            hidden = block(hidden)
        embeddings: Tensor = self.norm(hidden.mean(1))
        return embeddings


def network(shape: tuple[int, ...]) -> nn.Module:
    """Return the network for inputs of shape [channels, size, size]; its size is that of SIZE_VARIABLE."""
    blocks, width = map(int, os.environ[SIZE_VARIABLE].split())
    return Transformer(shape[0], shape[1], blocks, width)


@dataclass(frozen=True)
class Figures:
    """Of one process: seconds of an inner step, bytes of activations, peak bytes of the process."""

    seconds: float
    cpu_seconds: float
    activations: float
    resident: float


def main() -> None:
    given = _words().parse_args()
    torch.set_num_threads(given.threads)
    os.environ[SIZE_VARIABLE] = f"{given.layers} {given.width}"
    if given.only:
        print(json.dumps(_compared(given) if given.only == "compare" else asdict(_measured(given, KINDS[given.only]))))
        return
    console = Console(soft_wrap=True)
    console.print(_about(given))
    pairs: list[dict[str, Figures]] = []
    for number in range(1, given.pairs + 1):
        pairs.append({kind: Figures(**_in_own_process(kind)) for kind in KINDS})
        each = ", ".join(f"{kind} {found.cpu_seconds:.2f}" for kind, found in pairs[-1].items())
        console.print(f"run {number}, CPU seconds a step: {each}")
    console.print(_table(pairs))
    for what, distance in _in_own_process("compare").items():
        console.print(f"{what}: relative L2 distance of the update of {given.steps} steps to full {distance:.2g}")


def _words() -> argparse.ArgumentParser:
    words = argparse.ArgumentParser(prog="python -m simulations.benchmarks.big_model", description=__doc__)
    words.add_argument("--pairs", type=int, default=3, help="times that each kind is measured")
    words.add_argument("--steps", type=int, default=2, help="inner steps that are timed together")
    words.add_argument("--layers", type=int, default=14, help="blocks of the transformer")
    words.add_argument("--width", type=int, default=768)
    words.add_argument("--size", type=int, default=96, help=f"height and width of pictures, a multiple of {PATCH}")
    words.add_argument("--batch", type=int, default=20, help="pictures in an inner step")
    words.add_argument("--threads", type=int, default=1, help="1 unless a site's settings say otherwise")
    words.add_argument("--only", choices=(*KINDS, "compare"), help=argparse.SUPPRESS)
    return words


def _about(given: argparse.Namespace) -> str:
    with torch.device("meta"):
        count = sum(value.numel() for value in network((3, given.size, given.size)).parameters())
    where = (
        torch.cuda.get_device_name() if _device() == "cuda" else f"the CPU (threads: {given.threads}), no GPU is used"
    )
    return (
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}; "
        f"on {where}\nvision transformer of {count:,} params: {given.layers} blocks, {given.width} wide; {WAY}-way, "
        f"linear head, SGD, {given.batch} pictures of 3 x {given.size} x {given.size} a step "
        f"({(given.size // PATCH) ** 2} tokens each); medians of {given.pairs} processes of each kind"
    )


def _in_own_process(only: str) -> dict[str, float]:
    words = [sys.executable, "-m", "simulations.benchmarks.big_model", *sys.argv[1:], "--only", only]
    quiet = {**os.environ, "KINETO_LOG_LEVEL": "99"}  # the profiler's
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, env=quiet)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _table(pairs: Sequence[Mapping[str, Figures]]) -> Table:
    """Return the medians, each with the median of its ratios to "full" in the same pair."""
    columns = ("s", "ratio", "CPU s", "ratio", "kept MB", "ratio", "peak MB")
    title = "One inner step: seconds, activations kept, and the peak of the whole process"
    table = Table("", *columns, title=title, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for kind in KINDS:

        def of(value: Callable[[Figures], float], kind: str = kind) -> tuple[float, float]:
            ratios = [value(pair[kind]) / value(pair["full"]) for pair in pairs]
            return median(value(pair[kind]) for pair in pairs), median(ratios)

        seconds, cpu = of(lambda one: one.seconds), of(lambda one: one.cpu_seconds)
        kept = of(lambda one: one.activations)
        cells = (
            f"{seconds[0]:.2f}",
            f"{seconds[1]:.2f}",
            f"{cpu[0]:.2f}",
            f"{cpu[1]:.2f}",
            f"{kept[0] / MEGABYTE:,.1f}",
        )
        resident = of(lambda one: one.resident)[0]
        table.add_row(kind, *cells, f"{kept[1]:.3f}", f"{resident / MEGABYTE:,.0f}")
    return table


def _measured(given: argparse.Namespace, changes: Mapping[str, Value]) -> Figures:
    settings = _settings(given, changes)
    learner, params, support = _job(settings)
    draws = torch.Generator().manual_seed(1)
    adapt(learner, params, support, replace(settings.inner, steps=1), draws)
    _wait()
    began, began_cpu = time.perf_counter(), time.process_time()
    adapt(learner, params, support, settings.inner, draws)
    _wait()
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - began_cpu
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    steps = settings.inner.steps
    return Figures(seconds / steps, cpu_seconds / steps, _activations(settings, learner, params, support), resident)


def _compared(given: argparse.Namespace) -> dict[str, float]:
    """Return how far the updates of other kinds are from that of full precision."""

    def update(changes: Mapping[str, Value]) -> dict[str, Tensor]:
        settings = _settings(given, changes)
        learner, params, support = _job(settings)
        slots = on_device(initial_slots(params, settings.inner), _device())
        adapted = adapt(learner, params, support, settings.inner, torch.Generator().manual_seed(1), slots)
        return difference(adapted.params, params)

    found = {}
    adam: dict[str, Value] = {"inner.optimizer": "adam", "inner.learning-rate": 0.001}
    for optimizer, more in (("SGD", {}), ("Adam", adam)):
        full = update(more)
        for kind in ("full + checkpointing", "bf16"):
            found[f"{kind}, {optimizer}"] = _distance(update({**more, **KINDS[kind]}), full)
    return found


def _distance(update: Params, to: Params) -> float:
    def square(values: Params) -> float:
        return math.fsum(float(value.double().square().sum()) for value in values.values())

    return math.sqrt(square({name: update[name] - value for name, value in to.items()}) / square(to))


def _settings(given: argparse.Namespace, changes: Mapping[str, Value]) -> Settings:
    job: dict[str, Value] = {
        "data.channels": 3,
        "data.size": given.size,
        "episode.way": WAY,
        "model.network": "simulations.benchmarks.big_model:network",
        "model.head": "linear",
        "inner.learning-rate": 0.01,
        "inner.steps": given.steps,
        "inner.batch-size": given.batch,
    }
    return Settings.from_flat({**job, **changes})


def _job(settings: Settings) -> tuple[Learner, Params, Examples]:
    """Return learner, initial params and a support set of drawn pictures: a pattern for each class, and noise."""
    learner, params = build_learner(settings)
    draws = torch.Generator().manual_seed(0)
    labels = torch.arange(WAY).repeat_interleave(SHOT)
    patterns = torch.rand(WAY, *settings.data.shape, generator=draws)
    pictures = (patterns[labels] + torch.rand(len(labels), *settings.data.shape, generator=draws)) / 2
    support = Examples(pictures, labels, WAY).to(_device())
    return learner.to(_device()), on_device(params, _device()), support


def _activations(settings: Settings, learner: Learner, params: Params, support: Examples) -> int:
    """Return the peak bytes of loss and gradients, without the gradients that are done by then."""
    inner = settings.inner
    fast = {name: value.clone().requires_grad_() for name, value in params.items()}
    batch = Examples(support.inputs[: inner.batch_size], support.labels[: inner.batch_size], support.way)
    watch = GpuWatch() if _device() == "cuda" else CpuWatch()
    report_gradients(fast.values(), watch)

    def step() -> None:
        torch.autograd.grad(learner.loss(fast, batch, inner.precision, inner.checkpointing), list(fast.values()))

    return watch.peak(step)


def report_gradients(values: Iterable[Tensor], watch: "CpuWatch | GpuWatch") -> None:
    """Let a watch know of every gradient that is done."""
    for value in values:
        value.register_hook(watch.gradient)  # type: ignore[no-untyped-call]


class CpuWatch:
    """What torch's profiler records: every piece of memory that the allocator gives or takes back, in order of time."""

    GRADIENT, MEMORY = "gradient done, bytes: ", "[memory]"

    def gradient(self, gradient: Tensor) -> None:
        with record_function(f"{self.GRADIENT}{gradient.nbytes}"):
            pass

    def peak(self, step: Callable[[], None]) -> int:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
            step()
        results = recorded.profiler.kineto_results if recorded.profiler else None
        assert results is not None
        now = most = 0
        for event in sorted(results.events(), key=lambda event: event.start_ns()):
            if event.name() == self.MEMORY:
                now += event.nbytes()
            elif event.name().startswith(self.GRADIENT):
                now -= int(event.name().removeprefix(self.GRADIENT))
            most = max(most, now)
        return most


class GpuWatch:
    """The allocator's own peak, read and begun anew whenever a gradient is done."""

    def __init__(self) -> None:
        self.most = self.done = 0

    def gradient(self, gradient: Tensor) -> None:
        self._read()
        self.done += gradient.nbytes

    def peak(self, step: Callable[[], None]) -> int:
        self.before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        self._read()
        return self.most

    def _read(self) -> None:
        self.most = max(self.most, torch.cuda.max_memory_allocated() - self.before - self.done)
        torch.cuda.reset_peak_memory_stats()


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
