"""The inner loop of the project's own networks with its forward and backward pass written out, for a processor.

These are the sums that autograd takes of ``Learner.loss``, in an order and in memory that suit a processor. A bias
right before a normalisation stays as it is: the normalisation takes it away, so its gradient is zero, and what autograd
finds there is rounding.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor, nn

from common.learning.episode import Examples
from common.learning.heads import LinearHead, PrototypeHead, memberships, squared_distances
from common.learning.learner import Learner, with_views
from common.learning.networks import Mlp, OmniglotNetwork
from common.learning.params import Params
from common.learning.reptile import ADAM_BETA2, ADAM_EPSILON, STEPS, Adapted, batches, moment_of
from common.learning.texture import TextureNetwork, statistics_in_parts
from common.seeds import next_seed
from common.settings import InnerLoop
from simulations.batched.layers import (
    SIDE,
    Convolution,
    Layer,
    Linear,
    Normalisation,
    Place,
    ThinBlock,
    Weights,
)
from simulations.batched.memory import keep_freed_memory

NONE: Params = {}
SCHEDULES = 16
"""Of so many sizes of batches the memory is kept."""


def can_schedule(learner: Learner, params: Params, support: Examples, inner: InnerLoop) -> bool:
    """Return whether this inner loop is one that is written out here."""
    value = next(iter(params.values()))
    return (
        type(learner.network) in _LAYERS
        and type(learner.head) in (LinearHead, PrototypeHead)
        and inner.precision == "full"
        and value.device.type == "cpu"
        and value.dtype in (torch.float32, torch.float64)
        and min(inner.batch_size, len(support)) > 1  # of one row a normalisation takes no statistics
    )


@torch.no_grad()
def adapt_scheduled(
    learner: Learner,
    params: Params,
    support: Examples,
    inner: InnerLoop,
    generator: torch.Generator,
    slots: Params | None = None,
) -> Adapted:
    """Return what ``common.learning.reptile.adapt`` returns, to rounding. One call at a time in a process."""
    support = with_views(support, inner.views)
    trained = tuple(name for name in params if not inner.is_frozen(name))
    sizes = tuple((name, tuple(value.shape)) for name, value in params.items())
    count, dtype = min(inner.batch_size, len(support)), next(iter(params.values())).dtype
    schedule = _schedule(learner, sizes, trained, (count, *support.inputs.shape[1:]), dtype)
    lead_in = _lead_in(learner.network)
    if inner.augment == "none":  # the same inputs come again and again
        support, lead_in = replace(support, inputs=lead_in(support.inputs)), _as_it_is
    steps = schedule.begin(params, NONE if slots is None else slots)
    for batch in batches(support, inner, learner.head.balanced_batches, generator):
        next_seed(generator)  # of dropout, which these networks have not
        schedule.backward(lead_in(batch.inputs), batch.labels, batch.way)
        schedule.step(inner, steps)
    if not slots:
        return Adapted(schedule.values.copy(), {})
    moments = {moment_of(name): value for name, value in schedule.moments.copy().items()}
    return Adapted(schedule.values.copy(), {**moments, STEPS: steps})


def _as_it_is(inputs: Tensor) -> Tensor:
    return inputs


def _lead_in(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return what a network does with inputs before its first layer."""
    if isinstance(network, TextureNetwork):
        return statistics_in_parts
    return _as_it_is


