"""Judging a checkpoint on sites that took no part: before and after adaptation, and from scratch."""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean, stdev

import torch
from torch import Tensor

from client.data.indexed import IndexedData, positions
from client.data.sites import open_site_data, site_names
from common.checkpoint import Checkpoint
from common.errors import SettingsError, SiteDataError
from common.learning.episode import Episode, Examples, SiteData, sample_episode
from common.learning.judge import Tally, score
from common.learning.params import Params
from common.learning.threads import threads
from common.paths import write_atomically
from common.plan import Plan, plan_for
from common.seeds import seed_of
from common.settings import DataSettings, Value
from simulations.batched.many import adapt_fast
from simulations.judging.samples import Sample, column_names, samples_of

SHOWN_EPISODES = 3
"""Episodes whose inputs go into the result, for the report to show."""
SHOWN_QUERIES = 2
"""Queries of each class in them."""
NO_CHANGES: Mapping[str, Value] = {}

Alone = Callable[[str, Plan, Examples, torch.Generator], Params]
"""From a site's name and a support set to the params that the site reaches without a federation."""


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


_PROTOCOL = re.compile(r"(\d+)-way (\d+)-shot( pooled)?")


def parse_protocol(text: str, query: int, episodes: int) -> Protocol:
    """Return the protocol of a name such as '5-way 1-shot pooled'. Raises SettingsError for another form."""
    match = _PROTOCOL.fullmatch(text)
    if not match or int(match[1]) < 2 or int(match[2]) < 1:
        raise SettingsError(
            f"protocol {text!r} is not like '5-way 1-shot' or '5-way 1-shot pooled', with 2 ways and 1 shot or more"
        )
    return Protocol(int(match[1]), int(match[2]), query, episodes, match[3] is not None)


@dataclass(frozen=True)
class Score:
    """Accuracy over episodes with the half-width of its 95 % interval; NLL in nats and ECE over all queries."""

    mean: float
    ci95: float
    nll: float
    ece: float
    bins: Sequence[tuple[int, float, int]] = ()
    """For each of equally wide bins of confidence: queries, sum of their confidence, right ones."""


@dataclass(frozen=True)
class SiteRow:
    """Mean accuracies of one site."""

    episodes: int
    before: float
    after: float
    scratch: float
    alone: float | None = None
    """Of the site without a federation; None if that was not judged."""
    trained: bool = False
    """Whether the site took part in training, and is judged on inputs that it held back from it."""


@dataclass(frozen=True)
class Answer:
    """A query with what was said of it before and after adaptation."""

    sample: Sample
    true: str
    before: str
    after: str
    confidence: float


@dataclass(frozen=True)
class ShownEpisode:
    """An episode of one site, to be looked at."""

    site: str
    support: Mapping[str, Sequence[Sample]]
    """Class name -> support inputs."""
    query: Sequence[Answer]


@dataclass(frozen=True)
class Evaluation:
    """The result of judging: what ``evaluate`` prints and the report shows."""

    data: str
    """What it was judged on: a name, not a path."""
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
    shown: Sequence[ShownEpisode]
    columns: Sequence[str] = ()
    """Names of the values of shown rows of tables."""
    judged_sites: Sequence[str] = ()
    """Names of the sites, also where their classes were mixed."""
    alone: Score | None = None
    """Of each site without a federation."""
    changes: Mapping[str, str] = field(default_factory=dict)
    """Settings that differ from the run's."""

    def write(self, run: Path) -> Path:
        """Write the result into a run's folder, for its report."""
        changed = "".join(f"-{key}={value}" for key, value in sorted(self.changes.items())).replace("/", "_")
        path = run / f"judged-{self.data}-{self.protocol.name.replace(' ', '-')}{changed}.json"
        write_atomically(path, json.dumps(asdict(self)).encode())
        return path


@dataclass(frozen=True)
class EpisodeResult:
    """Tallies of one episode by the name of what was judged: before, after, scratch and, if wanted, alone."""

    site: str
    tallies: Mapping[str, Tally]


@dataclass(frozen=True)
class JudgedSites:
    """The sites to judge, and what those that took part in training had then.

    Args:
        judged: what training never saw: all of a new site, or what a site held back.
        known: training data of the sites that took part; supports are drawn from there.
    """

    judged: Mapping[str, SiteData]
    known: Mapping[str, SiteData] = field(default_factory=dict)


