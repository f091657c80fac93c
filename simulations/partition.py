"""Which site has what: a pool's rows dealt to sites, as indexes.

First every selected row falls to a site: by a natural attribute, by class, at random (IID) or by Dirichlet proportions.
Then it is decided what training does not see: whole sites, whole classes, or a share of each class at each site.
Each decision draws from a random stream of its own (``common/seeds.py``), so that another share held back, say, does
not change who has what. The same settings give the same rows wherever numpy's generators draw the same.
"""

import fnmatch
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.data.packed import SiteRows, write_packed
from common.errors import SettingsError
from common.seeds import seed_of
from common.settings import setting
from simulations.sources.pool import CLASS, INPUTS

Numbers = NDArray[np.int64]
Table = Mapping[str, Sequence[str]]
"""Attribute, or "class" -> its value for each row of the pool [N]."""
Cells = dict[str, dict[str, list[int]]]
"""Site -> class -> rows of the pool, ascending; both names sorted."""
PRODUCT = re.compile(r"\s+x\s+")


@dataclass(frozen=True)
class PartitionSettings:
    """How a pool is dealt to sites. Lists have commas between; patterns are those of file names ('1*')."""

    by: str = setting("iid", "what decides who has an input", choices=("attribute", "class", "dirichlet", "iid"))
    attribute: str = setting("", "by attribute: the data set's, such as 'hospital'; 'alphabet x drawer' is one of both")
    number: int = setting(10, "by class, dirichlet or iid: sites, with those held out", least=1)
    alpha: float = setting(
        1.0, "by dirichlet: every class is divided by Dirichlet(alpha); smaller is more uneven", least=0.001
    )
    classes_per_site: int = setting(0, "by class: classes at each site; 0: each class at one site only", least=0)
    least: int = setting(2, "inputs of a class below which a site goes without it", least=1)
    most: int = setting(0, "inputs of a class that a site trains on at most; 0: all", least=0)
    select: str = setting("", "only inputs with all of these, such as 'set=background, exposure=[1-3]|6'")
    group: str = setting("", "attribute, such as 'patient', whose inputs are never divided between trained and judged")
    held_out: str = setting("", "sites that only judge: names, patterns or what all their inputs have ('set=test')")
    held_out_number: int = setting(0, "or so many more sites, drawn", least=0)
    held_out_classes: str = setting("", "classes that no site trains on, by name or pattern")
    held_out_class_number: int = setting(0, "or so many more classes, drawn", least=0)
    held_back: float = setting(
        0.0, "share of each class at each training site that the site is judged on instead", least=0, most=0.99
    )
    seed: int = setting(0, "seed of all that is drawn here", least=0)


@dataclass(frozen=True)
class Partition:
    """Rows of a pool by site and class. No row is in twice."""

    train: SiteRows
    judge: SiteRows
    """All rows of held-out sites; of training sites what was held back, and what they have of held-out classes."""
    measured_on: Mapping[str, Sequence[int]]
    """Rows that a site trains on, for sites in both: their statistics standardise numbers when it is judged."""


def partition(classes: Sequence[str], attributes: Table, settings: PartitionSettings) -> Partition:
    """Deal a pool's rows to sites. Every selected row is in the result, but for these:

    * a class with fewer than ``least`` inputs at a site, and what is above ``most`` of one in training;
    * with ``group``, judged rows of a group that some site trains on: a patient may well be at two sites;
    * what a training site would be judged on if that is fewer than two classes: no episode can be drawn from it.

    Args:
        classes: of each row [N].
        attributes: name -> value of each row [N].

    Raises:
        SettingsError: if a name or pattern fits nothing, or a site is left with fewer than two classes.
    """
    table = {CLASS: classes, **attributes}
    rows = _selected(table, settings.select)
    units = _units(rows, table, settings.group)
    dealt = _without_few(_deal(rows, units, table, settings), settings.least)
    held_out = _held_out_sites(dealt, table, settings)
    new = _held_out_classes(sorted({classes[row] for row in rows}), settings)
    open_cells = {
        site: {name: members for name, members in own.items() if name not in new}
        for site, own in dealt.items()
        if site not in held_out
    }
    unit_of = {row: number for number, unit in enumerate(units) for row in unit}
    back = _held_back(open_cells, unit_of, settings)
    train = _kept(open_cells, {row for row, unit in unit_of.items() if unit not in back})
    trained = {unit_of[row] for row in _rows_of(train)}
    judge = _kept(dealt, {row for row, unit in unit_of.items() if unit not in trained})
    judge = {site: own for site, own in judge.items() if site in held_out or len(own) > 1}
    train = _at_most(train, settings)
    _check_trained(train, settings)
    _check_judged(judge, held_out, bool(held_out or new or settings.held_back), settings)
    return Partition(train, judge, {site: sorted(_rows_of({site: train[site]})) for site in judge if site in train})


