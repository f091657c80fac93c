"""What a prediction depends on, what is learned and what is not, and building a learner from settings."""

import textwrap
from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d
from torch.testing import assert_close

from common.errors import SettingsError
from common.learning.episode import Examples
from common.learning.heads import LinearHead, PrototypeHead
from common.learning.learner import Learner, build_learner, trainable_names
from common.learning.params import Manifest, Params, difference
from common.learning.reptile import adapt, initial_slots
from common.settings import InnerLoop, ModelSettings, Settings, Value

SIDE, WAY, SHARPNESS = 4, 3, 5.0


def small() -> nn.Module:
    """Convolution, batch normalisation, mean over the picture: embeddings of size 4."""
    return nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def learner_of(
    network: nn.Module, normalisation: str = "frozen", *, transductive: bool = False
) -> tuple[Learner, dict[str, Tensor]]:
    network = network.double()
    params = {name: value.detach().clone() for name, value in network.named_parameters()}
    model = ModelSettings(normalisation=normalisation)
    return Learner(network, PrototypeHead(SHARPNESS), model, 4, transductive), params


def pictures(count: int, seed: int) -> Tensor:
    return torch.rand(count, 1, SIDE, SIDE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def support_of(seed: int = 0) -> Examples:
    return Examples(pictures(6, seed), torch.tensor([0, 0, 1, 1, 2, 2]), WAY)


def written_out(params: dict[str, Tensor], inputs: Tensor, batch: Tensor, *, unbiased: bool) -> Tensor:
    """The network of ``small``, normalised with the statistics of ``batch``."""
    maps, others = conv2d(inputs, params["0.weight"]), conv2d(batch, params["0.weight"])
    mean, variance = others.mean((0, 2, 3)), others.var((0, 2, 3), unbiased=unbiased)
    scale = params["1.weight"] / (variance + 1e-5).sqrt()
    shift = params["1.bias"] - mean * scale
    return maps.mean((2, 3)) * scale + shift


def classified(known: Tensor, support: Examples, queries: Tensor) -> Tensor:
    """Nearest prototype, softly."""
    means = torch.stack([known[support.labels == label].mean(0) for label in range(support.way)])
    return torch.log_softmax(-SHARPNESS * (queries[:, None] - means).square().mean(2), 1)


# --- What a prediction depends on ----------------------------------------------------------------


def test_with_frozen_normalisation_a_prediction_depends_on_the_model_and_the_picture_alone() -> None:
    learner, params = learner_of(small())
    support, queries = support_of(), pictures(4, 1)
    at_once = learner.log_probs(params, support, queries)
    one_by_one = torch.cat([learner.log_probs(params, support, query) for query in torch.split(queries, 1)])
    assert_close(one_by_one, at_once)
    for order in permutations(range(4)):
        assert_close(learner.log_probs(params, support, queries[list(order)]), at_once[list(order)])


def test_frozen_statistics_are_those_of_the_support_set_under_the_params() -> None:
    learner, params = learner_of(small())
    support, queries = support_of(), pictures(3, 1)
    known = written_out(params, support.inputs, support.inputs, unbiased=True)  # as torch keeps the variance
    found = learner.log_probs(params, support, queries)
    assert_close(found, classified(known, support, written_out(params, queries, support.inputs, unbiased=True)))
    buffers = learner.freeze(params, support)
    assert_close(learner.embed(params, buffers, support.inputs), known)
    assert_close(learner.classify(params, buffers, support, queries), found)


def test_frozen_statistics_follow_the_support_set_and_not_what_was_seen_before() -> None:
    learner, params = learner_of(small())
    first = learner.log_probs(params, support_of(0), pictures(2, 1))
    other = learner.log_probs(params, support_of(5), pictures(2, 1))
    learner.loss(params, support_of(7))
    assert torch.equal(learner.log_probs(params, support_of(0), pictures(2, 1)), first)
    assert not torch.allclose(other, first)


def test_with_batch_normalisation_each_query_is_classified_in_one_batch_with_the_whole_support_set() -> None:
    learner, params = learner_of(small(), "batch")
    support, queries = support_of(), pictures(3, 1)
    rows = []
    for query in queries:
        batch = torch.cat([support.inputs, query[None]])
        together = written_out(params, batch, batch, unbiased=False)
        rows.append(classified(together[:-1], support, together[-1:]))
    found = learner.log_probs(params, support, queries)
    assert_close(found, torch.cat(rows))
    for order in permutations(range(3)):
        assert_close(learner.log_probs(params, support, queries[list(order)]), found[list(order)])


def test_transductive_queries_share_one_batch_without_the_support_set() -> None:
    learner, params = learner_of(small(), "batch", transductive=True)
    support, queries = support_of(), pictures(3, 1)
    known = written_out(params, support.inputs, support.inputs, unbiased=False)
    together = written_out(params, queries, queries, unbiased=False)
    found = learner.log_probs(params, support, queries)
    assert_close(found, classified(known, support, together))
    assert not torch.allclose(learner.log_probs(params, support, queries[:1]), found[:1])


@pytest.mark.parametrize(
    ("normalisation", "transductive"),
    [("frozen", False), ("batch", False), ("batch", True)],
    ids=["frozen", "batch", "transductive"],
)
def test_no_query_has_no_prediction(normalisation: str, transductive: bool) -> None:
    learner, params = learner_of(small(), normalisation, transductive=transductive)
    assert learner.log_probs(params, support_of(), pictures(0, 1)).shape == (0, WAY)


@pytest.mark.parametrize("normalisation", ["frozen", "batch"])
def test_the_inner_loss_normalises_with_the_statistics_of_its_own_batch(normalisation: str) -> None:
    learner, params = learner_of(small(), normalisation)
    support = support_of()
    embeddings = written_out(params, support.inputs, support.inputs, unbiased=False)
    expected = PrototypeHead(SHARPNESS).loss({}, embeddings, support.labels, WAY)
    assert_close(learner.loss(params, support), expected)
    learner.embed(params, learner.freeze(params, support_of(3)), pictures(2, 1))
    assert_close(learner.loss(params, support), expected)  # whatever was asked before


def test_predictions_carry_no_gradient_and_the_loss_does() -> None:
    learner, params = learner_of(small())
    for value in params.values():
        value.requires_grad_()
    assert not learner.log_probs(params, support_of(), pictures(2, 1)).requires_grad
    assert not learner.embed(params, learner.freeze(params, support_of()), pictures(2, 1)).requires_grad
    gradients = torch.autograd.grad(learner.loss(params, support_of()), list(params.values()))
    assert all(bool(gradient.any()) for gradient in gradients[:2])


def test_the_learner_uses_the_params_it_is_given_and_not_those_of_its_network() -> None:
    learner, params = learner_of(small())
    before = learner.log_probs(params, support_of(), pictures(2, 1))
    with torch.no_grad():
        for value in learner.network.parameters():
            value.fill_(7)
    assert torch.equal(learner.log_probs(params, support_of(), pictures(2, 1)), before)


# --- Layers with statistics ----------------------------------------------------------------------


@pytest.mark.parametrize("layer", [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d])
def test_a_layer_without_running_statistics_cannot_be_frozen_and_is_named(layer: Callable[..., nn.Module]) -> None:
    network = nn.Sequential()
    network.add_module("stem", nn.Flatten())
    network.add_module("the_norm", layer(4, track_running_stats=False))
    with pytest.raises(SettingsError, match="the_norm"):
        learner_of(network)
    learner_of(network, "batch")  # the paper's mode needs none


def test_statistics_that_a_network_brings_along_are_not_used() -> None:
    fresh, brought = small(), small()
    brought.load_state_dict(fresh.state_dict())
    for _ in range(3):
        brought(torch.rand(5, 1, SIDE, SIDE) * 100)
    predictions = []
    for network in (fresh, brought):
        learner, params = learner_of(network)
        predictions.append(learner.log_probs(params, support_of(), pictures(2, 1)))
    assert torch.equal(*predictions)


def test_a_nested_layer_is_frozen_as_well() -> None:
    inner = nn.Sequential(nn.Sequential(small(), nn.BatchNorm1d(4, momentum=0.3)))
    learner, params = learner_of(inner)
    support = support_of()
    embeddings = learner.embed(params, learner.freeze(params, support), support.inputs)
    assert_close(embeddings.mean(0), torch.zeros(4, dtype=torch.float64), atol=1e-6, rtol=0)


# --- What is learned and what is not -------------------------------------------------------------


class WithBuffers(nn.Module):
    """Counts the batches it sees, scales by a constant, normalises."""

    def __init__(self) -> None:
        super().__init__()
        self.body = small()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("scale", torch.tensor([2.0, 1.0, 0.5, 0.25]))
        self.register_buffer("mask", torch.tensor([True, False, True, True]), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        assert isinstance(self.calls, Tensor)
        self.calls += 1
        embeddings: Tensor = self.body(inputs) * self.scale * self.mask
        return embeddings


def buffers_of(learner: Learner) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in learner.network.named_buffers()}


def test_buffers_are_neither_params_nor_part_of_the_manifest() -> None:
    learner, params = learner_of(WithBuffers())
    buffers = buffers_of(learner)
    assert {"calls", "scale", "mask", "body.1.num_batches_tracked", "body.1.running_mean"} <= buffers.keys()
    adapted = adapt(learner, params, support_of(), InnerLoop(), torch.Generator())
    named = {name for name, _ in Manifest.of(params).entries}
    assert named == params.keys() == adapted.params.keys() == {"body.0.weight", "body.1.weight", "body.1.bias"}


@pytest.mark.parametrize("normalisation", ["frozen", "batch"])
def test_buffers_are_the_same_before_and_after_any_use(normalisation: str) -> None:
    learner, params = learner_of(WithBuffers(), normalisation)
    before = buffers_of(learner)
    adapt(learner, params, support_of(), InnerLoop(), torch.Generator())
    learner.loss(params, support_of())
    learner.log_probs(params, support_of(), pictures(2, 1))
    learner.embed(params, learner.freeze(params, support_of()), pictures(2, 1))
    after = buffers_of(learner)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_a_layer_that_normalises_each_picture_does_so_in_predictions_as_in_learning_or_is_refused() -> None:
    # With running statistics of its own such a layer would normalise in learning only.
    plain = nn.Sequential(nn.InstanceNorm2d(1), nn.Flatten(), nn.Linear(SIDE**2, 4))
    tracking = nn.Sequential(nn.InstanceNorm2d(1, track_running_stats=True), nn.Flatten(), nn.Linear(SIDE**2, 4))
    tracking[2].load_state_dict(plain[2].state_dict())
    found = []
    for network in (plain, tracking):
        try:
            learner, params = learner_of(network)
        except SettingsError as error:
            assert "'0'" in str(error)  # the layer's name
            return
        found.append((learner.loss(params, support_of()), learner.log_probs(params, support_of(), pictures(3, 1) * 9)))
    assert_close(found[1], found[0])


def test_constants_of_a_network_are_used() -> None:
    learner, params = learner_of(WithBuffers())
    embeddings = learner.embed(params, learner.freeze(params, support_of()), pictures(2, 1))
    bare, bare_params = learner_of(small())
    plain = bare.embed(
        {name: params[f"body.{name}"] for name in bare_params},
        bare.freeze({name: params[f"body.{name}"] for name in bare_params}, support_of()),
        pictures(2, 1),
    )
    assert_close(embeddings, plain * torch.tensor([2.0, 0.0, 0.5, 0.25], dtype=torch.float64))


# --- Building from settings ----------------------------------------------------------------------

OWN = """
    import math

    import torch
    from torch import nn

    def with_layer_norm(shape):
        return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 6), nn.LayerNorm(6), nn.Linear(6, 4))

    def with_dropout(shape):
        return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 64), nn.Dropout(0.5), nn.Linear(64, 4))

    def with_dropout_before_normalisation(shape):
        return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 4), nn.Dropout(0.5), nn.BatchNorm1d(4))

    def counting(shape):
        return Counting(math.prod(shape))

    def without_params(shape):
        return nn.Flatten()

    def of_doubles(shape):
        return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 4)).double()

    class Counting(nn.Module):
        def __init__(self, inputs):
            super().__init__()
            self.layer = nn.Linear(inputs, 4)
            self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

        def forward(self, inputs):
            self.calls += 1
            return self.layer(inputs.flatten(1))

    class Headed(nn.Module):
        def __init__(self, inputs):
            super().__init__()
            self.head = nn.Linear(inputs, 4)

        def forward(self, inputs):
            return self.head(inputs.flatten(1))

    def with_a_head_of_its_own(shape):
        return Headed(math.prod(shape))
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Settings]:
    """Return a function from the name of a network in this user's module to settings that name it."""
    (tmp_path / "learners_own.py").write_text(textwrap.dedent(OWN))
    monkeypatch.syspath_prepend(str(tmp_path))
    return lambda name: Settings.from_flat({"model.network": f"learners_own:{name}", "data.size": SIDE})


def same_bits(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return list(left) == list(right) and all(torch.equal(value, right[name]) for name, value in left.items())


@pytest.mark.parametrize("head", ["prototype", "linear"])
def test_initial_params_are_named_by_the_seed_of_the_run(head: str) -> None:
    first, again, other = (
        build_learner(Settings.from_flat({"run.seed": seed, "model.head": head, "model.width": 4}))[1]
        for seed in (1, 1, 2)
    )
    assert same_bits(first, again)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])
    assert head == "prototype" or not torch.equal(first["head.weight"], other["head.weight"])


