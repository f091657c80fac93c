"""A small artefact."""

from typing import Any

import torch

from common.plan import plan_for
from common.releases.artefact import Artefact
from common.settings import Settings

VALUES: dict[str, Any] = {
    "data.kind": "vector",
    "data.size": 6,
    "model.network": "mlp",
    "model.width": 5,
    "model.depth": 1,
}


def artefact(seed: int = 0, moved: float = 0.05, **more: Any) -> Artefact:
    """Return a release whose params were moved at random from those that a run starts from."""
    settings = Settings.from_flat({**VALUES, **{key.replace("__", "."): value for key, value in more.items()}})
    plan, generator = plan_for(settings), torch.Generator().manual_seed(seed)
    params = {
        name: value.detach() + moved * torch.randn(value.shape, generator=generator)
        for name, value in plan.initial.items()
    }
    total = torch.randn(plan.learner.embedding, generator=generator)
    table = {"scratch": (total, 10), "dent/ä": (total * 2, 3)}
    return Artefact(settings, params, table, slots=plan.initial_slots)
