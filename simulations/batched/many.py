"""``adapt_many``: the adaptations of many sites, each with the result that ``common.learning.reptile.adapt`` gives."""

from collections.abc import Sequence

import torch

from client.site import Work
from common.learning.episode import Examples
from common.learning.learner import Learner
from common.learning.params import Params
from common.learning.reptile import STEPS, Adapted, adapt
from common.settings import InnerLoop
from simulations.batched.scheduled import adapt_scheduled, can_schedule
from simulations.batched.stacked import adapt_stacked, can_stack


def adapt_many(works: Sequence[Work]) -> list[Adapted]:
    """Adapt sites, in order: on a GPU those that do the same steps at once, on a processor one after another.

    A site's result does not depend on which others are there: on a processor to the bit, on a GPU to rounding.
    """
    done: dict[int, Adapted] = {}
    for places in _alike(works):
        group = [works[place] for place in places]
        adapted = adapt_stacked(group) if _stackable(group) else [adapt_one(work) for work in group]
        done |= dict(zip(places, adapted, strict=True))
    return [done[place] for place in range(len(works))]


def adapt_one(work: Work) -> Adapted:
    """Adapt one site."""
    return adapt_fast(work.plan.learner, work.params, work.episode.support, work.inner, work.generator, work.slots)


def adapt_fast(
    learner: Learner,
    params: Params,
    support: Examples,
    inner: InnerLoop,
    generator: torch.Generator,
    slots: Params | None = None,
) -> Adapted:
    """Do what ``adapt`` does: by layers that are written out if the network is one of those, else by ``adapt``."""
    run = adapt_scheduled if can_schedule(learner, params, support, inner) else adapt
    return run(learner, params, support, inner, generator, slots)


def _alike(works: Sequence[Work]) -> list[list[int]]:
    """Return the places of sites that can go in step: same learner, inner loop, way, size of a batch, steps before."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for place, work in enumerate(works):
        support, inner = work.episode.support, work.inner
        size, steps = min(inner.batch_size, len(support) * inner.views), work.slots.get(STEPS)
        key = (id(work.plan), inner, support.way, size, None if steps is None else float(steps))
        groups.setdefault(key, []).append(place)
    return list(groups.values())


def _stackable(group: Sequence[Work]) -> bool:
    first = group[0]
    on_gpu = next(iter(first.params.values())).is_cuda
    return on_gpu and len(group) > 1 and can_stack(first.plan.learner, first.params, first.episode.support, first.inner)