def test_building_a_learner_leaves_the_global_random_state_untouched() -> None:
    state = torch.random.get_rng_state()
    _, params = build_learner(Settings.from_flat({"model.width": 4}))
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(12345)
    assert same_bits(build_learner(Settings.from_flat({"model.width": 4}))[1], params)


def test_the_linear_head_has_a_row_for_each_class_and_the_prototype_head_has_no_params() -> None:
    learner, params = build_learner(Settings.from_flat({"model.head": "linear", "episode.way": 7, "model.width": 4}))
    assert isinstance(learner.head, LinearHead)
    assert list(params)[-2:] == ["head.weight", "head.bias"]
    assert params["head.weight"].shape == (7, learner.embedding)
    assert not params["head.bias"].any()
    glorot = (6 / (7 + learner.embedding)) ** 0.5
    assert 0.9 * glorot < params["head.weight"].abs().max() <= glorot
    learner, params = build_learner(Settings.from_flat({"model.width": 4}))
    assert isinstance(learner.head, PrototypeHead)
    assert not any(name.startswith("head.") for name in params)


def test_a_learner_takes_head_and_normalisation_from_the_settings() -> None:
    changes: dict[str, Value] = {
        "model.normalisation": "batch",
        "judge.transductive": True,
        "model.sharpness": 2.5,
        "model.width": 4,
    }
    learner, _ = build_learner(Settings.from_flat(changes))
    assert isinstance(learner.head, PrototypeHead)
    assert (learner.head.sharpness, learner.normalisation, learner.transductive) == (2.5, "batch", True)
    assert learner.embedding == 4 * 2 * 2


