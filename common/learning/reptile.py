"""Reptile (Nichol, Achiam, Schulman 2018, "On First-Order Meta-Learning Algorithms", algorithms 1 and 2).

``adapt`` is U^k, the k inner steps at a site; ``outer_step`` moves the global params towards the
mean of the adapted ones. An update is always ``adapted - initial`` and the outer step adds it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common.learning.augment import augment
from common.learning.episode import Examples
from common.learning.learner import Learner, with_views
from common.learning.params import Params
from common.seeds import drawing_from
from common.settings import InnerLoop

ADAM_BETA2 = 0.999
ADAM_EPSILON = 1e-8
STEPS = "adam-steps"
"""The slot that counts Adam's steps [1]."""


@dataclass(frozen=True)
class Adapted:
    """What the inner loop ends with: the params it adapted, by name, and the inner optimizer's slots."""

    params: Params
    slots: Params


def adapt(
    learner: Learner,
    params: Params,
    support: Examples,
    inner: InnerLoop,
    generator: torch.Generator,
    slots: Params | None = None,
) -> Adapted:
    """Take ``inner.steps`` steps on the support set from ``params``: the one definition of local learning.

    Args:
        learner: network, head and normalisation, on the device of the tensors.
        params: the params to start from; none is changed, and frozen ones are left out of the result.
        support: inputs [n, *shape] with labels [n].
        inner: optimizer, learning rate, steps, batch size, frozen names, augmentation, precision, checkpointing.
            Params, gradients and the optimizer's state keep their precision whatever the network computes in.
        generator: CPU generator that batches and augmentation are drawn from.
        slots: the carried state of Adam (see ``initial_slots``); None or empty for SGD.
    """
    fast = {name: value.clone() for name, value in params.items() if not inner.is_frozen(name)}
    state = {name: value.clone() for name, value in (slots or {}).items()}
    support = with_views(support, inner.views)
    for batch in batches(support, inner, learner.head.balanced_batches, generator):
        for value in fast.values():
            value.requires_grad_()
        with drawing_from(generator):
            loss = learner.loss({**params, **fast}, batch, inner.precision, inner.checkpointing)
        gradients = torch.autograd.grad(loss, list(fast.values()), allow_unused=True, materialize_grads=True)
        with torch.no_grad():
            inner_step(fast, dict(zip(fast, gradients, strict=True)), state, inner)
    return Adapted({name: value.detach() for name, value in fast.items()}, state)


def inner_step(fast: dict[str, Tensor], gradients: Params, slots: dict[str, Tensor], inner: InnerLoop) -> None:
    """Change ``fast`` and ``slots``, which belong to the caller's loop, by one step.

    Adam is TensorFlow 1's with beta1 = 0, as the authors' code runs it: epsilon stands outside the
    bias correction, and second moment and step count are never reset between episodes.
    """
    rate = inner.learning_rate
    if inner.optimizer == "adam":
        slots[STEPS] += 1
        rate = rate * float(1 - ADAM_BETA2 ** slots[STEPS]) ** 0.5
    for name, value in fast.items():
        gradient = gradients[name]
        value.requires_grad_(False)
        if inner.optimizer == "adam":
            moment = slots[moment_of(name)]
            moment.mul_(ADAM_BETA2).addcmul_(gradient, gradient, value=1 - ADAM_BETA2)
            value.addcdiv_(gradient, moment.sqrt().add_(ADAM_EPSILON), value=-rate)
        else:
            value.sub_(gradient, alpha=rate)


def moment_of(name: str) -> str:
    """Return the name of the slot with a param's second moment."""
    return f"second-moment/{name}"


