"""MAML beside Reptile on the network of W: five SGD steps on batches of ten, and for MAML a batch of ten queries."""

import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.func import functional_call, grad, replace_all_batch_norm_modules_
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from common.learning.threads import threads
from simulations.benchmarks.engines.work import OMNIGLOT, one_by_one, works

RATE = 0.1
Params = Mapping[str, Tensor]
Batch = tuple[Tensor, Tensor]


class Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of tensors that are made inside the block and are in use at once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now: int = 0
        self.peak: int = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {each.untyped_storage()._cdata for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)}
        result = func(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            if isinstance(each, Tensor):
                self._add(each.untyped_storage(), given)
        return result

    def _add(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in given or key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def ways() -> dict[str, Callable[[], object]]:
    """Return one meta-step of each algorithm for one task, by name, Reptile first."""
    module = replace_all_batch_norm_modules_(OMNIGLOT.module())
    params = {name: value.detach() for name, value in module.named_parameters()}
    settings = OMNIGLOT.settings.with_values({"inner.optimizer": "sgd", "inner.learning-rate": RATE})
    size, steps = settings.inner.batch_size, settings.inner.steps
    inputs, labels = torch.rand(size * (steps + 1), 1, 28, 28), torch.randint(0, 5, (size * (steps + 1),))
    prepared = works(settings, 1)
    *support, query = zip(torch.split(inputs, size), torch.split(labels, size), strict=True)

    def loss(params: Params, batch: Batch) -> Tensor:
        return cross_entropy(functional_call(module, dict(params), (batch[0],)), batch[1])

    def adapted(params: Params) -> Params:
        return _steps(loss, params, support)

    return {
        "Reptile (adapt)": lambda: one_by_one(prepared),
        "first-order MAML": lambda: grad(loss)(adapted(params), query),
        "second-order MAML": lambda: grad(lambda start: loss(adapted(start), query))(params),
    }


def _steps(loss: Callable[[Params, Batch], Tensor], params: Params, support: Sequence[Batch]) -> Params:
    for batch in support:
        gradients = grad(loss)(params, batch)
        params = {name: value - RATE * gradients[name] for name, value in params.items()}
    return params


def measure(pairs: int, console: Console) -> dict[str, dict[str, float]]:
    """Print CPU time and memory of each algorithm beside Reptile's; return the figures."""
    with threads(1):
        todo = ways()
        spent: dict[str, list[float]] = {name: [] for name in todo}
        for way in todo.values():
            way()
        for pair in range(pairs):
            for name in list(todo)[:: 1 if pair % 2 == 0 else -1]:
                began = time.process_time()
                todo[name]()
                spent[name].append(time.process_time() - began)
        memory = {name: _alive(way) for name, way in todo.items()}
    table = Table("", "CPU ms", "to Reptile", "MB of tensors at once", "to Reptile", title=f"MAML; {pairs} paired runs")
    base = next(iter(todo))
    figures = {}
    for name, times in spent.items():
        ratio = median(each / reptile for each, reptile in zip(times, spent[base], strict=True))
        share = memory[name] / memory[base]
        figures[name] = {
            "cpu-ms": median(times) * 1e3,
            "times-reptile": ratio,
            "bytes": memory[name],
            "of-reptile": share,
        }
        table.add_row(name, f"{median(times) * 1e3:.1f}", f"{ratio:.2f}x", f"{memory[name] / 1e6:.1f}", f"{share:.1f}x")
    console.print(table)
    return figures


def _alive(way: Callable[[], object]) -> int:
    alive = Alive()
    with alive:
        way()
    return alive.peak
