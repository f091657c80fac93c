"""Forward and backward pass of layers, written out, in memory that every batch uses again.

Channels lie last: an activation is rows [n, channels], a row for each input or each place in an image.
"""

from typing import Protocol

import torch
from torch import Tensor

from common.learning.params import Params

ATEN = torch.ops.aten
SIDE, STRIDE = 3, 2
"""Of convolutions, whose padding is TensorFlow's 'SAME': an even side at its end only."""


class Layer(Protocol):
    """A step of the forward pass, and back."""

    inputs: Tensor
    """What the layer before writes."""
    d_inputs: Tensor
    """The loss's gradient with respect to it, once ``backward`` was called."""

    def forward(self, outputs: Tensor) -> None:
        """Write what the inputs become."""

    def backward(self, d_outputs: Tensor) -> None:
        """Take the gradients of the layer's params and, if one is wanted, of its inputs."""


class Weights:
    """Values by name that lie one after another in one array, those named first before all others.

    Kernels [out, in, 3, 3] lie as [3, 3, in, out].
    """

    def __init__(self, like: Params, first: tuple[str, ...]) -> None:
        names = [*first, *(name for name in like if name not in first)]
        sizes = [like[name].numel() for name in names]
        self.all = whole = next(iter(like.values())).new_zeros(sum(sizes))
        self.first = whole[: sum(sizes[: len(first)])]
        self._like, self._first = like, first
        self._named = {
            name: _lain(part, like[name]) for name, part in zip(names, torch.split(whole, sizes), strict=True)
        }

    def __getitem__(self, name: str) -> Tensor:
        """Return a value in its usual shape, wherever its elements lie."""
        return self._named[name]

    def fill(self, values: Params) -> None:
        for name, value in values.items():
            self._named[name].copy_(value)

    def copy(self) -> dict[str, Tensor]:
        """Return copies of the values that were named first."""
        copied = torch.split(self.first.clone(), [self._like[name].numel() for name in self._first])
        return {name: _lain(part, self._like[name]) for name, part in zip(self._first, copied, strict=True)}


def _lain(part: Tensor, like: Tensor) -> Tensor:
    if like.dim() != 4:
        return part.view(like.shape)
    outputs, inputs, height, width = like.shape
    return part.view(height, width, inputs, outputs).permute(3, 2, 0, 1)


def matrix(kernel: Tensor) -> Tensor:
    """Return a kernel that lies as [3, 3, in, out] as [9 * in, out]."""
    return kernel.permute(2, 3, 1, 0).flatten(0, 2)


