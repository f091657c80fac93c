"""The inner loops of many sites in step, as one: what keeps a GPU busy, for which a single site's step is too small.

Params of all sites are stacked [sites, ...] and the gradients taken by ``torch.func.vmap``, whatever the network.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.nn.modules.batchnorm import _BatchNorm

from client.site import Work
from common.learning.episode import Examples
from common.learning.learner import Learner, with_views
from common.learning.params import Params
from common.learning.reptile import STEPS, Adapted, batches, inner_step
from common.seeds import next_seed
from common.settings import InnerLoop

log = logging.getLogger("fedreptile.simulations")


def can_stack(learner: Learner, params: Params, batch: Examples, inner: InnerLoop) -> bool:
    """Return whether torch can map over a learner's loss. It cannot if the network draws random numbers (dropout), or
    keeps state of its own, or is computed block by block (``inner.checkpointing``)."""
    if inner.checkpointing:
        return False
    if learner not in _found:
        _found[learner] = _tried(learner, params, batch)
    return _found[learner]


_found: "WeakKeyDictionary[Learner, bool]" = WeakKeyDictionary()


def _tried(learner: Learner, params: Params, batch: Examples) -> bool:
    def loss(own: Params) -> Tensor:
        return learner.loss(own, batch)

    try:
        with _measuring_batches(learner.network):
            vmap(grad(loss))({name: torch.stack([value, value]) for name, value in params.items()})
    except RuntimeError as error:
        log.warning("sites are adapted one after another, since torch cannot map over this network: %s", error)
        return False
    return True


def adapt_stacked(works: Sequence[Work]) -> list[Adapted]:
    """Return what ``common.learning.reptile.adapt`` returns for each of the works, to rounding.

    All have the same learner, inner loop, way, size of a batch, and count of Adam's steps.
    """
    first = works[0]
    inner, learner, way = first.inner, first.plan.learner, first.episode.support.way
    names = [name for name in first.params if not inner.is_frozen(name)]
    fast = {name: torch.stack([work.params[name] for work in works]) for name in names}
    frozen = {name: value for name, value in first.params.items() if inner.is_frozen(name)}
    slots = {
        name: value.clone() if name == STEPS else torch.stack([work.slots[name] for work in works])
        for name, value in first.slots.items()
    }
    each = [
        batches(with_views(work.episode.support, inner.views), inner, learner.head.balanced_batches, work.generator)
        for work in works
    ]

    def loss(own: Params, inputs: Tensor, labels: Tensor) -> Tensor:
        return learner.loss({**frozen, **own}, Examples(inputs, labels, way), inner.precision)

    with _measuring_batches(learner.network):
        for step in zip(*each, strict=True):
            for work in works:
                next_seed(work.generator)  # of dropout: a network that draws cannot be mapped over
            inputs, labels = (torch.stack([getattr(batch, part) for batch in step]) for part in ("inputs", "labels"))
            gradients = vmap(grad(loss))(fast, inputs, labels)
            inner_step(fast, gradients, slots, inner)
    return [
        Adapted(
            {name: value[place] for name, value in fast.items()},
            {name: value if name == STEPS else value[place] for name, value in slots.items()},
        )
        for place in range(len(works))
    ]


@contextmanager
def _measuring_batches(network: nn.Module) -> Iterator[None]:
    """Have normalisations keep no running statistics inside: the loss does not use them, and they are not stacked."""
    layers = [layer for layer in network.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats]
    try:
        for layer in layers:
            layer.track_running_stats = False
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True
