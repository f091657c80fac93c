"""Reptile without a federation: the paper's algorithm 2 in one loop over site data.

A reference to read and to test against: with the same seeds the federation ends with the same bits.
"""

import torch

from common.learning.episode import SiteData, sample_episode
from common.learning.params import Params, difference
from common.learning.reptile import adapt, outer_step
from common.learning.threads import threads
from common.plan import plan_for
from common.seeds import seed_of
from common.settings import Settings


@threads(1)
def centralised_reptile(sites: dict[str, SiteData], settings: Settings) -> Params:
    """Return the params after all rounds. Plain outer step, every site weighs the same."""
    plan, episode, outer = plan_for(settings), settings.episode, settings.outer
    params, slots = plan.initial, plan.initial_slots
    for done in range(settings.run.rounds):
        step_size = outer.meta_step_size * (1 - done / settings.run.rounds if outer.anneal else 1.0)
        updates, slot_changes = [], []
        for name in _sample(sorted(sites), done, settings):
            generator = torch.Generator().manual_seed(seed_of(settings.run.seed, "episode", name, done + 1))
            drawn = sample_episode(sites[name], episode.way, episode.shot, 0, generator)
            adapted = adapt(plan.learner, params, drawn.support, settings.inner, generator, slots)
            updates.append(difference(adapted.params, params))
            slot_changes.append(difference(adapted.slots, slots))
        params = outer_step(params, updates, step_size)
        slots = outer_step(slots, slot_changes, 1.0)
    return params


def _sample(names: list[str], done: int, settings: Settings) -> list[str]:
    generator = torch.Generator().manual_seed(seed_of(settings.run.seed, "sites", done))
    order = torch.randperm(len(names), generator=generator).tolist()
    return sorted(names[i] for i in order[: settings.outer.sites_per_round or len(names)])
