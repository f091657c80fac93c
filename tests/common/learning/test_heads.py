"""Heads against brute force: every distance, softmax and mean is written out as a loop."""

import math
from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from common.learning.heads import Head, LinearHead, PrototypeHead, class_sums, prototypes_of, squared_distances

SHARPNESS = 3.0


def points(count: int, size: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(count, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def mean_of(rows: list[list[float]]) -> list[float]:
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def log_softmax(distances: dict[int, float], size: int) -> dict[int, float]:
    scores = {label: -SHARPNESS * distance / size for label, distance in distances.items()}
    most = max(scores.values())
    total = most + math.log(sum(math.exp(score - most) for score in scores.values()))
    return {label: score - total for label, score in scores.items()}


def leave_one_out_loss(embeddings: Tensor, labels: list[int]) -> float:
    """Classify each example by prototypes made without it, if its class has another one."""
    rows: list[list[float]] = embeddings.tolist()
    losses = []
    for left_out, (row, label) in enumerate(zip(rows, labels, strict=True)):
        if labels.count(label) == 1:
            continue
        members: dict[int, list[list[float]]] = {}
        for index, (other, other_label) in enumerate(zip(rows, labels, strict=True)):
            if index != left_out:
                members.setdefault(other_label, []).append(other)
        distances = {kind: math.dist(row, mean_of(group)) ** 2 for kind, group in members.items()}
        losses.append(-log_softmax(distances, len(row))[label])
    return sum(losses) / len(losses) if losses else 0.0


batch_labels = st.lists(st.integers(0, 4), min_size=1, max_size=10)


@given(batch_labels, st.integers(0, 99))
def test_the_prototype_loss_classifies_each_example_by_prototypes_made_without_it(labels: list[int], seed: int) -> None:
    embeddings = points(len(labels), seed=seed)
    found = PrototypeHead(SHARPNESS).loss({}, embeddings, torch.tensor(labels), 5)
    assert float(found) == pytest.approx(leave_one_out_loss(embeddings, labels), rel=1e-9, abs=1e-12)


@given(batch_labels, st.integers(0, 99))
def test_the_gradient_of_the_prototype_loss_is_that_of_the_brute_force_loss(labels: list[int], seed: int) -> None:
    embeddings = points(len(labels), seed=seed).requires_grad_()
    loss = PrototypeHead(SHARPNESS).loss({}, embeddings, torch.tensor(labels), 5)
    (gradient,) = torch.autograd.grad(loss, embeddings)
    step = 1e-6
    for row in range(min(2, len(labels))):
        nudge = torch.zeros_like(embeddings)
        nudge[row, 0] = step
        ahead, behind = (leave_one_out_loss(embeddings.detach() + sign * nudge, labels) for sign in (1, -1))
        assert float(gradient[row, 0]) == pytest.approx((ahead - behind) / (2 * step), abs=1e-6)


@pytest.mark.parametrize("labels", [[0], [0, 1], [3, 1, 0, 2]], ids=str)
def test_a_batch_of_one_example_a_class_has_no_loss_and_no_gradient(labels: list[int]) -> None:
    embeddings = points(len(labels)).requires_grad_()
    loss = PrototypeHead(SHARPNESS).loss({}, embeddings, torch.tensor(labels), 4)
    (gradient,) = torch.autograd.grad(loss, embeddings)
    assert float(loss.detach()) == 0
    assert torch.equal(gradient, torch.zeros_like(embeddings))


def test_the_only_example_of_its_class_still_draws_others_away() -> None:
    pair, lone = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.2]])
    head = PrototypeHead(SHARPNESS)
    alone = head.loss({}, pair, torch.tensor([0, 0]), 2)
    together = head.loss({}, torch.cat([pair, lone]), torch.tensor([0, 0, 1]), 2)
    assert float(alone) == 0  # one class only: certain
    assert float(together) == pytest.approx(leave_one_out_loss(torch.cat([pair, lone]), [0, 0, 1]), rel=1e-6)
    assert float(together) > 0


