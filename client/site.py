"""A site at work: ``prepare -> adapt -> reply``.

The three steps are apart so that a simulation can adapt many sites at once between the outer two,
and an edge site can do the work in a process of its own.
"""

import dataclasses
import platform
import time
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from client.data.held import apart
from client.data.sites import open_site_data
from client.gate import Sides, judge_models
from client.settings import SiteSettings
from common import VERSION
from common.checkpoint import Checkpoint, RunState
from common.errors import SiteDataError
from common.learning.episode import Episode, Examples, SiteData, all_of, sample_episode
from common.learning.heads import class_sums
from common.learning.judge import Judgement, judge, summary
from common.learning.params import Manifest, Params, on_device
from common.learning.reptile import Adapted, adapt
from common.learning.threads import threads
from common.messages import (
    Candidate,
    ClassTable,
    Flat,
    GateReport,
    GateRequest,
    Introduction,
    Judged,
    Request,
    Update,
)
from common.paths import cache_folder
from common.plan import Plan, plan_for
from common.seeds import seed_of
from common.settings import InnerLoop, Settings


@dataclass(frozen=True)
class Work:
    """One adaptation, ready to be done: everything that ``adapt`` takes, and the query set to judge on."""

    plan: Plan
    request: Request
    params: dict[str, Tensor]
    slots: dict[str, Tensor]
    episode: Episode
    inner: InnerLoop
    generator: torch.Generator
    began: float


