"""Laws of the inner loop and of aggregation. Gradients are worked out by hand in float64."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from common.learning.episode import Examples
from common.learning.heads import Head, LinearHead, PrototypeHead
from common.learning.learner import Learner, with_views
from common.learning.params import Params, difference
from common.learning.reptile import Adapted, adapt, batches, initial_slots, inner_step, mean_update, outer_step
from common.settings import InnerLoop, ModelSettings

WAY = 3
FEATURES = 4
BETA2, EPSILON = 0.999, 1e-8  # the authors' Adam: beta1 = 0, the defaults of TensorFlow 1 for the rest

Named = Mapping[str, Sequence[float]]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def softmax_regression() -> tuple[Learner, dict[str, Tensor]]:
    """A learner whose embedding is the input itself, so that its linear head is all there is to learn."""
    draws = generator(1)
    params = {
        "head.weight": torch.randn(WAY, FEATURES, dtype=torch.float64, generator=draws),
        "head.bias": torch.randn(WAY, dtype=torch.float64, generator=draws),
    }
    return Learner(nn.Flatten(), LinearHead(), ModelSettings(), FEATURES, False), params


def examples(seed: int = 0, per_class: int = 2) -> Examples:
    inputs = torch.randn(WAY * per_class, 1, 2, 2, dtype=torch.float64, generator=generator(seed))
    return Examples(inputs, torch.arange(WAY).repeat_interleave(per_class), WAY)


def cross_entropy_gradient(params: Params, batch: Examples) -> dict[str, Tensor]:
    """Softmax regression by hand: (probability - one-hot) x, averaged over the batch."""
    inputs = batch.inputs.flatten(1)
    scores = (inputs @ params["head.weight"].T + params["head.bias"]).exp()
    gaps = scores / scores.sum(1, keepdim=True)
    for row, label in enumerate(batch.labels.tolist()):
        gaps[row, label] -= 1
    return {"head.weight": gaps.T @ inputs / len(inputs), "head.bias": gaps.mean(0)}


def plain(**changes: object) -> InnerLoop:
    """Full-batch SGD steps of size 0.1."""
    return replace(InnerLoop(learning_rate=0.1, steps=1, batch_size=1000), **changes)  # type: ignore[arg-type]


def copied(params: Params) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in params.items()}


def assert_same_bits(found: Params, expected: Params) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def doubles(values: Named) -> dict[str, Tensor]:
    return {name: torch.tensor(list(row), dtype=torch.float64) for name, row in values.items()}


numbers = st.floats(-100, 100, allow_nan=False, width=32)
models = st.fixed_dictionaries({"a": st.lists(numbers, min_size=2, max_size=2), "b": st.lists(numbers, min_size=1)})
pairs = st.tuples(st.lists(numbers, min_size=3, max_size=3), st.lists(numbers, min_size=3, max_size=3))
positive = st.floats(0.01, 100)


# --- Aggregation ---------------------------------------------------------------------------------


@given(models, st.lists(positive, min_size=1, max_size=5))
def test_the_mean_of_identical_updates_is_the_update(model: Named, weights: list[float]) -> None:
    update = doubles(model)
    for mean in (mean_update([update] * len(weights)), mean_update([update] * len(weights), weights)):
        assert_close(mean, update)


@given(pairs, st.integers(1, 5))
def test_when_all_sites_end_with_the_same_model_a_full_step_ends_there(
    pair: tuple[list[float], list[float]], sites: int
) -> None:
    params, adapted = doubles({"w": pair[0]}), doubles({"w": pair[1]})
    assert_close(outer_step(params, [difference(adapted, params)] * sites, 1.0), adapted)


@given(pairs, st.floats(0, 2))
def test_a_step_is_the_papers_interpolation_towards_the_adapted_params(
    pair: tuple[list[float], list[float]], step_size: float
) -> None:
    params, adapted = doubles({"w": pair[0]}), doubles({"w": pair[1]})
    interpolated = {"w": params["w"] + step_size * (adapted["w"] - params["w"])}
    assert_close(outer_step(params, [difference(adapted, params)], step_size), interpolated)


@given(st.lists(st.tuples(st.lists(numbers, min_size=2, max_size=2), positive), min_size=1, max_size=6), numbers)
def test_fedavg_is_reptile_with_step_size_1_and_example_weights(
    sites: list[tuple[list[float], float]], start: float
) -> None:
    params = doubles({"w": [start, -start]})
    models = [doubles({"w": model}) for model, _ in sites]
    counts = [count for _, count in sites]
    averaged = sum(count * model["w"] for model, count in zip(models, counts, strict=True)) / sum(counts)
    stepped = outer_step(params, [difference(model, params) for model in models], 1.0, counts)
    assert_close(stepped["w"], averaged, rtol=1e-9, atol=1e-9)


def test_weights_only_matter_in_proportion() -> None:
    updates = [doubles({"w": [1.0]}), doubles({"w": [5.0]})]
    assert_close(mean_update(updates, [1, 3])["w"], torch.tensor([(1 * 1.0 + 3 * 5.0) / 4], dtype=torch.float64))
    assert_close(mean_update(updates, [1, 3]), mean_update(updates, [0.5, 1.5]))
    assert_close(mean_update(updates), mean_update(updates, [7, 7]))
    assert_close(mean_update(updates, [0, 2]), updates[1])


def test_the_gradient_of_half_the_squared_distance_to_the_adapted_params_is_minus_the_update() -> None:
    params = {"w": torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64, requires_grad=True)}
    models = [doubles({"w": [3.0, 0.0, 1.0]}), doubles({"w": [-1.0, 4.0, 0.0]})]
    distance = sum((params["w"] - model["w"]).square().sum() / 2 for model in models) / len(models)
    assert isinstance(distance, Tensor)
    (gradient,) = torch.autograd.grad(distance, params["w"])
    start = {"w": params["w"].detach()}
    updates = [difference(model, start) for model in models]
    assert_close(mean_update(updates)["w"], -gradient)
    assert_close(outer_step(start, updates, 0.3)["w"], start["w"] - 0.3 * gradient)


def test_reptile_with_one_sgd_step_is_fedsgd() -> None:
    learner, params = softmax_regression()
    inner, step_size = plain(learning_rate=0.2), 0.7
    sites = [examples(seed) for seed in range(4)]
    updates = [difference(adapt(learner, params, site, inner, generator()).params, params) for site in sites]
    gradients = [cross_entropy_gradient(params, site) for site in sites]
    for name, value in outer_step(params, updates, step_size).items():
        joint = sum(gradient[name] for gradient in gradients) / len(sites)
        assert_close(value, params[name] - step_size * inner.learning_rate * joint)


def test_serial_reptile_is_batched_reptile_with_one_update_at_a_time() -> None:
    learner, initial = softmax_regression()
    inner, step_size = plain(steps=3), 0.4
    serial, batched = initial, initial
    for seed in range(3):
        ended = adapt(learner, serial, examples(seed), inner, generator(seed)).params
        serial = {name: value + step_size * (ended[name] - value) for name, value in serial.items()}
        update = difference(adapt(learner, batched, examples(seed), inner, generator(seed)).params, batched)
        batched = outer_step(batched, [update], step_size)
    assert_close(batched, serial)
    assert not torch.allclose(batched["head.weight"], initial["head.weight"])


def test_each_name_can_have_a_step_size_of_its_own() -> None:
    params, update = doubles({"body": [1.0, 2.0], "head": [3.0]}), doubles({"body": [10.0, 20.0], "head": [30.0]})
    stepped = outer_step(params, [update], {"body": 0.5, "head": 2.0})
    assert_close(stepped, doubles({"body": [1 + 0.5 * 10, 2 + 0.5 * 20], "head": [3 + 2.0 * 30]}))


@pytest.mark.parametrize("step_size", [1, 0, 2], ids=str)
def test_a_whole_number_is_a_step_size_too(step_size: int) -> None:
    # int is accepted wherever a type says float.
    params, update = doubles({"w": [1.0]}), doubles({"w": [10.0]})
    assert_close(outer_step(params, [update], step_size), doubles({"w": [1.0 + step_size * 10.0]}))


def test_params_without_an_update_stay_and_keep_their_place() -> None:
    params = doubles({"frozen": [1.0], "free": [2.0], "also frozen": [3.0]})
    stepped = outer_step(params, [doubles({"free": [5.0]})], 1.0)
    assert_same_bits(stepped, doubles({"frozen": [1.0], "free": [7.0], "also frozen": [3.0]}))


def test_updates_are_summed_in_the_order_given() -> None:
    # 1e16 + 1 is 1e16 in float64, so the order shows in the bits.
    big, small, minus = (doubles({"w": [value]}) for value in (1e16, 1.0, -1e16))
    assert float(mean_update([big, small, minus])["w"]) == (1e16 + 1.0 - 1e16) / 3
    assert float(mean_update([big, minus, small])["w"]) == (1e16 - 1e16 + 1.0) / 3


@pytest.mark.parametrize(
    ("updates", "weights"),
    [([], None), ([], []), ([{"w": torch.ones(1)}], [0.0]), ([{"w": torch.ones(1)}] * 2, [0.0, 0.0])],
    ids=["no update", "no update, no weight", "weight 0", "weights 0"],
)
def test_a_mean_of_nothing_is_refused(updates: list[Params], weights: list[float] | None) -> None:
    with pytest.raises(ValueError, match="at least one update"):
        mean_update(updates, weights)


@pytest.mark.parametrize("weights", [[1.0], [1.0, 1.0, 1.0]], ids=["too few", "too many"])
def test_each_update_needs_one_weight(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="argument"):
        mean_update([doubles({"w": [1.0]}), doubles({"w": [2.0]})], weights)


@pytest.mark.parametrize("weights", [None, [2.0, 1.0, 1.0]], ids=["uniform", "weighted"])
@pytest.mark.parametrize("step", [outer_step, None], ids=["outer_step", "mean_update"])
def test_aggregation_changes_no_argument(
    step: Callable[..., dict[str, Tensor]] | None, weights: list[float] | None
) -> None:
    params = doubles({"w": [1.0, 2.0], "still": [3.0]})
    updates = [doubles({"w": [float(i), -float(i)]}) for i in range(3)]
    before = copied(params), [copied(update) for update in updates]
    result = step(params, updates, 0.5, weights) if step else mean_update(updates, weights)
    result["w"].add_(1)  # nor does the result share memory with a param that moved
    assert_same_bits(params, before[0])
    for update, kept in zip(updates, before[1], strict=True):
        assert_same_bits(update, kept)


def test_a_mean_of_one_update_shares_no_memory_with_it() -> None:
    update = doubles({"w": [1.0]})
    mean_update([update])["w"].add_(1)
    assert_same_bits(update, doubles({"w": [1.0]}))


# --- The inner loop ------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 1, 2, 5])
def test_sgd_steps_follow_the_gradient_worked_out_by_hand(steps: int) -> None:
    learner, params = softmax_regression()
    support = examples()
    expected = copied(params)
    for _ in range(steps):
        gradient = cross_entropy_gradient(expected, support)
        expected = {name: value - 0.1 * gradient[name] for name, value in expected.items()}
    adapted = adapt(learner, params, support, plain(steps=steps), generator())
    assert_close(dict(adapted.params), expected)
    assert adapted.slots == {}


def test_a_step_with_prototypes_follows_the_gradient_worked_out_by_hand() -> None:
    # One weight w, embeddings w x on a line, classes {0, 2} and {5, 8}. Left out of its class, each
    # point's class is its classmate, the other class the mean of its two points. With squared
    # distances q of the inputs the logits are -s w^2 q, so their derivative is -2 s w q.
    network = nn.Sequential(nn.Flatten(), nn.Linear(1, 1, bias=False, dtype=torch.float64))
    sharpness, rate, weight = 0.1, 0.05, 0.7
    learner = Learner(network, PrototypeHead(sharpness), ModelSettings(), 1, False)
    points, labels = [0.0, 2.0, 5.0, 8.0], [0, 0, 1, 1]
    prototypes = [(2.0, 6.5), (0.0, 6.5), (1.0, 8.0), (1.0, 5.0)]
    slope = 0.0
    for point, label, pair in zip(points, labels, prototypes, strict=True):
        distances = [(point - prototype) ** 2 for prototype in pair]
        scores = [math.exp(-sharpness * weight**2 * q) for q in distances]
        for kind, q in enumerate(distances):
            probability = scores[kind] / sum(scores)
            slope += (probability - (kind == label)) * -2 * sharpness * weight * q / len(points)
    support = Examples(torch.tensor(points, dtype=torch.float64).view(4, 1, 1, 1), torch.tensor(labels), 2)
    params = {"1.weight": torch.tensor([[weight]], dtype=torch.float64)}
    adapted = adapt(learner, params, support, plain(learning_rate=rate), generator())
    assert abs(slope) > 0.01
    assert float(adapted.params["1.weight"]) == pytest.approx(weight - rate * slope, abs=1e-12)


class FixedGradient(Learner):
    """A learner whose loss is linear in the one param ``w``, with one known gradient for each call."""

    def __init__(self, gradients: list[list[float]]) -> None:
        super().__init__(nn.Flatten(), LinearHead(), ModelSettings(), 1, False)
        self.gradients = iter(gradients)

    def loss(self, params: Params, examples: Examples, precision: str = "full", checkpointing: bool = False) -> Tensor:
        return (params["w"] * torch.tensor(next(self.gradients), dtype=torch.float64)).sum()


GRADIENTS = [[2.0, -0.3], [0.5, 0.0], [-1.0, 4.0]]


def adam_by_hand(weight: float, gradients: list[float], rate: float, moment: float, steps: int) -> tuple[float, float]:
    """TensorFlow 1 with beta1 = 0: rate * sqrt(1 - beta2^t) * g / (sqrt(v) + epsilon)."""
    for gradient in gradients:
        steps += 1
        moment = BETA2 * moment + (1 - BETA2) * gradient**2
        weight -= rate * math.sqrt(1 - BETA2**steps) * gradient / (math.sqrt(moment) + EPSILON)
    return weight, moment


def adam_slots(moments: list[float], steps: int) -> dict[str, Tensor]:
    return doubles({"second-moment/w": moments, "adam-steps": [float(steps)]})


@pytest.mark.parametrize(("moments", "steps"), [([0.0, 0.0], 0), ([0.5, 0.02], 400)], ids=["fresh", "carried"])
def test_adam_steps_in_tensorflows_form_from_the_slots_it_is_given(moments: list[float], steps: int) -> None:
    start, rate = [1.0, -1.0], 0.01
    inner = InnerLoop(optimizer="adam", learning_rate=rate, steps=len(GRADIENTS))
    adapted = adapt(
        FixedGradient(GRADIENTS), doubles({"w": start}), examples(), inner, generator(), adam_slots(moments, steps)
    )
    by_hand = [adam_by_hand(start[i], [gradient[i] for gradient in GRADIENTS], rate, moments[i], steps) for i in (0, 1)]
    assert_close(adapted.params["w"], torch.tensor([weight for weight, _ in by_hand], dtype=torch.float64))
    assert_close(dict(adapted.slots), adam_slots([moment for _, moment in by_hand], steps + len(GRADIENTS)))


def test_the_epsilon_of_adam_stands_outside_the_bias_correction() -> None:
    # A gradient as small as epsilon tells the two forms apart: here g / (sqrt(v) + eps) is about 1 / 1.03.
    gradient, rate = 1e-8, 0.1
    inner = InnerLoop(optimizer="adam", learning_rate=rate, steps=1)
    params = doubles({"w": [0.0]})
    adapted = adapt(FixedGradient([[gradient]]), params, examples(), inner, generator(), adam_slots([0.0], 0))
    outside, _ = adam_by_hand(0.0, [gradient], rate, 0.0, 0)
    inside = -rate * gradient / (gradient + EPSILON)
    assert float(adapted.params["w"]) == pytest.approx(outside, rel=1e-9)
    assert outside != pytest.approx(inside, rel=0.1)


def test_carried_adam_state_is_another_algorithm_than_fresh_state() -> None:
    inner = InnerLoop(optimizer="adam", learning_rate=0.01, steps=3)
    learner, params = softmax_regression()
    fresh = initial_slots(params, inner)
    once = adapt(learner, params, examples(), inner, generator(), fresh)
    carried = adapt(learner, once.params, examples(1), inner, generator(), once.slots)
    restarted = adapt(learner, once.params, examples(1), inner, generator(), fresh)
    assert float(carried.slots["adam-steps"]) == 6
    assert float(restarted.slots["adam-steps"]) == 3
    assert not torch.allclose(carried.params["head.weight"], restarted.params["head.weight"])


def test_two_runs_with_carried_slots_are_one_longer_run() -> None:
    inner = InnerLoop(optimizer="adam", learning_rate=0.01, steps=2, batch_size=1000)
    learner, params = softmax_regression()
    first = adapt(learner, params, examples(), inner, generator(), initial_slots(params, inner))
    second = adapt(learner, first.params, examples(), inner, generator(), first.slots)
    whole = adapt(learner, params, examples(), replace(inner, steps=4), generator(), initial_slots(params, inner))
    assert_close(second.params, whole.params)
    assert_close(second.slots, whole.slots)


def test_slots_of_one_site_a_round_are_carried_as_the_serial_code_carries_them() -> None:
    inner = InnerLoop(optimizer="adam", learning_rate=0.01, steps=2)
    learner, params = softmax_regression()
    slots = adam_slots([0.0], 0) | initial_slots(params, inner)
    del slots["second-moment/w"]
    ended = adapt(learner, params, examples(), inner, generator(), slots).slots
    assert_close(outer_step(slots, [difference(ended, slots)], 1.0), dict(ended))


def test_initial_slots_are_zeros_for_what_is_adapted_and_sgd_has_none() -> None:
    params = {"body.w": torch.ones(2, 3), "head.b": torch.ones(4)}
    adam = InnerLoop(optimizer="adam", frozen="body.*")
    assert initial_slots(params, InnerLoop(optimizer="sgd")) == {}
    assert_same_bits(
        initial_slots(params, adam), {"second-moment/head.b": torch.zeros(4), "adam-steps": torch.zeros(1)}
    )


def test_an_inner_step_changes_what_it_is_given_and_asks_for_no_gradient_any_more() -> None:
    fast = {"w": torch.tensor([1.0], requires_grad=True)}
    inner_step(fast, {"w": torch.tensor([2.0])}, {}, InnerLoop(learning_rate=0.25))
    assert fast["w"].tolist() == [1.0 - 0.25 * 2.0]
    assert not fast["w"].requires_grad


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_adaptation_changes_no_argument(optimizer: str) -> None:
    learner, params = softmax_regression()
    inner = InnerLoop(optimizer=optimizer, steps=3, batch_size=2, augment="flip", views=2)
    slots, support = initial_slots(params, inner), examples()
    before = copied(params), copied(slots), support.inputs.clone(), support.labels.clone()
    adapted = adapt(learner, params, support, inner, generator(), slots)
    for value in (*adapted.params.values(), *adapted.slots.values()):
        assert not value.requires_grad
        value.add_(1)  # nor does the result share memory with an argument
    assert_same_bits(params, before[0])
    assert_same_bits(slots, before[1])
    assert torch.equal(support.inputs, before[2])
    assert torch.equal(support.labels, before[3])
    assert not any(value.requires_grad for value in (*params.values(), *slots.values()))


def test_no_step_returns_copies_of_the_params() -> None:
    learner, params = softmax_regression()
    before = copied(params)
    adapted = adapt(learner, params, examples(), plain(steps=0), generator())
    assert_same_bits(adapted.params, before)
    for value in adapted.params.values():
        value.add_(1)
    assert_same_bits(params, before)


def test_frozen_params_are_left_out_and_the_rest_moves_as_their_gradient_says() -> None:
    learner, params = softmax_regression()
    support = examples()
    adapted = adapt(learner, params, support, plain(frozen="head.w*"), generator())
    expected = params["head.bias"] - 0.1 * cross_entropy_gradient(params, support)["head.bias"]
    assert list(adapted.params) == ["head.bias"]
    assert_close(adapted.params["head.bias"], expected)


def test_a_param_that_the_loss_does_not_use_stays() -> None:
    learner, params = softmax_regression()
    unused = torch.ones(2, dtype=torch.float64)
    adapted = adapt(learner, {**params, "unused": unused}, examples(), plain(steps=2), generator())
    assert torch.equal(adapted.params["unused"], unused)


def test_gradients_go_through_one_step_at_a_time() -> None:
    # First order: with the loss w^2 / 2 each step multiplies by 1 - rate, and no graph grows over the steps.
    class Bowl(Learner):
        def loss(
            self, params: Params, examples: Examples, precision: str = "full", checkpointing: bool = False
        ) -> Tensor:
            assert params["w"].is_leaf
            return params["w"].square().sum() / 2

    bowl = Bowl(nn.Flatten(), LinearHead(), ModelSettings(), 1, False)
    adapted = adapt(bowl, doubles({"w": [2.0]}), examples(), plain(steps=4), generator())
    assert float(adapted.params["w"]) == pytest.approx(2.0 * (1 - 0.1) ** 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_adaptation_keeps_the_dtype(optimizer: str, dtype: torch.dtype) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.BatchNorm1d(3)).to(dtype)
    params = {name: value.detach().clone() for name, value in network.named_parameters()}
    learner = Learner(network, PrototypeHead(5.0), ModelSettings(), 3, False)
    inner = InnerLoop(optimizer=optimizer, augment="affine+flip", views=2)
    support = replace(examples(), inputs=examples().inputs.to(dtype))
    adapted = adapt(learner, params, support, inner, generator(), initial_slots(params, inner))
    assert {value.dtype for value in (*adapted.params.values(), *adapted.slots.values())} == {dtype}


def convolutional(seed: int = 0) -> tuple[Learner, dict[str, Tensor]]:
    """A network that sees where in the picture something is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5))
    params = {name: value.detach().clone() for name, value in network.named_parameters()}
    return Learner(network, PrototypeHead(5.0), ModelSettings(), 5, False), params