def open_judged(data: Path, settings: DataSettings, train: Path | None = None) -> JudgedSites:
    """Open the sites to judge at ``data``; those that are at ``train`` too held these inputs back from training."""
    own = replace(settings, rotated_classes=False)
    judged = {name: open_site_data(data, name, own) for name in site_names(data)}
    both = sorted(judged.keys() & site_names(train)) if train else []
    known = {name: open_site_data(train, name, own) for name in both} if train else {}
    return JudgedSites({name: _judgeable(name, data, known.get(name)) for name, data in judged.items()}, known)


def _judgeable(site: str, data: SiteData, known: SiteData | None) -> SiteData:
    """Leave out classes with one input only, if that would have to be both example and query."""
    trained = set(known.classes()) if known else set()
    usable = [name for name in data.classes() if name in trained or data.count(name) > 1]
    if len(usable) < 2:
        raise SiteDataError(
            f"site {site!r} has {len(usable)} class(es) with two inputs or more, and judging needs two such classes: "
            "one input is the example, another the query; add inputs, or leave the site out"
        )
    return data.only(usable) if isinstance(data, IndexedData) else data


class PooledData:
    """Several sites as one; a class that is at several sites is one class. Implements ``SiteData``."""

    def __init__(self, sites: Mapping[str, SiteData]) -> None:
        names = sorted({name for data in sites.values() for name in data.classes()})
        self._sources = {name: [data for data in sites.values() if name in data.classes()] for name in names}

    def classes(self) -> Sequence[str]:
        return list(self._sources)

    def count(self, name: str) -> int:
        return sum(data.count(name) for data in self._sources[name])

    def inputs(self, name: str, rows: Sequence[int]) -> Tensor:
        where = [(data, row) for data in self._sources[name] for row in range(data.count(name))]
        found = [where[row] for row in positions(rows, len(where))]
        if len(self._sources[name]) == 1 or not found:
            return self._sources[name][0].inputs(name, rows)
        return torch.cat([data.inputs(name, [row]) for data, row in found])


def evaluate(
    checkpoint: Checkpoint,
    sites: JudgedSites,
    name: str,
    protocol: Protocol,
    alone: Alone | None = None,
    changes: Mapping[str, Value] = NO_CHANGES,
    done: Callable[[int], None] = lambda count: None,
) -> Evaluation:
    """Judge the published params of a checkpoint at each site in turn.

    Every site gives its share of the episodes. ``before`` uses the support set without inner steps
    (its prototypes and normalisation statistics), ``after`` adapts to it first, ``scratch`` adapts
    the run's random initial params alike, ``alone`` is what the site reaches without a federation.

    Args:
        name: what the sites are called in results.
        alone: how sites learn alone; None leaves that out.
        changes: settings that differ from the run's, such as ``adapt.steps``.
        done: called with the number of episodes done, after each.

    Raises:
        SettingsError: if the linear head is too small for the protocol's way.
        SiteDataError: if the sites cannot be read.
    """
    settings = checkpoint.settings.with_values({"data.rotated-classes": False, **changes})
    if settings.model.head == "linear" and protocol.way > settings.episode.way:
        raise SettingsError(
            f"the linear head was trained with {settings.episode.way} classes and cannot tell {protocol.way} apart; "
            f"judge by a protocol of {settings.episode.way}-way, or use the prototype head"
        )
    plan, published, names = plan_for(settings), checkpoint.state.published, sorted(sites.judged)
    if protocol.pooled:
        known = {"all sites": PooledData(sites.known)} if sites.known else {}
        sites = JudgedSites({"all sites": PooledData(sites.judged)}, known)
    results: list[EpisodeResult] = []
    shown: list[ShownEpisode] = []
    with threads(1):
        for number, (site, episode, generator) in enumerate(_episodes(sites, protocol, settings.run.seed)):
            adapted = {**published, **adapt_one(plan, checkpoint, episode, generator)}
            scratch = adapt_fast(
                plan.learner, plan.initial, episode.support, settings.adaptation, generator, plan.initial_slots
            )
            judged = {"before": published, "after": adapted, "scratch": {**plan.initial, **scratch.params}}
            if alone:
                judged["alone"] = alone(site, plan, episode.support, generator)
            tallies = {key: score(plan.learner, params, episode) for key, params in judged.items()}
            results.append(EpisodeResult(site, tallies))
            if number < SHOWN_EPISODES:
                samples = samples_of(sites.judged[site], settings.data)
                shown.append(_show(plan, published, adapted, site, episode, samples))
            done(number + 1)
    result = _summed_up(name, protocol, checkpoint.state.round, results, sites, shown)
    columns = column_names(settings.data)
    return replace(
        result, judged_sites=names, columns=columns, changes={key: str(value) for key, value in changes.items()}
    )


