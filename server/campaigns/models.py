"""The models of a campaign: the one that it starts from, and the one that it has made."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from common.checkpoint import Checkpoint, RunState, code_version, read_checkpoint
from common.learning.params import Params
from common.messages import Candidate, ClassTable
from common.plan import Plan
from common.releases.artefact import Artefact, of_checkpoint
from common.releases.delta import Difference, difference_of, rounding_error


@dataclass(frozen=True)
class Challenger:
    """What the rounds of a campaign have come to.

    It is made anew from the last state whenever it is needed, and is the same each time.
    """

    artefact: Artefact
    """As it will be released: its params are those that ``difference`` leads to, if there is one."""
    exact: Params
    """The params before rounding."""
    difference: Difference | None
    """From the champion; None: the campaign started from no release, or campaign.delta is off."""
    lost: float = 0.0
    """How large the rounding is beside the difference (root of the ratio of sums of squares)."""


def challenger_of(plan: Plan, state: RunState) -> Challenger:
    """Return the model that a state stands for, rounded so that a small difference leads to it."""
    artefact, campaign = of_checkpoint(Checkpoint(state, plan.settings, code_version())), plan.settings.campaign
    if campaign.delta == "off" or not campaign.release:
        return Challenger(artefact, artefact.params, None)
    before = champion_of(plan)[0].params
    difference = difference_of(before, artefact.params, campaign.delta)
    rounded = difference.applied_to(before)
    lost = rounding_error(before, artefact.params, rounded)
    return Challenger(replace(artefact, params=rounded), artefact.params, difference, lost)


def champion_of(plan: Plan) -> tuple[Artefact, list[str]]:
    """Return the model that the campaign starts from, and what is to be said of it."""
    model = plan.settings.model
    if plan.settings.campaign.release:
        return of_checkpoint(read_checkpoint(Path(model.initial))), []
    params = read_checkpoint(Path(model.initial)).state.published if model.initial else plan.initial
    note = "there is no release yet: the challenger stands beside the params that the rounds started from"
    return Artefact(plan.settings, params, slots=plan.initial_slots), [note]


def candidate_of(artefact: Artefact, plan: Plan) -> Candidate:
    """Return a model as it goes to sites in a request to judge it."""
    names = tuple(sorted(artefact.prototypes))
    sums = [artefact.prototypes[name][0] for name in names]
    stacked = torch.stack(sums) if sums else torch.zeros(0, plan.agreed.embedding)
    return Candidate(
        plan.params.pack(artefact.params).numpy(),
        plan.slots.pack(artefact.slots or plan.initial_slots).numpy(),
        ClassTable(
            names,
            tuple(artefact.prototypes[name][1] for name in names),
            stacked.to(plan.params.torch_dtype).numpy(),
        ),
    )
