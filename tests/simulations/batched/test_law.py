"""The law of the batched engine: whatever the site does, the result is that of ``common.learning.reptile.adapt``."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from client.site import Work
from common.learning.episode import Episode, Examples
from common.learning.heads import PrototypeHead
from common.learning.learner import Learner, build_learner
from common.learning.params import Manifest, Params, on_device
from common.learning.reptile import Adapted, adapt, initial_slots
from common.learning.threads import threads
from common.messages import Agreement, Request
from common.plan import Plan
from common.settings import Settings, Value
from simulations.batched.many import adapt_many, adapt_one
from simulations.batched.scheduled import can_schedule
from simulations.batched.stacked import adapt_stacked, can_stack

BOUNDS = {"sgd": 1e-5, "adam": 1e-4}
"""Relative L2 error of the whole update in float32."""
BOUND = 1e-10
"""The same in float64."""
FLIPPED, SELDOM = 1e-2, 0.2
"""A hidden value within rounding of zero may fall on the other side of ReLU in one of the two: in float32 the error is
up to this then, in at most this share of the cases. In float64 it does not happen here."""

NETWORKS: dict[str, dict[str, Value]] = {
    "omniglot": {"model.network": "omniglot", "data.size": 28, "model.depth": 4},
    "omniglot, odd sides, two channels of colour": {"data.size": 19, "data.channels": 3, "model.depth": 3},
    "omniglot, one block": {"data.size": 9, "model.depth": 1},
    "omniglot, more channels than a patch has places": {"data.size": 13, "model.depth": 3, "model.width": 12},
    "mlp": {"model.network": "mlp", "data.kind": "vector", "data.size": 12, "model.depth": 1},
    "mlp, deep": {"model.network": "mlp", "data.kind": "vector", "data.size": 7, "model.depth": 3},
    "texture": {"model.network": "texture", "data.size": 16, "model.depth": 1},
    "texture, deep": {"model.network": "texture", "data.size": 18, "model.depth": 2},
}
LOOPS: dict[str, dict[str, Value]] = {
    "a batch is a part of the support": {"inner.batch-size": 8, "inner.steps": 4},
    "batches straddle passes": {"inner.batch-size": 7, "inner.steps": 5},
    "the whole support": {"inner.batch-size": 1000, "inner.steps": 2},
    "no step": {"inner.steps": 0},
    "some frozen": {"inner.batch-size": 8, "inner.steps": 3, "inner.frozen": "*1.weight norm0.*"},
}
"""Each is checked with all networks and heads."""


@dataclass(frozen=True)
class Case:
    learner: Learner
    params: dict[str, Tensor]
    slots: dict[str, Tensor]
    settings: Settings

    def work(self, seed: int, shot: int = 5, way: int = 3) -> Work:
        """Return a site's work; the same one each time, with a random stream at its start."""
        generator = torch.Generator().manual_seed(seed)
        dtype = next(iter(self.params.values())).dtype
        count = shot * way - seed % 2  # one class may have an input less
        inputs = torch.rand(count, *self.settings.data.shape, generator=generator).to(dtype)
        support = Examples(inputs, torch.arange(way).repeat_interleave(shot)[:count], way)
        episode = Episode(tuple("abcdefgh"[:way]), support, support)
        request = Request(1, np.zeros(0), np.zeros(0), judge=False)
        return Work(self.plan, request, self.params, self.slots, episode, self.settings.inner, generator, 0.0)

    @property
    def plan(self) -> Plan:
        layouts = Manifest.of(self.params), Manifest.of(self.params), Manifest.of(self.slots)
        agreed = Agreement(0, 0, 0, self.learner.embedding, layouts[0].dtype, "")
        return Plan(self.settings, self.learner, self.params, self.slots, *layouts, agreed)


def case(dtype: torch.dtype, *changes: Mapping[str, Value]) -> Case:
    flat: dict[str, Value] = {"model.width": 6, "model.normalisation": "batch", "episode.way": 4}
    for change in changes:
        flat |= change
    settings = Settings.from_flat(flat)
    learner, params = build_learner(settings)
    learner.network.to(dtype)
    params = {name: value.to(dtype) for name, value in params.items()}
    slots = initial_slots(params, settings.inner)
    generator = torch.Generator().manual_seed(99)
    for name, value in slots.items():  # as after some rounds
        value.copy_(
            torch.full((1,), 12.5) if name == "adam-steps" else torch.rand(value.shape, generator=generator) * 1e-3
        )
    return Case(learner, params, slots, settings)


def optimizer(name: str) -> dict[str, Value]:
    return {"inner.optimizer": name, "inner.learning-rate": 0.05 if name == "sgd" else 1e-3}