def write_partition(
    folder: Path, pool_folder: Path, dealt: Partition, about: Mapping[str, Any]
) -> tuple[Path, Path | None]:
    """Write the sites to train on and, if there are any, those to judge on as packed sets in ``folder``.

    They point at the pool's inputs, of which nothing is copied. The judged ones come first, so that where there is
    ``train`` all is there.
    """
    inputs = pool_folder / INPUTS
    train, judge = folder / "train", folder / "judge"
    if dealt.judge:
        write_packed(judge, inputs, dealt.judge, about, dealt.measured_on)
    write_packed(train, inputs, dealt.train, about)
    return train, judge if dealt.judge else None


# What is dealt


def _selected(table: Table, select: str) -> list[int]:
    """Return the rows that have all that ``sites.select`` asks for."""
    fits = np.ones(len(table[CLASS]), bool)
    for condition in _words(select):
        fits &= _condition(table, condition, "sites.select")
    if not fits.any():
        raise SettingsError(f"sites.select is {select!r}, which no input fits; ask for less")
    return [int(row) for row in np.flatnonzero(fits)]


def _units(rows: Sequence[int], table: Table, group: str) -> list[list[int]]:
    """Return the rows that stay together. Rows without a value of the group stand alone."""
    if not group:
        return [[row] for row in rows]
    values = _attribute(table, group, "sites.group")
    found: dict[str | int, list[int]] = {}
    for row in rows:
        found.setdefault(values[row] or row, []).append(row)
    return list(found.values())


def _deal(rows: Sequence[int], units: Sequence[Sequence[int]], table: Table, settings: PartitionSettings) -> Cells:
    """Return all selected rows by site and class; a site may have none."""
    if settings.by == "attribute":
        return _gathered(zip(rows, _natural_sites(rows, table, settings.attribute), strict=True), table[CLASS])
    classes = [Counter(table[CLASS][row] for row in unit).most_common(1)[0][0] for unit in units]
    dealers = {"iid": _iid, "class": _by_class, "dirichlet": _dirichlet}
    width = max(2, len(str(settings.number)))
    names = [f"site-{site + 1:0{width}}" for site in range(settings.number)]
    sites = dealers[settings.by](classes, settings)
    pairs = ((row, names[site]) for unit, site in zip(units, sites, strict=True) for row in unit)
    return _gathered(pairs, table[CLASS], names)


def _natural_sites(rows: Sequence[int], table: Table, attribute: str) -> list[str]:
    """Return the site of each row: its value of the attribute, or its values of several with 'x' between."""
    if not attribute:
        raise SettingsError(f"sites.by is 'attribute' but sites.attribute is empty; {_there_is(table)}")
    columns = [_attribute(table, name, "sites.attribute") for name in PRODUCT.split(attribute.strip())]
    for name, column in zip(PRODUCT.split(attribute.strip()), columns, strict=True):
        if empty := sum(not column[row] for row in rows):
            raise SettingsError(
                f"{empty} of {len(rows)} inputs have no {name!r} (sites.attribute); "
                f"leave them out with sites.select = '{name}=?*'"
            )
    return [" x ".join(column[row] for column in columns) for row in rows]


