"""What the settings of a run come to, derived alike at the server and at every site."""

from dataclasses import dataclass
from functools import lru_cache

import torch

from common.errors import SettingsError
from common.learning.learner import Learner, build_learner, trainable_names
from common.learning.params import Manifest, Params, select
from common.learning.reptile import initial_slots
from common.messages import Agreement
from common.settings import Settings


@dataclass(frozen=True)
class Plan:
    """The learner, the state that a run starts from, and the layouts of what travels."""

    settings: Settings
    learner: Learner
    initial: Params
    initial_slots: Params
    params: Manifest
    update: Manifest
    slots: Manifest
    agreed: Agreement


@lru_cache(maxsize=4)
def plan_for(settings: Settings, device: str = "cpu") -> Plan:
    """Build a plan, once for all sites of a process.

    Raises:
        SettingsError: if the network cannot be built or the device cannot be used.
    """
    learner, params = build_learner(settings)
    try:
        learner.to(device)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise SettingsError(
            f"device {device!r} cannot be used: {error}; use 'cpu' or a device that torch finds"
        ) from error
    slots = initial_slots(params, settings.inner)
    trained = select(params, trainable_names(params, settings))
    layouts = Manifest.of(params), Manifest.of(trained), Manifest.of(slots)
    whole, update, carried = layouts
    head = (f"{settings.model.head} head", (learner.embedding,))
    digest = Manifest((head, *(entry for layout in layouts for entry in layout.entries)), whole.dtype).digest
    agreed = Agreement(whole.size, update.size, carried.size, learner.embedding, whole.dtype, digest)
    return Plan(settings, learner, params, slots, whole, update, carried, agreed)