def one_site(found: Case, work: Work) -> Adapted:
    return adapt(found.learner, work.params, work.episode.support, work.inner, work.generator, work.slots)


def cancelled(params: Params) -> set[str]:
    """Return the biases that the next normalisation takes away, so that their gradients are rounding only."""
    return {
        name for name in params if re.fullmatch(r"(conv|linear)\d\.bias", name) and f"norm{name[-6]}.bias" in params
    } | ({"norm0.bias"} & params.keys())


def error(found: Params, expected: Params, start: Params, without: set[str]) -> float:
    """Return the relative L2 error of an update."""
    assert found.keys() == expected.keys() and all(found[name].shape == expected[name].shape for name in found)
    names = [name for name in expected if name not in without]
    wrong = sum(float((found[name] - expected[name]).double().square().sum()) for name in names)
    whole = sum(float((expected[name] - start[name]).double().square().sum()) for name in names)
    return (wrong / whole) ** 0.5 if whole else wrong


def assert_law(found: Adapted, expected: Adapted, given: Case, bound: float = BOUND) -> None:
    left_out = cancelled(given.params)
    assert error(found.params, expected.params, given.params, left_out) <= bound
    moments = {f"second-moment/{name}" for name in left_out}
    assert error(found.slots, expected.slots, given.slots, moments) <= bound


def keeps_law_in_float32(found: Adapted, given: Case, seed: int) -> bool:
    expected = one_site(given, given.work(seed))
    assert_law(found, expected, given, FLIPPED)
    return (
        error(found.params, expected.params, given.params, cancelled(given.params))
        <= BOUNDS[given.settings.inner.optimizer]
    )


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with threads(1):
        yield


@pytest.mark.parametrize("name", ["sgd", "adam"])
@pytest.mark.parametrize("head", ["linear", "prototype"])
@pytest.mark.parametrize("network", NETWORKS)
def test_layers_that_are_written_out_adapt_like_autograd(network: str, head: str, name: str) -> None:
    kept: list[bool] = []
    for loop in LOOPS.values():
        changes = (NETWORKS[network], {"model.head": head}, optimizer(name), loop)
        single, double = case(torch.float32, *changes), case(torch.float64, *changes)
        for seed in (1, 2, 3):
            for given in (single, double):
                work = given.work(seed)
                assert can_schedule(given.learner, work.params, work.episode.support, work.inner)
            assert_law(adapt_one(double.work(seed)), one_site(double, double.work(seed)), double)
            kept.append(keeps_law_in_float32(adapt_one(single.work(seed)), single, seed))
    assert sum(kept) >= (1 - SELDOM) * len(kept)


@pytest.mark.parametrize("kind", ["affine", "flip", "affine+flip"])
@pytest.mark.parametrize("network", ["omniglot", "texture"])
def test_augmented_views_are_drawn_alike(network: str, kind: str) -> None:
    changes: dict[str, Value] = {"inner.augment": kind, "inner.views": 3, "inner.batch-size": 9}
    given = case(torch.float64, NETWORKS[network], changes)
    assert_law(adapt_one(given.work(4)), one_site(given, given.work(4)), given)


@hypothesis.given(
    network=st.sampled_from(sorted(NETWORKS)),
    head=st.sampled_from(["linear", "prototype"]),
    name=st.sampled_from(["sgd", "adam"]),
    way=st.integers(2, 4),
    shot=st.integers(1, 6),
    steps=st.integers(0, 6),
    batch=st.integers(2, 20),
    seed=st.integers(0, 2**30),
)
def test_any_mix_of_shots_steps_and_batches_gives_the_same(
    network: str, head: str, name: str, way: int, shot: int, steps: int, batch: int, seed: int
) -> None:
    loop: dict[str, Value] = {"inner.steps": steps, "inner.batch-size": batch}
    with threads(1):
        given = case(torch.float64, NETWORKS[network], {"model.head": head}, optimizer(name), loop)
        assert_law(adapt_one(given.work(seed, shot + 1, way)), one_site(given, given.work(seed, shot + 1, way)), given)


def test_what_came_before_leaves_no_trace() -> None:
    """The memory that steps use again holds nothing that a later site could see, not of one that diverged either."""
    given = case(torch.float32, NETWORKS["omniglot"], optimizer("adam"), LOOPS["batches straddle passes"])
    first = adapt_one(given.work(1))
    for other in (given.work(2), given.work(3, shot=2), given.work(4, way=2)):
        adapt_one(other)
    wild = given.work(5)
    adapt_one(replace(wild, params={name: value * torch.nan for name, value in wild.params.items()}))
    again = adapt_one(given.work(1))
    for name, value in first.params.items():
        assert torch.equal(value, again.params[name])


