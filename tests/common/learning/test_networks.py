"""The paper's network, its padding against TensorFlow's rule, and networks of a user's own."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from common.errors import SettingsError
from common.learning.learner import build_learner
from common.learning.networks import Mlp, OmniglotNetwork, build_network, embedding_size, same_padding
from common.settings import DataSettings, ModelSettings, Settings

KERNEL, STRIDE = 3, 2


def size_of(params: dict[str, Tensor]) -> int:
    return sum(value.numel() for value in params.values())


def test_the_network_of_the_paper_has_as_many_parameters_as_the_paper_says() -> None:
    width, way, blocks = 64, 5, 4
    settings = Settings.from_flat({"model.width": width, "model.head": "linear", "episode.way": way})
    kernels = KERNEL**2 * width * (1 + (blocks - 1) * width)  # grey pictures in the first block
    biases, scales_and_shifts = blocks * width, blocks * 2 * width
    side = 28
    for _ in range(blocks):
        side = math.ceil(side / STRIDE)
    layer = way * side**2 * width + way
    _, params = build_learner(settings)
    assert size_of(params) == kernels + biases + scales_and_shifts + layer
    assert size_of(params) == 113_221  # stated in the authors' table of network sizes


@pytest.mark.parametrize("channels", [1, 3])
def test_sides_go_from_28_to_14_7_4_and_2(channels: int) -> None:
    network = OmniglotNetwork(channels, 6)
    sides = []
    for block in range(1, 5):
        network.get_submodule(f"conv{block}").register_forward_hook(
            lambda module, given, output: sides.append(tuple(output.shape[-2:]))
        )
    embeddings = network(torch.rand(2, channels, 28, 28))
    assert sides == [(14, 14), (7, 7), (4, 4), (2, 2)]
    assert embeddings.shape == (2, 4 * 6)
    assert (embeddings >= 0).all()  # the last block ends in ReLU as well


@pytest.mark.parametrize("width", range(1, 10))
@pytest.mark.parametrize("height", [1, 4, 7, 8])
def test_padding_is_what_tensorflow_calls_same(height: int, width: int) -> None:
    def before_and_after(side: int) -> tuple[int, int]:
        total = max((math.ceil(side / STRIDE) - 1) * STRIDE + KERNEL - side, 0)
        return total // 2, total - total // 2

    images = torch.rand(2, 3, height, width) + 1
    (top, bottom), (left, right) = before_and_after(height), before_and_after(width)
    padded = same_padding(images)
    assert padded.shape == (2, 3, top + height + bottom, left + width + right)
    assert torch.equal(padded[:, :, top : top + height, left : left + width], images)
    assert_close(padded.sum(), images.sum())  # all else is zero
    assert (bottom, right) == (1, 1)
    assert (top, left) == (height % 2, width % 2)


@pytest.mark.parametrize("side", [5, 6])
def test_a_padded_convolution_is_tensorflows_written_out(side: int) -> None:
    convolution = nn.Conv2d(1, 1, KERNEL, stride=STRIDE, dtype=torch.float64)
    image = torch.rand(1, 1, side, side, dtype=torch.float64)
    out = math.ceil(side / STRIDE)
    before = max((out - 1) * STRIDE + KERNEL - side, 0) // 2
    expected = torch.zeros(out, out, dtype=torch.float64)
    kernel: list[list[float]] = convolution.weight.detach()[0, 0].tolist()
    assert convolution.bias is not None
    pixels = image[0, 0].tolist()
    for row in range(out):
        for column in range(out):
            total = convolution.bias.item()
            for i in range(KERNEL):
                for j in range(KERNEL):
                    y, x = row * STRIDE + i - before, column * STRIDE + j - before
                    if 0 <= y < side and 0 <= x < side:
                        total += kernel[i][j] * pixels[y][x]
            expected[row, column] = total
    with torch.no_grad():
        assert_close(convolution(same_padding(image))[0, 0], expected)


def test_biases_begin_at_zero_and_kernels_fill_glorots_range() -> None:
    channels, width = 3, 16
    network = OmniglotNetwork(channels, width)
    for block in range(1, 5):
        convolution = network.get_submodule(f"conv{block}")
        assert isinstance(convolution, nn.Conv2d)
        assert convolution.bias is not None
        inputs = (channels if block == 1 else width) * KERNEL**2
        bound = math.sqrt(6 / (inputs + width * KERNEL**2))
        assert not convolution.bias.any()
        assert convolution.weight.abs().max() <= bound
        assert convolution.weight.abs().max() > 0.95 * bound
        # A uniform distribution from -b to b has the standard deviation b / sqrt(3).
        assert float(convolution.weight.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.1)


def test_normalisation_adds_a_thousandth_to_the_variance() -> None:
    norms = [module for module in OmniglotNetwork(1, 4).modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 4
    assert {norm.eps for norm in norms} == {1e-3}
    assert all(bool((norm.weight == 1).all()) and bool((norm.bias == 0).all()) for norm in norms)


def test_blocks_convolve_then_normalise_then_cut_off_below_zero() -> None:
    network = OmniglotNetwork(1, 2).double()
    hidden = torch.rand(3, 1, 28, 28, dtype=torch.float64)
    expected = hidden
    for block in range(1, 5):
        mapped = network.get_submodule(f"conv{block}")(same_padding(expected))
        mean = mapped.mean((0, 2, 3), keepdim=True)
        variance = mapped.var((0, 2, 3), keepdim=True, unbiased=False)
        expected = ((mapped - mean) / (variance + 1e-3).sqrt()).clamp(min=0)
    assert_close(network(hidden), expected.flatten(1))


# --- A user's own network ------------------------------------------------------------------------

OWN = """
import math

