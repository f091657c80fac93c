"""From the updates of one round to the next state: the outer step with its options. Pure."""

import dataclasses
from dataclasses import dataclass

import torch

from common.checkpoint import RunState
from common.learning.params import Params
from common.learning.reptile import RunningMean, moved
from common.messages import Update
from common.plan import Plan
from common.settings import OuterSettings, Settings, layer_step_size

ADAM_BETAS = (0.9, 0.99)
ADAM_TAU = 1e-3
"""Reddi et al. 2021, "Adaptive Federated Optimization", section 4: defaults of FedAdam."""


@dataclass(frozen=True)
class MeanUpdate:
    """What the updates of a round come to, by name."""

    delta: Params
    slots: Params


class Updates:
    """The updates of a round, given one after another in site-name order: one running mean, whatever their number."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._mean = RunningMean()
        self._by_examples = plan.settings.outer.weighting == "num-examples"

    def add(self, update: Update) -> None:
        """Add what a site sent; the arrays stay the caller's."""
        weight = update.scalars["num-examples"] if self._by_examples else 1.0
        self._mean.add({"delta": torch.tensor(update.delta), "slots": torch.tensor(update.slots)}, weight)

    def mean(self) -> MeanUpdate:
        """Raises ValueError if there was no update."""
        flat = self._mean.value()
        return MeanUpdate(self._plan.update.unpack(flat["delta"]), self._plan.slots.unpack(flat["slots"]))


def advance(state: RunState, mean: MeanUpdate, settings: Settings) -> RunState:
    """Return the state after a round: params move along the mean update, the inner optimizer's slots by the mean of
    their changes."""
    outer = settings.outer
    size = step_size(state.round, settings)
    sizes = {name: size * layer_step_size(outer.layer_step_sizes, name) for name in state.params}
    direction, optimizer = adam(mean.delta, state.optimizer) if outer.optimizer == "adam" else (mean.delta, {})
    params = moved(state.params, direction, sizes)
    slots = moved(state.slots, mean.slots, 1.0)
    return dataclasses.replace(
        state,
        round=state.round + 1,
        params=params,
        slots=slots,
        optimizer=optimizer,
        average=moving_average(state, params, outer),
        failed=0,
    )


def without_quorum(state: RunState, *, fault: bool) -> RunState:
    """Return the state after a round whose updates were too few: nothing moves but the counts.

    Args:
        fault: whether it counts among the rounds in a row that end a run; not if sites only rest.
    """
    return dataclasses.replace(state, round=state.round + 1, failed=state.failed + fault)


def step_size(rounds_done: int, settings: Settings) -> float:
    """Return the outer step size of the next round (paper, section 6: linear to 0, or constant)."""
    left = 1 - rounds_done / settings.run.rounds if settings.outer.anneal else 1.0
    return settings.outer.meta_step_size * left


def adam(mean: Params, optimizer: Params) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return Adam's direction for the mean update taken as minus a gradient, and its new state.

    FedAdam (Reddi et al. 2021, algorithm 2) with bias correction.
    """
    steps = optimizer.get("steps", torch.zeros(1, dtype=torch.float64)) + 1
    corrections = [float(1 - beta**steps) for beta in ADAM_BETAS]
    direction, state = {}, {"steps": steps}
    for name, update in mean.items():
        first = optimizer.get(f"first/{name}", torch.zeros_like(update))
        second = optimizer.get(f"second/{name}", torch.zeros_like(update))
        first = ADAM_BETAS[0] * first + (1 - ADAM_BETAS[0]) * update
        second = ADAM_BETAS[1] * second + (1 - ADAM_BETAS[1]) * update.square()
        direction[name] = (first / corrections[0]) / ((second / corrections[1]).sqrt() + ADAM_TAU)
        state |= {f"first/{name}": first, f"second/{name}": second}
    return direction, state


def moving_average(state: RunState, params: Params, outer: OuterSettings) -> Params:
    """Return the exponential moving average of params, begun at the first params it sees; empty when off."""
    if not outer.average:
        return {}
    before = state.average or state.params
    return {name: outer.average * before[name] + (1 - outer.average) * value for name, value in params.items()}
