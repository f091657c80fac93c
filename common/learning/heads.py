"""Heads: how embeddings become classes. Pure functions of embeddings, labels and params.

``prototype`` (Snell, Swersky, Zemel 2017, equations 1-2) has no params of its own, takes any
number of classes and is keyed by class name. ``linear`` is the paper's N-way layer.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from common.learning.params import Params


class Head(Protocol):
    """Embeddings are [n, d], labels [n] in 0..way-1, log-probabilities [n, way]."""

    balanced_batches: bool

    def loss(self, params: Params, embeddings: Tensor, labels: Tensor, way: int) -> Tensor:
        """Return the inner loss, a scalar."""

    def log_probs(self, params: Params, support: Tensor, labels: Tensor, way: int, query: Tensor) -> Tensor:
        """Classify query embeddings given the support embeddings and labels."""


class PrototypeHead:
    """Softmax over minus the mean squared distance to each class's prototype, times ``sharpness``.

    The distance is divided by d, so that one sharpness fits networks of any embedding size.
    """

    balanced_batches = True

    def __init__(self, sharpness: float) -> None:
        self.sharpness = sharpness

    def loss(self, params: Params, embeddings: Tensor, labels: Tensor, way: int) -> Tensor:
        """Leave-one-out cross-entropy: each example is classified by prototypes made without it.

        The only example of its class in the batch helps as a prototype but is not classified; a
        batch of such examples only has a loss of 0 with zero gradient, so one-shot support sets
        without augmented views leave the params as they are.
        """
        members = memberships(labels, way).to(embeddings.dtype)
        counts = members.sum(0)
        prototypes = members.T @ embeddings / counts.clamp(min=1)[:, None]
        distances = squared_distances(embeddings, prototypes)
        # Leaving x out of its class's mean p over n moves the mean away from x: x - p' = (x - p) n / (n - 1).
        others = (counts - 1).clamp(min=1)
        distances = torch.where(members > 0, distances * (counts / others) ** 2, distances)
        logits = (-self.sharpness / embeddings.shape[1]) * distances
        logits = logits.masked_fill(counts == 0, float("-inf"))
        judged = (counts[labels] > 1).to(embeddings.dtype)
        losses = F.cross_entropy(logits, labels, reduction="none")
        return (losses * judged).sum() / judged.sum().clamp(min=1)

    def log_probs(self, params: Params, support: Tensor, labels: Tensor, way: int, query: Tensor) -> Tensor:
        return self.by_prototypes(prototypes_of(support, labels, way), query)

    def by_prototypes(self, prototypes: Tensor, query: Tensor) -> Tensor:
        """Classify query embeddings [n, d] by prototypes [way, d]."""
        distances = squared_distances(query, prototypes)
        return F.log_softmax((-self.sharpness / query.shape[1]) * distances, dim=1)


class LinearHead:
    """The paper's N-way layer, ``head.weight`` [N, d] and ``head.bias`` [N].

    A site with fewer than N classes uses the first rows; the others get no gradient.
    """

    balanced_batches = False

    def loss(self, params: Params, embeddings: Tensor, labels: Tensor, way: int) -> Tensor:
        return F.cross_entropy(self._logits(params, embeddings, way), labels)

    def log_probs(self, params: Params, support: Tensor, labels: Tensor, way: int, query: Tensor) -> Tensor:
        return F.log_softmax(self._logits(params, query, way), dim=1)

    @staticmethod
    def _logits(params: Params, embeddings: Tensor, way: int) -> Tensor:
        return F.linear(embeddings, params["head.weight"], params["head.bias"])[:, :way]


def prototypes_of(embeddings: Tensor, labels: Tensor, way: int) -> Tensor:
    """Return the mean embedding of each class, [way, d]."""
    sums, counts = class_sums(embeddings, labels, way)
    return sums / counts.clamp(min=1)[:, None]


def class_sums(embeddings: Tensor, labels: Tensor, way: int) -> tuple[Tensor, Tensor]:
    """Return the sum of embeddings [way, d] and the count [way] of each class."""
    members = memberships(labels, way).to(embeddings.dtype)
    return members.T @ embeddings, members.sum(0)


def memberships(labels: Tensor, way: int) -> Tensor:
    """Return which of the classes 0 to way - 1 each label [n] is, [n, way]: one_hot, which cannot be mapped over."""
    return labels[:, None] == torch.arange(way, device=labels.device)


def squared_distances(points: Tensor, centres: Tensor) -> Tensor:
    """Return squared Euclidean distances [n, m] between points [n, d] and centres [m, d]."""
    lengths = points.square().sum(1)[:, None] + centres.square().sum(1)
    return (lengths - 2 * points @ centres.T).clamp(min=0)