def pictures(counts: Sequence[int] = (4, 4, 4)) -> Examples:
    inputs = torch.rand(sum(counts), 1, 4, 4, generator=generator(9))
    return Examples(inputs, torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)), len(counts))


def ends(inner: InnerLoop, seed: int, support: Examples | None = None) -> Adapted:
    learner, params = convolutional()
    return adapt(learner, params, support or pictures(), inner, generator(seed))


LOOPS = {
    "batches": InnerLoop(batch_size=6, steps=3),
    "affine": InnerLoop(batch_size=100, steps=2, augment="affine"),
    "flip": InnerLoop(batch_size=100, steps=2, augment="flip"),
    "views": InnerLoop(batch_size=100, steps=2, augment="affine+flip", views=3),
}


@pytest.mark.parametrize("inner", LOOPS.values(), ids=LOOPS.keys())
def test_the_same_generator_gives_the_same_bits_and_another_one_others(inner: InnerLoop) -> None:
    assert_same_bits(ends(inner, 1).params, ends(inner, 1).params)
    assert not torch.equal(ends(inner, 1).params["0.weight"], ends(inner, 2).params["0.weight"])


@pytest.mark.parametrize("inner", LOOPS.values(), ids=LOOPS.keys())
def test_the_global_random_state_plays_no_part(inner: InnerLoop) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        state = torch.random.get_rng_state()
        first = ends(inner, 1)
        assert torch.equal(torch.random.get_rng_state(), state)
        torch.manual_seed(2)
        assert_same_bits(ends(inner, 1).params, first.params)


