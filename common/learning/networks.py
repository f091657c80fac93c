"""The networks: functions from inputs to embeddings."""

import importlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from common.errors import SettingsError
from common.learning.texture import LEAST_SIZE, TextureNetwork
from common.settings import NETWORKS, DataSettings, ModelSettings


class OmniglotNetwork(nn.Module):
    """The Reptile paper's network for Omniglot without its last, linear layer.

    Blocks (four in the paper) of 3x3 convolution with stride 2, batch normalisation and ReLU (Nichol, Achiam,
    Schulman 2018, section 6.1, and the authors' code: 'SAME' padding as TensorFlow does it,
    Glorot-uniform kernels, zero biases, epsilon 1e-3). [n, channels, 28, 28] -> [n, 4 * width] with four blocks.
    """

    def __init__(self, channels: int, width: int, depth: int = 4) -> None:
        super().__init__()
        self.depth = depth
        for block in range(1, depth + 1):
            convolution = nn.Conv2d(channels if block == 1 else width, width, 3, stride=2)
            nn.init.xavier_uniform_(convolution.weight)
            assert convolution.bias is not None
            nn.init.zeros_(convolution.bias)
            self.add_module(f"conv{block}", convolution)
            self.add_module(f"norm{block}", nn.BatchNorm2d(width, eps=1e-3))

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = inputs
        for block in range(1, self.depth + 1):
            convolution, normalisation = getattr(self, f"conv{block}"), getattr(self, f"norm{block}")
            hidden = F.relu(normalisation(convolution(same_padding(hidden))))
        return hidden.flatten(1)


class Mlp(nn.Module):
    """Fully connected layers with batch normalisation and ReLU for vectors and rows of tables: [n, f] -> [n, width]."""

    def __init__(self, features: int, width: int, depth: int) -> None:
        super().__init__()
        self.depth = depth
        for layer in range(1, depth + 1):
            linear = nn.Linear(features if layer == 1 else width, width)
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
            self.add_module(f"linear{layer}", linear)
            self.add_module(f"norm{layer}", nn.BatchNorm1d(width, eps=1e-3))

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = inputs
        for layer in range(1, self.depth + 1):
            linear, normalisation = getattr(self, f"linear{layer}"), getattr(self, f"norm{layer}")
            hidden = F.relu(normalisation(linear(hidden)))
        return hidden


def same_padding(images: Tensor) -> Tensor:
    """Pad for a 3x3 convolution with stride 2 as TensorFlow's 'SAME': an even side at its end only."""
    height, width = images.shape[-2:]
    return F.pad(images, (width % 2, 1, height % 2, 1))


def build_network(model: ModelSettings, data: DataSettings) -> nn.Module:
    """Build the network that the settings name.

    A user's own is ``module:function``; the function takes the shape of one input, (channels, size,
    size) or (features,), and returns a module that maps [n, *shape] to embeddings [n, d].

    Raises:
        SettingsError: if the network is for another kind of data, or the function cannot be imported or returns
            something else.
    """
    if model.network in NETWORKS:
        needs_image = model.network != "mlp"
        if needs_image != (data.kind == "image"):
            raise SettingsError(
                f"model.network is {model.network!r}, which takes {'images' if needs_image else 'vectors and tables'}, "
                f"but data.kind is {data.kind!r}; set model.network = {'mlp' if needs_image else 'omniglot'!r}"
            )
        if model.network == "texture":
            if data.size < LEAST_SIZE:
                raise SettingsError(f"data.size is {data.size}; the network 'texture' needs {LEAST_SIZE} pixels a side")
            return TextureNetwork(data.channels, data.size, model.width, model.depth)
        return (OmniglotNetwork if needs_image else Mlp)(data.shape[0], model.width, model.depth)
    module_name, _, function_name = model.network.partition(":")
    try:
        network = getattr(importlib.import_module(module_name), function_name)(data.shape)
    except Exception as error:
        raise SettingsError(
            f"model.network {model.network!r} cannot be built: {type(error).__name__}: {error}; it must name a "
            "function of the input's shape in a module that is installed at the server and at every site"
        ) from error
    if not isinstance(network, nn.Module):
        raise SettingsError(
            f"model.network {model.network!r} returned {type(network).__name__}; it must return a torch.nn.Module"
        )
    return network


def embedding_size(network: nn.Module, data: DataSettings) -> int:
    """Return d of the embeddings [n, d]. Raises SettingsError if the network's output is not of that form."""
    probe = torch.zeros(2, *data.shape)
    probe = probe.to(next((p.dtype for p in network.parameters()), torch.float32))
    own = {name: buffer.clone() for name, buffer in network.named_buffers()}
    try:
        with torch.no_grad():
            output = functional_call(network, own, (probe,))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise SettingsError(f"the network does not accept inputs of shape {tuple(probe.shape)}: {error}") from error
    if not isinstance(output, Tensor) or output.dim() != 2 or len(output) != len(probe):
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise SettingsError(f"the network turned {tuple(probe.shape)} into {found}; it must return [n, d]")
    return output.shape[1]