import torch
from torch import nn

def plain(shape):
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 7))

def with_batch_norm_for_vectors(shape):
    return nn.Sequential(nn.BatchNorm1d(shape[0]), nn.Flatten(), nn.Linear(math.prod(shape), 7))

def for_other_pictures(shape):
    return nn.Sequential(nn.Flatten(), nn.Linear(5, 7))

def feature_maps(shape):
    return nn.Conv2d(shape[0], 2, 1)

def one_row(shape):
    return Calls(lambda inputs: inputs.flatten()[None])

def a_tuple(shape):
    return Calls(lambda inputs: (inputs,))

def an_index_too_far(shape):
    return Calls(lambda inputs: inputs.shape[7])

def that_needs_two_inputs(shape):
    return Calls(lambda inputs, others: inputs)

def without_arguments():
    return nn.Flatten()

def that_fails(shape):
    raise OSError("no weights here")

def a_number(shape):
    return 3

def nothing(shape):
    pass

def of_doubles(shape):
    return plain(shape).double()

constant = 3

class Calls(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.function = function

    def forward(self, inputs):
        return self.function(inputs)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Settings]:
    """Return a function from the name of a network of this user to settings that name it."""
    (tmp_path / "own_networks.py").write_text(OWN)
    (tmp_path / "own_broken.py").write_text("def network(:")
    (tmp_path / "own_needy.py").write_text("import a_package_that_nobody_has")
    monkeypatch.syspath_prepend(str(tmp_path))

    def settings(network: str) -> Settings:
        return Settings.from_flat({"model.network": network, "data.size": 4, "data.beside": "template"})

    return settings


def test_a_users_network_is_given_channels_and_size(own: Callable[[str], Settings]) -> None:
    settings = own("own_networks:plain")
    network = build_network(settings.model, settings.data)
    assert isinstance(network, nn.Sequential)
    assert embedding_size(network, settings.data) == 7
    learner, params = build_learner(settings)
    assert learner.embedding == 7
    assert {name: tuple(value.shape) for name, value in params.items()} == {"1.weight": (7, 2 * 4 * 4), "1.bias": (7,)}


def test_the_linear_head_of_a_users_network_has_its_dtype(own: Callable[[str], Settings]) -> None:
    _, params = build_learner(own("own_networks:of_doubles").with_values({"model.head": "linear"}))
    assert {value.dtype for value in params.values()} == {torch.float64}
    assert params["head.weight"].shape == (5, 7)