def _iid(classes: Sequence[str], settings: PartitionSettings) -> Numbers:
    """Return the site of each unit [n]: drawn without regard to classes, every site the same number but for one."""
    sites = np.empty(len(classes), np.int64)
    sites[_stream(settings, "iid").permutation(len(classes))] = np.arange(len(classes)) % settings.number
    return sites


def _by_class(classes: Sequence[str], settings: PartitionSettings) -> Numbers:
    """Return the site of each unit [n]: every site has some classes, and a class is divided evenly between its sites.

    Known as the pathological partition (McMahan et al. 2017, section 3, with shards instead of classes).
    """
    places = _places(classes)
    sites = np.empty(len(classes), np.int64)
    for (name, own), holders in zip(places.items(), _holders(len(places), settings), strict=True):
        drawn = _stream(settings, "by class", name)
        sites[drawn.permutation(own)] = drawn.permutation(holders)[np.arange(len(own)) % len(holders)]
    return sites


def _holders(classes: int, settings: PartitionSettings) -> list[list[int]]:
    """Return the sites of each class: as many of each but for one."""
    drawn = _stream(settings, "classes of sites")
    number, hand = settings.number, settings.classes_per_site
    if not hand:
        return [[int(place) % number] for place in drawn.permutation(classes)]
    if not hand <= classes <= number * hand:
        raise SettingsError(
            f"sites.number is {number} and sites.classes-per-site is {hand}, for {classes} classes: a site cannot have "
            "more classes than there are, and all sites together need a place for each; "
            f"set sites.classes-per-site from {-(-classes // number)} to {classes}, or 0"
        )
    holders: list[list[int]] = [[] for _ in range(classes)]
    for site in range(number):
        scarcest = np.lexsort((drawn.random(classes), np.array([len(own) for own in holders])))[:hand]
        for place in scarcest:
            holders[place].append(site)
    return holders


def _dirichlet(classes: Sequence[str], settings: PartitionSettings) -> Numbers:
    """Return the site of each unit [n]: each class is divided in proportions drawn from Dirichlet(alpha).

    As in Yurochkin et al. 2019 (section 4.1): the proportions are of each class over the sites, so that sites differ
    in size too; nothing balances them. Hsu, Qi, Brown 2019 draw each site's proportions of classes instead, for sites
    of equal size.
    """
    sites = np.empty(len(classes), np.int64)
    for name, own in _places(classes).items():
        drawn = _stream(settings, "dirichlet", name)
        shares = drawn.dirichlet(np.full(settings.number, settings.alpha))
        bounds = np.rint(np.cumsum(shares)[:-1] * len(own))
        turns = np.searchsorted(bounds, np.arange(len(own)), side="right")
        # In an order of sites of its own: rounding favours the same places of it in every small class.
        sites[drawn.permutation(own)] = drawn.permutation(settings.number)[turns]
    return sites


def _places(classes: Sequence[str]) -> dict[str, list[int]]:
    """Return where each class stands in a sequence of classes, the classes sorted."""
    found: dict[str, list[int]] = {name: [] for name in sorted(set(classes))}
    for place, name in enumerate(classes):
        found[name].append(place)
    return found


# What training does not see


def _held_out_sites(dealt: Cells, table: Table, settings: PartitionSettings) -> set[str]:
    named = {site for word in _words(settings.held_out) for site in _sites_that_fit(word, dealt, table)}
    rest = sorted(dealt.keys() - named)
    if settings.held_out_number >= len(rest):
        raise SettingsError(
            f"sites.held-out names {len(named)} and sites.held-out-number is {settings.held_out_number} of "
            f"{len(dealt)} sites, so that none is left to train on; hold out fewer"
        )
    return named | _drawn(rest, settings.held_out_number, settings, "held-out sites")