def initial_slots(params: Params, inner: InnerLoop) -> dict[str, Tensor]:
    """Return the inner optimizer's state before the first round: part of the meta-state, so it travels.

    In the federation the second moment and the step count move by the mean of the sites' changes
    (step size 1, never annealed); with one site a round this is the authors' serial carrying.
    """
    if inner.optimizer == "sgd":
        return {}
    moments = {moment_of(name): torch.zeros_like(value) for name, value in params.items() if not inner.is_frozen(name)}
    return {**moments, STEPS: next(iter(params.values())).new_zeros(1)}


def outer_step(
    params: Params,
    updates: Sequence[Params],
    step_size: float | Mapping[str, float],
    weights: Sequence[float] | None = None,
) -> dict[str, Tensor]:
    """Return ``params + step_size * mean(updates)``; params without an update stay as they are.

    Args:
        updates: at least one ``adapted - initial`` by name, summed in the order given.
        step_size: one number, or one for each name (layer-wise meta learning rates).
        weights: one for each update, at least one positive; default: all the same (Reptile's mean is over tasks).
    """
    return moved(params, mean_update(updates, weights), step_size)


def moved(params: Params, mean: Params, step_size: float | Mapping[str, float]) -> dict[str, Tensor]:
    """Return ``params + step_size * mean`` by name; params that the mean does not name stay as they are.

    Args:
        step_size: one number, or one for each name.
    """
    return {
        name: value + (step_size[name] if isinstance(step_size, Mapping) else step_size) * mean[name]
        if name in mean
        else value
        for name, value in params.items()
    }


class RunningMean:
    """The weighted mean of updates that come one after another; it keeps their sum and none of them."""

    def __init__(self) -> None:
        self._sum: dict[str, Tensor] = {}
        self._weight = 0.0

    def add(self, update: Params, weight: float = 1.0) -> None:
        """Add an update, which must name what the first one names. The order decides the last bits of the sum."""
        if not self._sum:
            self._sum = {name: value * weight for name, value in update.items()}
        else:
            for name, value in self._sum.items():
                value.add_(update[name], alpha=weight)
        self._weight += weight

    def value(self) -> dict[str, Tensor]:
        """Return the mean of what was added so far. Raises ValueError for no update or no positive weight."""
        if self._weight <= 0:
            raise ValueError("a mean needs at least one update with a positive weight")
        return {name: value / self._weight for name, value in self._sum.items()}


def mean_update(updates: Sequence[Params], weights: Sequence[float] | None = None) -> dict[str, Tensor]:
    """Return the weighted mean of updates by name. Raises ValueError for no update or no positive weight."""
    mean = RunningMean()
    for update, weight in zip(updates, [1.0] * len(updates) if weights is None else weights, strict=True):
        mean.add(update, weight)
    return mean.value()


def batches(support: Examples, inner: InnerLoop, balanced: bool, generator: torch.Generator) -> Iterator[Examples]:
    """Yield ``inner.steps`` mini-batches from shuffled passes; a batch may straddle two passes (paper's code).

    A balanced pass deals the classes in turn, so that every batch holds each class about equally
    often: leave-one-out prototypes need two examples of a class.
    """
    queue: list[int] = []
    size = min(inner.batch_size, len(support))
    for _ in range(inner.steps):
        while len(queue) < size:
            queue += _one_pass(support.labels, balanced, generator)
        rows, queue = torch.tensor(queue[:size], device=support.labels.device), queue[size:]
        inputs = support.inputs.index_select(0, rows)
        if inner.augment != "none":
            inputs = augment(inputs, inner.augment, generator)
        yield Examples(inputs, support.labels.index_select(0, rows), support.way)


def _one_pass(labels: Tensor, balanced: bool, generator: torch.Generator) -> list[int]:
    order: list[int] = torch.randperm(len(labels), generator=generator).tolist()
    if not balanced:
        return order
    turns: dict[int, int] = {}
    turn_of = {}
    for row, label in zip(order, labels[torch.tensor(order)].tolist(), strict=True):
        turn_of[row] = turns[label] = turns.get(label, 0) + 1
    return sorted(order, key=turn_of.__getitem__)
