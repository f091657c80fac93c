"""Judging a checkpoint on sites that took no part: before and after adaptation, and from scratch."""

import base64
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from client.data.sites import open_site_data, site_names
from common.checkpoint import Checkpoint, write_atomically
from common.errors import SettingsError
from common.learning.episode import Episode, SiteData, sample_episode
from common.learning.judge import Tally, score
from common.learning.params import Params
from common.learning.reptile import adapt
from common.plan import Plan, plan_for
from common.seeds import seed_of
from common.settings import Value
from common.threads import threads

PICTURED_EPISODES = 3
"""Episodes whose pictures go into the result, for the report."""
PICTURED_QUERIES = 2
"""Query pictures of each class in them."""


@dataclass(frozen=True)
class Protocol:
    """How to judge. With ``pooled``, an episode's classes come from all sites together (the literature's way)."""

    way: int = 5
    shot: int = 1
    query: int = 5
    episodes: int = 1000
    pooled: bool = False

    @property
    def name(self) -> str:
        return f"{self.way}-way {self.shot}-shot{' pooled' if self.pooled else ''}"


@dataclass(frozen=True)
class Score:
    """Accuracy over episodes with the half-width of its 95 % interval; NLL in nats and ECE over all queries."""

    mean: float
    ci95: float
    nll: float
    ece: float


@dataclass(frozen=True)
class SiteRow:
    """Mean accuracies of one site."""

    episodes: int
    before: float
    after: float
    scratch: float


@dataclass(frozen=True)
class Picture:
    """A query picture with what was said of it before and after adaptation."""

    png: str
    """Base64."""
    true: str
    before: str
    after: str
    confidence: float


@dataclass(frozen=True)
class PicturedEpisode:
    site: str
    support: Mapping[str, Sequence[str]]
    """Class name -> support pictures, PNG in base64."""
    query: Sequence[Picture]


@dataclass(frozen=True)
class Evaluation:
    """The result of judging: what ``evaluate`` prints and the report shows."""

    data: str
    protocol: Protocol
    round: int
    before: Score
    after: Score
    scratch: Score
    worst_site: str
    share_hurt: float
    """Part of the sites whose mean accuracy is lower after adaptation than before."""
    sites: Mapping[str, SiteRow]
    confusion: Sequence[tuple[str, str, int]]
    """(true class, predicted class, inputs) after adaptation, most frequent mistakes first, hits last.
    Classes are named site/class."""
    pictures: Sequence[PicturedEpisode]
    changes: Mapping[str, str] = field(default_factory=dict)
    """Settings that differ from the run's."""

    def write(self, run: Path) -> Path:
        """Write the result into a run's folder, for its report."""
        path = run / f"judged-{Path(self.data).name}-{self.protocol.name.replace(' ', '-')}.json"
        write_atomically(path, json.dumps(asdict(self)).encode())
        return path


@dataclass(frozen=True)
class EpisodeResult:
    site: str
    before: Tally
    after: Tally
    scratch: Tally


class PooledData:
    """The classes of several sites as one site's. Implements ``SiteData``."""

    def __init__(self, sites: Mapping[str, SiteData]) -> None:
        self._sources = {f"{site}/{name}": (data, name) for site, data in sites.items() for name in data.classes()}

    def classes(self) -> Sequence[str]:
        return sorted(self._sources)

    def count(self, name: str) -> int:
        data, own = self._sources[name]
        return data.count(own)

    def inputs(self, name: str, rows: Sequence[int]) -> Tensor:
        data, own = self._sources[name]
        return data.inputs(own, rows)


def evaluate(
    checkpoint: Checkpoint,
    data: Path,
    protocol: Protocol,
    changes: Mapping[str, Value] | None = None,
    done: Callable[[int], None] = lambda count: None,
) -> Evaluation:
    """Judge the published params of a checkpoint on the sites at ``data``, each in turn.

    Every site gives its share of the episodes. ``before`` uses the support set without inner steps
    (its prototypes and normalisation statistics), ``after`` adapts to it first, ``scratch`` adapts
    the run's random initial params alike.

    Args:
        data: absolute path of sites in any layout that the project reads.
        changes: settings that differ from the run's, such as ``adapt.steps``.
        done: called with the number of episodes done, after each.

    Raises:
        SettingsError: if the linear head is too small for the protocol's way.
        SiteDataError: if the sites cannot be read.
    """
    settings = checkpoint.settings.with_values({"data.rotated-classes": False, **(changes or {})})
    if settings.model.head == "linear" and protocol.way > settings.episode.way:
        raise SettingsError(
            f"the linear head was trained with {settings.episode.way} classes and cannot tell {protocol.way} apart; "
            f"use --way {settings.episode.way} or a checkpoint with the prototype head"
        )
    plan = plan_for(settings)
    sites: dict[str, SiteData] = {name: open_site_data(data, name, settings.data) for name in site_names(data)}
    if protocol.pooled:
        sites = {"all sites": PooledData(sites)}
    results: list[EpisodeResult] = []
    pictures: list[PicturedEpisode] = []
    with threads(1):
        for number, (site, episode, generator) in enumerate(_episodes(sites, protocol, settings.run.seed)):
            meta = {**checkpoint.state.published, **adapt_one(plan, checkpoint, episode, generator)}
            scratch = adapt(
                plan.learner, plan.initial, episode.support, settings.adaptation, generator, plan.initial_slots
            )
            tallies = [
                score(plan.learner, params, episode)
                for params in (checkpoint.state.published, meta, {**plan.initial, **scratch.params})
            ]
            results.append(EpisodeResult(site, *tallies))
            if number < PICTURED_EPISODES:
                pictures.append(_picture(plan, checkpoint.state.published, meta, site, episode))
            done(number + 1)
    result = _summed_up(str(data), protocol, checkpoint.state.round, results, pictures)
    return replace(result, changes={key: str(value) for key, value in (changes or {}).items()})


