"""Forward and backward pass of layers, written out, in memory that every batch uses again.

Channels lie last: an activation is rows [n, channels], a row for each input or each place in an image.
"""

from functools import cache
from typing import Protocol, cast

import torch
from torch import Tensor

from common.learning.params import Params

ATEN = torch.ops.aten
SIDE, STRIDE = 3, 2
"""Of convolutions, whose padding is TensorFlow's 'SAME': an even side at its end only."""
MANY_ROWS = 512
"""From so many on sums over rows are taken with care."""


class Place(Protocol):
    """Where a layer leaves its outputs: the next layer, or what comes after the last."""

    inputs: Tensor


class Layer(Place, Protocol):
    """A step of the forward pass, and back."""

    d_inputs: Tensor
    """The loss's gradient with respect to ``inputs``, once ``backward`` was called."""

    def forward(self, following: Place) -> None:
        """Leave what the inputs become."""

    def backward(self, d_outputs: Tensor) -> None:
        """Take the gradients of the layer's params and, if one is wanted, of its inputs."""


class Weights:
    """Values by name that lie one after another in one array, those named first before all others.

    Kernels [out, in, 3, 3] lie as [out, 3, 3, in].
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
    return part.view(outputs, height, width, inputs).permute(0, 3, 1, 2)


def matrix(kernel: Tensor) -> Tensor:
    """Return a kernel that lies as [out, 3, 3, in] as [out, 9 * in]."""
    return kernel.permute(0, 2, 3, 1).flatten(1)


class Patches:
    """Images [n, h, w, c] with a border of zeros, and all 3x3 patches of them with stride 2."""

    def __init__(self, images: tuple[int, int, int, int], like: Tensor) -> None:
        count, height, width, channels = images
        self.size = (count, -(-height // STRIDE), -(-width // STRIDE))
        """Images, and patches down and across each."""
        self.inside = (slice(None), *(slice(side % STRIDE, side % STRIDE + side) for side in (height, width)))
        """Where the images lie within their border."""
        padded = like.new_zeros(count, *(STRIDE * places + 1 for places in self.size[1:]), channels)
        self.images = padded[self.inside]
        image, row, place, channel = padded.stride()
        strides = (image, STRIDE * row, STRIDE * place, row, place, channel)
        self.all = padded.as_strided((*self.size, SIDE, SIDE, channels), strides)


class Convolution:
    """3x3 convolution with stride 2 and without bias: images [n, h, w, in] to rows [n * ceil(h/2) * ceil(w/2), out].

    A matrix product over patches that are gathered first. Neighbouring patches share a row or a column: back, the
    gradients of what belongs to one patch alone are laid side by side, and those of the shared added to them.
    """

    def __init__(self, images: tuple[int, int, int, int], kernel: Tensor, d_kernel: Tensor, first: bool) -> None:
        self._patches = Patches(images, kernel)
        self.size, self.inputs = self._patches.size, self._patches.images
        self._kernel, self._d_kernel = matrix(kernel), matrix(d_kernel)
        self._gathered = kernel.new_empty(self._patches.all.shape)
        self._rows = self._gathered.flatten(0, 2).flatten(1)
        self.d_inputs, self._d_places = kernel.new_empty(0), None
        if not first:
            count, down, right = self.size
            self._d_places = kernel.new_empty(count, down, STRIDE, right, STRIDE, images[3])
            self.d_inputs = self._d_places.view(count, STRIDE * down, STRIDE * right, images[3])[self._patches.inside]

    def forward(self, following: Place) -> None:
        self._gathered.copy_(self._patches.all)
        following.inputs = product(self._rows, self._kernel.T, following.inputs)

    def backward(self, d_outputs: Tensor) -> None:
        self._d_kernel.copy_(product(d_outputs.T, self._rows))
        if self._d_places is None:
            return
        # Rows, columns and channels of patches, beside the places that they come from.
        patches = product(d_outputs, self._kernel).view(self._gathered.shape).transpose(2, 3)
        places = self._d_places
        places.copy_(patches[:, :, :STRIDE, :, :STRIDE])
        places[:, 1:, 0].add_(patches[:, :-1, STRIDE, :, :STRIDE])
        places[:, :, :, 1:, 0].add_(patches[:, :, :STRIDE, :-1, STRIDE])
        places[:, 1:, 0, 1:, 0].add_(patches[:, :-1, STRIDE, :-1, STRIDE])


class ThinBlock:
    """The first convolution, its normalisation and ReLU as one, for patches of fewer numbers than there are channels.

    Mean and variance of outputs K p follow from those of patches p, which are few numbers: Var(K p) is the diagonal of
    K Cov(p) K'. So outputs are normalised by the product that makes them, and back only sums over patches are needed.
    """

    def __init__(
        self,
        images: tuple[int, int, int, int],
        kernel: tuple[Tensor, Tensor],
        weight: tuple[Tensor, Tensor],
        bias: tuple[Tensor, Tensor],
        epsilon: float,
    ) -> None:
        self._patches = Patches(images, kernel[0])
        self.size, self.inputs, self.d_inputs = self._patches.size, self._patches.images, kernel[0].new_empty(0)
        self._kernel, self._d_kernel = matrix(kernel[0]), matrix(kernel[1])
        (self._weight, self._d_weight), (self._bias, self._d_bias) = weight, bias
        self._epsilon = epsilon
        self._by_place = self._patches.all.permute(3, 4, 5, 0, 1, 2)
        self._gathered = kernel[0].new_empty(self._by_place.shape)
        self._centred = self._gathered.flatten(0, 2).flatten(1)
        """[9 * in, rows]"""
        self._normalised = kernel[0].new_empty(self._centred.shape[1], len(self._kernel))
        self._seen = self._normalised
        self._spread, self._scale = self._kernel, self._weight

    def forward(self, following: Place) -> None:
        self._gathered.copy_(self._by_place)
        self._centred.sub_(self._centred.mean(1, keepdim=True))
        covariance = product(self._centred, self._centred.T).div_(self._centred.shape[1])
        self._spread = self._kernel @ covariance
        self._scale = (self._spread * self._kernel).sum(1).add_(self._epsilon).rsqrt_()
        normalising = self._kernel * (self._scale * self._weight)[:, None]
        torch.addmm(self._bias, self._centred.T, normalising.T, out=self._normalised)
        if self._seen.shape != following.inputs.shape:
            self._seen = self._normalised.view(following.inputs.shape)
        torch.clamp_min(self._seen, 0, out=following.inputs)

    def backward(self, d_outputs: Tensor) -> None:
        ATEN.threshold_backward.grad_input(d_outputs, self._seen, 0, grad_input=self._seen)
        torch.sum(self._normalised, 0, out=self._d_bias)
        sums = product(self._centred, self._normalised).T
        torch.mul((sums * self._kernel).sum(1), self._scale, out=self._d_weight)
        sums = sums - (self._d_weight * self._scale)[:, None] * self._spread
        torch.mul(sums, (self._weight * self._scale)[:, None], out=self._d_kernel)


class Linear:
    """Rows [n, in] to rows [n, out]; a bias of None is one that a normalisation takes away again."""

    def __init__(self, rows: int, weight: Tensor, d_weight: Tensor, biases: tuple[Tensor, Tensor] | None, first: bool):
        self._weight, self._d_weight, self._biases, self._first = weight, d_weight, biases, first
        self.inputs = weight.new_empty(rows, weight.shape[1])
        self.d_inputs = weight.new_empty(0)

    def forward(self, following: Place) -> None:
        following.inputs = product(self.inputs, self._weight.T, following.inputs)
        if self._biases is not None:
            following.inputs += self._biases[0]

    def backward(self, d_outputs: Tensor) -> None:
        torch.mm(d_outputs.T, self.inputs, out=self._d_weight)
        if self._biases is not None:
            torch.sum(d_outputs, 0, out=self._biases[1])
        if not self._first:
            self.d_inputs = product(d_outputs, self._weight)


class Normalisation:
    """Batch normalisation of rows [n, channels], then ReLU if wanted; outputs of any shape with channels last."""

    def __init__(
        self, rows: int, weight: tuple[Tensor, Tensor], bias: tuple[Tensor, Tensor], epsilon: float, relu: bool
    ) -> None:
        (self._weight, self._d_weight), (self._bias, self._d_bias) = weight, bias
        self._epsilon, self._relu = epsilon, relu
        self.inputs = self._weight.new_empty(rows, len(self._weight))
        self.d_inputs, self._normalised = torch.empty_like(self.inputs), torch.empty_like(self.inputs)
        self._seen = self._normalised
        """The normalised rows in the shape of the outputs; back, their gradient is written over them."""
        self._mean, self._scale = torch.empty_like(self._weight), torch.empty_like(self._weight)
        self._squares = torch.empty_like(self.inputs) if rows > MANY_ROWS else self._mean

    def forward(self, following: Place) -> None:
        outputs = following.inputs
        if len(self.inputs) > MANY_ROWS:
            self._normalise_exactly()
        else:
            ATEN.native_batch_norm.out(
                self.inputs, self._weight, self._bias, None, None, True, 0.0, self._epsilon,
                out=self._normalised, save_mean=self._mean, save_invstd=self._scale,
            )  # fmt: skip
        if self._seen.shape != outputs.shape:
            self._seen = self._normalised.view(outputs.shape)
        if self._relu:
            torch.clamp_min(self._seen, 0, out=outputs)
        else:
            outputs.copy_(self._seen)

    def _normalise_exactly(self) -> None:
        """Normalise by means that are taken in parts: torch's sums over rows with channels last go row by row, which
        loses a digit over many."""
        torch.mean(self.inputs, 0, out=self._mean)
        torch.sub(self.inputs, self._mean, out=self._normalised)
        variance = torch.mul(self._normalised, self._normalised, out=self._squares).mean(0)
        torch.rsqrt(variance.add_(self._epsilon), out=self._scale)
        torch.addcmul(self._bias, self._normalised, self._scale * self._weight, out=self._normalised)

    def backward(self, d_outputs: Tensor) -> None:
        if self._relu:
            ATEN.threshold_backward.grad_input(d_outputs, self._seen, 0, grad_input=self._seen)
        else:
            self._seen.copy_(d_outputs)
        self.d_inputs, d_weight, d_bias = ATEN.native_batch_norm_backward(
            self._normalised, self.inputs, self._weight, None, None, self._mean, self._scale, True, self._epsilon,
            [True, True, True],
        )  # fmt: skip
        self._d_weight.copy_(d_weight)
        self._d_bias.copy_(d_bias)


LEAST_INNER, LEAST_SUMS = 32, 1 << 19
"""Products with as many terms a sum, and as many multiplications, are oneDNN's: of smaller ones the call costs more."""


def product(left: Tensor, right: Tensor, room: Tensor | None = None) -> Tensor:
    """Return the matrix product [n, m] of [n, k] and [k, m], perhaps in ``room``, by whichever library is fast on it.

    ``torch.mm`` is MKL's in float32, which uses half of what some processors can do (AVX-512 on AMD's); oneDNN, which
    torch takes for convolutions, uses all of it.
    """
    rows, inner = left.shape
    large = inner >= LEAST_INNER and rows * inner * right.shape[1] >= LEAST_SUMS
    if large and left.dtype == torch.float32 and has_onednn():
        return cast(Tensor, torch.ops.mkldnn._linear_pointwise(left, right.T, None, "none", [], ""))
    return torch.mm(left, right, out=room)


@cache
def has_onednn() -> bool:
    """Return whether torch can multiply matrices by oneDNN: an operation of its own, which only its compiler calls."""
    try:
        one = torch.ones(2, 2)
        return bool((torch.ops.mkldnn._linear_pointwise(one, one, None, "none", [], "") == 2).all())
    except (AttributeError, RuntimeError):
        return False