def test_initial_params_ask_for_no_gradient_and_are_not_those_of_the_network() -> None:
    learner, params = build_learner(Settings.from_flat({"model.width": 4, "model.head": "linear"}))
    assert not any(value.requires_grad for value in (*params.values(), *learner.network.parameters()))
    before = learner.network.get_parameter("conv1.weight").clone()
    params["conv1.weight"].add_(1)
    assert torch.equal(learner.network.get_parameter("conv1.weight"), before)


def test_a_parameter_that_has_the_name_of_the_linear_head_is_refused(own: Callable[[str], Settings]) -> None:
    with pytest.raises(SettingsError, match=r"head\."):
        build_learner(own("with_a_head_of_its_own"))


@pytest.mark.parametrize("frozen", ["*", "conv* norm*"])
def test_settings_that_leave_nothing_to_adapt_are_refused(frozen: str) -> None:
    with pytest.raises(SettingsError, match=r"inner\.frozen"):
        build_learner(Settings.from_flat({"inner.frozen": frozen, "model.width": 4}))


def test_a_network_without_params_can_learn_by_its_linear_head_only(own: Callable[[str], Settings]) -> None:
    _, params = build_learner(own("without_params").with_values({"model.head": "linear"}))
    assert list(params) == ["head.weight", "head.bias"]
    with pytest.raises(SettingsError, match="no param to adapt"):
        build_learner(own("without_params"))


