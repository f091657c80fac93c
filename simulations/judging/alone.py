"""The baseline of a site on its own: what it reaches with its own data and no federation."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save

from client.data.sites import open_site_data
from common.checkpoint import read_tensors
from common.learning.episode import Examples
from common.learning.params import Params
from common.learning.threads import threads
from common.paths import write_atomically
from common.plan import Plan
from common.settings import Settings, flatten
from simulations.batched.many import adapt_fast
from simulations.reference import centralised_reptile

FOLDER = "alone"
"""Folder of a run with the params that its sites reached alone."""


def train_alone(site: str, sites: Path, settings: Settings, run: Path) -> Params:
    """Return the params of Reptile on one site's training data alone, with as many rounds as the federation had.

    So a site gets at least as many adaptations as it did in the federation. They are kept in the run's folder.
    """
    path = run / FOLDER / f"{hashlib.sha256(site.encode()).hexdigest()[:16]}.safetensors"
    made_with = json.dumps([site, flatten(settings)])
    try:
        tensors, metadata = read_tensors(path)
        if metadata.get("alone") == made_with:
            return tensors
    except (OSError, SafetensorError):
        pass
    with threads(1):
        params = centralised_reptile({site: open_site_data(sites, site, settings.data)}, settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, save({name: value.contiguous() for name, value in params.items()}, {"alone": made_with}))
    return params


class Alone:
    """What sites reach without a federation; a function of (site, plan, support, generator).

    Args:
        trained: for sites that took part in training, what they reached alone (``train_alone``).
        steps: inner steps of the rounds' inner loop, from the initial params, of a site that has its support set only.
    """

    def __init__(self, trained: Mapping[str, Params], steps: int) -> None:
        self._trained = trained
        self._steps = steps

    def __call__(self, site: str, plan: Plan, support: Examples, generator: torch.Generator) -> Params:
        """Return the params that the site predicts with: adapted like the federation's, or learned from the support."""
        start = self._trained.get(site, plan.initial)
        inner = plan.settings.adaptation if site in self._trained else replace(plan.settings.inner, steps=self._steps)
        return {**start, **adapt_fast(plan.learner, start, support, inner, generator, plan.initial_slots).params}
