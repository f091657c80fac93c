"""Which columns of a table tell the classes of an episode apart, for people who look at its rows."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from simulations.judging.samples import Sample

MARKED = 3
"""Columns that are marked."""
LEAST = 0.2
"""Share of a column's variance that has to lie between the classes for that."""


def telling_columns(support: Mapping[str, Sequence[Sample]]) -> set[int]:
    """Return the places of up to three columns that differ most between the classes.

    It takes classes with two rows or more: of one row each, every column tells all apart.
    """
    rows = {name: [sample.values for sample in samples] for name, samples in support.items()}
    if len(rows) < 2 or min(len(own) for own in rows.values()) < 2:
        return set()
    width = min(len(values) for own in rows.values() for values in own)
    shares = {
        place: _between(_numbers([[values[place] for values in own] for own in rows.values()]))
        for place in range(width)
    }
    best = sorted(shares, key=lambda place: -shares[place])[:MARKED]
    return {place for place in best if shares[place] >= LEAST} if width > MARKED else set()


def _numbers(classes: Sequence[Sequence[str]]) -> list[list[list[float]]]:
    """Return each present value of a column as a vector: its number, or one-hot if they are not all numbers."""
    present = [[text for text in texts if text] for texts in classes]
    try:
        return [[[float(text)] for text in texts] for texts in present]
    except ValueError:
        values = sorted({text for texts in present for text in texts})
        return [[[float(text == value) for value in values] for text in texts] for texts in present]


def _between(classes: Sequence[Sequence[Sequence[float]]]) -> float:
    """Return which share of the variance lies between the classes (eta squared, summed over places)."""
    classes = [own for own in classes if own]
    everything = [vector for own in classes for vector in own]
    if not everything:
        return 0.0
    middle = _mean(everything)
    total = sum(_distance(vector, middle) for vector in everything)
    return sum(len(own) * _distance(_mean(own), middle) for own in classes) / total if total else 0.0


def _mean(vectors: Sequence[Sequence[float]]) -> list[float]:
    return [fmean(place) for place in zip(*vectors, strict=True)]


def _distance(one: Sequence[float], other: Sequence[float]) -> float:
    return sum((a - b) ** 2 for a, b in zip(one, other, strict=True))
