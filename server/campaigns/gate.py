"""Whether the model that a campaign has made may be released: rules applied to what sites report. Pure.

No site can let a bad model pass by what it says: the worst case counts and never the mean, and figures over all sites
must hold without any single one too. A site that lies can keep a good model back; the table shows which one it is.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from common.learning.interval import FEW, wilson
from common.messages import MODELS, GateReport
from common.settings import GateSettings

LEAST_JUDGES = 2
NEAR = 1e-6


@dataclass(frozen=True)
class ClassRow:
    """A class on the held-back inputs of all sites that name it."""

    name: str
    new: bool
    sites: int
    total: int
    champion: float
    """Part recognised."""
    challenger: float
    drop: float
    """Points lost, over all sites or without the one whose word helps most; below 0: gained."""
    lost: int
    """Inputs lost there."""


@dataclass(frozen=True)
class SiteRow:
    """A site's word about old classes, and how many inputs of the new one it has recognised of those that it tried."""

    name: str
    unused: str
    """Why the site does not count as a judge; empty: it does."""
    total: int = 0
    champion: float | None = None
    challenger: float | None = None
    drop: float | None = None
    lost: int = 0
    ece_rise: float | None = None
    unknown_champion: float | None = None
    unknown_challenger: float | None = None
    tried: int = 0
    recognised: int = 0
    tried_by_table: int = 0
    recognised_by_table: int = 0
    exact: float | None = None
    """The challenger's part before its params were rounded for a small difference, if they were."""


@dataclass(frozen=True)
class Verdict:
    """What the gate says. ``asdict`` of it is what campaign.json and a release's lineage hold."""

    passed: bool
    reasons: tuple[str, ...]
    """Why not; none if it has passed."""
    notes: tuple[str, ...]
    """What people should know all the same."""
    classes: tuple[ClassRow, ...]
    sites: tuple[SiteRow, ...]
    worst_class: str = ""
    worst_drop: float | None = None
    worst_site: str = ""
    worst_site_drop: float | None = None
    ece_rise: float | None = None
    unknown: float | None = None
    tried: int = 0
    recognised: int = 0
    interval: tuple[float, float] = (0.0, 1.0)
    """In which 95 % of such trials have the true part of the new class that is recognised."""
    told: str = ""
    """The same in a sentence."""
    tried_by_table: int = 0
    """Inputs of the new class that were tried as at a site that never saw it."""
    recognised_by_table: int = 0
    rounding_cost: float | None = None
    """Points that rounding costs on held-back inputs of old classes, over all sites; below 0: it helped."""


@dataclass
class _Findings:
    reasons: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def judge_challenger(
    new_class: str,
    rules: GateSettings,
    asked: Iterable[str],
    reports: Mapping[str, GateReport],
    missing: Mapping[str, str],
    notes: Iterable[str] = (),
    faults: Iterable[str] = (),
) -> Verdict:
    """Judge a challenger by what sites report.

    Args:
        asked: all sites of the campaign, those included that were not there to be asked.
        reports: site -> its checked answer.
        missing: sites without a usable answer -> why.
        notes: what to say in addition.
        faults: why it does not pass, whatever the sites say.
    """
    found = _Findings(list(faults), list(notes))
    names = sorted({*asked, *reports, *missing})
    sites = tuple(
        _site(name, reports[name], new_class) if name in reports else SiteRow(name, missing.get(name, "not asked"))
        for name in names
    )
    judges = [site for site in sites if not site.unused]
    needed = max(LEAST_JUDGES, math.ceil(rules.quorum * len(names)))
    if len(judges) < needed:
        why = "; ".join(f"{site.name}: {site.unused}" for site in sites if site.unused)
        found.reasons.append(f"{len(judges)} site(s) have judged and {needed} must" + (f" ({why})" if why else ""))
    honest = {site.name: reports[site.name] for site in judges}
    classes = _classes(honest, new_class, rules.slack)
    worst_class = _old_classes(classes, rules, found, len(honest))
    worst_site = _old_sites(judges, rules, found)
    ece_rise = _calibration(judges, rules, found)
    unknown = _unknown(judges, rules, found)
    tried, recognised = _new_class(judges, new_class, rules, found)
    low, high = wilson(recognised, tried)
    return Verdict(
        not found.reasons,
        tuple(found.reasons),
        tuple(found.notes),
        classes,
        sites,
        worst_class.name if worst_class else "",
        worst_class.drop if worst_class else None,
        worst_site.name if worst_site else "",
        worst_site.drop if worst_site else None,
        ece_rise,
        unknown,
        tried,
        recognised,
        (low, high),
        told_interval(new_class, recognised, tried),
        sum(site.tried_by_table for site in judges),
        sum(site.recognised_by_table for site in judges),
        _rounding_cost(judges),
    )


