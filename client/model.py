"""A site's own model: what adaptation to all of the site's classes ends with, and how it predicts."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from client.data.indexed import Standardisation
from common.checkpoint import Checkpoint, read_tensors
from common.errors import CheckpointError, SettingsError, SiteDataError
from common.learning.episode import Episode, Examples, SiteData, examples_of
from common.learning.heads import PrototypeHead, prototypes_of, squared_distances
from common.learning.judge import Judgement, judge
from common.learning.learner import Buffers
from common.learning.params import Params
from common.learning.reptile import adapt
from common.paths import write_atomically
from common.plan import plan_for
from common.seeds import seed_of
from common.settings import Settings, Value, flatten

FORMAT = "1"
LEVEL = 0.95
"""Part of the inputs of known classes that are meant not to be taken for unknown."""
SHRINKAGE = 10.0
"""Inputs that all classes together count for in the spread of one class."""


@dataclass(frozen=True)
class Prediction:
    """What a model says of one input."""

    name: str
    """The likeliest class."""
    confidence: float
    unknown: bool
    """Whether it is farther from every prototype than known inputs are; never with the linear head."""
    distance: float
    """Squared distance to the nearest prototype, in spreads of its class; NaN with the linear head."""


@dataclass(frozen=True)
class SiteModel:
    """Adapted params, the support set's normalisation statistics and, for the prototype head, a prototype a class.

    A prediction depends on these and the picture alone.
    """

    settings: Settings
    classes: tuple[str, ...]
    params: Params
    buffers: Buffers
    prototypes: Tensor
    """[len(classes), d]; [0, d] with the linear head."""
    standardisation: Standardisation | None = None
    """Of vectors and tables: the site's statistics, by which new ones are standardised too."""
    spread: Tensor | None = None
    """[len(classes)]: how far inputs of each class lie from its prototype, as mean squared distance / d."""
    threshold: float | None = None
    """Distance (``Prediction.distance``) above which an input is unknown; None if that cannot be told: with the linear
    head, or where no class has two inputs."""

    def log_probs(self, inputs: Tensor) -> Tensor:
        """Return log-probabilities [n, len(classes)] of inputs [n, *shape]."""
        return self._of_embeddings(self._embedded(inputs))

    def predict(self, inputs: Tensor) -> list[Prediction]:
        """Say what each of the inputs [n, *shape] shows."""
        embeddings = self._embedded(inputs)
        confidence, best = self._of_embeddings(embeddings).exp().max(1)
        far = torch.full((len(embeddings),), math.nan)
        if self.spread is not None:
            far = _nearest(squared_distances(embeddings, self.prototypes), self.spread, embeddings.shape[1])
        return [
            # What is not a number, of a model that diverged, is of no known class.
            Prediction(self.classes[label], sure, self.threshold is not None and not away <= self.threshold, away)
            for label, sure, away in zip(best.tolist(), confidence.tolist(), far.tolist(), strict=True)
        ]

    def _embedded(self, inputs: Tensor) -> Tensor:
        return plan_for(self.settings).learner.embed(self.params, self.buffers, inputs.to(self.prototypes.dtype))

    def _of_embeddings(self, embeddings: Tensor) -> Tensor:
        head = plan_for(self.settings).learner.head
        if isinstance(head, PrototypeHead):
            return head.by_prototypes(self.prototypes, embeddings)
        return head.log_probs(self.params, embeddings[:0], torch.empty(0), len(self.classes), embeddings)

    def write(self, path: Path) -> None:
        """Write the model, whole or not at all."""
        write_atomically(path, self.encoded(), 0o600)

    def encoded(self) -> bytes:
        """Return the model's file."""
        tensors = {f"params/{name}": value for name, value in self.params.items()}
        tensors |= {f"buffers/{name}": value for name, value in self.buffers.items()}
        tensors["prototypes"] = self.prototypes
        if self.standardisation is not None:
            tensors["standardisation/mean"] = torch.from_numpy(self.standardisation.mean)
            tensors["standardisation/deviation"] = torch.from_numpy(self.standardisation.deviation)
        if self.spread is not None:
            tensors["spread"] = self.spread
        described = {"classes": self.classes, "settings": flatten(self.settings), "threshold": self.threshold}
        contiguous = {name: value.contiguous() for name, value in tensors.items()}
        return save(contiguous, metadata={"site-model": FORMAT, "fedreptile": json.dumps(described)})