def adapt_one(plan: Plan, checkpoint: Checkpoint, episode: Episode, generator: torch.Generator) -> Params:
    """Adapt the published params to the support set of an episode."""
    state, inner = checkpoint.state, plan.settings.adaptation
    return adapt_fast(plan.learner, state.published, episode.support, inner, generator, state.slots).params


def _episodes(sites: JudgedSites, protocol: Protocol, seed: int) -> Iterator[tuple[str, Episode, torch.Generator]]:
    names = sorted(sites.judged)
    for number in range(protocol.episodes):
        site = names[number % len(names)]
        generator = torch.Generator().manual_seed(seed_of(seed, "evaluate", site, number))
        data, known = sites.judged[site], sites.known.get(site)
        yield (
            site,
            sample_episode(data, protocol.way, protocol.shot, protocol.query, generator, known),
            generator,
        )


def _summed_up(
    data: str,
    protocol: Protocol,
    rounds: int,
    results: Sequence[EpisodeResult],
    sites: JudgedSites,
    shown: Sequence[ShownEpisode],
) -> Evaluation:
    kinds = list(results[0].tallies)
    rows: dict[str, SiteRow] = {}
    for name in sorted({result.site for result in results}):
        own = [result.tallies for result in results if result.site == name]
        means = {kind: fmean(tallies[kind].accuracy for tallies in own) for kind in kinds}
        rows[name] = SiteRow(len(own), trained=name in sites.known, **means)
    confusion: dict[tuple[str, str], int] = {}
    for result in results:
        prefix = "" if protocol.pooled else f"{result.site}/"
        for (true, predicted), count in result.tallies["after"].confusion.items():
            pair = (prefix + true, prefix + predicted)
            confusion[pair] = confusion.get(pair, 0) + count
    order = sorted(confusion.items(), key=lambda item: (item[0][0] == item[0][1], -item[1], item[0]))
    return Evaluation(
        data,
        protocol,
        rounds,
        worst_site=min(rows, key=lambda name: rows[name].after),
        share_hurt=fmean(row.after < row.before for row in rows.values()),
        sites=rows,
        confusion=[(true, predicted, count) for (true, predicted), count in order],
        shown=shown,
        **{kind: _score([result.tallies[kind] for result in results]) for kind in kinds},  # type: ignore[arg-type]
    )


def _score(tallies: Sequence[Tally]) -> Score:
    accuracies, total = [tally.accuracy for tally in tallies], sum(tallies, Tally())
    spread = stdev(accuracies) if len(accuracies) > 1 else math.nan
    half = 1.96 * spread / math.sqrt(len(accuracies))
    return Score(fmean(accuracies), half, total.mean_nll, total.ece, total.bins)


def _show(
    plan: Plan, before: Params, after: Params, site: str, episode: Episode, samples: Callable[[Tensor], list[Sample]]
) -> ShownEpisode:
    support: dict[str, list[Sample]] = {name: [] for name in episode.classes}
    for sample, label in zip(samples(episode.support.inputs), episode.support.labels.tolist(), strict=True):
        support[episode.classes[label]].append(sample)
    first = plan.learner.log_probs(before, episode.support, episode.query.inputs).argmax(1).tolist()
    confidence, last = plan.learner.log_probs(after, episode.support, episode.query.inputs).exp().max(1)
    queries: list[Answer] = []
    shown: dict[int, int] = {}
    for row, (sample, label) in enumerate(
        zip(samples(episode.query.inputs), episode.query.labels.tolist(), strict=True)
    ):
        shown[label] = shown.get(label, 0) + 1
        if shown[label] <= SHOWN_QUERIES:
            true, before_name, after_name = (episode.classes[i] for i in (label, first[row], int(last[row])))
            queries.append(Answer(sample, true, before_name, after_name, float(confidence[row])))
    return ShownEpisode(site, support, queries)
