"""The strategy with replies of every kind: what fits is used, what does not is dropped and counted."""

import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from numpy.typing import NDArray

from common.learning.reptile import outer_step
from common.plan import Plan
from common.settings import Value
from server.collect import collect
from server.reptile import Reptile
from server.roster import Roster
from server.rounds import first_state
from tests.server.scripted import Answer, ScriptedGrid, introduction, site, small_plan


def strategy_with(answers: dict[int, Answer], **changes: Value) -> tuple[Reptile, ScriptedGrid]:
    plan = small_plan(outer__sites_per_round=0, **changes)
    return Reptile(plan, first_state(plan), Roster()), ScriptedGrid(answers)


def one_round(strategy: Reptile, grid: ScriptedGrid) -> None:
    strategy.configure_train(strategy.state.round + 1, strategy.arrays(), ConfigRecord(), grid)
    strategy.aggregate_train(strategy.state.round + 1, collect(grid, strategy.asked, 0.05))


def moved_by(strategy: Reptile) -> torch.Tensor:
    pack = strategy.plan.params.pack
    return pack(strategy.state.params) - pack(strategy.plan.initial)


def broken(name: str, reply: RecordDict | Error | None) -> Answer:
    return lambda message: introduction(name) if message.metadata.message_type == "query" else reply


def update(
    plan: Plan,
    delta: NDArray[Any] | None = None,
    scalars: dict[str, float] | None = None,
    extra: dict[str, MetricRecord] | None = None,
) -> RecordDict:
    values = np.ones(plan.agreed.update, np.float32) if delta is None else delta
    report = MetricRecord(dict(scalars or {"num-examples": 4.0}))
    return RecordDict({"update": ArrayRecord({"delta": Array(values)}), "scalars": report, **(extra or {})})


def with_nan(plan: Plan) -> RecordDict:
    values = np.ones(plan.agreed.update, np.float32)
    values[3] = np.nan
    return update(plan, delta=values)


MALFORMED: dict[str, Callable[[Plan], RecordDict | Error | None]] = {
    "not-finite": with_nan,
    "wrong-shape": lambda plan: update(plan, delta=np.ones(plan.agreed.update + 1, np.float32)),
    "wrong-dtype": lambda plan: update(plan, delta=np.ones(plan.agreed.update, np.float64)),
    "extra-key": lambda plan: update(plan, extra={"samples": MetricRecord({"x": 1})}),
    "missing-key": lambda plan: RecordDict({"scalars": MetricRecord({"num-examples": 4})}),
    "scalars": lambda plan: update(plan, scalars={"num-examples": 0.0}),
    "error-reply": lambda plan: Error(100, "the site's data cannot be used"),
    "no-reply": lambda plan: None,
}


@pytest.mark.parametrize("cause", MALFORMED)
def test_one_bad_reply_is_dropped_and_counted_and_the_round_goes_on(cause: str) -> None:
    plan = small_plan(outer__sites_per_round=0)
    bad = broken("bad", MALFORMED[cause](plan))
    strategy, grid = strategy_with({1: site("good", plan, 2.0), 2: bad, 3: site("other", plan, 4.0)})
    one_round(strategy, grid)
    assert strategy.report is not None
    assert strategy.report.causes == {cause: 1} and set(strategy.report.dropped) == {"bad"}
    assert strategy.report.used == ("good", "other")
    assert torch.allclose(moved_by(strategy), torch.tensor(3.0))


def test_a_site_that_asks_for_a_huge_weight_gets_no_more_than_others_by_default() -> None:
    plan = small_plan(outer__sites_per_round=0)
    strategy, grid = strategy_with({1: site("a", plan, 0.0), 2: site("greedy", plan, 1.0, examples=1e9)})
    one_round(strategy, grid)
    assert torch.allclose(moved_by(strategy), torch.tensor(0.5))


def test_below_the_quorum_the_params_stay() -> None:
    plan = small_plan(outer__sites_per_round=0)
    answers = {1: site("a", plan), 2: broken("b", None), 3: broken("c", None)}
    strategy, grid = strategy_with(answers, outer__quorum=0.5)
    one_round(strategy, grid)
    assert strategy.report is not None and not strategy.report.quorum and strategy.report.used == ()
    assert (strategy.state.round, strategy.state.failed) == (1, 1)
    assert not moved_by(strategy).any()
    strategy, grid = strategy_with(answers, outer__quorum=0.3)
    one_round(strategy, grid)
    assert moved_by(strategy).all()


def test_no_usable_reply_at_all_is_no_quorum_even_when_the_quorum_is_zero() -> None:
    strategy, grid = strategy_with({1: broken("a", None)}, outer__quorum=0.0)
    one_round(strategy, grid)
    assert strategy.state.failed == 1