def test_names_that_no_pattern_freezes_are_trained_in_their_order() -> None:
    settings = Settings.from_flat({"inner.frozen": "conv1.* *.bias", "model.width": 4})
    _, params = build_learner(settings)
    assert trainable_names(params, settings) == [
        name
        for block in (1, 2, 3, 4)
        for name in (f"conv{block}.weight", f"norm{block}.weight")
        if name != "conv1.weight"
    ]


def float_support() -> Examples:
    support = support_of()
    return Examples(support.inputs.float(), support.labels, support.way)


@pytest.mark.parametrize("network", ["with_layer_norm", "with_dropout", "with_dropout_before_normalisation"])
def test_networks_with_other_layers_learn(own: Callable[[str], Settings], network: str) -> None:
    learner, params = build_learner(own(network))
    adapted = adapt(learner, params, float_support(), InnerLoop(steps=2), torch.Generator())
    assert not torch.equal(adapted.params["1.weight"], params["1.weight"])
    predictions = learner.log_probs({**params, **adapted.params}, float_support(), pictures(3, 1).float())
    assert_close(predictions.exp().sum(1), torch.ones(3))


def test_a_network_with_layer_norm_predicts_alike_in_every_mode(own: Callable[[str], Settings]) -> None:
    settings = own("with_layer_norm")
    learner, params = build_learner(settings)
    batch, _ = build_learner(settings.with_values({"model.normalisation": "batch"}))
    queries = pictures(3, 1).float()
    assert_close(learner.log_probs(params, float_support(), queries), batch.log_probs(params, float_support(), queries))


