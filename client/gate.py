"""Two models side by side on what a site holds back: each is adapted as it would be on adoption, and judged.

Only figures come out. Every number of the new class is of inputs that the adapted model has not seen; the params
themselves may have learned from them in the campaign's rounds, as they will have at every site that has the class.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from client.data.held import Part
from client.model import SiteModel, adapt_site
from common.checkpoint import Checkpoint
from common.learning.episode import SiteData
from common.learning.judge import Tally, tally
from common.messages import GateReport

MOST_FOLDS = 32
"""Inputs of the new class that are left out once each; of more, as many spread evenly over them."""
BATCH = 256


@dataclass(frozen=True)
class Sides:
    """The two models of a gate, before adaptation."""

    champion: Checkpoint
    challenger: Checkpoint
    exact: Checkpoint | None = None
    """The challenger before its params were rounded; None: they were not."""

    def items(self) -> Sequence[tuple[str, Checkpoint]]:
        return (("champion", self.champion), ("challenger", self.challenger))


def judge_models(
    sides: Sides, train: SiteData, held: SiteData, new_class: str, own: Tensor | None = None
) -> GateReport:
    """Judge two models for a site.

    Args:
        train: what the site adapts with.
        held: what it judges on.
        own: embeddings of the site's inputs of the new class that are in the sum of the challenger's class table, in
            the order of ``train`` [n, d]; None: none are.
    """
    models = {name: adapt_site(side, train)[0] for name, side in sides.items()}
    old = {name: _judged(model, held, new_class, new=False) for name, model in models.items()}
    new = {name: _judged(model, held, new_class, new=True) for name, model in models.items()}
    scalars = {"num-held-back": float(old["champion"].total)}
    if old["champion"].total:
        for name, found in old.items():
            figures = {"accuracy": found.accuracy, "nll": found.mean_nll, "ece": found.ece}
            # A model that diverged has figures that are no numbers; its accuracy says enough.
            scalars |= {f"{figure}-{name}": value for figure, value in figures.items() if np.isfinite(value)}
        if sides.exact is not None:
            exact = _judged(adapt_site(sides.exact, train)[0], held, new_class, new=False)
            scalars["accuracy-exact"] = exact.accuracy
    hidden = _Hidden.of(sides, train, held, new_class)
    by_table = (0, 0)
    if hidden is not None:
        scalars |= hidden.told_unknown()
        by_table = hidden.by_table(own)
    tried, recognised = _folds(sides.challenger, train, new_class)
    right, total = new["challenger"].per_class().get(new_class, (0, 0))
    return GateReport(scalars, _per_class(old, new), (tried + total, recognised + right), by_table)


def _judged(model: SiteModel, held: SiteData, new_class: str, *, new: bool) -> Tally:
    """Count the model's predictions on what is held back: of the new class, or of all others."""
    found = Tally()
    for name in held.classes():
        if (name == new_class) == new:
            for rows in _batches(held.count(name)):
                log_probs = model.log_probs(held.inputs(name, rows))
                labels = torch.full((len(rows),), model.classes.index(name))
                found += tally(log_probs, labels, model.classes)
    return found


def _per_class(*tallies: Mapping[str, Tally]) -> dict[str, tuple[int, int, int]]:
    rows: dict[str, tuple[int, int, int]] = {}
    for found in tallies:
        champion, challenger = found["champion"].per_class(), found["challenger"].per_class()
        rows |= {name: (total, right, challenger[name][0]) for name, (right, total) in champion.items()}
    return rows


def _folds(challenger: Checkpoint, train: SiteData, new_class: str) -> tuple[int, int]:
    """Leave each input of the new class out once, adapt without it, and see whether it is recognised."""
    count = train.count(new_class) if new_class in train.classes() else 0
    if count < 2:
        return 0, 0
    left_out, right = _spread(count), 0
    for row in left_out:
        rest = Part(train, {**_all_rows(train), new_class: [other for other in range(count) if other != row]})
        model, _ = adapt_site(challenger, rest)
        right += model.predict(train.inputs(new_class, [row]))[0].name == new_class
    return len(left_out), right