def test_classes_absent_from_the_batch_get_no_probability() -> None:
    embeddings, labels = points(6), torch.tensor([0, 0, 2, 2, 2, 0])
    head = PrototypeHead(SHARPNESS)
    few, many = (head.loss({}, embeddings, labels, way) for way in (3, 30))
    assert_close(few, many)
    # A prototype of zeros for the absent class would lie in the middle of the points and take probability.
    relabelled = head.loss({}, embeddings, labels // 2, 2)
    assert_close(few, relabelled)


def test_a_confident_batch_does_not_overflow() -> None:
    embeddings = torch.tensor([[0.0], [0.0], [1e4], [1e4]], requires_grad=True)
    loss = PrototypeHead(1e3).loss({}, embeddings, torch.tensor([0, 0, 1, 1]), 3)
    (gradient,) = torch.autograd.grad(loss, embeddings)
    assert float(loss.detach()) == 0
    assert gradient.isfinite().all()


def test_prototypes_classify_by_the_mean_squared_distance_to_the_class_means() -> None:
    support, query = points(5), points(4, seed=1)
    labels = [0, 1, 1, 2, 0]
    found = PrototypeHead(SHARPNESS).log_probs({}, support, torch.tensor(labels), 3, query)
    rows: list[list[float]] = support.tolist()
    means = {
        kind: mean_of([row for row, label in zip(rows, labels, strict=True) if label == kind]) for kind in (0, 1, 2)
    }
    for place, row in enumerate(query.tolist()):
        expected = log_softmax({kind: math.dist(row, mean) ** 2 for kind, mean in means.items()}, len(row))
        assert found[place].tolist() == pytest.approx([expected[kind] for kind in (0, 1, 2)])


@pytest.mark.parametrize("order", list(permutations(range(3))), ids=str)
def test_prototype_predictions_follow_a_permutation_of_the_labels(order: tuple[int, ...]) -> None:
    support, query, labels = points(6), points(4, seed=1), torch.tensor([0, 0, 1, 1, 2, 2])
    head = PrototypeHead(SHARPNESS)
    renamed = torch.tensor(order)[labels]
    assert_close(
        head.log_probs({}, support, renamed, 3, query)[:, list(order)], head.log_probs({}, support, labels, 3, query)
    )
    assert_close(head.loss({}, support, renamed, 3), head.loss({}, support, labels, 3))


def test_sharpness_fits_embeddings_of_any_size() -> None:
    # The same embedding twice over has twice the squared distance and twice the size.
    support, query, labels = points(4), points(3, seed=1), torch.tensor([0, 0, 1, 1])
    head = PrototypeHead(SHARPNESS)
    once = head.log_probs({}, support, labels, 2, query)
    twice = head.log_probs({}, support.repeat(1, 2), labels, 2, query.repeat(1, 2))
    assert_close(once, twice)
    assert_close(head.loss({}, support, labels, 2), head.loss({}, support.repeat(1, 2), labels, 2))


HEADS = {
    "prototype": (PrototypeHead(SHARPNESS), {}),
    "linear": (LinearHead(), {"head.weight": points(4), "head.bias": points(4, 1, seed=5).flatten()}),
}


def test_only_prototypes_need_two_examples_of_a_class_in_a_batch() -> None:
    assert PrototypeHead(SHARPNESS).balanced_batches
    assert not LinearHead().balanced_batches


@pytest.mark.parametrize(("head", "params"), HEADS.values(), ids=HEADS.keys())
def test_probabilities_of_a_prediction_add_up_to_one(head: Head, params: dict[str, Tensor]) -> None:
    found = head.log_probs(params, points(6), torch.tensor([0, 0, 1, 1, 2, 2]), 3, points(5, seed=1))
    assert found.shape == (5, 3)
    assert_close(found.exp().sum(1), torch.ones(5, dtype=torch.float64))


@pytest.mark.parametrize("way", [2, 3, 4])
def test_a_linear_head_with_more_rows_than_classes_uses_the_first(way: int) -> None:
    weight, bias, embeddings = points(4), points(4, 1, seed=5).flatten(), points(5, seed=1)
    params = {"head.weight": weight, "head.bias": bias}
    labels = torch.tensor([0, 1, 0, 1, way - 1])
    logits = embeddings @ weight[:way].T + bias[:way]
    head = LinearHead()
    assert_close(head.loss(params, embeddings, labels, way), cross_entropy(logits, labels))
    assert_close(head.log_probs(params, embeddings[:0], labels[:0], way, embeddings), logits.log_softmax(1))


def test_rows_of_a_linear_head_that_are_not_used_get_no_gradient() -> None:
    params = {"head.weight": points(4).requires_grad_(), "head.bias": points(4, 1).flatten().requires_grad_()}
    loss = LinearHead().loss(params, points(3, seed=1), torch.tensor([0, 1, 0]), 2)
    for gradient in torch.autograd.grad(loss, list(params.values())):
        assert torch.equal(gradient[2:], torch.zeros_like(gradient[2:]))
        assert (gradient[:2] != 0).all()


@given(st.integers(0, 5), st.integers(0, 5), st.integers(1, 4), st.integers(0, 99))
def test_squared_distances_are_those_of_every_pair(count: int, centres: int, size: int, seed: int) -> None:
    left, right = points(count, size, seed), points(centres, size, seed + 1)
    found = squared_distances(left, right)
    assert found.shape == (count, centres)
    for i, a in enumerate(left.tolist()):
        for j, b in enumerate(right.tolist()):
            assert float(found[i, j]) == pytest.approx(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)))


@given(batch_labels, st.integers(0, 99))
def test_class_sums_and_prototypes_are_those_of_a_loop_over_the_members(labels: list[int], seed: int) -> None:
    way, embeddings = 5, points(len(labels), seed=seed)
    sums, counts = class_sums(embeddings, torch.tensor(labels), way)
    means = prototypes_of(embeddings, torch.tensor(labels), way)
    for label in range(way):
        members = [embeddings[i] for i, other in enumerate(labels) if other == label]
        total = sum(members, torch.zeros(3, dtype=torch.float64))
        assert float(counts[label]) == len(members)
        assert_close(sums[label], total)
        assert_close(means[label], total / max(1, len(members)))


def test_class_sums_of_parts_add_up_to_those_of_the_whole() -> None:
    embeddings, labels = points(8), torch.tensor([0, 1, 2, 0, 1, 2, 0, 0])
    parts = [class_sums(embeddings[part], labels[part], 3) for part in (slice(0, 3), slice(3, 8))]
    whole = class_sums(embeddings, labels, 3)
    assert_close(parts[0][0] + parts[1][0], whole[0])
    assert_close(parts[0][1] + parts[1][1], whole[1])