def adapt_one(plan: Plan, checkpoint: Checkpoint, episode: Episode, generator: torch.Generator) -> Params:
    """Adapt the published params to the support set of an episode."""
    state, inner = checkpoint.state, plan.settings.adaptation
    return adapt(plan.learner, state.published, episode.support, inner, generator, state.slots).params


def _episodes(
    sites: Mapping[str, SiteData], protocol: Protocol, seed: int
) -> Iterator[tuple[str, Episode, torch.Generator]]:
    names = sorted(sites)
    for number in range(protocol.episodes):
        site = names[number % len(names)]
        generator = torch.Generator().manual_seed(seed_of(seed, "evaluate", site, number))
        yield site, sample_episode(sites[site], protocol.way, protocol.shot, protocol.query, generator), generator


def _summed_up(
    data: str, protocol: Protocol, rounds: int, results: Sequence[EpisodeResult], pictures: Sequence[PicturedEpisode]
) -> Evaluation:
    sites: dict[str, SiteRow] = {}
    for name in sorted({result.site for result in results}):
        own = [result for result in results if result.site == name]
        columns = [fmean(getattr(result, when).accuracy for result in own) for when in ("before", "after", "scratch")]
        sites[name] = SiteRow(len(own), *columns)
    confusion: dict[tuple[str, str], int] = {}
    for result in results:
        prefix = "" if protocol.pooled else f"{result.site}/"
        for (true, predicted), count in result.after.confusion.items():
            pair = (prefix + true, prefix + predicted)
            confusion[pair] = confusion.get(pair, 0) + count
    order = sorted(confusion.items(), key=lambda item: (item[0][0] == item[0][1], -item[1], item[0]))
    return Evaluation(
        data,
        protocol,
        rounds,
        _score([result.before for result in results]),
        _score([result.after for result in results]),
        _score([result.scratch for result in results]),
        min(sites, key=lambda name: sites[name].after),
        fmean(row.after < row.before for row in sites.values()),
        sites,
        [(true, predicted, count) for (true, predicted), count in order],
        pictures,
    )


def _score(tallies: Sequence[Tally]) -> Score:
    accuracies, total = [tally.accuracy for tally in tallies], sum(tallies, Tally())
    spread = stdev(accuracies) if len(accuracies) > 1 else math.nan
    return Score(fmean(accuracies), 1.96 * spread / math.sqrt(len(accuracies)), total.mean_nll, total.ece)


def _picture(plan: Plan, before: Params, after: Params, site: str, episode: Episode) -> PicturedEpisode:
    support: dict[str, list[str]] = {name: [] for name in episode.classes}
    for image, label in zip(episode.support.inputs, episode.support.labels.tolist(), strict=True):
        support[episode.classes[label]].append(_png(image))
    first = plan.learner.log_probs(before, episode.support, episode.query.inputs).argmax(1).tolist()
    then = plan.learner.log_probs(after, episode.support, episode.query.inputs).exp()
    confidence, last = then.max(1)
    queries: list[Picture] = []
    shown: dict[int, int] = {}
    for row, label in enumerate(episode.query.labels.tolist()):
        shown[label] = shown.get(label, 0) + 1
        if shown[label] <= PICTURED_QUERIES:
            true, before_name, after_name = (episode.classes[i] for i in (label, first[row], int(last[row])))
            png = _png(episode.query.inputs[row])
            queries.append(Picture(png, true, before_name, after_name, float(confidence[row])))
    return PicturedEpisode(site, support, queries)


def _png(image: Tensor) -> str:
    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    picture = Image.fromarray(pixels[0] if len(pixels) != 3 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()