def told_interval(new_class: str, right: int, tried: int) -> str:
    """Return in a sentence how well the new class is recognised, and how little that proves."""
    if not tried:
        return f"no site could try whether {new_class!r} is recognised"
    low, high = wilson(right, tried)
    few = f"; {tried} inputs prove little" if tried < FEW else ""
    interval = f"95 % interval {low:.0%} to {high:.0%}{few}"
    return f"{right} of {tried} inputs of {new_class!r} recognised, each left out once; {interval}"


def _site(name: str, report: GateReport, new_class: str) -> SiteRow:
    scalars = report.scalars
    total = int(scalars.get("num-held-back", 0))
    sides = [scalars.get(f"accuracy-{model}") for model in MODELS]
    champion, challenger = sides
    if not total:
        return SiteRow(name, "it has nothing of old classes held back, or its policy does not let out how much")
    if champion is None or challenger is None:
        return SiteRow(name, "its policy does not let out accuracy-champion and accuracy-challenger", total)
    if why := _contradiction(report, new_class, total, (champion, challenger)):
        return SiteRow(name, why, total)
    eces = [scalars.get(f"ece-{model}") for model in MODELS]
    rise = eces[1] - eces[0] if eces[0] is not None and eces[1] is not None else None
    tried, recognised = report.folds
    return SiteRow(
        name,
        "",
        total,
        champion,
        challenger,
        100 * (champion - challenger),
        round(total * (champion - challenger)),
        rise,
        scalars.get("unknown-champion"),
        scalars.get("unknown-challenger"),
        tried,
        recognised,
        *report.by_table,
        scalars.get("accuracy-exact"),
    )


def _contradiction(report: GateReport, new_class: str, total: int, sides: tuple[float, float]) -> str:
    """Return why a report cannot be true; empty if it can."""
    old = [row for name, row in report.per_class.items() if name != new_class]
    if not old:
        return ""
    if sum(row[0] for row in old) != total:
        return "its classes have another number of inputs than it says"
    rights = [sum(row[place] for row in old) / total for place in (1, 2)]
    if any(abs(right - side) > NEAR for right, side in zip(rights, sides, strict=True)):
        return "its classes and its accuracy contradict each other"
    return ""


def _classes(reports: Mapping[str, GateReport], new_class: str, slack: int) -> tuple[ClassRow, ...]:
    rows = []
    for name in sorted({name for report in reports.values() for name in report.per_class}):
        sites = {site: report.per_class[name] for site, report in reports.items() if name in report.per_class}
        total, champion, challenger = _sums(sites.values())
        if not total:
            continue
        drop, lost = _worst_drop(list(sites.values()), slack)
        rows.append(
            ClassRow(name, name == new_class, len(sites), total, champion / total, challenger / total, drop, lost)
        )
    return tuple(rows)


def _sums(rows: Iterable[tuple[int, int, int]]) -> tuple[int, int, int]:
    found = list(rows)
    return sum(row[0] for row in found), sum(row[1] for row in found), sum(row[2] for row in found)


def _worst_drop(rows: list[tuple[int, int, int]], slack: int) -> tuple[float, int]:
    """Return points and inputs lost over all rows or all but one: the most points where more inputs than the slack are
    lost, if that is anywhere."""
    found = []
    for part in (rows, *([*rows[:place], *rows[place + 1 :]] for place in range(len(rows)))):
        total, champion, challenger = _sums(part)
        if total:
            found.append((100 * (champion - challenger) / total, champion - challenger))
    return max(found, key=lambda one: (one[1] > slack, one[0]))


