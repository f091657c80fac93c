"""Judging an adaptation on the query set: accuracy, calibration, per class, before and after."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from common.learning.episode import Episode
from common.learning.learner import Learner
from common.learning.params import Params

CALIBRATION_BINS = 15
"""Equal-width bins of confidence for the expected calibration error (Guo et al. 2017, equation 5)."""


@dataclass(frozen=True)
class Tally:
    """Sums over judged inputs; tallies of several episodes add up with ``+``."""

    total: int = 0
    correct: int = 0
    nll: float = 0.0
    """Sum of the negative log-likelihood of the true class, in nats."""
    bins: tuple[tuple[int, float, int], ...] = ((0, 0.0, 0),) * CALIBRATION_BINS
    """For each bin of confidence: inputs, sum of confidence, correct ones."""
    confusion: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """(true class, predicted class) -> inputs."""

    @property
    def accuracy(self) -> float:
        return self.correct / self.total if self.total else float("nan")

    @property
    def mean_nll(self) -> float:
        return self.nll / self.total if self.total else float("nan")

    @property
    def ece(self) -> float:
        """Expected calibration error: mean gap between confidence and accuracy, weighted by bin."""
        if not self.total:
            return float("nan")
        return sum(abs(confidence - correct) for _, confidence, correct in self.bins) / self.total

    def per_class(self) -> dict[str, tuple[int, int]]:
        """Return (correct, total) of each true class."""
        found: dict[str, tuple[int, int]] = {}
        for (true, predicted), count in self.confusion.items():
            correct, total = found.get(true, (0, 0))
            found[true] = (correct + count * (true == predicted), total + count)
        return found

    def __add__(self, other: "Tally") -> "Tally":
        pairs = zip(self.bins, other.bins, strict=True)
        confusion = dict(self.confusion)
        for key, count in other.confusion.items():
            confusion[key] = confusion.get(key, 0) + count
        return Tally(
            self.total + other.total,
            self.correct + other.correct,
            self.nll + other.nll,
            tuple((a[0] + b[0], a[1] + b[1], a[2] + b[2]) for a, b in pairs),
            confusion,
        )


@dataclass(frozen=True)
class Judgement:
    """How well the query set is classified before and after adaptation, given the same support set."""

    before: Tally = Tally()
    after: Tally = Tally()

    def __add__(self, other: "Judgement") -> "Judgement":
        return Judgement(self.before + other.before, self.after + other.after)


def judge(learner: Learner, params: Params, adapted: Params, episode: Episode) -> Judgement:
    """Judge ``params`` and ``{**params, **adapted}`` on the query set, which adaptation must not have seen."""
    return Judgement(
        score(learner, params, episode),
        score(learner, {**params, **adapted}, episode),
    )


def score(learner: Learner, params: Params, episode: Episode) -> Tally:
    """Classify the query set of an episode given its support set."""
    log_probs = learner.log_probs(params, episode.support, episode.query.inputs)
    return tally(log_probs, episode.query.labels, episode.classes)


def tally(log_probs: Tensor, labels: Tensor, classes: tuple[str, ...]) -> Tally:
    """Count predictions [n, way] against labels [n]."""
    if not len(labels):
        return Tally()
    confidence, predicted = log_probs.exp().max(1)
    confidence = confidence.nan_to_num(0.0)  # of a model that diverged: it is sure of nothing, and never right
    right = (predicted == labels) & log_probs.isfinite().any(1)
    slot = (confidence * CALIBRATION_BINS).long().clamp(max=CALIBRATION_BINS - 1)
    rows = zip(slot.tolist(), confidence.tolist(), right.tolist(), strict=True)
    bins = [(0, 0.0, 0)] * CALIBRATION_BINS
    for where, sure, ok in rows:
        count, total, correct = bins[where]
        bins[where] = (count + 1, total + sure, correct + ok)
    confusion: dict[tuple[str, str], int] = {}
    for true, guess in zip(labels.tolist(), predicted.tolist(), strict=True):
        pair = (classes[true], classes[guess])
        confusion[pair] = confusion.get(pair, 0) + 1
    nll = -log_probs.gather(1, labels[:, None]).sum()
    return Tally(len(labels), int(right.sum()), float(nll), tuple(bins), confusion)


def summary(judgement: Judgement) -> dict[str, float]:
    """Return the figures of a judgement that a site may report (all scalars)."""
    if not judgement.after.total:
        return {}
    return {
        "accuracy-before": judgement.before.accuracy,
        "accuracy-after": judgement.after.accuracy,
        "nll-before": judgement.before.mean_nll,
        "nll-after": judgement.after.mean_nll,
        "ece-before": judgement.before.ece,
        "ece-after": judgement.after.ece,
        "num-query": float(judgement.after.total),
    }