class Schedule:
    """Gradients of a learner's loss on batches of one size [n, *shape], into memory that they use again and again."""

    def __init__(self, learner: Learner, like: Params, trained: tuple[str, ...], batch: tuple[int, ...]) -> None:
        keep_freed_memory()
        self.values, self.gradients, self.moments = (Weights(like, trained) for _ in range(3))
        self._first_moments = torch.zeros_like(self.values.first)
        self._trained = trained
        self._began_with: tuple[Params, Params] | None = None
        self._learner = learner
        build = _LAYERS[type(learner.network)]
        self._layers, shape = build(self, learner.network, batch)
        self._end = Embeddings(self.values.first.new_empty(batch[0], learner.embedding), shape)
        following: list[Place] = [*self._layers[1:], self._end]
        self._passes = list(zip(self._layers, following, strict=True))

    def begin(self, params: Params, slots: Params) -> Tensor:
        """Start from params and slots; return the count of steps before [1].

        Sites of a round start from the same dictionaries, which are read once.
        """
        if self._began_with is None or self._began_with[0] is not params or self._began_with[1] is not slots:
            self.values.fill(params)
            self.moments.fill({name: slots[moment_of(name)] for name in self._trained} if slots else {})
            self._began_with, self._start = (params, slots), (self.values.all.clone(), self.moments.first.clone())
        else:
            self.values.all.copy_(self._start[0])
            self.moments.first.copy_(self._start[1])
        self._first_moments.zero_()  # with beta1 = 0 it is of no use, but what is not a number stays so times zero
        return slots[STEPS].clone() if slots else torch.zeros(1)

    def backward(self, inputs: Tensor, labels: Tensor, way: int) -> None:
        """Take the gradients of the loss on a batch, which then lie in ``gradients``."""
        first = self._layers[0].inputs
        first.copy_(inputs.permute(0, 2, 3, 1) if inputs.dim() == 4 else inputs)
        for layer, following in self._passes:
            layer.forward(following)
        d_outputs = self._end.laid(self._d_loss(self._end.rows, labels, way)).contiguous()
        for layer in reversed(self._layers):
            layer.backward(d_outputs)
            d_outputs = layer.d_inputs

    def step(self, inner: InnerLoop, steps: Tensor) -> None:
        """Change the values as ``inner_step`` does, with torch's own Adam, in one pass; ``steps`` [1] counts on.

        What divides the gradient there is sqrt(moment / correction) + epsilon, here sqrt(moment) + epsilon.
        """
        values, gradients, moments = (each.first for each in (self.values, self.gradients, self.moments))
        if inner.optimizer == "sgd":
            values.sub_(gradients, alpha=inner.learning_rate)
            return
        correction = 1 - ADAM_BETA2 ** (float(steps) + 1)
        torch._fused_adam_(
            [values],
            [gradients],
            [self._first_moments],
            [moments],
            [],
            [steps.add_(1)],
            amsgrad=False,
            beta1=0.0,
            beta2=ADAM_BETA2,
            lr=inner.learning_rate,
            weight_decay=0.0,
            eps=ADAM_EPSILON / correction**0.5,
            maximize=False,
        )

    def _d_loss(self, embeddings: Tensor, labels: Tensor, way: int) -> Tensor:
        """Return the gradient of the head's loss by the embeddings [n, d]; the head's own go into ``gradients``."""
        head = self._learner.head
        if isinstance(head, PrototypeHead):
            return _d_prototype_loss(head.sharpness, embeddings, labels, way)
        weight, bias = self.values["head.weight"][:way], self.values["head.bias"][:way]
        d_weight, d_bias = self.gradients["head.weight"], self.gradients["head.bias"]
        if way < len(d_bias):  # the other classes have no gradient
            d_weight.zero_()
            d_bias.zero_()
        d_logits = torch.addmm(bias, embeddings, weight.T).softmax(1)
        d_logits.sub_(memberships(labels, way).to(d_logits.dtype)).div_(len(labels))
        torch.mm(d_logits.T, embeddings, out=d_weight[:way])
        torch.sum(d_logits, 0, out=d_bias[:way])
        return d_logits @ weight


def _d_prototype_loss(sharpness: float, embeddings: Tensor, labels: Tensor, way: int) -> Tensor:
    """Return the gradient of ``PrototypeHead.loss`` by the embeddings [n, d]."""
    members = memberships(labels, way).to(embeddings.dtype)
    counts = members.sum(0)
    judged = (members @ counts > 1).to(embeddings.dtype)
    if not judged.any():
        return torch.zeros_like(embeddings)
    prototypes = members.T @ embeddings / counts.clamp(min=1)[:, None]
    scale = -sharpness / embeddings.shape[1]
    left_out = torch.where(members > 0, scale * (counts / (counts - 1).clamp(min=1)) ** 2, scale)
    logits = (left_out * squared_distances(embeddings, prototypes)).masked_fill_(counts == 0, float("-inf"))
    d_distances = (logits.softmax(1) - members) * left_out * (2 * judged / judged.sum())[:, None]
    d_prototypes = d_distances.sum(0)[:, None] * prototypes - d_distances.T @ embeddings
    own = d_distances.sum(1)[:, None] * embeddings - d_distances @ prototypes
    return own + members @ (d_prototypes / counts.clamp(min=1)[:, None])