@pytest.mark.parametrize("normalisation", ["frozen", "batch"])
@pytest.mark.parametrize("network", ["with_dropout", "with_dropout_before_normalisation"])
def test_a_prediction_is_the_same_twice_whatever_the_network_drops(
    own: Callable[[str], Settings], network: str, normalisation: str
) -> None:
    learner, params = build_learner(own(network).with_values({"model.normalisation": normalisation}))
    first, again = (learner.log_probs(params, float_support(), pictures(3, 1).float()) for _ in range(2))
    assert torch.equal(first, again)


def test_what_a_network_drops_while_it_adapts_is_drawn_from_the_generator(own: Callable[[str], Settings]) -> None:
    learner, params = build_learner(own("with_dropout"))
    state = torch.random.get_rng_state()
    first, again = (
        adapt(learner, params, float_support(), InnerLoop(), torch.Generator().manual_seed(1)).params for _ in range(2)
    )
    assert same_bits(dict(first), dict(again))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_buffers_stay_as_the_networks_function_built_them(own: Callable[[str], Settings]) -> None:
    learner, _ = build_learner(own("counting"))
    assert learner.network.get_buffer("calls").item() == 0


# --- Precision -----------------------------------------------------------------------------------


def drawn(settings: Settings) -> Examples:
    inputs = torch.rand(12, *settings.data.shape, generator=torch.Generator().manual_seed(2))
    return Examples(inputs, torch.arange(3).repeat(4), 3)