def _old_classes(classes: tuple[ClassRow, ...], rules: GateSettings, found: _Findings, judges: int) -> ClassRow | None:
    old = [row for row in classes if not row.new]
    if not old and judges:
        found.notes.append("no site names its classes, so that old classes are judged together and not each")
    for row in old:
        if row.drop > rules.most_drop and row.lost > rules.slack:
            found.reasons.append(
                f"{row.name!r} falls by {row.drop:.1f} points ({row.lost} inputs); gate.most-drop is "
                f"{rules.most_drop:g}"
            )
        if row.sites == 1:
            found.notes.append(f"{row.name!r} is judged by one site only")
    return max(old, key=lambda row: row.drop, default=None)


def _old_sites(judges: list[SiteRow], rules: GateSettings, found: _Findings) -> SiteRow | None:
    for site in judges:
        assert site.drop is not None
        if site.drop > rules.most_site_drop and site.lost > rules.slack:
            found.reasons.append(
                f"{site.name} falls by {site.drop:.1f} points on old classes ({site.lost} inputs); gate.most-site-drop "
                f"is {rules.most_site_drop:g}"
            )
    return max(judges, key=lambda site: site.drop or 0.0, default=None)


def _calibration(judges: list[SiteRow], rules: GateSettings, found: _Findings) -> float | None:
    rows = [(site.total, site.ece_rise) for site in judges if site.ece_rise is not None]
    if not rows:
        found.notes.append("no site lets out its calibration, which is not judged")
        return None
    parts = (rows, *([*rows[:place], *rows[place + 1 :]] for place in range(len(rows))))
    worst = max(sum(n * rise for n, rise in part) / sum(n for n, _ in part) for part in parts if part)
    if worst > rules.most_ece_rise:
        found.reasons.append(
            f"the calibration error rises by {worst:.3f}; gate.most-ece-rise is {rules.most_ece_rise:g}"
        )
    return worst


def _unknown(judges: list[SiteRow], rules: GateSettings, found: _Findings) -> float | None:
    measured = [site for site in judges if site.unknown_challenger is not None]
    if not measured:
        found.notes.append("no site could try whether the new class, if it were hidden, is told to be unknown")
    for site in measured:
        assert site.unknown_challenger is not None
        before = 1.0 if site.unknown_champion is None else site.unknown_champion
        if site.unknown_challenger < min(rules.least_unknown, before):  # no worse than the model in use will do
            found.reasons.append(
                f"at {site.name} the hidden new class is told from known ones with {site.unknown_challenger:.2f}, and "
                f"{before:.2f} before; gate.least-unknown is {rules.least_unknown:g}"
            )
    return min((site.unknown_challenger for site in measured if site.unknown_challenger is not None), default=None)


def _rounding_cost(judges: list[SiteRow]) -> float | None:
    rows = [
        (site.total, site.exact - site.challenger)
        for site in judges
        if site.exact is not None and site.challenger is not None
    ]
    return 100 * sum(n * lost for n, lost in rows) / sum(n for n, _ in rows) if rows else None


def _new_class(judges: list[SiteRow], new_class: str, rules: GateSettings, found: _Findings) -> tuple[int, int]:
    having = [site for site in judges if site.tried]
    if not having:
        found.reasons.append(
            f"no site tells how well {new_class!r} is recognised; has one of them at least 2 inputs of it, under this "
            "name, and may class names leave it?"
        )
    for site in having:
        if site.recognised < rules.least_recall * site.tried - NEAR:
            found.reasons.append(
                f"{site.name} recognises {site.recognised} of {site.tried} inputs of {new_class!r}; gate.least-recall "
                f"is {rules.least_recall:g}"
            )
    for site in judges:
        if site.recognised_by_table < rules.least_by_table * site.tried_by_table - NEAR:
            found.reasons.append(
                f"as a site that never saw {new_class!r}, {site.name} recognises {site.recognised_by_table} of "
                f"{site.tried_by_table} inputs of it; gate.least-by-table is {rules.least_by_table:g}"
            )
    if len(having) == 1:
        found.notes.append(f"how well {new_class!r} is recognised, {having[0].name} alone tells")
    return sum(site.tried for site in having), sum(site.recognised for site in having)
