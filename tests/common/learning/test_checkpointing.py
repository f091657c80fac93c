"""Less is kept for the backward pass, and nothing else is different: the same bits, the same network afterwards."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call

from common.errors import SettingsError
from common.learning.checkpointing import blocks_of, checkpointed
from common.learning.episode import Examples
from common.learning.heads import PrototypeHead
from common.learning.learner import Learner, build_learner
from common.learning.reptile import Adapted, adapt, initial_slots
from common.settings import InnerLoop, ModelSettings, Settings

WIDTH, TOKENS, WAY = 8, 4, 3


class Block(nn.Module):
    """Attention and layers with dropout; a counter and running statistics, which each call changes."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 2, dropout=0.3, batch_first=True)
        self.layers = nn.Sequential(nn.Linear(WIDTH, 16), nn.BatchNorm1d(16), nn.Dropout(0.4), nn.Linear(16, WIDTH))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, hidden: Tensor, *, scale: float = 1.0) -> Tensor:
        self.calls += 1
        normal = self.norm(hidden)
        joined: Tensor = hidden + scale * self.calls * self.attention(normal, normal, normal)[0]
        changed: Tensor = joined + self.layers(joined.flatten(0, 1)).view(joined.shape)
        return changed


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Linear(1, WIDTH)
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, inputs: Tensor) -> Tensor:
        hidden: Tensor = self.embedding(inputs)
        for block in self.blocks:
            hidden = block(hidden, scale=0.5)
        return hidden.mean(1)


def learner_of(build: Callable[[], nn.Module]) -> tuple[Learner, dict[str, Tensor]]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = build()
        # What is adapted is not what lies in the network: a recomputation with that would be wrong.
        params = {name: value.detach() + 0.1 * torch.randn_like(value) for name, value in network.named_parameters()}
    return Learner(network, PrototypeHead(5.0), ModelSettings(), WIDTH, False), params


def examples() -> Examples:
    inputs = torch.rand(3 * WAY, TOKENS, 1, generator=torch.Generator().manual_seed(1))
    return Examples(inputs, torch.arange(WAY).repeat(3), WAY)


def shared() -> nn.Module:
    """A block that comes twice, and one that shares a weight and has a layer twice."""
    network = Transformer()
    first, second = network.blocks
    assert isinstance(first, Block)
    assert isinstance(second, Block)
    second.layers[3] = nn.Linear(16, WIDTH)
    twice = nn.Linear(WIDTH, WIDTH)
    second.layers.extend([twice, twice])
    second.attention.out_proj.weight = twice.weight
    network.blocks.append(first)
    return network


