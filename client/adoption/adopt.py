"""Taking up a release: adapt it to the site's own classes, judge that on what is held back, and only then use it."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from client.adoption.fetch import Fetched
from client.home import SiteHome
from client.line.learn import Learned, learn, read_shared
from client.line.store import Entry, Store, store_of
from client.settings import settings_of
from common.errors import SettingsError, SiteDataError
from common.settings import Settings, flatten
from common.trust.kit import read_kit

log = logging.getLogger("fedreptile.adoption")

MOST_WORSE = 0.05
"""Part of the held-back samples of known classes by which a release may be worse than the model in use."""
ALWAYS_ALLOWED = 1
"""Samples by which it may be worse in any case: of ten, one is a tenth."""
AGREED = ("data.", "model.")
"""Settings that a release must have as the kit says, by how they begin."""
OF_THE_SERVER = ("data.sites", "model.initial")


@dataclass(frozen=True)
class Adoption:
    """What came of a release."""

    release: int
    before: Entry | None
    """The model that was in use."""
    learned: Learned | None
    """The model that was made from the release, beside the one in use; None if none could be made."""
    known: tuple[int, int, int]
    """Held-back samples of classes that the model in use knows: all, right before, right with the new one."""
    refused: str
    """Why the new model is not used; empty if it is."""


def take_up(home: SiteHome, fetched: Fetched, progress: Callable[[str], None] = lambda text: None) -> Adoption:
    """Make a model of a release and use it, unless it is worse at this site than the model in use.

    A whole model is in use at any moment: the old one until the new one is judged and on disk.

    Raises:
        CheckpointError, WritingError: if the models that the site keeps are damaged or cannot be written; then nothing
            has changed, and it may be tried again.
    """
    store, number = store_of(home), fetched.number
    before = store.current()
    try:
        shared = read_shared(fetched.path)
        _check_agreed(settings_of(read_kit(home.kit_file)), shared.settings)
        learned = learn(home, fetched.path, release=number, progress=progress)
    except (SettingsError, SiteDataError) as error:
        return _refuse(store, Adoption(number, before, None, (0, 0, 0), str(error)))
    known = _known(learned, before.about.classes if before else ())
    total, was, now = known
    if was - now > max(ALWAYS_ALLOWED, MOST_WORSE * total):
        why = f"of {total} held-back samples of known classes it gets {now} right, and the model in use {was}"
        return _refuse(store, Adoption(number, before, learned, known, why))
    store.use(learned.entry.number, f"release {number}")
    for name in store.standing().wishes.keys() & shared.state.prototypes.keys():
        store.unwish(name)
    log.info("release %d is in use as model %d", number, learned.entry.number)
    return Adoption(number, before, learned, known, "")


def _refuse(store: Store, adoption: Adoption) -> Adoption:
    store.refuse(adoption.release, adoption.refused)
    log.warning("release %d is not used: %s", adoption.release, adoption.refused)
    return adoption


def _known(learned: Learned, classes: Iterable[str]) -> tuple[int, int, int]:
    before, after = learned.comparison.old.per_class(), learned.comparison.new.per_class()
    rows = [(after[name][1], before[name][0], after[name][0]) for name in classes if name in before and name in after]
    return sum(row[0] for row in rows), sum(row[1] for row in rows), sum(row[2] for row in rows)


def _check_agreed(agreed: Settings, found: Settings) -> None:
    """Raises SettingsError if a release reads other data, or is of another network, than the kit says."""
    wanted, there = flatten(agreed), flatten(found)
    for key, value in wanted.items():
        if key.startswith(AGREED) and key not in OF_THE_SERVER and there[key] != value:
            raise SettingsError(
                f"the release has {key} = {there[key]!r} and {value!r} was agreed; a new kit can agree to that"
            )
