"""Accuracy, likelihood and calibration worked out by hand on a small table of predictions."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from common.errors import FedreptileError
from common.learning.episode import Episode, Examples
from common.learning.heads import LinearHead
from common.learning.judge import CALIBRATION_BINS, Judgement, Tally, judge, score, summary, tally
from common.learning.learner import Learner
from common.messages import SCALARS
from common.settings import ModelSettings

CLASSES = ("crack", "dent", "sound")
PROBABILITIES = [[0.7, 0.2, 0.1], [0.1, 0.5, 0.4], [0.3, 0.4, 0.3], [0.72, 0.2, 0.08], [0.05, 0.0, 0.95]]
LABELS = [0, 1, 2, 1, 2]
PREDICTED = [0, 1, 1, 0, 2]


def log_of(probabilities: list[list[float]]) -> Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


def table() -> Tally:
    return tally(log_of(PROBABILITIES), torch.tensor(LABELS), CLASSES)


def test_accuracy_is_the_part_that_is_right() -> None:
    assert (table().total, table().correct) == (5, 3)
    assert table().accuracy == 3 / 5


def test_the_likelihood_is_that_of_the_true_class() -> None:
    by_hand = -sum(math.log(row[label]) for row, label in zip(PROBABILITIES, LABELS, strict=True))
    assert table().nll == pytest.approx(by_hand)
    assert table().mean_nll == pytest.approx(by_hand / 5)


def test_calibration_is_the_gap_between_confidence_and_accuracy_by_bin() -> None:
    # Of 15 bins, 0.7 and 0.72 share the eleventh (from 10/15 to 11/15); each other row is alone in its bin.
    assert CALIBRATION_BINS == 15
    shared = abs((1 + 0) / 2 - (0.7 + 0.72) / 2) * 2
    alone = abs(1 - 0.5) + abs(0 - 0.4) + abs(1 - 0.95)
    assert table().ece == pytest.approx((shared + alone) / 5)


def test_bins_hold_how_many_how_sure_and_how_many_right() -> None:
    expected = {7: (1, 0.5, 1), 6: (1, 0.4, 0), 10: (2, 0.7 + 0.72, 1), 14: (1, 0.95, 1)}
    for place, found in enumerate(table().bins):
        assert found == pytest.approx(expected.get(place, (0, 0.0, 0)))


def test_certainty_falls_into_the_last_bin() -> None:
    found = tally(log_of([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0]), ("a", "b"))
    assert found.bins[-1] == (2, 2.0, 1)
    assert found.ece == pytest.approx(1 / 2)
    assert found.mean_nll == math.inf


def test_a_model_as_sure_as_it_is_right_is_calibrated() -> None:
    found = tally(log_of([[0.75, 0.25]] * 4), torch.tensor([0, 0, 0, 1]), ("a", "b"))
    assert found.ece == pytest.approx(0)


def test_results_by_class_are_correct_and_total_of_the_true_class() -> None:
    assert table().per_class() == {"crack": (1, 1), "dent": (1, 2), "sound": (1, 2)}
    assert table().confusion == {
        ("crack", "crack"): 1,
        ("dent", "dent"): 1,
        ("sound", "dent"): 1,
        ("dent", "crack"): 1,
        ("sound", "sound"): 1,
    }


def test_a_class_that_was_never_true_has_no_result_even_if_it_was_predicted() -> None:
    found = tally(log_of([[0.1, 0.9]]), torch.tensor([0]), ("a", "b"))
    assert found.per_class() == {"a": (0, 1)}


def test_nothing_judged_is_an_empty_tally() -> None:
    empty = tally(torch.empty(0, 3), torch.empty(0, dtype=torch.int64), CLASSES)
    assert empty == Tally()
    assert all(math.isnan(figure) for figure in (empty.accuracy, empty.mean_nll, empty.ece))
    assert empty.per_class() == {}
    assert table() + empty == empty + table() == table()


rows = st.lists(st.tuples(st.lists(st.floats(0.01, 1), min_size=3, max_size=3), st.integers(0, 2)), max_size=6)


def tallied(given_rows: list[tuple[list[float], int]]) -> Tally:
    values = torch.tensor([row for row, _ in given_rows], dtype=torch.float64).view(-1, 3)
    labels = torch.tensor([label for _, label in given_rows], dtype=torch.int64)
    return tally((values / values.sum(1, keepdim=True)).log(), labels, CLASSES)


def assert_close(found: Tally, expected: Tally) -> None:
    assert (found.total, found.correct, found.confusion) == (expected.total, expected.correct, expected.confusion)
    assert found.nll == pytest.approx(expected.nll)
    for mine, theirs in zip(found.bins, expected.bins, strict=True):
        assert mine == pytest.approx(theirs)


@given(rows, rows, rows)
def test_tallies_add_up_in_any_grouping_to_the_tally_of_all(
    first: list[tuple[list[float], int]], second: list[tuple[list[float], int]], third: list[tuple[list[float], int]]
) -> None:
    a, b, c = tallied(first), tallied(second), tallied(third)
    whole = tallied([*first, *second, *third])
    assert_close((a + b) + c, whole)
    assert_close(a + (b + c), whole)
    assert_close(c + a + b, whole)


@given(rows)
def test_figures_by_class_and_by_bin_add_up_to_those_of_all(given_rows: list[tuple[list[float], int]]) -> None:
    found = tallied(given_rows)
    assert sum(total for _, total in found.per_class().values()) == found.total
    assert sum(correct for correct, _ in found.per_class().values()) == found.correct
    assert sum(count for count, _, _ in found.bins) == found.total
    assert sum(correct for _, _, correct in found.bins) == found.correct
    assert not found.total or 0 <= found.ece <= 1


def test_adding_changes_neither_tally() -> None:
    one, other = table(), table()
    both = one + other
    assert one == other == table()
    assert both.confusion[("crack", "crack")] == 2


def test_a_diverged_model_is_judged_or_refused_by_name() -> None:
    # An inner learning rate far too large ends in values that are not numbers.
    values = torch.full((2, 3), math.nan)
    try:
        found = tally(values, torch.tensor([0, 1]), CLASSES)
    except FedreptileError:
        return
    assert (found.total, found.correct) == (2, 0)  # no prediction is right by chance of its place


def softmax_episode() -> tuple[Learner, dict[str, Tensor], dict[str, Tensor], Episode]:
    """A linear classifier of the input itself that knows only class a before and both classes after."""
    learner = Learner(nn.Flatten(), LinearHead(), ModelSettings(), 2, False)
    params = {"head.weight": torch.zeros(2, 2), "head.bias": torch.tensor([1.0, 0.0])}
    adapted = {"head.weight": torch.tensor([[5.0, 0.0], [0.0, 5.0]])}
    inputs = torch.tensor([[2.0, 0.0], [0.0, 2.0], [3.0, 0.0], [0.0, 3.0]]).view(4, 1, 1, 2)
    examples = Examples(inputs, torch.tensor([0, 1, 0, 1]), 2)
    return learner, params, adapted, Episode(("a", "b"), examples, examples)


def test_a_judgement_compares_before_and_after_on_the_same_queries() -> None:
    learner, params, adapted, episode = softmax_episode()
    found = judge(learner, params, adapted, episode)
    assert found.before == score(learner, params, episode)
    assert found.after == score(learner, {**params, **adapted}, episode)  # the bias was not adapted
    assert (found.before.accuracy, found.after.accuracy) == (0.5, 1.0)
    # A constant answer with odds of e to 1.
    assert found.before.mean_nll == pytest.approx(math.log(1 + math.e) - 0.5, rel=1e-6)
    assert found.before.per_class() == {"a": (2, 2), "b": (0, 2)}


def test_judgements_add_up_before_with_before_and_after_with_after() -> None:
    found = judge(*softmax_episode())
    both = found + found + Judgement()
    assert (both.before.total, both.before.correct) == (8, 4)
    assert (both.after.total, both.after.correct) == (8, 8)


def test_a_summary_holds_the_figures_that_a_site_may_report() -> None:
    found = judge(*softmax_episode())
    figures = summary(found)
    assert figures.keys() <= SCALARS
    assert figures == {
        "accuracy-before": found.before.accuracy,
        "accuracy-after": found.after.accuracy,
        "nll-before": found.before.mean_nll,
        "nll-after": found.after.mean_nll,
        "ece-before": found.before.ece,
        "ece-after": found.after.ece,
        "num-query": 4,
    }
    assert {type(value) for value in figures.values()} == {float}
    assert summary(Judgement()) == {}
