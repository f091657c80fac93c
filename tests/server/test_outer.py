"""The outer step with its options. Expected values are worked out by hand on one or two numbers."""

import pytest
import torch

from common.checkpoint import RunState
from common.settings import Settings, Value
from server.outer import ADAM_BETAS, ADAM_TAU, SiteUpdate, advance, step_size, without_quorum


def state(slots: dict[str, torch.Tensor] | None = None) -> RunState:
    return RunState(0, {"body": torch.tensor([10.0]), "head": torch.tensor([10.0])}, slots or {}, {}, {})


def update(delta: float, examples: float = 1.0, site: str = "a") -> SiteUpdate:
    return SiteUpdate(site, {"body": torch.tensor([delta]), "head": torch.tensor([delta])}, {}, examples)


def settings(**changes: Value) -> Settings:
    keys = {key.replace("__", ".").replace("_", "-"): value for key, value in changes.items()}
    return Settings.from_flat({"run.rounds": 10, "outer.anneal": False, **keys})


def body(found: RunState) -> float:
    return float(found.params["body"])


def test_params_move_by_step_size_times_the_unweighted_mean() -> None:
    found = advance(state(), [update(1.0, 100), update(3.0, 1)], settings(outer__meta_step_size=0.5))
    assert body(found) == 10 + 0.5 * 2 and found.round == 1


def test_examples_weigh_the_mean_when_asked() -> None:
    found = advance(state(), [update(1.0, 3), update(5.0, 1)], settings(outer__weighting="num-examples"))
    assert body(found) == 10 + (3 * 1 + 1 * 5) / 4


def test_the_step_size_falls_linearly_to_zero_over_the_run() -> None:
    annealed = settings(outer__anneal=True, outer__meta_step_size=2.0)
    assert [step_size(done, annealed) for done in (0, 5, 10)] == [2.0, 1.0, 0.0]
    assert step_size(9, settings()) == 1.0


def test_layers_have_step_sizes_of_their_own_by_pattern() -> None:
    found = advance(state(), [update(1.0)], settings(outer__layer_step_sizes="*=0.5 he*=0"))
    assert body(found) == 10.5 and float(found.params["head"]) == 10.0


def test_adam_takes_the_mean_update_as_minus_a_gradient() -> None:
    adam = settings(outer__optimizer="adam", outer__meta_step_size=0.1)
    first = second = 0.0
    expected, current = 10.0, state()
    for step, delta in enumerate((2.0, -1.0, 0.5), 1):
        current = advance(current, [update(delta)], adam)
        first = ADAM_BETAS[0] * first + (1 - ADAM_BETAS[0]) * delta
        second = ADAM_BETAS[1] * second + (1 - ADAM_BETAS[1]) * delta**2
        unbiased = first / (1 - ADAM_BETAS[0] ** step), second / (1 - ADAM_BETAS[1] ** step)
        expected += 0.1 * unbiased[0] / (unbiased[1] ** 0.5 + ADAM_TAU)
        assert body(current) == pytest.approx(expected, rel=1e-6)


def test_the_published_params_are_the_moving_average_if_there_is_one() -> None:
    averaged = settings(outer__average=0.9)
    once = advance(state(), [update(1.0)], averaged)
    twice = advance(once, [update(1.0)], averaged)
    assert float(once.published["body"]) == pytest.approx(0.9 * 10 + 0.1 * 11)
    assert float(twice.published["body"]) == pytest.approx(0.9 * 10.1 + 0.1 * 12)
    assert body(twice) == 12.0, "the average is for publishing only; rounds go on from the params"
    assert advance(state(), [update(1.0)], settings()).published["body"] == 11.0


def test_slots_move_by_the_whole_mean_change_whatever_the_step_size() -> None:
    begun = state(slots={"v": torch.tensor([1.0])})
    changes = [SiteUpdate(str(change), update(0.0).delta, {"v": torch.tensor([change])}, 1.0) for change in (2.0, 4.0)]
    found = advance(begun, changes, settings(outer__meta_step_size=0.1))
    assert float(found.slots["v"]) == 1 + 3


def test_a_round_without_quorum_counts_but_moves_nothing() -> None:
    found = without_quorum(without_quorum(without_quorum(state(), fault=True), fault=False), fault=True)
    assert (found.round, found.failed, body(found)) == (3, 2, 10.0)
    assert advance(found, [update(1.0)], settings()).failed == 0


def test_the_state_before_is_not_changed() -> None:
    begun = state(slots={"v": torch.tensor([1.0])})
    change = SiteUpdate("a", update(1.0).delta, {"v": torch.tensor([1.0])}, 1.0)
    for changes in ({}, {"outer__optimizer": "adam"}, {"outer__average": 0.5}):
        advance(begun, [change, change], settings(**changes))
    assert body(begun) == 10.0 and float(begun.slots["v"]) == 1.0 and float(change.delta["body"]) == 1.0