@pytest.mark.parametrize("kind", ["affine", "flip", "affine+flip"])
def test_augmentation_changes_what_is_learned_from(kind: str) -> None:
    bare = ends(InnerLoop(batch_size=100), 0)
    assert not torch.allclose(
        ends(InnerLoop(batch_size=100, augment=kind), 0).params["0.weight"], bare.params["0.weight"]
    )


def test_classes_of_different_sizes_are_learned_from() -> None:
    adapted = ends(InnerLoop(batch_size=6, steps=4), 0, pictures((1, 2, 7)))
    assert all(value.isfinite().all() for value in adapted.params.values())
    assert not torch.equal(adapted.params["0.weight"], convolutional()[1]["0.weight"])


class Recording(Learner):
    """A learner that keeps the batches it is shown."""

    def __init__(self, head: Head) -> None:
        super().__init__(nn.Flatten(), head, ModelSettings(), 1, False)
        self.seen: list[Examples] = []

    def loss(self, params: Params, examples: Examples, precision: str = "full", checkpointing: bool = False) -> Tensor:
        self.seen.append(examples)
        return params["w"].sum()


def shown(head: Head, support: Examples, inner: InnerLoop) -> list[Examples]:
    learner = Recording(head)
    adapt(learner, {"w": torch.ones(1)}, support, inner, generator())
    return learner.seen