def read_model(path: Path) -> SiteModel:
    """Raises CheckpointError if the file is missing, damaged or not a site's model."""
    try:
        tensors, metadata = read_tensors(path)
        if metadata.get("site-model") != FORMAT:
            raise CheckpointError(f"{path} is not a site's model; make one with 'fedreptile-site adapt'")
        described = json.loads(metadata["fedreptile"])
        parts: dict[str, dict[str, Tensor]] = {"params": {}, "buffers": {}, "standardisation": {}}
        for key, value in tensors.items():
            part, _, name = key.partition("/")
            if name:
                parts[part][name] = value
        model = SiteModel(
            Settings.from_flat(described["settings"]),
            tuple(described["classes"]),
            parts["params"],
            parts["buffers"],
            tensors["prototypes"],
            _standardisation(parts["standardisation"]),
            tensors.get("spread"),
            described.get("threshold"),
        )
        _check(model)
        return model
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, SettingsError) as error:
        raise CheckpointError(f"{path} cannot be read as a site's model: {error}") from error


def _check(model: SiteModel) -> None:
    """Raises ValueError unless the parts fit the network of the settings and each other."""
    plan = plan_for(model.settings)
    if {name: tuple(value.shape) for name, value in model.params.items()} != dict(plan.params.entries):
        raise ValueError("its params are not those of its network")
    own = {name: buffer.shape for name, buffer in plan.learner.network.named_buffers()}
    if {name: value.shape for name, value in model.buffers.items()} != own:
        raise ValueError("its normalisation statistics are not those of its network")
    rows = len(model.classes) if isinstance(plan.learner.head, PrototypeHead) else 0
    if tuple(model.prototypes.shape) != (rows, plan.learner.embedding):
        raise ValueError("its prototypes do not fit its classes")
    if model.spread is not None and (model.spread.shape != (rows,) or not bool((model.spread > 0).all())):
        raise ValueError("its spreads do not fit its classes")
    if model.threshold is not None and (model.spread is None or not model.threshold > 0):
        raise ValueError("its threshold does not fit its spreads")
    data, found = model.settings.data, model.standardisation
    if (found is None) != (data.kind == "image") or (
        found and {found.mean.shape, found.deviation.shape} != {data.shape}
    ):
        raise ValueError("its standardisation does not fit its kind of data")


def _standardisation(tensors: Mapping[str, Tensor]) -> Standardisation | None:
    return Standardisation(tensors["mean"].numpy(), tensors["deviation"].numpy()) if tensors else None


def adapt_site(
    checkpoint: Checkpoint,
    train: SiteData,
    held: SiteData | None = None,
    *,
    others: bool = True,
    standardisation: Standardisation | None = None,
) -> tuple[SiteModel, Judgement]:
    """Adapt the published params to all classes of a site.

    Args:
        train: what the model is adapted on and its prototypes come from.
        held: samples of the same classes that the model is judged on, before and after; see ``client.data.held``.
        others: also recognise classes that the site does not have, by the class tables that other
            sites let out, if the checkpoint holds any.
        standardisation: what the site's vectors or rows were standardised with; goes into the model.

    Raises:
        SiteDataError: if the site has fewer than two classes.
        SettingsError: if the linear head has fewer rows than the site has classes.
    """
    changes: dict[str, Value] = {
        "model.normalisation": "frozen",
        "judge.transductive": False,
        "data.rotated-classes": False,
    }
    settings = checkpoint.settings.with_values(changes)
    plan, state = plan_for(settings), checkpoint.state
    episode = _episode(train, held, plan.params.torch_dtype)
    if settings.model.head == "linear" and len(episode.classes) > settings.episode.way:
        raise SettingsError(
            f"the checkpoint's linear head tells {settings.episode.way} classes apart and the site has "
            f"{len(episode.classes)}; use a checkpoint with the prototype head"
        )
    generator = torch.Generator().manual_seed(seed_of(settings.run.seed, "site model"))
    adapted = adapt(plan.learner, state.published, episode.support, settings.adaptation, generator, state.slots)
    params = {**state.published, **adapted.params}
    buffers = plan.learner.freeze(params, episode.support)
    embeddings = plan.learner.embed(params, buffers, episode.support.inputs)
    model = SiteModel(settings, episode.classes, params, buffers, embeddings[:0], standardisation)
    if isinstance(plan.learner.head, PrototypeHead):
        model = _with_prototypes(model, embeddings, episode.support, state.prototypes if others else {})
    return model, judge(plan.learner, state.published, adapted.params, episode)