class Site:
    """One site of a run. Reads its data when first needed."""

    def __init__(self, site: SiteSettings, settings: Settings) -> None:
        self.site = site
        self.settings = settings
        self.plan = plan_for(settings, site.device)

    @cached_property
    def data(self) -> SiteData:
        """What the site trains on."""
        return self.parts[0]

    @property
    def held_back(self) -> SiteData:
        """What is never trained on (``data.hold-back``), to judge models on."""
        return self.parts[1]

    @property
    def data_bytes(self) -> int:
        """Bytes of memory that the site's data take, if that is known; none before they are read."""
        return getattr(self.data, "nbytes", 0) if "parts" in vars(self) else 0

    @cached_property
    def parts(self) -> tuple[SiteData, SiteData]:
        own, settings = self.site, self.settings.data
        return apart(open_site_data(Path(own.data), own.name, settings, cache_folder(own.cache)), settings.hold_back)

    def introduce(self) -> Introduction:
        """Say what the site has: name, classes and counts if they may leave, device, versions."""
        counts = {name: self.data.count(name) for name in self.data.classes()} if self.site.policy.classes.names else {}
        return Introduction(self.site.name, counts, self.site.device, _versions())

    def prepare(self, request: Request) -> Work:
        """Draw the round's episode from the stream named by run seed, site and round; a campaign's new class is always
        in it, where the site has it, beside others."""
        generator = self._generator(request, "episode")
        settings = self.settings.episode
        query = settings.query if request.judge else 0
        new_class = self.settings.campaign.class_
        episode = self._episode(settings.way, settings.shot, query, generator, always=new_class)
        return self._work(request, episode, generator)

    def adapt(self, work: Work) -> Adapted:
        """Run the inner loop on the support set."""
        with threads(self.site.threads):
            return adapt(work.plan.learner, work.params, work.episode.support, work.inner, work.generator, work.slots)

    def reply(self, work: Work, adapted: Adapted) -> Update:
        """Pack what the adaptation changed, with the figures that may be reported."""
        delta = self.plan.update.pack(adapted.params).sub_(self._packed(self.plan.update, work.params))
        slots = self.plan.slots.pack(adapted.slots).sub_(self._packed(self.plan.slots, work.slots))
        scalars = {
            "num-examples": float(len(work.episode.support)),
            "inner-steps": float(work.inner.steps),
            "seconds": time.monotonic() - work.began,
        }
        if work.request.judge:
            scalars |= summary(self._judged(work))
        return Update(delta.numpy(), slots.numpy(), scalars)

    def train(self, request: Request) -> Update:
        """Do one round of training."""
        work = self.prepare(request)
        return self.reply(work, self.adapt(work))

    def evaluate(self, request: Request) -> Judged:
        """Judge adaptation on episodes of this site, before and after, on queries that adaptation has not seen."""
        judged, settings = Judgement(), self.settings
        generator = self._generator(request, "judge")
        for number in range(settings.judge.episodes):
            episode = self._episode(settings.episode.way, settings.judge.shot, settings.episode.query, generator)
            judged += self._judged(self._work(request, episode, generator), number)
        if not judged.after.total:
            raise SiteDataError(
                "no class of the site has an input left over to judge on; add a second input to a class"
            )
        return Judged(summary(judged), judged.after.per_class() if self.site.policy.classes.names else {})

    def class_table(self, request: Request) -> ClassTable:
        """Sum the embeddings of each class with enough inputs, under the params of the request."""
        everything, support, embeddings = self._embedded(request.params)
        with threads(self.site.threads), torch.no_grad():
            sums, counts = class_sums(embeddings, support.labels, support.way)
        keep = [i for i, count in enumerate(counts.tolist()) if count >= self.site.policy.classes.minimum]
        names = tuple(everything.classes[i] for i in keep)
        return ClassTable(names, tuple(int(counts[i]) for i in keep), sums[keep].cpu().numpy())

    def _embedded(self, flat: Flat) -> tuple[Episode, Examples, Tensor]:
        """Return all that the site trains on, the same on its device, and its embeddings under some params."""
        everything = all_of(self.data)
        support = everything.support.to(self.site.device, self.plan.params.torch_dtype)
        params = self._unpacked(self.plan.params, flat)
        with threads(self.site.threads), torch.no_grad():
            buffers = self.plan.learner.freeze(params, support)
            return everything, support, self.plan.learner.embed(params, buffers, support.inputs)

    def gate(self, request: GateRequest) -> GateReport:
        """Judge champion and challenger, each adapted as on adoption, on what the site holds back.

        Both go by the settings of the run, with no more steps than the site's limits allow.
        """
        steps = self._capped_loop(self.settings.adaptation).steps
        settings = self.settings.with_values({"adapt.steps": steps})
        challenger = self._checkpoint(request.challenger, settings)
        exact = None
        if request.exact is not None:
            exact = self._checkpoint(dataclasses.replace(request.challenger, params=request.exact), settings)
        sides = Sides(self._checkpoint(request.champion, settings), challenger, exact)
        with threads(self.site.threads):
            own = self._in_table(request)
            report = judge_models(sides, self.data, self.held_back, request.new_class, own)
        if self.site.policy.classes.names:
            return report
        scalars = {name: value for name, value in report.scalars.items() if "unknown" not in name}
        return GateReport(scalars)

    def _in_table(self, request: GateRequest) -> Tensor | None:
        """Return the embeddings of the site's inputs of the new class if its sum is in the challenger's class table."""
        new_class, classes = request.new_class, self.site.policy.classes
        count = self.data.count(new_class) if new_class in self.data.classes() else 0
        if count < classes.minimum or not classes.tables or new_class not in request.challenger.table.names:
            return None
        everything, support, embeddings = self._embedded(request.challenger.params)
        return embeddings[support.labels == everything.classes.index(new_class)].cpu()

    def _checkpoint(self, candidate: Candidate, settings: Settings) -> Checkpoint:
        """Return a candidate as what adaptation starts from; sites adapt models on the CPU."""
        params = self.plan.params.unpack(torch.from_numpy(candidate.params.copy()))
        slots = self.plan.slots.unpack(torch.from_numpy(candidate.slots.copy()))
        table = candidate.table
        sums = torch.from_numpy(table.sums.copy())
        prototypes = {name: (sums[row], table.counts[row]) for row, name in enumerate(table.names)}
        return Checkpoint(RunState(0, params, slots, {}, {}, prototypes=prototypes), settings, VERSION)

    def _work(self, request: Request, episode: Episode, generator: torch.Generator) -> Work:
        device, dtype = self.site.device, self.plan.params.torch_dtype
        return Work(
            self.plan,
            request,
            self._unpacked(self.plan.params, request.params),
            self._unpacked(self.plan.slots, request.slots),
            Episode(episode.classes, episode.support.to(device, dtype), episode.query.to(device, dtype)),
            self._capped_loop(self.settings.inner),
            generator,
            time.monotonic(),
        )

    def _unpacked(self, layout: Manifest, flat: Flat) -> dict[str, Tensor]:
        """Return what lies in a received array, by name, on the site's device; the array itself is not writable."""
        return on_device(layout.unpack(torch.from_numpy(flat.copy())), self.site.device)

    def _packed(self, layout: Manifest, params: Params) -> Tensor:
        """Return what a site was sent as it lies in an update."""
        return layout.pack(params)

    def _judged(self, work: Work, number: int = 0) -> Judgement:
        """Judge the adaptation that users get ([adapt]), which need not be the one that rounds learn with."""
        generator = self._generator(work.request, f"adapt {number}")
        inner = self._capped_loop(self.settings.adaptation)
        adapted = self.adapt(dataclasses.replace(work, inner=inner, generator=generator))
        with threads(self.site.threads):
            return judge(self.plan.learner, work.params, adapted.params, work.episode)

    def _episode(self, way: int, shot: int, query: int, generator: torch.Generator, always: str = "") -> Episode:
        limits = self.site.policy.limits
        way, shot = _capped(way, limits.way), _capped(shot, limits.shot)
        with threads(self.site.threads):
            return sample_episode(self.data, way, shot, query, generator, always=always)

    def _capped_loop(self, inner: InnerLoop) -> InnerLoop:
        return dataclasses.replace(inner, steps=_capped(inner.steps, self.site.policy.limits.steps))

    def _generator(self, request: Request, purpose: str) -> torch.Generator:
        seed = seed_of(self.settings.run.seed, purpose, self.site.name, request.round)
        return torch.Generator().manual_seed(seed)


@cache
def _versions() -> dict[str, str]:
    """Return the versions of what a site computes with."""
    return {**{name: version(name) for name in ("torch", "flwr", "numpy")}, "python": platform.python_version()}


def _capped(value: int, limit: int) -> int:
    return min(value, limit) if limit else value
