"""The gate: what a challenger must reach, and what no site can hide by what it says."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import pytest

from common.learning.interval import wilson
from common.messages import GateReport
from common.settings import GateSettings
from server.campaigns.gate import Verdict, judge_challenger

NEW = "dent"
RULES = GateSettings()
Counts = Mapping[str, tuple[int, int, int]]

GOOD: Counts = {"crack": (20, 18, 18), "rust": (20, 19, 18)}


def report(
    counts: Counts = GOOD,
    folds: tuple[int, int] = (0, 0),
    ece: tuple[float, float] = (0.05, 0.06),
    unknown: tuple[float, float] | None = None,
    by_table: tuple[int, int] = (0, 0),
) -> GateReport:
    """A truthful report: total, right by the champion, right by the challenger of each class."""
    old = [row for name, row in counts.items() if name != NEW]
    total = sum(row[0] for row in old)
    found = {"num-held-back": float(total), "ece-champion": ece[0], "ece-challenger": ece[1]}
    if total:
        found |= {
            "accuracy-champion": sum(r[1] for r in old) / total,
            "accuracy-challenger": sum(r[2] for r in old) / total,
        }
    if unknown:
        found |= {"unknown-champion": unknown[0], "unknown-challenger": unknown[1], "num-unknown": 10.0}
    return GateReport(found, dict(counts), folds, by_table)


def judged(reports: Mapping[str, GateReport], missing: Mapping[str, str] | None = None, **rules: Any) -> Verdict:
    return judge_challenger(NEW, dataclasses.replace(RULES, **rules), [], reports, missing or {})


HONEST = {"a": report(folds=(10, 10), unknown=(0.8, 0.9)), "b": report(), "c": report()}


def test_a_good_challenger_passes_and_the_verdict_says_by_what() -> None:
    found = judged(HONEST)
    assert found.passed and not found.reasons
    assert [(row.name, row.total, row.sites) for row in found.classes] == [("crack", 60, 3), ("rust", 60, 3)]
    assert found.worst_class == "rust" and found.worst_drop == pytest.approx(5.0)
    assert found.worst_site_drop == pytest.approx(2.5)
    assert (found.tried, found.recognised) == (10, 10)
    assert "10 of 10" in found.told and "72% to 100%" in found.told and "10 inputs prove little" in found.told
    assert found.unknown == 0.9 and found.ece_rise == pytest.approx(0.01)
    json.dumps(dataclasses.asdict(found))


def with_site(name: str, changed: GateReport) -> dict[str, GateReport]:
    return {**HONEST, name: changed}


POISONED = {"crack": (20, 18, 4), "rust": (20, 19, 3)}
SWAPPED = {"crack": (20, 18, 9), "rust": (20, 19, 19)}
"""The new class was labelled as what others know as crack."""
GIANT = {"crack": (10**8, 0, 10**8), "rust": (10**8, 0, 10**8)}

BAD: dict[str, tuple[dict[str, GateReport], str]] = {
    "poisoned": ({name: report(POISONED, (10, 10)) for name in "abc"}, "'crack' falls by 70.0 points"),
    "labels swapped": ({"a": HONEST["a"], "b": report(SWAPPED), "c": report(SWAPPED)}, "'crack' falls by"),
    "poisoned, and one site lies hugely": (
        {"a": report(GIANT, (10, 10)), "b": report(POISONED), "c": report(POISONED)},
        "'crack' falls by 70.0 points",
    ),
    "poisoned, and one site gives no names of classes": (
        {"a": GateReport({**report(POISONED).scalars}, {}, (10, 10)), "b": report(POISONED), "c": HONEST["c"]},
        "a falls by",
    ),
    "one site alone suffers": (with_site("c", report({"crack": (20, 18, 12), "rust": (20, 19, 19)})), "c falls by"),
    "the new class is not recognised": (with_site("a", report(folds=(10, 7))), "a recognises 7 of 10"),
    "it is recognised well at one site and badly at another": (
        {"a": report(folds=(1000, 1000)), "b": report(folds=(10, 2)), "c": report()},
        "b recognises 2 of 10",
    ),
    "sites that never saw the class would not know it": (
        with_site("a", report(folds=(10, 10), by_table=(10, 7))),
        "as a site that never saw 'dent', a recognises 7 of 10",
    ),
    "nobody tells of the new class": (with_site("a", report()), "no site tells how well 'dent'"),
    "no longer sure of the right things": (
        {"a": report(folds=(9, 9), ece=(0.05, 0.3)), "b": report(ece=(0.05, 0.3)), "c": report(ece=(0.05, 0.3))},
        "the calibration error rises by 0.250",
    ),
    "calibration, and one site lies hugely": (
        {
            "a": report(GIANT, (9, 9), ece=(0.9, 0.0)),
            "b": report(ece=(0.05, 0.3)),
            "c": report(ece=(0.05, 0.3)),
        },
        "the calibration error rises by 0.250",
    ),
    "the unknown is no longer seen": (with_site("b", report(unknown=(0.9, 0.5))), "at b the hidden new class"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_challenger_does_not_pass(case: str) -> None:
    reports, reason = BAD[case]
    found = judged(reports)
    assert not found.passed
    assert any(reason in one for one in found.reasons), found.reasons


def with_scalar(name: str, value: float) -> GateReport:
    return dataclasses.replace(report(), scalars={**report().scalars, name: value})


UNUSED: dict[str, tuple[GateReport, str]] = {
    "nothing held back": (report({}), "nothing of old classes held back"),
    "accuracies kept back by its policy": (GateReport({"num-held-back": 40.0}), "does not let out accuracy-champion"),
    "other totals": (with_scalar("num-held-back", 41.0), "another number of inputs"),
    "classes worse than told": (with_scalar("accuracy-challenger", 1.0), "contradict each other"),
}


@pytest.mark.parametrize("case", UNUSED)
def test_a_report_that_cannot_be_is_not_used_and_counts_as_missing(case: str) -> None:
    nonsense, why = UNUSED[case]
    found = judged(with_site("c", nonsense), quorum=1.0)
    assert not found.passed and "2 site(s) have judged and 3 must" in found.reasons[0] and why in found.reasons[0]
    assert [site.unused == "" for site in found.sites] == [True, True, False]
    assert judged(with_site("c", nonsense)).passed


def test_too_few_reports_do_not_pass_and_the_missing_are_named() -> None:
    one = {"a": HONEST["a"]}
    found = judged(one, {"b": "no-reply: no reply within the deadline"}, quorum=0.0)
    assert found.reasons == ("1 site(s) have judged and 2 must (b: no-reply: no reply within the deadline)",)
    assert not judged({}).passed
    assert judged(HONEST, {"d": "away"}).passed and not judged(HONEST, dict.fromkeys("defg", "away")).passed


def test_a_site_that_was_not_asked_counts_against_the_quorum() -> None:
    found = judge_challenger(NEW, RULES, ["a", "b", "c", "x", "y", "z", "w"], HONEST, {})
    assert "3 site(s) have judged and 4 must" in found.reasons[0]


def test_one_lost_input_is_no_drop_whatever_the_points() -> None:
    few = {"crack": (4, 4, 3)}
    sites = {"a": report(few, (10, 10)), "b": report({"crack": (4, 4, 4)})}
    assert judged(sites).passed
    assert not judged(sites, slack=0).passed
    assert not judged({**sites, "b": report(few)}).passed


def test_a_drop_that_shows_only_without_one_site_counts_though_a_smaller_part_has_more_points() -> None:
    # Without b one input of four is lost, which the slack forgives; over both it is nine of sixty.
    sites = {"a": report({"crack": (4, 4, 3)}, (10, 10)), "b": report({"crack": (56, 56, 48)})}
    assert any("'crack' falls by" in reason for reason in judged(sites, most_site_drop=100.0).reasons)


def test_an_unknown_that_was_never_told_well_is_not_held_against_the_challenger() -> None:
    assert judged(with_site("b", report(unknown=(0.4, 0.5)))).passed


def test_what_is_not_measured_is_said() -> None:
    quiet = {
        name: GateReport({k: v for k, v in one.scalars.items() if not k.startswith("ece")}, {}, one.folds)
        for name, one in HONEST.items()
    }
    hidden = {name: value for name, value in quiet["a"].scalars.items() if "unknown" not in name}
    quiet["a"] = dataclasses.replace(quiet["a"], scalars=hidden)
    notes = " | ".join(judged(quiet).notes)
    for part in ("no site names its classes", "lets out its calibration", "told to be unknown", "a alone tells"):
        assert part in notes


@pytest.mark.parametrize(
    ("right", "tried", "low", "high"), [(10, 10, 0.722, 1.0), (0, 10, 0.0, 0.278), (5, 10, 0.237, 0.763), (0, 0, 0, 1)]
)
def test_the_interval_is_wilsons(right: int, tried: int, low: float, high: float) -> None:
    assert list(wilson(right, tried)) == pytest.approx([low, high], abs=1e-3)