def _episode(train: SiteData, held: SiteData | None, dtype: torch.dtype) -> Episode:
    """Return all that a site trains on as support, and what it held back as query, under the same labels.

    Raises:
        SiteDataError: if the site has fewer than two classes.
    """
    names = tuple(train.classes())
    if len(names) < 2:
        raise SiteDataError(f"the site has {len(names)} class(es); a model tells at least 2 apart: add another class")
    support = [train.inputs(name, range(train.count(name))) for name in names]
    back = set(held.classes()) if held else set[str]()
    query = [
        held.inputs(name, range(held.count(name))) if held and name in back else own[:0]
        for name, own in zip(names, support, strict=True)
    ]
    return Episode(names, examples_of(support).to(dtype=dtype), examples_of(query).to(dtype=dtype))


def _with_prototypes(
    model: SiteModel, embeddings: Tensor, support: Examples, table: Mapping[str, tuple[Tensor, int]]
) -> SiteModel:
    """Return the model with a prototype and a spread of each class, and the threshold that they are calibrated to.

    The classes of the table that the site does not have come after its own: their prototypes are means under the
    unadapted params, and their spread is that of the site's classes together.
    """
    own = prototypes_of(embeddings, support.labels, support.way)
    strangers: Sequence[str] = [name for name in table if name not in model.classes]
    rows = [(table[name][0] / table[name][1]).to(own.dtype) for name in strangers]
    prototypes = torch.cat([own, torch.stack(rows)]) if rows else own
    with_all = replace(model, classes=(*model.classes, *strangers), prototypes=prototypes)
    members = F.one_hot(support.labels, len(prototypes))
    counts = members.sum(0).to(own.dtype)
    judged = counts[support.labels] > 1
    if not judged.any():
        return with_all
    # Without an input x the mean of its class's n lies farther from x: x - p' = (x - p) n / (n - 1).
    factors = (counts / (counts - 1).clamp(min=1)) ** 2
    distances = squared_distances(embeddings, prototypes)
    distances = torch.where(members > 0, distances * factors, distances)[judged]
    size = embeddings.shape[1]
    typical = (distances * members[judged]).sum(1) / size
    sums = members[judged].to(own.dtype).T @ typical
    several = members[judged].sum(0).to(own.dtype)
    spread = ((sums + SHRINKAGE * typical.mean()) / (several + SHRINKAGE)).clamp(min=torch.finfo(own.dtype).tiny)
    if not spread.isfinite().all():  # of a model that diverged nothing can be told
        return with_all
    found = _nearest(distances, spread, size).sort().values
    place = min(len(found), math.ceil((len(found) + 1) * LEVEL)) - 1
    return replace(with_all, spread=spread, threshold=max(float(found[place]), torch.finfo(own.dtype).tiny))


def _nearest(distances: Tensor, spread: Tensor, size: int) -> Tensor:
    """Return how far each of n inputs is from the nearest of m prototypes, of squared distances [n, m]."""
    return (distances / size / spread).min(1).values