@pytest.mark.parametrize("head", ["prototype", "linear"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize(("network", "kind"), [("omniglot", "image"), ("texture", "image"), ("mlp", "vector")])
def test_bfloat16_changes_an_update_by_little_and_the_kind_of_no_param(
    network: str, kind: str, optimizer: str, head: str
) -> None:
    changes: dict[str, Value] = {
        "model.network": network,
        "model.width": 16,
        "model.head": head,
        "data.kind": kind,
        "inner.optimizer": optimizer,
        "inner.learning-rate": 0.01,
        "inner.steps": 2,
    }
    updates = []
    for precision in ("full", "bf16"):
        settings = Settings.from_flat({**changes, "inner.precision": precision})
        learner, params = build_learner(settings)
        draws, slots = torch.Generator().manual_seed(1), initial_slots(params, settings.inner)
        adapted = adapt(learner, params, drawn(settings), settings.inner, draws, slots)
        assert {value.dtype for value in (*adapted.params.values(), *adapted.slots.values())} == {torch.float32}
        cancelled = [name for name in params if name.startswith("conv") and name.endswith("bias")]
        rest = [value.flatten() for name, value in difference(adapted.params, params).items() if name not in cancelled]
        updates.append(torch.cat(rest))
    full, bf16 = updates
    assert 0 < (bf16 - full).norm() / full.norm() < (0.25 if optimizer == "sgd" else 0.6)


@pytest.mark.parametrize(("precision", "inside"), [("full", torch.float32), ("bf16", torch.bfloat16)])
def test_the_network_alone_computes_in_bfloat16_and_only_while_it_adapts(
    own: Callable[[str], Settings], precision: str, inside: torch.dtype
) -> None:
    learner, params = build_learner(own("with_layer_norm"))
    seen: list[torch.dtype] = []
    learner.network.register_forward_hook(lambda module, given, result: seen.append(result.dtype))

    class Watched(PrototypeHead):
        def loss(self, params: Params, embeddings: Tensor, labels: Tensor, way: int) -> Tensor:
            assert embeddings.dtype == torch.float32
            loss = super().loss(params, embeddings, labels, way)
            assert loss.dtype == (embeddings @ embeddings.T).dtype == torch.float32
            return loss

    learner.head = Watched(5.0)
    adapt(learner, params, float_support(), InnerLoop(steps=1, precision=precision), torch.Generator())
    assert seen == [inside]
    assert learner.log_probs(params, float_support(), pictures(2, 1).float()).dtype == torch.float32
    assert set(seen[1:]) == {torch.float32}


def test_a_network_of_doubles_is_refused_for_bfloat16(own: Callable[[str], Settings]) -> None:
    settings = own("of_doubles")
    build_learner(settings)
    with pytest.raises(SettingsError, match=r"inner\.precision.*learners_own:of_doubles.*torch\.float64"):
        build_learner(settings.with_values({"inner.precision": "bf16"}))


class Shared(nn.Module):
    """A layer and a normalisation that are used twice, and a weight that two layers share."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(SIDE * SIDE, SIDE * SIDE)
        self.norm = nn.BatchNorm1d(SIDE * SIDE)
        self.again, self.norm_again = self.first, self.norm
        self.tied = nn.Linear(SIDE * SIDE, SIDE * SIDE)
        self.tied.weight = self.first.weight

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.norm(self.first(inputs.flatten(1)))
        found: Tensor = self.tied(self.norm_again(self.again(hidden)))
        return found


def test_layers_that_are_used_twice_are_left_as_they_were() -> None:
    network = Shared()
    learner = Learner(network, PrototypeHead(1.0), ModelSettings(), SIDE * SIDE, transductive=False)
    params = {name: value.detach() + 0.1 for name, value in network.named_parameters()}
    before = dict((*network.named_parameters(), *network.named_buffers()))
    support = Examples(torch.rand(6, 1, SIDE, SIDE), torch.tensor([0, 0, 0, 1, 1, 1]), 2)
    first = learner.freeze(params, support)
    learner.loss(params, support)
    learner.freeze(params, Examples(support.inputs * 5, support.labels, 2))
    again = learner.freeze(params, support)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(now is before[name] for name, now in (*network.named_parameters(), *network.named_buffers()))


def test_a_weight_that_two_layers_share_is_adapted_in_both() -> None:
    network = Shared()
    learner = Learner(network, PrototypeHead(1.0), ModelSettings(), SIDE * SIDE, transductive=False)
    params = {name: torch.zeros_like(value) for name, value in network.named_parameters()}
    support = Examples(torch.rand(6, 1, SIDE, SIDE), torch.tensor([0, 0, 0, 1, 1, 1]), 2)
    assert not learner.embed(params, learner.freeze(params, support), support.inputs).any()