def test_a_result_does_not_change_when_the_next_site_is_adapted() -> None:
    given = case(torch.float32, NETWORKS["mlp"], optimizer("adam"))
    first = adapt_one(given.work(1))
    kept = {name: value.clone() for name, value in {**first.params, **first.slots}.items()}
    adapt_one(given.work(2))
    assert all(torch.equal(value, kept[name]) for name, value in {**first.params, **first.slots}.items())


# ---------------------------------------------------------------------------------------------- many in step


def own_network(dropout: float = 0.0) -> nn.Module:
    """Return a network of a user's, without batch normalisation."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 12), nn.LayerNorm(12), nn.GELU(), nn.Dropout(dropout), nn.Linear(12, 8)
    )


def own_case(network: nn.Module, name: str, dtype: torch.dtype = torch.float64) -> Case:
    flat: dict[str, Value] = {"data.size": 8, "inner.batch-size": 8, "inner.steps": 3}
    settings = Settings.from_flat(flat | optimizer(name))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        params = {name: value.detach().clone().to(dtype) for name, value in network.named_parameters()}
    learner = Learner(network.to(dtype), PrototypeHead(5.0), settings.model, 8, transductive=False)
    return Case(learner, params, initial_slots(params, settings.inner), settings)


@pytest.mark.parametrize("name", ["sgd", "adam"])
@pytest.mark.parametrize("head", ["linear", "prototype"])
@pytest.mark.parametrize("network", [name for name in NETWORKS if "texture" not in name])
def test_stacked_sites_adapt_like_one(network: str, head: str, name: str) -> None:
    kept: list[bool] = []
    for loop in LOOPS.values():
        changes = (NETWORKS[network], {"model.head": head}, optimizer(name), loop)
        single, double = case(torch.float32, *changes), case(torch.float64, *changes)
        for seed, adapted in zip((2, 4), adapt_stacked([double.work(seed) for seed in (2, 4)]), strict=True):
            assert_law(adapted, one_site(double, double.work(seed)), double)
        for seed, adapted in zip((2, 4), adapt_stacked([single.work(seed) for seed in (2, 4)]), strict=True):
            kept.append(keeps_law_in_float32(adapted, single, seed))
    assert sum(kept) >= (1 - SELDOM) * len(kept)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_a_users_network_can_be_stacked(name: str) -> None:
    given = own_case(own_network(), name)
    assert can_stack(given.learner, given.params, given.work(1).episode.support, given.settings.inner)
    for seed, adapted in enumerate(adapt_stacked([given.work(seed) for seed in range(3)])):
        assert_law(adapted, one_site(given, given.work(seed)), given)


def test_a_network_that_draws_is_adapted_site_by_site(caplog: pytest.LogCaptureFixture) -> None:
    given = own_case(own_network(dropout=0.5), "sgd")
    assert not can_stack(given.learner, given.params, given.work(1).episode.support, given.settings.inner)
    assert "one after another" in caplog.text
    found = adapt_many([given.work(1), given.work(2)])
    for seed, adapted in enumerate(found, 1):
        assert_law(adapted, one_site(given, given.work(seed)), given)


def test_blocks_that_are_computed_again_are_not_stacked() -> None:
    given = own_case(nn.Sequential(nn.Flatten(), nn.Linear(64, 8)), "sgd")
    inner = replace(given.settings.inner, checkpointing=True)
    assert not can_stack(given.learner, given.params, given.work(1).episode.support, inner)


def test_other_numbers_than_full_precision_are_left_to_autograd() -> None:
    given = case(torch.float32, NETWORKS["mlp"])
    work = given.work(1)
    assert not can_schedule(given.learner, work.params, work.episode.support, replace(work.inner, precision="bf16"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use")
@pytest.mark.parametrize("name", ["sgd", "adam"])
@pytest.mark.parametrize("network", NETWORKS)
def test_stacked_sites_on_a_gpu_adapt_like_one_on_a_processor(network: str, name: str) -> None:
    given = case(torch.float64, NETWORKS[network], optimizer(name))
    expected = [one_site(given, given.work(seed)) for seed in (2, 4)]
    given.learner.to("cuda")
    works = [on_gpu(given.work(seed)) for seed in (2, 4)]
    for adapted, wanted in zip(adapt_many(works), expected, strict=True):
        assert_law(Adapted(on_device(adapted.params, "cpu"), on_device(adapted.slots, "cpu")), wanted, given)


def on_gpu(work: Work) -> Work:
    support = work.episode.support.to("cuda")
    episode = replace(work.episode, support=support, query=support)
    return replace(work, params=on_device(work.params, "cuda"), slots=on_device(work.slots, "cuda"), episode=episode)