class Convolution:
    """3x3 convolution with stride 2 and without bias: images [n, h, w, in] to rows [n * ceil(h/2) * ceil(w/2), out].

    A matrix product over patches that are gathered first. Neighbouring patches share a row or a column: back, the
    gradients of what belongs to one patch alone are laid side by side, and those of the shared added to them.
    """

    def __init__(self, images: tuple[int, int, int, int], kernel: Tensor, d_kernel: Tensor, first: bool) -> None:
        count, height, width, channels = images
        down, right = -(-height // STRIDE), -(-width // STRIDE)
        self.size = (count, down, right)
        """Images, and patches down and across each."""
        self._kernel, self._d_kernel = matrix(kernel), matrix(d_kernel)
        inside = (slice(None), *(slice(side % STRIDE, side % STRIDE + side) for side in (height, width)))
        padded = kernel.new_zeros(count, STRIDE * down + 1, STRIDE * right + 1, channels)
        self.inputs = padded[inside]
        image, row, place, channel = padded.stride()
        strides = (image, STRIDE * row, STRIDE * place, row, place, channel)
        self._patches = padded.as_strided((*self.size, SIDE, SIDE, channels), strides)
        self._gathered = kernel.new_empty(self._patches.shape)
        self._rows = self._gathered.view(-1, SIDE * SIDE * channels)
        self._additions: list[tuple[Tensor, Tensor]] = []
        self.d_inputs = kernel.new_empty(0)
        if first:
            return
        d_gathered = kernel.new_empty(self._patches.shape)
        self._d_rows = d_gathered.view(self._rows.shape)
        d_places = kernel.new_empty(count, down, STRIDE, right, STRIDE, channels)
        self.d_inputs = d_places.view(count, STRIDE * down, STRIDE * right, channels)[inside]
        # Rows, columns and channels of patches, beside the places that they come from.
        d_patches = d_gathered.transpose(2, 3)
        self._own = (d_places, d_patches[:, :, :STRIDE, :, :STRIDE])
        self._additions = [
            (d_places[:, 1:, 0], d_patches[:, :-1, STRIDE, :, :STRIDE]),
            (d_places[:, :, :, 1:, 0], d_patches[:, :, :STRIDE, :-1, STRIDE]),
            (d_places[:, 1:, 0, 1:, 0], d_patches[:, :-1, STRIDE, :-1, STRIDE]),
        ]

    def forward(self, outputs: Tensor) -> None:
        self._gathered.copy_(self._patches)
        torch.mm(self._rows, self._kernel, out=outputs)

    def backward(self, d_outputs: Tensor) -> None:
        torch.mm(self._rows.T, d_outputs, out=self._d_kernel)
        if self._additions:
            torch.mm(d_outputs, self._kernel.T, out=self._d_rows)
            self._own[0].copy_(self._own[1])
            for places, shared in self._additions:
                places.add_(shared)


class Linear:
    """Rows [n, in] to rows [n, out]; a bias of None is one that a normalisation takes away again."""

    def __init__(self, rows: int, weight: Tensor, d_weight: Tensor, biases: tuple[Tensor, Tensor] | None, first: bool):
        self._weight, self._d_weight, self._biases, self._first = weight, d_weight, biases, first
        self.inputs, self.d_inputs = (weight.new_empty(rows, weight.shape[1]) for _ in range(2))

    def forward(self, outputs: Tensor) -> None:
        if self._biases is None:
            torch.mm(self.inputs, self._weight.T, out=outputs)
        else:
            torch.addmm(self._biases[0], self.inputs, self._weight.T, out=outputs)

    def backward(self, d_outputs: Tensor) -> None:
        torch.mm(d_outputs.T, self.inputs, out=self._d_weight)
        if self._biases is not None:
            torch.sum(d_outputs, 0, out=self._biases[1])
        if not self._first:
            torch.mm(d_outputs, self._weight, out=self.d_inputs)


class Normalisation:
    """Batch normalisation of rows [n, channels], then ReLU if wanted; outputs of any shape with channels last."""

    def __init__(
        self, rows: int, weight: tuple[Tensor, Tensor], bias: tuple[Tensor, Tensor], epsilon: float, relu: bool
    ) -> None:
        (self._weight, self._d_weight), (self._bias, self._d_bias) = weight, bias
        self._epsilon, self._relu = epsilon, relu
        self.inputs = self._weight.new_empty(rows, len(self._weight))
        self._normalised, self._d_normalised, self.d_inputs = (torch.empty_like(self.inputs) for _ in range(3))
        self._mean, self._scale = torch.empty_like(self._weight), torch.empty_like(self._weight)

    def forward(self, outputs: Tensor) -> None:
        measured = (self._normalised, self._mean, self._scale)
        ATEN.native_batch_norm.out(
            self.inputs, self._weight, self._bias, None, None, True, 0.0, self._epsilon,
            out=measured[0], save_mean=measured[1], save_invstd=measured[2],
        )  # fmt: skip
        normalised = self._normalised.view(outputs.shape)
        if self._relu:
            torch.clamp_min(normalised, 0, out=outputs)
        else:
            outputs.copy_(normalised)

    def backward(self, d_outputs: Tensor) -> None:
        d_normalised = self._d_normalised.view(d_outputs.shape)
        if self._relu:
            ATEN.threshold_backward.grad_input(
                d_outputs, self._normalised.view(d_outputs.shape), 0, grad_input=d_normalised
            )
        else:
            d_normalised.copy_(d_outputs)
        self.d_inputs, d_weight, d_bias = ATEN.native_batch_norm_backward(
            self._d_normalised, self.inputs, self._weight, None, None, self._mean, self._scale, True, self._epsilon,
            [True, True, True],
        )  # fmt: skip
        self._d_weight.copy_(d_weight)
        self._d_bias.copy_(d_bias)
