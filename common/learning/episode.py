"""N-way K-shot episodes, and the contract of what a site can give."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from common.errors import SiteDataError


class SiteData(Protocol):
    """What a site can give. Whether it lies in a folder or in a packed set is not visible here."""

    def classes(self) -> Sequence[str]:
        """Return the names of the classes, sorted, each with at least one input."""

    def count(self, name: str) -> int:
        """Return how many inputs the class has."""

    def inputs(self, name: str, rows: Sequence[int]) -> Tensor:
        """Return inputs of a class by position (0 to count - 1): float32 [len(rows), *shape].

        The shape is the settings' (``DataSettings.shape``): [C, H, W] in [0, 1], or [F] standardised.
        """


@dataclass(frozen=True)
class Examples:
    """Inputs [n, *shape] with labels [n] (int64, 0 to way - 1)."""

    inputs: Tensor
    labels: Tensor
    way: int

    def to(self, device: str | None = None, dtype: torch.dtype | None = None) -> "Examples":
        """Return the examples on a device, with inputs of a dtype; what is not given stays as it is."""
        return Examples(self.inputs.to(device=device, dtype=dtype), self.labels.to(device=device), self.way)

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Episode:
    """One support and one disjoint query draw over the same classes; label i is ``classes[i]``."""

    classes: tuple[str, ...]
    support: Examples
    query: Examples


def sample_episode(
    data: SiteData,
    way: int,
    shot: int,
    query: int,
    generator: torch.Generator,
    known: SiteData | None = None,
    *,
    always: str = "",
) -> Episode:
    """Draw an episode without replacement.

    The order of the classes, and so of the labels, is drawn anew for every episode. A site with
    fewer classes than ``way`` uses all of them; a class with fewer than ``shot + query`` inputs
    keeps its query and gives the rest, at least one, as support. The support set is the same
    whatever ``query`` is, as long as the class has enough inputs.

    Args:
        known: what the site trained on, if ``data`` is what it held back: the support of the classes that are in it
            comes from there and the query from ``data``, as when a site meets new inputs of classes it knows.
        always: a class that is in the episode whenever the site has it; the others are drawn as ever.

    Raises:
        SiteDataError: if the site has fewer than two classes.
    """
    names = list(data.classes())
    if len(names) < 2:
        raise SiteDataError(
            f"the site has {len(names)} class(es); an episode needs at least 2: add inputs of another class"
        )
    chosen = [names[i] for i in torch.randperm(len(names), generator=generator)[:way].tolist()]
    if always in names and always not in chosen:
        chosen[-1] = always
    trained = set(known.classes()) if known else set()
    support: list[Tensor] = []
    queries: list[Tensor] = []
    for name in chosen:
        count = data.count(name)
        order = torch.randperm(count, generator=generator).tolist()
        if known and name in trained:
            drawn = torch.randperm(known.count(name), generator=generator).tolist()[:shot]
            support.append(known.inputs(name, drawn))
            queries.append(data.inputs(name, order[:query]))
            continue
        given = min(shot, max(1, count - query))
        support.append(data.inputs(name, order[:given]))
        queries.append(data.inputs(name, order[given : given + query]))
    return Episode(tuple(chosen), examples_of(support), examples_of(queries))


def examples_of(inputs_by_class: Sequence[Tensor]) -> Examples:
    """Stack the inputs of each class, in label order, into one set of examples."""
    counts = torch.tensor([len(inputs) for inputs in inputs_by_class])
    labels = torch.repeat_interleave(torch.arange(len(counts)), counts)
    return Examples(torch.cat(list(inputs_by_class)), labels, len(counts))


def all_of(data: SiteData) -> Episode:
    """Return everything a site has as the support set of one episode with an empty query set."""
    names = tuple(data.classes())
    inputs = [data.inputs(name, range(data.count(name))) for name in names]
    return Episode(names, examples_of(inputs), examples_of([part[:0] for part in inputs]))
