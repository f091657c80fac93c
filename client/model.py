"""A site's own model: what adaptation to all of the site's classes ends with, and how it predicts."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from client.data.indexed import Standardisation
from common.checkpoint import Checkpoint, read_tensors
from common.errors import CheckpointError, SettingsError, SiteDataError
from common.learning.episode import Episode, Examples, SiteData, examples_of
from common.learning.heads import PrototypeHead, prototypes_of
from common.learning.judge import Judgement, judge
from common.learning.learner import Buffers, Learner
from common.learning.params import Params
from common.learning.reptile import adapt
from common.paths import write_atomically
from common.plan import plan_for
from common.seeds import seed_of
from common.settings import Settings, Value, flatten

FORMAT = "1"


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

    def log_probs(self, inputs: Tensor) -> Tensor:
        """Return log-probabilities [n, len(classes)] of inputs [n, *shape]."""
        learner = plan_for(self.settings).learner
        embeddings = learner.embed(self.params, self.buffers, inputs.to(self.prototypes.dtype))
        if isinstance(learner.head, PrototypeHead):
            return learner.head.by_prototypes(self.prototypes, embeddings)
        nothing = embeddings[:0]
        return learner.head.log_probs(self.params, nothing, torch.empty(0), len(self.classes), embeddings)

    def write(self, path: Path) -> None:
        """Write the model, whole or not at all."""
        tensors = {f"params/{name}": value for name, value in self.params.items()}
        tensors |= {f"buffers/{name}": value for name, value in self.buffers.items()}
        tensors["prototypes"] = self.prototypes
        if self.standardisation is not None:
            tensors["standardisation/mean"] = torch.from_numpy(self.standardisation.mean)
            tensors["standardisation/deviation"] = torch.from_numpy(self.standardisation.deviation)
        described = {"classes": self.classes, "settings": flatten(self.settings)}
        contiguous = {name: value.contiguous() for name, value in tensors.items()}
        write_atomically(
            path, save(contiguous, metadata={"site-model": FORMAT, "fedreptile": json.dumps(described)}), 0o600
        )


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
    data, found = model.settings.data, model.standardisation
    if (found is None) != (data.kind == "image") or (
        found and {found.mean.shape, found.deviation.shape} != {data.shape}
    ):
        raise ValueError("its standardisation does not fit its kind of data")


def _standardisation(tensors: Mapping[str, Tensor]) -> Standardisation | None:
    return Standardisation(tensors["mean"].numpy(), tensors["deviation"].numpy()) if tensors else None


def adapt_site(
    checkpoint: Checkpoint,
    data: SiteData,
    hold_back: float,
    *,
    others: bool = True,
    standardisation: Standardisation | None = None,
) -> tuple[SiteModel, Judgement]:
    """Adapt the published params to all classes of a site.

    Args:
        hold_back: the part of each class's inputs (0 to below 1) that adaptation does not see and
            the model is judged on, before and after; at least one stays on either side.
        others: also recognise classes that the site does not have, by the class tables that other
            sites let out, if the checkpoint holds any.
        standardisation: what the site's vectors or rows were standardised with; goes into the model.

    Raises:
        SettingsError: if the linear head has fewer rows than the site has classes.
    """
    changes: dict[str, Value] = {
        "model.normalisation": "frozen",
        "judge.transductive": False,
        "data.rotated-classes": False,
    }
    settings = checkpoint.settings.with_values(changes)
    plan, state = plan_for(settings), checkpoint.state
    episode = split(data, hold_back, settings.run.seed)
    dtype = plan.params.torch_dtype
    episode = replace(episode, support=episode.support.to(dtype=dtype), query=episode.query.to(dtype=dtype))
    if settings.model.head == "linear" and len(episode.classes) > settings.episode.way:
        raise SettingsError(
            f"the checkpoint's linear head tells {settings.episode.way} classes apart and the site has "
            f"{len(episode.classes)}; use a checkpoint with the prototype head"
        )
    generator = torch.Generator().manual_seed(seed_of(settings.run.seed, "site model"))
    adapted = adapt(plan.learner, state.published, episode.support, settings.adaptation, generator, state.slots)
    params = {**state.published, **adapted.params}
    buffers = plan.learner.freeze(params, episode.support)
    classes, prototypes = episode.classes, _prototypes(plan.learner, params, buffers, episode.support)
    if others and isinstance(plan.learner.head, PrototypeHead):
        classes, prototypes = _with_others(classes, prototypes, state.prototypes)
    model = SiteModel(settings, classes, params, buffers, prototypes, standardisation)
    return model, judge(plan.learner, state.published, adapted.params, episode)


def split(data: SiteData, hold_back: float, seed: int) -> Episode:
    """Split every class of a site into support and query.

    Raises:
        SiteDataError: if the site has fewer than two classes.
    """
    names = tuple(data.classes())
    if len(names) < 2:
        raise SiteDataError(f"the site has {len(names)} class(es); a model tells at least 2 apart: add another class")
    generator = torch.Generator().manual_seed(seed_of(seed, "hold back"))
    support: list[Tensor] = []
    query: list[Tensor] = []
    for name in names:
        count = data.count(name)
        order = torch.randperm(count, generator=generator).tolist()
        held = 0 if not hold_back or count == 1 else min(count - 1, max(1, round(hold_back * count)))
        query.append(data.inputs(name, order[:held]))
        support.append(data.inputs(name, order[held:]))
    return Episode(names, examples_of(support), examples_of(query))


def _prototypes(learner: Learner, params: Params, buffers: Buffers, support: Examples) -> Tensor:
    embeddings = learner.embed(params, buffers, support.inputs)
    if not isinstance(learner.head, PrototypeHead):
        return embeddings[:0]
    return prototypes_of(embeddings, support.labels, support.way)


def _with_others(
    classes: tuple[str, ...], prototypes: Tensor, table: Mapping[str, tuple[Tensor, int]]
) -> tuple[tuple[str, ...], Tensor]:
    """Add the table's classes that the site does not have; their prototypes are means under the unadapted params."""
    strangers: Sequence[str] = [name for name in table if name not in classes]
    rows = [(table[name][0] / table[name][1]).to(prototypes.dtype) for name in strangers]
    return (*classes, *strangers), torch.cat([prototypes, torch.stack(rows)]) if rows else prototypes