UNUSABLE = {
    "the module is missing": ("no_such_networks:plain", "no_such_networks"),
    "a module that it needs is missing": ("own_needy:plain", "a_package_that_nobody_has"),
    "the function is missing": ("own_networks:no_such_function", "no_such_function"),
    "no function is named": ("own_networks:", "own_networks:"),
    "no module is named": (":plain", ":plain"),
    "the function returns no module": ("own_networks:a_number", "int"),
    "the function returns nothing": ("own_networks:nothing", "NoneType"),
    "the function takes no arguments": ("own_networks:without_arguments", "own_networks:without_arguments"),
    "the function fails": ("own_networks:that_fails", "no weights here"),
    "it fails on the input": ("own_networks:an_index_too_far", "(2, 2, 4, 4)"),
    "it needs two inputs": ("own_networks:that_needs_two_inputs", "(2, 2, 4, 4)"),
    "it expects pictures of another size": ("own_networks:for_other_pictures", "(2, 2, 4, 4)"),
    "it returns feature maps": ("own_networks:feature_maps", "into (2, 2, 4, 4); it must return [n, d]"),
    "it returns one row for all": ("own_networks:one_row", "into (1, 64); it must return [n, d]"),
    "it returns a tuple": ("own_networks:a_tuple", "tuple"),
    "it is not a function": ("own_networks:constant", "own_networks:constant"),
    "the module is relative": (".own_networks:plain", ".own_networks"),
    "the module is not Python": ("own_broken:network", "own_broken"),
    "a layer refuses the input by ValueError": ("own_networks:with_batch_norm_for_vectors", "(2, 2, 4, 4)"),
}


@pytest.mark.parametrize(("network", "named"), UNUSABLE.values(), ids=UNUSABLE.keys())
def test_a_network_that_cannot_be_used_is_refused_and_named(
    own: Callable[[str], Settings], network: str, named: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        build_learner(own(network))
    assert named in str(caught.value)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [4, 17, 28, 32])
def test_the_omniglot_network_takes_pictures_of_any_size(channels: int, size: int) -> None:
    data = DataSettings(channels=channels, size=size)
    network = build_network(ModelSettings(width=3), data)
    side = size
    for _ in range(4):
        side = math.ceil(side / STRIDE)
    assert embedding_size(network, data) == 3 * side**2


def test_a_deeper_omniglot_network_has_more_blocks_and_the_same_first_ones() -> None:
    names = [name for name, _ in OmniglotNetwork(1, 3, depth=5).named_parameters()]
    assert names[: 4 * 4] == [name for name, _ in OmniglotNetwork(1, 3).named_parameters()]
    assert {name.split(".")[0] for name in names[4 * 4 :]} == {"conv5", "norm5"}


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_an_mlp_turns_rows_into_embeddings_of_its_width(depth: int) -> None:
    data = DataSettings(kind="table", columns="age, cp=1|2|3")
    network = build_network(ModelSettings(network="mlp", width=6, depth=depth), data)
    assert embedding_size(network, data) == 6
    shapes = [tuple(value.shape) for name, value in network.named_parameters() if name.startswith("linear")]
    assert shapes == [(6, 4), (6,), *([(6, 6), (6,)] * (depth - 1))]


def test_an_mlp_is_linear_normalised_and_cut_at_0_in_each_layer() -> None:
    network = Mlp(3, 4, depth=1)
    inputs = torch.randn(9, 3, generator=torch.Generator().manual_seed(1))
    params = dict(network.named_parameters())
    raw = inputs @ params["linear1.weight"].T + params["linear1.bias"]
    normalised = (raw - raw.mean(0)) / (raw.var(0, unbiased=False) + 1e-3).sqrt()
    assert_close(network(inputs), normalised.clamp(min=0))


@pytest.mark.parametrize(("network", "kind"), [("omniglot", "vector"), ("mlp", "image")])
def test_a_network_for_another_kind_of_data_is_refused_and_the_right_one_named(network: str, kind: str) -> None:
    with pytest.raises(SettingsError) as caught:
        build_network(ModelSettings(network=network), DataSettings(kind=kind))
    right = "mlp" if network == "omniglot" else "omniglot"
    assert all(part in str(caught.value) for part in (repr(network), repr(kind), f"model.network = {right!r}"))