@lru_cache(maxsize=SCHEDULES)
def _schedule(
    learner: Learner,
    sizes: tuple[tuple[str, tuple[int, ...]], ...],
    trained: tuple[str, ...],
    batch: tuple[int, ...],
    dtype: torch.dtype,
) -> Schedule:
    return Schedule(learner, {name: torch.empty(size, dtype=dtype) for name, size in sizes}, trained, batch)


class Embeddings:
    """What comes after the last layer: embeddings [n, d], which a network flattens from images with channels first."""

    def __init__(self, rows: Tensor, shape: tuple[int, ...]) -> None:
        """``shape``: [c, h, w] of one image; empty if the last layer leaves rows."""
        self._rows, self._shape = rows, shape
        self.inputs = self.laid(rows)

    @property
    def rows(self) -> Tensor:
        return self._rows if self._shape else self.inputs

    def laid(self, rows: Tensor) -> Tensor:
        """Return rows [n, d] as the last layer has them, with channels last."""
        return rows.view(len(rows), *self._shape).permute(0, 2, 3, 1) if self._shape else rows


Built = tuple[list[Layer], tuple[int, ...]]
"""Layers, and the shape [*] of one output as the network has it."""


def _omniglot(schedule: Schedule, network: OmniglotNetwork, batch: tuple[int, ...]) -> Built:
    layers: list[Layer] = []
    count, channels, height, width = batch
    for block in range(1, network.depth + 1):
        images = (count, height, width, channels)
        kernel, name = _both(schedule, f"conv{block}.weight"), f"norm{block}"
        outputs = len(kernel[0])
        if block == 1 and SIDE * SIDE * channels < outputs:
            weight, bias = _both(schedule, f"{name}.weight"), _both(schedule, f"{name}.bias")
            thin = ThinBlock(images, kernel, weight, bias, getattr(network, name).eps)
            layers.append(thin)
            _, height, width = thin.size
        else:
            convolution = Convolution(images, *kernel, first=block == 1)
            _, height, width = convolution.size
            layers += [convolution, _normalisation(schedule, network, name, count * height * width)]
        channels = outputs
    return layers, (channels, height, width)


def _mlp(schedule: Schedule, network: Mlp, batch: tuple[int, ...]) -> Built:
    layers: list[Layer] = []
    for number in range(1, network.depth + 1):
        layers.append(_linear(schedule, number, batch[0], first=number == 1))
        layers.append(_normalisation(schedule, network, f"norm{number}", batch[0]))
    return layers, ()


def _texture(schedule: Schedule, network: TextureNetwork, batch: tuple[int, ...]) -> Built:
    # What norm0 adds comes through linear1 to norm1, which takes it away.
    layers: list[Layer] = [_normalisation(schedule, network, "norm0", batch[0], relu=False, idle_bias=True)]
    for number in range(1, network.depth + 1):
        layers.append(_linear(schedule, number, batch[0]))
        layers.append(_normalisation(schedule, network, f"norm{number}", batch[0]))
    return [*layers, _linear(schedule, network.depth + 1, batch[0], biased=True)], ()


def _both(schedule: Schedule, name: str) -> tuple[Tensor, Tensor]:
    """Return a param and its gradient."""
    return schedule.values[name], schedule.gradients[name]


def _linear(schedule: Schedule, number: int, rows: int, *, first: bool = False, biased: bool = False) -> Linear:
    weight, bias = f"linear{number}.weight", f"linear{number}.bias"
    return Linear(rows, *_both(schedule, weight), _both(schedule, bias) if biased else None, first)


def _normalisation(
    schedule: Schedule, network: nn.Module, name: str, rows: int, *, relu: bool = True, idle_bias: bool = False
) -> Normalisation:
    weight, bias = _both(schedule, f"{name}.weight"), _both(schedule, f"{name}.bias")
    if idle_bias:
        bias = (bias[0], torch.empty_like(bias[1]))
    epsilon: float = getattr(network, name).eps
    return Normalisation(rows, weight, bias, epsilon, relu)


_LAYERS: dict[type[nn.Module], Callable[..., Built]] = {
    OmniglotNetwork: _omniglot,
    Mlp: _mlp,
    TextureNetwork: _texture,
}