def test_views_are_copies_that_are_augmented_each_in_its_own_way() -> None:
    support = pictures((2, 2))
    inner = InnerLoop(batch_size=100, steps=1, augment="affine", views=5)
    (batch,) = shown(LinearHead(), support, inner)
    assert len(batch) == 5 * len(support)
    assert torch.bincount(batch.labels).tolist() == [10, 10]
    assert len({tuple(picture.flatten().tolist()) for picture in batch.inputs}) == len(batch)


def test_views_of_an_input_keep_its_label() -> None:
    support = numbered([0, 1, 1])
    twice = with_views(support, 2)
    assert row_numbers(twice) == [0, 0, 1, 1, 2, 2]
    assert twice.labels.tolist() == [0, 0, 1, 1, 1, 1]
    assert twice.way == support.way
    assert with_views(support, 1) is support


def test_prototypes_are_shown_balanced_batches_and_the_linear_head_plain_ones() -> None:
    support = numbered([0] * 8 + [1] * 8)
    inner = InnerLoop(batch_size=4, steps=40)
    assert all(torch.bincount(batch.labels).tolist() == [2, 2] for batch in shown(PrototypeHead(1.0), support, inner))
    assert any(torch.bincount(batch.labels).tolist() != [2, 2] for batch in shown(LinearHead(), support, inner))