def test_the_sum_is_taken_in_site_name_order_whatever_order_replies_come_in() -> None:
    plan = small_plan(outer__sites_per_round=0)
    deltas = {"a": 1e8, "b": 1.0, "c": -1e8, "d": 1.0}
    ends = []
    for order in (list(deltas), list(deltas)[::-1]):
        strategy, grid = strategy_with({node: site(name, plan, deltas[name]) for node, name in enumerate(order)})
        one_round(strategy, grid)
        ends.append(moved_by(strategy))
    assert torch.equal(*ends)


NINE = tuple("abcdefghi")


def after_one_round(order: Sequence[str], silent: str = "", held: list[int] | None = None) -> Reptile:
    """Return the strategy after a round of nine sites whose replies come in this order.

    Args:
        silent: sites that never answer.
        held: takes the number of replies that are alive whenever another is asked for.
    """
    plan = small_plan(outer__sites_per_round=0)
    draws = np.random.default_rng(0).standard_normal((len(NINE), plan.agreed.update)).astype(np.float32)
    strategy, grid = strategy_with(
        {node: broken(name, None) for node, name in enumerate(NINE)}, outer__weighting="num-examples"
    )
    strategy.configure_train(1, strategy.arrays(), ConfigRecord(), grid)
    grid.push_messages(strategy.asked.messages())
    sent = dict(zip(NINE, strategy.asked.messages(), strict=True))
    alive: list[weakref.ref[Message]] = []

    def coming() -> Iterator[Message]:
        for name in order:
            if name in silent:
                continue
            if held is not None:
                held.append(sum(one() is not None for one in alive))
            place = NINE.index(name)
            reply = Message(update(plan, draws[place], {"num-examples": place + 1.0}), reply_to=sent[name])
            alive.append(weakref.ref(reply))
            yield reply
            del reply

    strategy.aggregate_train(1, coming())
    return strategy


@pytest.mark.parametrize("silent", ["", "a", "e", "i", "abc"])
def test_the_round_ends_with_the_bits_of_the_mean_in_site_name_order_whatever_comes_when(silent: str) -> None:
    plan = small_plan(outer__sites_per_round=0)
    draws = np.random.default_rng(0).standard_normal((len(NINE), plan.agreed.update)).astype(np.float32)
    there = [place for place, name in enumerate(NINE) if name not in silent]
    by_name = [plan.update.unpack(torch.tensor(draws[place])) for place in there]
    expected = outer_step(plan.initial, by_name, 1.0, [place + 1.0 for place in there])
    for seed in range(4):
        order = [NINE[place] for place in np.random.default_rng(seed).permutation(len(NINE))] if seed else NINE
        strategy = after_one_round(order, silent)
        assert strategy.report is not None and strategy.report.used == tuple(NINE[place] for place in there)
        assert set(strategy.report.dropped) == set(strategy.missing) == set(silent)
        for name, value in expected.items():
            assert torch.equal(strategy.state.params[name], value), f"{name}, replies in the order {order}"


def test_no_more_than_a_few_replies_are_kept_when_they_come_in_order_and_all_behind_one_that_is_late() -> None:
    held: list[int] = []
    after_one_round(NINE, held=held)
    assert max(held) <= 2
    late: list[int] = []
    after_one_round([*NINE[1:], NINE[0]], held=late)
    assert max(late) == len(NINE) - 1


def test_sites_are_asked_to_judge_only_when_it_is_due() -> None:
    plan = small_plan(outer__sites_per_round=0)
    strategy, grid = strategy_with({1: site("a", plan)}, judge__every=2, run__rounds=5)
    asked = []
    for _ in range(5):
        one_round(strategy, grid)
        asked.append(grid.sent[-1].content.config_records["config"]["judge"])
    assert asked == [False, True, False, True, True]


def test_flower_s_own_loop_drives_the_strategy_to_the_same_params() -> None:
    """``Strategy.start`` is Flower's; ours adds checkpoints and deadlines and must not differ otherwise."""
    plan = small_plan(outer__sites_per_round=0)

    def fading(name: str) -> Answer:
        def answer(message: Message) -> RecordDict:
            if message.metadata.message_type == "query":
                return introduction(name)
            number = int(str(message.content.config_records["config"]["round"]))
            return update(plan, delta=np.full(plan.agreed.update, len(name) / number, np.float32))

        return answer

    ours, grid = strategy_with({1: fading("a"), 2: fading("bbb")}, outer__anneal=True)
    for _ in range(4):
        one_round(ours, grid)
    theirs, grid = strategy_with({1: fading("a"), 2: fading("bbb")}, outer__anneal=True)
    result = theirs.start(grid, theirs.arrays(), num_rounds=4, timeout=5)
    assert torch.equal(moved_by(ours), moved_by(theirs)) and moved_by(ours).any()
    assert np.array_equal(result.arrays["params"].numpy(), plan.params.pack(ours.state.params).numpy())