@dataclass(frozen=True)
class _Hidden:
    """The two models adapted as by a site that has never seen the new class, and the inputs of it that this one has."""

    models: Mapping[str, SiteModel]
    unaware: Mapping[str, SiteModel]
    """The same without the new class in their tables too."""
    train: SiteData
    held: SiteData
    new_class: str
    count: int
    """Inputs of the new class in the challenger's table."""

    @classmethod
    def of(cls, sides: Sides, train: SiteData, held: SiteData, new_class: str) -> "_Hidden | None":
        """Return None if the site does not have the class, too few others, or a head without prototypes."""
        rest = Part(train, {name: rows for name, rows in _all_rows(train).items() if name != new_class})
        having = any(new_class in part.classes() for part in (train, held))
        if sides.challenger.settings.model.head != "prototype" or not having or len(rest.classes()) < 2:
            return None
        models = {name: adapt_site(side, rest)[0] for name, side in sides.items()}
        unaware = {name: _without(model, new_class) for name, model in models.items()}
        count = sides.challenger.state.prototypes.get(new_class, (None, 0))[1]
        return cls(models, unaware, train, held, new_class, count)

    def told_unknown(self) -> dict[str, float]:
        """Say how well distance tells the new class from held-back inputs of known ones, nobody knowing it."""
        known = [name for name in self.held.classes() if name != self.new_class]
        having = [part for part in (self.train, self.held) if self.new_class in part.classes()]
        if not known:
            return {}
        found = {"num-unknown": float(sum(part.count(self.new_class) for part in having))}
        for name, model in self.unaware.items():
            strange = np.concatenate([_distances(model, part, self.new_class) for part in having])
            area = area_under_curve(strange, np.concatenate([_distances(model, self.held, one) for one in known]))
            if np.isfinite(area):
                found[f"unknown-{name}"] = area
        return found

    def by_table(self, own: Tensor | None) -> tuple[int, int]:
        """Recognise the new class by the challenger's table alone, as sites do that never saw it; an input that is in
        the table's sum is taken out of it first."""
        model, new_class = self.models["challenger"], self.new_class
        if new_class not in model.classes:
            return 0, 0
        tried = right = 0
        if new_class in self.held.classes():
            tried = self.held.count(new_class)
            right = sum(
                one.name == new_class
                for rows in _batches(tried)
                for one in model.predict(self.held.inputs(new_class, rows))
            )
        count = self.train.count(new_class) if new_class in self.train.classes() else 0
        for row in _spread(count):
            fair = model if own is None else self._table_without(own[row])
            if fair is not None:
                tried += 1
                right += fair.predict(self.train.inputs(new_class, [row]))[0].name == new_class
        return tried, right

    def _table_without(self, embedding: Tensor) -> SiteModel | None:
        """Return the challenger with one input taken out of its table; None if nothing were left."""
        model, place = self.models["challenger"], self.models["challenger"].classes.index(self.new_class)
        if self.count < 2:
            return None
        prototypes = model.prototypes.clone()
        prototypes[place] = (prototypes[place] * self.count - embedding.to(prototypes)) / (self.count - 1)
        return replace(model, prototypes=prototypes)


def area_under_curve(positive: np.ndarray, negative: np.ndarray) -> float:
    """Return how often a positive lies above a negative one, ties half: the area under the ROC curve."""
    if not (np.isfinite(positive).all() and np.isfinite(negative).all()):
        return float("nan")
    order = np.sort(negative)
    below, upto = np.searchsorted(order, positive, "left"), np.searchsorted(order, positive, "right")
    return float((below + upto).sum() / (2 * len(positive) * len(negative)))


def _distances(model: SiteModel, data: SiteData, name: str) -> np.ndarray:
    found = [one.distance for rows in _batches(data.count(name)) for one in model.predict(data.inputs(name, rows))]
    return np.array(found, dtype=np.float64)


def _without(model: SiteModel, name: str) -> SiteModel:
    """Return a model that does not know a class."""
    if name not in model.classes:
        return model
    keep = [place for place, one in enumerate(model.classes) if one != name]
    spread = None if model.spread is None else model.spread[keep]
    classes = tuple(model.classes[place] for place in keep)
    return replace(model, classes=classes, prototypes=model.prototypes[keep], spread=spread)


def _spread(count: int) -> list[int]:
    """Return so many rows, or ``MOST_FOLDS`` of more, evenly over them."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(count, MOST_FOLDS))})


def _all_rows(data: SiteData) -> dict[str, Sequence[int]]:
    return {name: range(data.count(name)) for name in data.classes()}


def _batches(count: int) -> list[range]:
    return [range(start, min(start + BATCH, count)) for start in range(0, count, BATCH)]