# --- Batches -------------------------------------------------------------------------------------


def numbered(labels: list[int]) -> Examples:
    """Examples whose one pixel is their row number."""
    return Examples(torch.arange(float(len(labels))).view(-1, 1, 1, 1), torch.tensor(labels), max(labels) + 1)


def row_numbers(batch: Examples) -> list[int]:
    return [int(value) for value in batch.inputs.flatten().tolist()]


def drawn(labels: list[int], size: int, steps: int, balanced: bool, seed: int = 0) -> Iterator[Examples]:
    return batches(numbered(labels), InnerLoop(batch_size=size, steps=steps), balanced, generator(seed))


label_lists = st.lists(st.integers(0, 3), min_size=1, max_size=12)


@given(label_lists, st.integers(1, 15), st.integers(0, 8), st.booleans(), st.integers(0, 99))
def test_batches_are_shuffled_passes_that_a_batch_may_straddle(
    labels: list[int], size: int, steps: int, balanced: bool, seed: int
) -> None:
    found = list(drawn(labels, size, steps, balanced, seed))
    count = len(labels)
    assert [len(batch) for batch in found] == [min(size, count)] * steps
    rows = [row for batch in found for row in row_numbers(batch)]
    for start in range(0, len(rows), count):
        one_pass = rows[start : start + count]
        assert len(set(one_pass)) == len(one_pass)  # without replacement
    for batch in found:
        assert batch.labels.tolist() == [labels[row] for row in row_numbers(batch)]
        assert batch.way == max(labels) + 1