def _sites_that_fit(word: str, dealt: Cells, table: Table) -> list[str]:
    """Return the sites that a word of ``sites.held-out`` means: by name or pattern, or by what all inputs have."""
    if word.partition("=")[0].strip() not in table:
        found = _fitting(dealt, word)
    else:
        fits = _condition(table, word, "sites.held-out")
        shares = {site: float(np.mean(fits[_rows_of({site: own})])) for site, own in dealt.items() if own}
        if mixed := [site for site, share in shares.items() if 0 < share < 1]:
            raise SettingsError(
                f"sites.held-out: {word!r} fits {shares[mixed[0]]:.0%} of the inputs of site {mixed[0]!r}, but sites "
                "are held out whole; leave the others out with sites.select, or deal by an attribute that divides them"
            )
        found = [site for site, share in shares.items() if share == 1]
    if not found:
        raise SettingsError(f"sites.held-out: {word!r} fits none of the {len(dealt)} sites {_some(dealt)}")
    return found


def _held_out_classes(names: Sequence[str], settings: PartitionSettings) -> set[str]:
    named: set[str] = set()
    for word in _words(settings.held_out_classes):
        found = _fitting(names, word)
        if not found:
            raise SettingsError(
                f"sites.held-out-classes: {word!r} fits none of the {len(names)} classes {_some(names)}"
            )
        named |= set(found)
    rest = [name for name in names if name not in named]
    number = settings.held_out_class_number
    if (named or number) and len(rest) - number < 2:
        raise SettingsError(
            f"sites.held-out-classes names {len(named)} and sites.held-out-class-number is {number} of {len(names)} "
            "classes; at least two must be left to train on"
        )
    return named | _drawn(rest, number, settings, "held-out classes")


def _held_back(cells: Cells, unit_of: Mapping[int, int], settings: PartitionSettings) -> set[int]:
    """Return the units that training does not see, whichever site they are at.

    Of each class at each site that is ``held_back`` of its inputs, rounded, at least one and never all; with groups
    it is as many whole ones as fit into that, or else the smallest.
    """
    held: set[int] = set()
    trained: set[int] = set()
    for site, own in cells.items() if settings.held_back else ():
        for name, rows in own.items():
            sizes = Counter(unit_of[row] for row in rows)
            free = [unit for unit in sizes if unit not in held and unit not in trained]
            order = [free[place] for place in _stream(settings, "held back", site, name).permutation(len(free))]
            chosen = _fill(order, sizes, sum(size for unit, size in sizes.items() if unit in held), settings.held_back)
            held |= chosen
            trained |= set(free) - chosen
    return held


def _fill(order: Sequence[int], sizes: Mapping[int, int], held: int, share: float) -> set[int]:
    """Return which undecided units of a cell to hold back, in the order they were drawn.

    Args:
        sizes: inputs in the cell of each of its units, decided or not.
        held: inputs of the cell that are held back already.
    """
    total = sum(sizes.values())
    wanted = min(max(1, round(share * total)), total - 1)
    chosen: set[int] = set()
    for unit in order:
        if held + sizes[unit] <= wanted:
            chosen.add(unit)
            held += sizes[unit]
    if not held and order and len(sizes) > 1:
        chosen.add(min(order, key=lambda unit: sizes[unit]))
    return chosen


def _at_most(cells: Cells, settings: PartitionSettings) -> Cells:
    """Return the cells with no more than ``sites.most`` rows each, drawn."""
    if not settings.most:
        return cells

    def some(site: str, name: str, rows: list[int]) -> list[int]:
        order = _stream(settings, "most", site, name).permutation(len(rows))
        return sorted(rows[place] for place in order[: settings.most])

    return {site: {name: some(site, name, rows) for name, rows in own.items()} for site, own in cells.items()}


# Whether it can be used


def _check_trained(train: Cells, settings: PartitionSettings) -> None:
    few = [site for site, own in train.items() if len(own) < 2]
    if not few:
        return
    ways = {
        "attribute": "leave such sites out (sites.select)",
        "class": "ask for fewer sites (sites.number) or more classes at each (sites.classes-per-site)",
        "dirichlet": "ask for fewer sites (sites.number), a greater sites.alpha or another sites.seed",
        "iid": "ask for fewer sites (sites.number)",
    }
    raise SettingsError(
        f"{len(few)} of {len(train)} sites have fewer than two classes to train on, such as {few[0]!r} with "
        f"{_has(train[few[0]])}; {ways[settings.by]}{_or_less(settings)}"
    )


