"""The outer step with its options. Expected values are worked out by hand on one or two numbers."""

import numpy as np
import pytest
import torch

from common.checkpoint import RunState
from common.learning.reptile import outer_step
from common.messages import Update
from common.settings import Settings, Value
from server.outer import ADAM_BETAS, ADAM_TAU, MeanUpdate, Updates, advance, step_size, without_quorum
from tests.server.scripted import small_plan


def state(slots: dict[str, torch.Tensor] | None = None) -> RunState:
    return RunState(0, {"body": torch.tensor([10.0]), "head": torch.tensor([10.0])}, slots or {}, {}, {})


def mean(delta: float, slots: dict[str, torch.Tensor] | None = None) -> MeanUpdate:
    return MeanUpdate({"body": torch.tensor([delta]), "head": torch.tensor([delta])}, slots or {})


def settings(**changes: Value) -> Settings:
    keys = {key.replace("__", ".").replace("_", "-"): value for key, value in changes.items()}
    return Settings.from_flat({"run.rounds": 10, "outer.anneal": False, **keys})


def body(found: RunState) -> float:
    return float(found.params["body"])


def test_params_move_by_step_size_times_the_mean() -> None:
    found = advance(state(), mean(2.0), settings(outer__meta_step_size=0.5))
    assert body(found) == 10 + 0.5 * 2 and found.round == 1


SENT = [(1.0, 3.0), (5.0, 1.0)]
"""What each element of an update is, and its examples."""


@pytest.mark.parametrize(
    ("weighting", "expected"), [("uniform", (1 + 5) / 2), ("num-examples", (3 * 1 + 1 * 5) / 4)], ids=str
)
def test_updates_weigh_the_same_or_by_their_examples(weighting: str, expected: float) -> None:
    plan = small_plan(outer__weighting=weighting, inner__optimizer="adam")
    updates = Updates(plan)
    for value, examples in SENT:
        delta, slots = (np.full(size, value, np.float32) for size in (plan.agreed.update, plan.agreed.slots))
        updates.add(Update(delta, slots, {"num-examples": examples}))
    found = updates.mean()
    assert found.delta.keys() == plan.initial.keys() and found.slots.keys() == plan.initial_slots.keys()
    assert found.slots, "Adam carries slots"
    assert all((value == expected).all() for value in (*found.delta.values(), *found.slots.values()))


@pytest.mark.parametrize("weighting", ["uniform", "num-examples"])
def test_the_running_mean_of_flat_updates_has_the_bits_of_the_mean_of_updates_by_name(weighting: str) -> None:
    plan = small_plan(outer__weighting=weighting, model__width=13)
    generator, updates = np.random.default_rng(0), Updates(plan)
    sent = [generator.standard_normal(plan.agreed.update).astype(np.float32) for _ in range(7)]
    examples = [float(number) for number in generator.integers(1, 50, 7)]
    for flat, number in zip(sent, examples, strict=True):
        updates.add(Update(flat, np.empty(0, np.float32), {"num-examples": number}))
    by_name = [plan.update.unpack(torch.tensor(flat)) for flat in sent]
    weights = examples if weighting == "num-examples" else None
    expected = outer_step(plan.initial, by_name, 0.3, weights)
    found = advance(
        RunState(0, plan.initial, {}, {}, {}),
        updates.mean(),
        plan.settings.with_values({"outer.meta-step-size": 0.3}),
    )
    assert all(torch.equal(found.params[name], value) for name, value in expected.items())


def test_no_update_has_no_mean() -> None:
    with pytest.raises(ValueError, match="at least one update"):
        Updates(small_plan()).mean()


def test_the_step_size_falls_linearly_to_zero_over_the_run() -> None:
    annealed = settings(outer__anneal=True, outer__meta_step_size=2.0)
    assert [step_size(done, annealed) for done in (0, 5, 10)] == [2.0, 1.0, 0.0]
    assert step_size(9, settings()) == 1.0


def test_layers_have_step_sizes_of_their_own_by_pattern() -> None:
    found = advance(state(), mean(1.0), settings(outer__layer_step_sizes="*=0.5 he*=0"))
    assert body(found) == 10.5 and float(found.params["head"]) == 10.0


def test_adam_takes_the_mean_update_as_minus_a_gradient() -> None:
    adam = settings(outer__optimizer="adam", outer__meta_step_size=0.1)
    first = second = 0.0
    expected, current = 10.0, state()
    for step, delta in enumerate((2.0, -1.0, 0.5), 1):
        current = advance(current, mean(delta), adam)
        first = ADAM_BETAS[0] * first + (1 - ADAM_BETAS[0]) * delta
        second = ADAM_BETAS[1] * second + (1 - ADAM_BETAS[1]) * delta**2
        unbiased = first / (1 - ADAM_BETAS[0] ** step), second / (1 - ADAM_BETAS[1] ** step)
        expected += 0.1 * unbiased[0] / (unbiased[1] ** 0.5 + ADAM_TAU)
        assert body(current) == pytest.approx(expected, rel=1e-6)


def test_the_published_params_are_the_moving_average_if_there_is_one() -> None:
    averaged = settings(outer__average=0.9)
    once = advance(state(), mean(1.0), averaged)
    twice = advance(once, mean(1.0), averaged)
    assert float(once.published["body"]) == pytest.approx(0.9 * 10 + 0.1 * 11)
    assert float(twice.published["body"]) == pytest.approx(0.9 * 10.1 + 0.1 * 12)
    assert body(twice) == 12.0, "the average is for publishing only; rounds go on from the params"
    assert advance(state(), mean(1.0), settings()).published["body"] == 11.0


def test_slots_move_by_the_whole_mean_change_whatever_the_step_size() -> None:
    begun = state(slots={"v": torch.tensor([1.0])})
    found = advance(begun, mean(0.0, {"v": torch.tensor([3.0])}), settings(outer__meta_step_size=0.1))
    assert float(found.slots["v"]) == 1 + 3


def test_a_round_without_quorum_counts_but_moves_nothing() -> None:
    found = without_quorum(without_quorum(without_quorum(state(), fault=True), fault=False), fault=True)
    assert (found.round, found.failed, body(found)) == (3, 2, 10.0)
    assert advance(found, mean(1.0), settings()).failed == 0


def test_the_state_before_is_not_changed() -> None:
    begun = state(slots={"v": torch.tensor([1.0])})
    change = mean(1.0, {"v": torch.tensor([1.0])})
    for changes in ({}, {"outer__optimizer": "adam"}, {"outer__average": 0.5}):
        advance(begun, change, settings(**changes))
    assert body(begun) == 10.0 and float(begun.slots["v"]) == 1.0 and float(change.delta["body"]) == 1.0
