"""Adaptation at the line: a new model from the site's own samples, beside the one in use, for a person to decide on."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from client.data.held import FEW, Part, apart
from client.data.indexed import IndexedData, as_input
from client.data.sites import open_site_data
from client.home import SiteHome
from client.line.store import About, Entry, Store, store_of
from client.model import SiteModel, adapt_site, read_model
from common.checkpoint import Checkpoint, read_checkpoint
from common.errors import CheckpointError, SiteDataError
from common.learning.episode import SiteData
from common.learning.judge import Tally
from common.learning.threads import threads
from common.paths import cache_folder
from common.releases.artefact import decode, encode, of_checkpoint
from common.settings import Settings, Value

HOLD_BACK = 0.3
"""Part that is held back where the federation has agreed on none."""
MOST_LEFT_OUT = 20
"""Adaptations that this may take in all; new classes come first."""
MOST_KEPT = 200
"""Changed samples that are kept with a model, for people to look at."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Changed:
    """A held-back sample of which the new model says something else than the old one."""

    source: str
    """The picture's path, or the sample's place in its class."""
    true: str
    before: str
    after: str


@dataclass(frozen=True)
class Comparison:
    """Old model against new on the site's held-back samples; neither was adapted on them."""

    old: Tally
    new: Tally
    changed: tuple[Changed, ...]
    unknown: tuple[int, int]
    """Held-back samples that the old and the new model call unknown."""
    left_out: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Class with few samples -> how many of them a model recognises that was adapted without the one, and all."""

    def figures(self) -> dict[str, object]:
        """Return the comparison as plain values."""
        before, after = self.old.per_class(), self.new.per_class()
        return {
            "held-back": self.new.total,
            "right-before": self.old.correct,
            "right-after": self.new.correct,
            "classes": {name: [before[name][0], right, total] for name, (right, total) in sorted(after.items())},
            "unknown-before": self.unknown[0],
            "unknown-after": self.unknown[1],
            "changed": len(self.changed),
            "changed-samples": [[one.source, one.true, one.before, one.after] for one in self.changed[:MOST_KEPT]],
            "confusion-before": _pairs(self.old),
            "confusion-after": _pairs(self.new),
            "left-one-out": {name: list(found) for name, found in self.left_out.items()},
        }


@dataclass(frozen=True)
class Learned:
    """A candidate: a model that is kept and not in use."""

    entry: Entry
    model: SiteModel
    before: str
    """What the old model is: 'model 3', or the shared one where there was none."""
    comparison: Comparison
    samples: Mapping[str, int]
    """Class -> samples that the site has."""
    seconds: float
    """From the samples on the disk to the adapted model beside the old one; without keeping it, and without the judging
    of classes with few."""


def learn(
    home: SiteHome,
    checkpoint: Path | None = None,
    changes: Mapping[str, Value] | None = None,
    hold_back: float | None = None,
    *,
    release: int = 0,
    others: bool = True,
    progress: Progress = lambda text: None,
) -> Learned:
    """Adapt the shared model to all that the site has, and compare the result with the model in use.

    Args:
        checkpoint: the shared model: a run's folder, its checkpoint, or a release; by default the one that the model
            in use was adapted from.
        changes: settings to adapt with, such as 'adapt.steps'.
        hold_back: the part of each class to judge on; by default data.hold-back, and HOLD_BACK if that is 0.
        release: the number of the release that ``checkpoint`` is. What there are few samples of is then not judged by
            leaving out one at a time: the release's gate has done that.
        others: also recognise classes of other sites, if they let them out.

    Raises:
        CheckpointError: if there is no shared model to start from, or it cannot be read.
        SiteDataError, SettingsError: if the data cannot be used.
    """
    began, config, store = time.monotonic(), home.config(), store_of(home)
    current = store.current()
    shared = read_shared(checkpoint) if checkpoint else _base_of(store, current)
    base = encode(of_checkpoint(shared))
    shared = replace(shared, settings=shared.settings.with_values({**(changes or {}), "data.rotated-classes": False}))
    settings = shared.settings
    progress("reading the site's data")
    whole = open_site_data(Path(config.data), config.name, settings.data, cache_folder(config.shared_cache))
    if not isinstance(whole, IndexedData):
        raise SiteDataError(f"{config.data} cannot be adapted to at the line")
    share = hold_back if hold_back is not None else settings.data.hold_back or HOLD_BACK
    train, held = apart(whole, share)
    progress("adapting")
    with threads(1):
        model, judged = adapt_site(shared, train, held, others=others, standardisation=whole.standardisation)
        from_release = current.about.release if current and not checkpoint else release
        made = f"release {release}" if release else "adapted"
        about = About(made, release=from_release, model=current.number if current else 0)
        old = read_model(current.path) if current else None
        comparison = compare(whole, held, old, model)
        if old is None:
            comparison = replace(comparison, old=judged.before)
        seconds = time.monotonic() - began
        left_out = {} if release else _left_out(shared, whole, train, old, others=others, progress=progress)
    comparison = replace(comparison, left_out=left_out)
    progress("keeping the model")
    entry = store.add(model, replace(about, judgement=comparison.figures()), base)
    before = f"model {current.number}" if current else "the shared model"
    samples = {name: whole.count(name) for name in whole.classes()}
    return Learned(entry, model, before, comparison, samples, seconds)


def read_shared(path: Path) -> Checkpoint:
    """Read what adaptation starts from: a run's folder, its checkpoint file, or a release.

    Raises:
        CheckpointError: if it is none of them.
    """
    try:
        return read_checkpoint(path)
    except CheckpointError as first:
        if path.is_dir():
            raise
        try:
            return decode(path.read_bytes(), str(path)).checkpoint()
        except (OSError, CheckpointError):
            raise first from None


def compare(whole: IndexedData, held: SiteData, old: SiteModel | None, new: SiteModel) -> Comparison:
    """Let both models say what the held-back samples are. Without an old model nothing has changed."""
    rows = held.rows if isinstance(held, Part) else {}
    tallies: list[dict[tuple[str, str], int]] = [{}, {}]
    changed: list[Changed] = []
    unknown = [0, 0]
    for name, kept in sorted(rows.items()):
        said: list[list[str]] = []
        for place, model in enumerate((old, new)):
            if model is None:
                continue
            found = model.predict(as_input(whole.content(name, kept), model.standardisation))
            said.append([one.name for one in found])
            unknown[place] += sum(one.unknown for one in found)
            for one in found:
                pair = (name, one.name)
                tallies[place][pair] = tallies[place].get(pair, 0) + 1
        if old is not None:
            changed += [
                Changed(whole.source(name, row), name, before, after)
                for row, before, after in zip(kept, *said, strict=True)
                if before != after
            ]
    return Comparison(_tally(tallies[0]), _tally(tallies[1]), tuple(changed), (unknown[0], unknown[1]))


def _base_of(store: Store, current: Entry | None) -> Checkpoint:
    if current is None:
        raise CheckpointError(
            f"no model is in use in {store.folder}, so there is none to go on from; give a run's folder, its "
            "checkpoint or a release: 'fedreptile-site adapt CHECKPOINT', or adopt a release first"
        )
    path = store.base(current)
    if path is None:
        raise CheckpointError(
            f"the shared model that model {current.number} was adapted from is not kept; give a run's folder, its "
            "checkpoint or a release: 'fedreptile-site adapt CHECKPOINT'"
        )
    return decode(path.read_bytes(), str(path)).checkpoint()


def _left_out(
    shared: Checkpoint, whole: IndexedData, train: SiteData, old: SiteModel | None, *, others: bool, progress: Progress
) -> dict[str, tuple[int, int]]:
    """Adapt once without each sample of classes with few, and count how many of them are recognised then."""
    rows: Mapping[str, Sequence[int]] = (
        train.rows if isinstance(train, Part) else {name: range(whole.count(name)) for name in whole.classes()}
    )
    known = set(old.classes) if old else set(whole.classes())
    few = [name for name in whole.classes() if 2 <= whole.count(name) <= FEW]
    found: dict[str, tuple[int, int]] = {}
    budget = MOST_LEFT_OUT
    for name in sorted(few, key=lambda one: (one in known, whole.count(one), one)):
        count = whole.count(name)
        if count > budget:
            break
        budget -= count
        right = 0
        for row in range(count):
            progress(f"judging {name!r} without each of its {count} samples: {row + 1}")
            without = Part(whole, {**rows, name: [one for one in range(count) if one != row]})
            model, _ = adapt_site(shared, without, others=others, standardisation=whole.standardisation)
            right += model.predict(whole.inputs(name, [row]))[0].name == name
        found[name] = (right, count)
    return found


def _pairs(tally: Tally) -> list[list[str | int]]:
    """Return [true class, class that was said, samples] of each pair that occurs."""
    return [[true, said, count] for (true, said), count in sorted(tally.confusion.items())]


def _tally(confusion: Mapping[tuple[str, str], int]) -> Tally:
    right = sum(count for (true, said), count in confusion.items() if true == said)
    return Tally(sum(confusion.values()), right, confusion=dict(confusion))


def settings_at(home: SiteHome) -> Settings:
    """Return what the site reads its data by: the kit's settings, else those of the model in use, else the defaults."""
    from client.settings import settings_of
    from common.trust.kit import read_kit

    if home.kit_file.exists():
        return settings_of(read_kit(home.kit_file))
    current = store_of(home).current()
    return read_model(current.path).settings if current else Settings()