def _check_judged(judge: Cells, held_out: Collection[str], wanted: bool, settings: PartitionSettings) -> None:
    few = [site for site in sorted(held_out) if len(judge[site]) < 2]
    if few or (wanted and not judge):
        who = f"held-out site {few[0]!r} has {_has(judge[few[0]])}" if few else "no site has two classes"
        group = (
            f"; inputs of a {settings.group!r} (sites.group) that some site trains on are not judged: sites.held-back "
            "keeps a share of them from training"
        )
        raise SettingsError(
            f"{who} to be judged on, and an episode needs two; hold out other sites, or more classes"
            + _or_less(settings)
            + (group if settings.group else "")
        )


def _has(own: Mapping[str, Sequence[int]]) -> str:
    return ", ".join(f"{len(rows)} of {name!r}" for name, rows in own.items()) or "none"


def _or_less(settings: PartitionSettings) -> str:
    return f", or lower sites.least, which is {settings.least}" if settings.least > 1 else ""


# Names and streams


def _stream(settings: PartitionSettings, *address: str) -> np.random.Generator:
    return np.random.default_rng(seed_of(settings.seed, "partition", *address))


def _drawn(names: Sequence[str], number: int, settings: PartitionSettings, purpose: str) -> set[str]:
    """Return so many of the names."""
    return {names[place] for place in _stream(settings, purpose).permutation(len(names))[:number]}


def _condition(table: Table, condition: str, key: str) -> NDArray[np.bool_]:
    """Return which rows [N] fit ``ATTRIBUTE=PATTERN|PATTERN``."""
    name, equals, listed = (part.strip() for part in condition.partition("="))
    if not equals:
        raise SettingsError(f"{key}: {condition!r} is not ATTRIBUTE=VALUE; {_there_is(table)}")
    values = _attribute(table, name, key)
    there = sorted(set(values))
    fitting: set[str] = set()
    for pattern in listed.split("|"):
        found = _fitting(there, pattern.strip())
        if not found:
            raise SettingsError(f"{key}: {pattern.strip()!r} fits none of the values of {name!r} {_some(there)}")
        fitting |= set(found)
    return np.array([value in fitting for value in values])


def _attribute(table: Table, name: str, key: str) -> Sequence[str]:
    if name not in table:
        raise SettingsError(f"{key}: there is no attribute {name!r}; {_there_is(table)}")
    return table[name]


def _there_is(table: Table) -> str:
    return f"the data set has {', '.join(repr(name) for name in table)}"


def _fitting(names: Iterable[str], pattern: str) -> list[str]:
    return [name for name in names if name == pattern or fnmatch.fnmatchcase(name, pattern)]


def _some(names: Collection[str]) -> str:
    shown = ", ".join(sorted(names)[:5])
    return f"({shown}, …)" if len(names) > 5 else f"({shown})"


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


# Cells


def _gathered(pairs: Iterable[tuple[int, str]], classes: Sequence[str], names: Iterable[str] = ()) -> Cells:
    """Return rows by site and class, from rows with their sites; ``names`` are there in any case."""
    found: Cells = {name: {} for name in names}
    for row, site in pairs:
        found.setdefault(site, {}).setdefault(classes[row], []).append(row)
    return {site: {name: sorted(found[site][name]) for name in sorted(found[site])} for site in sorted(found)}


def _without_few(cells: Cells, least: int) -> Cells:
    """Return the cells with at least so many rows; every site stays."""
    return {site: {name: rows for name, rows in own.items() if len(rows) >= least} for site, own in cells.items()}


def _kept(cells: Cells, wanted: Collection[int]) -> Cells:
    """Return the wanted rows, without classes that have none; every site stays."""
    kept = {
        site: {name: [row for row in rows if row in wanted] for name, rows in own.items()}
        for site, own in cells.items()
    }
    return _without_few(kept, 1)


def _rows_of(cells: Cells) -> list[int]:
    return [row for own in cells.values() for rows in own.values() for row in rows]