@given(label_lists, st.integers(0, 99))
def test_a_balanced_pass_deals_every_class_in_turn(labels: list[int], seed: int) -> None:
    (one_pass,) = drawn(labels, len(labels), 1, True, seed)
    left = {label: labels.count(label) for label in set(labels)}
    dealt = dict.fromkeys(left, 0)
    for label in one_pass.labels.tolist():
        dealt[label] += 1
        left[label] -= 1
        open_classes = [dealt[other] for other in left if left[other]]
        assert dealt[label] <= min(open_classes, default=dealt[label]) + 1


@pytest.mark.parametrize(("way", "size"), [(2, 4), (3, 6), (5, 10)])
def test_balanced_batches_of_equal_classes_hold_every_class_equally(way: int, size: int) -> None:
    labels = [label for label in range(way) for _ in range(4)]
    for batch in drawn(labels, size, 20, True):
        assert torch.bincount(batch.labels).tolist() == [size // way] * way


def test_a_batch_that_straddles_two_passes_takes_the_rest_of_the_first() -> None:
    rows = [row for batch in drawn([0] * 6, 4, 3, False) for row in row_numbers(batch)]
    assert sorted(rows[:6]) == sorted(rows[6:]) == list(range(6))


@pytest.mark.parametrize("balanced", [False, True])
def test_each_pass_is_shuffled_anew(balanced: bool) -> None:
    passes = [tuple(row_numbers(batch)) for batch in drawn([0, 1] * 6, 12, 5, balanced)]
    assert len(set(passes)) == len(passes)


def test_a_batch_larger_than_the_support_set_is_the_whole_support_set() -> None:
    for batch in drawn([0, 0, 1], 50, 3, True):
        assert sorted(row_numbers(batch)) == [0, 1, 2]


def test_which_example_comes_first_is_drawn_uniformly() -> None:
    first = [row_numbers(next(iter(drawn([0, 1, 2, 0], 1, 1, False, seed))))[0] for seed in range(400)]
    expected, spread = 100, math.sqrt(400 * 0.25 * 0.75)
    assert all(abs(first.count(row) - expected) < 5 * spread for row in range(4))