def layers() -> nn.Module:
    """Layers in a row, some of which keep nothing or change their input in place."""
    first = nn.Sequential(nn.Linear(TOKENS, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU(inplace=True))
    return nn.Sequential(nn.Flatten(), first, nn.Dropout(0.5), nn.Linear(WIDTH, WIDTH), nn.Tanh())


NETWORKS = {"transformer": Transformer, "shared": shared, "layers": layers}


def ends(build: Callable[[], nn.Module], inner: InnerLoop) -> Adapted:
    learner, params = learner_of(build)
    generator = torch.Generator().manual_seed(5)
    return adapt(learner, params, examples(), inner, generator, initial_slots(params, inner))


@pytest.mark.parametrize("precision", ["full", "bf16"])
@pytest.mark.parametrize("frozen", ["", "blocks.0.* 1.0.*"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("network", NETWORKS)
def test_a_checkpointed_adaptation_is_the_same_to_the_bit(
    network: str, optimizer: str, frozen: str, precision: str
) -> None:
    rest = {"optimizer": optimizer, "frozen": frozen, "precision": precision}
    inner = [InnerLoop(learning_rate=0.01, steps=3, batch_size=7, checkpointing=on, **rest) for on in (False, True)]  # type: ignore
    plain, again = (ends(NETWORKS[network], one) for one in inner)
    for one, other in ((plain.params, again.params), (plain.slots, again.slots)):
        assert list(one) == list(other)
        assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_blocks_are_computed_twice_a_step_and_all_else_once() -> None:
    learner, params = learner_of(Transformer)
    seen: list[nn.Module] = []
    for module in learner.network.modules():
        module.register_forward_hook(lambda module, given, result: seen.append(module))
    adapt(learner, params, examples(), InnerLoop(steps=2, checkpointing=True), torch.Generator())
    network = learner.network
    assert isinstance(network, Transformer)
    for block in network.blocks:
        assert isinstance(block, Block)
        assert seen.count(network) == seen.count(network.embedding) == seen.count(block) == 2
        assert seen.count(block.norm) == 2 * 2


def test_of_a_block_only_the_input_is_kept() -> None:
    kept: list[Tensor] = []

    def keep(value: Tensor) -> Tensor:
        kept.append(value)
        return value

    network = nn.Sequential(*(nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh()) for _ in range(3)))
    own = {id(value) for value in network.parameters()}
    sizes = []
    for blocks in ((), blocks_of(network)):
        kept.clear()
        with saved_tensors_hooks(keep, lambda value: value), checkpointed(blocks):
            network(torch.rand(2, 5, requires_grad=True))
        sizes.append(len({value.data_ptr() for value in kept if id(value) not in own and value.shape == (2, 5)}))
    assert sizes == [1 + 3 * 2, 3]


def test_a_network_is_afterwards_as_it_was_whatever_happens() -> None:
    learner, params = learner_of(Transformer)
    before = {module: dict(vars(module)) for module in learner.network.modules()}
    tensors = {name: value.clone() for name, value in learner.network.state_dict().items()}
    inner = InnerLoop(steps=2, checkpointing=True)
    adapt(learner, params, examples(), inner, torch.Generator())
    unfit = Examples(torch.rand(4, TOKENS, 2), torch.tensor([0, 0, 1, 1]), 2)
    with pytest.raises(RuntimeError):
        adapt(learner, params, unfit, inner, torch.Generator())
    assert {module: dict(vars(module)) for module in learner.network.modules()} == before
    assert all(torch.equal(value, tensors[name]) for name, value in learner.network.state_dict().items())


def test_a_layer_that_a_block_has_twice_has_its_own_tensors_afterwards() -> None:
    layer = nn.Linear(4, 4)
    network = nn.Sequential(nn.Sequential(layer, nn.Tanh(), layer, nn.BatchNorm1d(4)))
    before = {name: value.clone() for name, value in network.named_parameters()}
    given = {name: torch.rand_like(value).requires_grad_() for name, value in before.items()}
    inputs, results = torch.rand(3, 4), []
    for blocks in ((), blocks_of(network)):
        with checkpointed(blocks):
            loss = functional_call(network, given, (inputs,), tie_weights=False).square().mean()
        results.append(torch.autograd.grad(loss, list(given.values())))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    assert all(torch.equal(value, before[name]) for name, value in network.named_parameters())


def test_a_forward_that_somebody_put_on_a_block_is_used_and_stays() -> None:
    block = nn.Tanh()
    mine = partial(torch.mul, 3)
    block.forward = mine  # type: ignore[method-assign]
    given = torch.ones(2, requires_grad=True)
    with checkpointed([block]):
        result = block(given).square().sum()
    assert block.forward is mine
    (gradient,) = torch.autograd.grad(result, given)
    assert torch.equal(gradient, torch.full((2,), 18.0))


def test_blocks_are_the_elements_of_the_outermost_lists() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Linear(2, 2)
            self.body = nn.Sequential(nn.Sequential(nn.ReLU(), nn.Tanh()), nn.Sigmoid())
            self.pairs = nn.ModuleList([nn.ModuleList([nn.GELU(), nn.SiLU()]), nn.ModuleDict({"a": nn.Tanh()})])
            self.more = nn.ModuleDict({"rows": nn.ModuleList([self.body[1], nn.ELU()]), "one": nn.Tanh()})

    own = Own()
    pair, rows = own.pairs[0], own.more["rows"]
    assert isinstance(pair, nn.ModuleList)
    assert isinstance(rows, nn.ModuleList)
    assert blocks_of(own) == (own.body[0], own.body[1], pair[0], pair[1], rows[1])


def test_the_random_state_outside_is_not_touched() -> None:
    state = torch.random.get_rng_state()
    ends(Transformer, InnerLoop(steps=2, checkpointing=True))
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("network", "kind"), [("omniglot", "image"), ("texture", "image"), ("mlp", "vector"), ("blockless:build", "image")]
)
def test_a_network_without_blocks_is_refused_when_the_learner_is_built(
    network: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "blockless.py").write_text("from torch import nn\n\n\ndef build(shape):\n    return nn.Flatten()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    settings = Settings.from_flat({"model.network": network, "data.kind": kind, "model.head": "linear"})
    build_learner(settings)
    with pytest.raises(SettingsError, match=rf"inner\.checkpointing.*{network}.*nn\.Sequential or nn\.ModuleList"):
        build_learner(settings.with_values({"inner.checkpointing": True}))


def test_what_adapts_models_in_use_is_checkpointed_too() -> None:
    settings = Settings.from_flat({"inner.checkpointing": True, "inner.precision": "bf16", "adapt.steps": 9})
    assert (settings.adaptation.checkpointing, settings.adaptation.precision) == (True, "bf16")
