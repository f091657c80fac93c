"""Two models side by side at a site, on real handwritten digits: nothing but figures comes out, and they are right."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from client.data.held import Part
from client.data.sites import open_site_data
from client.gate import MOST_FOLDS, Sides, area_under_curve, judge_models
from client.site import Site
from common.checkpoint import Checkpoint, RunState
from common.errors import RequestError
from common.learning.episode import SiteData, all_of
from common.learning.heads import class_sums
from common.learning.threads import threads
from common.messages import (
    GATE_SCALARS,
    GateReport,
    GateRequest,
    Request,
    decode_gate_report,
    decode_gate_request,
    encode_gate_report,
    encode_gate_request,
)
from common.plan import Plan, plan_for
from common.releases.artefact import Artefact
from common.settings import Settings, Value
from server.campaigns.gate import judge_challenger
from server.campaigns.models import candidate_of
from simulations.reference import centralised_reptile
from tests.client.small import own_settings, settings_with

NEW = "9"
SETTINGS = settings_with(
    model__width=16, data__hold_back=0.25, inner__steps=3, run__rounds=60, outer__sites_per_round=0, outer__anneal=False
)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with threads(1):
        yield


def some(data: SiteData, counts: Mapping[str, int]) -> SiteData:
    return Part(data, {name: range(count) for name, count in counts.items()})


def split_of(data: SiteData, held: int) -> tuple[SiteData, SiteData]:
    """Return the first inputs of each class to train on and the last to judge on."""
    rows = {name: data.count(name) for name in data.classes()}
    train = Part(data, {name: range(count - held) for name, count in rows.items()})
    return train, Part(data, {name: range(count - held, count) for name, count in rows.items() if count > held})


@pytest.fixture(scope="module")
def sites(digit_sites: Path) -> dict[str, SiteData]:
    return {f"site-{n}": open_site_data(digit_sites, f"site-{n}", SETTINGS.data, None) for n in range(4)}


@pytest.fixture(scope="module")
def learned(sites: Mapping[str, SiteData]) -> Checkpoint:
    """What rounds without the new class come to."""
    old: dict[str, SiteData] = {
        name: Part(data, {c: range(15) for c in data.classes() if c != NEW}) for name, data in sites.items()
    }
    return Checkpoint(RunState(60, centralised_reptile(old, SETTINGS), {}, {}, {}), SETTINGS, "test")


@pytest.fixture(scope="module")
def random(learned: Checkpoint) -> Checkpoint:
    """A poisoned model: params of the right form that nothing was learned by, and far from any use."""
    noise = torch.Generator().manual_seed(1)
    params = {name: torch.randn(value.shape, generator=noise) for name, value in learned.state.params.items()}
    return Checkpoint(RunState(1, params, {}, {}, {}), SETTINGS, "test")


def site_with(sites: Mapping[str, SiteData], name: str = "site-0", new: int = 10, **own: Value) -> Site:
    site = Site(own_settings(name, "/nowhere", **own), SETTINGS)
    data = sites[name]
    whole = some(data, {c: 20 if c != NEW else new for c in data.classes()})
    train, held = split_of(whole, 5)
    if new:
        train = Part(whole, {c: range(15 if c != NEW else new) for c in whole.classes()})
        held = Part(whole, {c: range(15, 20) for c in whole.classes() if c != NEW})
    site.__dict__["parts"], site.__dict__["data"] = (train, held), train
    return site


def candidates(champion: Checkpoint, challenger: Checkpoint) -> GateRequest:
    plan = plan_for(SETTINGS)

    def of(one: Checkpoint) -> Artefact:
        return Artefact(SETTINGS, one.state.params, one.state.prototypes)

    return GateRequest(7, NEW, candidate_of(of(champion), plan), candidate_of(of(challenger), plan))


def decode_request_of(asked: GateRequest, plan: Plan) -> Request:
    return Request(asked.round, asked.challenger.params, plan.slots.pack(plan.initial_slots).numpy(), False)


def with_table(checkpoint: Checkpoint, data: SiteData, name: str, called: str) -> Checkpoint:
    """Return a checkpoint with a class of a site's class table, as sites send it, under some name."""
    everything = all_of(data)
    learner = plan_for(SETTINGS).learner
    support = everything.support
    buffers = learner.freeze(checkpoint.state.params, support)
    sums, counts = class_sums(
        learner.embed(checkpoint.state.params, buffers, support.inputs), support.labels, support.way
    )
    place = everything.classes.index(name)
    table = {called: (sums[place], int(counts[place]))}
    return replace(checkpoint, state=replace(checkpoint.state, prototypes=table))


def test_a_site_judges_both_models_on_what_it_holds_back(
    sites: Mapping[str, SiteData], learned: Checkpoint, random: Checkpoint
) -> None:
    found = site_with(sites).gate(candidates(learned, random))
    assert found.scalars["num-held-back"] == 45 and sum(total for total, _, _ in found.per_class.values()) == 45
    assert found.per_class.keys() == {str(digit) for digit in range(9)}
    good, bad = (found.scalars[f"accuracy-{model}"] for model in ("champion", "challenger"))
    assert good > 0.85 and bad < good - 0.1
    assert "accuracy-exact" not in found.scalars
    right = [sum(row[place] for row in found.per_class.values()) / 45 for place in (1, 2)]
    assert right == pytest.approx([good, bad])
    assert found.scalars.keys() <= GATE_SCALARS


def test_what_rounding_costs_is_told_by_judging_the_challenger_before_it_too(
    sites: Mapping[str, SiteData], learned: Checkpoint, random: Checkpoint
) -> None:
    both = candidates(learned, random)
    found = site_with(sites).gate(replace(both, exact=both.champion.params))
    assert found.scalars["accuracy-exact"] == found.scalars["accuracy-champion"] > found.scalars["accuracy-challenger"]


def test_the_same_model_on_both_sides_does_the_same(sites: Mapping[str, SiteData], learned: Checkpoint) -> None:
    found = site_with(sites).gate(candidates(learned, learned))
    for figure in ("accuracy", "nll", "ece", "unknown"):
        assert found.scalars[f"{figure}-champion"] == found.scalars[f"{figure}-challenger"]
    assert all(before == after for _, before, after in found.per_class.values())


def test_the_new_class_is_left_out_one_by_one_and_hidden_as_a_whole(
    sites: Mapping[str, SiteData], learned: Checkpoint
) -> None:
    found = site_with(sites).gate(candidates(learned, learned))
    tried, recognised = found.folds
    assert tried == 10 and 8 <= recognised <= 10
    assert found.scalars["num-unknown"] == 10 and found.scalars["unknown-challenger"] > 0.7


def test_a_left_out_input_is_not_in_the_model_that_it_is_tried_on(learned: Checkpoint) -> None:
    """Ten inputs of the new class that look like ten different things: none is recognised by the others."""
    shapes = torch.rand(10, 1, 8, 8, generator=torch.Generator().manual_seed(0)).round()
    old = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(1)).expand(8, -1, -1, -1)

    class Made:
        def classes(self) -> Sequence[str]:
            return [NEW, "a", "b"]

        def count(self, name: str) -> int:
            return 10 if name == NEW else 8

        def inputs(self, name: str, rows: Sequence[int]) -> torch.Tensor:
            if name == NEW:
                return shapes[list(rows)]
            return (old + (0.5 if name == "b" else 0))[list(rows)]

    sharp = Checkpoint(learned.state, SETTINGS.with_values({"inner.steps": 0}), "test")
    report = judge_models(Sides(sharp, sharp), Made(), Part(Made(), {}), NEW)
    assert report.folds[0] == 10 and report.folds[1] < 10
    assert report.scalars == {"num-held-back": 0.0}


def test_held_back_inputs_of_the_new_class_count_as_left_out(
    sites: Mapping[str, SiteData], learned: Checkpoint
) -> None:
    site = site_with(sites, new=0)
    whole = sites["site-0"]
    train = Part(whole, {c: range(12) for c in whole.classes()})
    held = Part(whole, {c: range(15, 20) for c in whole.classes()})
    site.__dict__["parts"], site.__dict__["data"] = (train, held), train
    found = site.gate(candidates(learned, learned))
    assert found.folds[0] == 12 + 5 and found.per_class[NEW][0] == 5
    assert found.scalars["num-held-back"] == 45


def test_of_very_many_inputs_only_some_are_left_out(sites: Mapping[str, SiteData], learned: Checkpoint) -> None:
    data = sites["site-0"]
    many = Part(data, {"0": range(5), "1": range(5), NEW: [row % 20 for row in range(100)]})
    fast = Checkpoint(learned.state, SETTINGS.with_values({"inner.steps": 0}), "test")
    assert judge_models(Sides(fast, fast), many, Part(data, {}), NEW).folds[0] == MOST_FOLDS


def test_what_the_table_of_the_new_class_costs_an_old_one_is_seen_where_the_new_one_is_not(
    sites: Mapping[str, SiteData], learned: Checkpoint
) -> None:
    """Threes that were labelled as the new class on purpose; nothing moves in adaptation, so that they lie together."""
    still = Checkpoint(learned.state, SETTINGS.with_values({"inner.steps": 0}), "test")
    swapped = with_table(still, some(sites["site-1"], dict.fromkeys("012345678", 15)), "3", NEW)
    whole = some(sites["site-2"], dict.fromkeys("012345678", 20))
    train = Part(whole, {name: range(8) for name in whole.classes()})
    held = Part(whole, {name: range(8, 20) for name in whole.classes()})
    found = judge_models(Sides(still, swapped), train, held, NEW)
    assert found.folds == found.by_table == (0, 0) and "unknown-champion" not in found.scalars
    total, before, after = found.per_class["3"]
    assert after < before - 1 and before <= total and NEW not in found.per_class
    good = site_with(sites).gate(candidates(learned, learned))
    verdict = judge_challenger(NEW, SETTINGS.gate, "abc", {"a": good, "b": found, "c": found}, {})
    assert not verdict.passed and verdict.worst_class == "3"


def test_labels_swapped_at_a_site_that_has_both_classes_are_seen_there(
    sites: Mapping[str, SiteData], learned: Checkpoint
) -> None:
    site = site_with(sites, new=0)
    whole = sites["site-0"]

    class Swapped(Part):
        def inputs(self, name: str, rows: Sequence[int]) -> torch.Tensor:
            return whole.inputs("3", [row + 8 for row in rows]) if name == NEW else super().inputs(name, rows)

    train = Swapped(whole, {**{c: range(8) for c in "012345678"}, NEW: range(10)})
    site.__dict__["parts"], site.__dict__["data"] = (train, site.held_back), train
    tried, recognised = site.gate(candidates(learned, learned)).folds
    assert tried == 10 and recognised < 8


def test_the_new_class_is_tried_as_at_a_site_that_never_saw_it(
    sites: Mapping[str, SiteData], learned: Checkpoint
) -> None:
    table = with_table(learned, some(sites["site-1"], dict.fromkeys("0123456789", 15)), NEW, NEW)
    site = site_with(sites)
    assert site.gate(candidates(learned, learned)).by_table == (0, 0)
    tried, recognised = site.gate(candidates(learned, table)).by_table
    assert tried == 10 and recognised >= 5
    wrong = with_table(learned, some(sites["site-1"], dict.fromkeys("012345678", 15)), "3", NEW)
    assert site.gate(candidates(learned, wrong)).by_table[1] < recognised


def test_an_input_is_taken_out_of_the_table_before_it_is_tried_by_it(
    sites: Mapping[str, SiteData], learned: Checkpoint
) -> None:
    """With a table of the site's own inputs alone, what is left for each is the mean of the others."""
    site = site_with(sites, new=6, class_tables=True, min_count=3)
    still = Checkpoint(learned.state, SETTINGS.with_values({"inner.steps": 0}), "test")
    plan = site.plan
    asked = candidates(still, still)
    request = decode_request_of(asked, plan)
    own = site.class_table(request)
    place = own.names.index(NEW)
    sums = torch.from_numpy(own.sums[place].copy())
    state = RunState(1, learned.state.params, {}, {}, {}, prototypes={NEW: (sums, own.counts[place])})
    request_gate = candidates(still, Checkpoint(state, SETTINGS, "test"))
    embeddings = site._in_table(request_gate)
    assert embeddings is not None and torch.allclose(embeddings.sum(0), sums, atol=1e-4)
    assert site.gate(request_gate).by_table[0] == 6
    alone = RunState(1, learned.state.params, {}, {}, {}, prototypes={NEW: (embeddings[0], 1)})
    sides = Sides(still, Checkpoint(alone, still.settings, "test"))
    one = Part(site.data, {**{c: range(5) for c in "012345678"}, NEW: [0]})
    assert judge_models(sides, one, site.held_back, NEW, embeddings[:1]).by_table == (0, 0)


def test_a_poisoned_challenger_does_not_pass(
    sites: Mapping[str, SiteData], learned: Checkpoint, random: Checkpoint
) -> None:
    good, bad = (
        {
            name: site_with(sites, name, new=10 if name == "site-0" else 0).gate(candidates(learned, one))
            for name in sites
        }
        for one in (learned, random)
    )
    assert judge_challenger(NEW, SETTINGS.gate, sites, good, {}).passed
    assert not judge_challenger(NEW, SETTINGS.gate, sites, bad, {}).passed


def test_a_site_whose_class_names_may_not_leave_tells_nothing_of_classes(
    sites: Mapping[str, SiteData], learned: Checkpoint
) -> None:
    found = site_with(sites, class_names=False).gate(candidates(learned, learned))
    assert not found.per_class and found.folds == (0, 0)
    assert not [name for name in found.scalars if "unknown" in name] and found.scalars["accuracy-champion"] > 0.8


def test_a_model_that_diverges_is_reported_as_never_right(sites: Mapping[str, SiteData], learned: Checkpoint) -> None:
    huge = {name: value * 1e30 for name, value in learned.state.params.items()}
    found = site_with(sites).gate(candidates(learned, Checkpoint(RunState(1, huge, {}, {}, {}), SETTINGS, "test")))
    assert found.scalars["accuracy-challenger"] < 0.5 < found.scalars["accuracy-champion"]
    assert all(np.isfinite(value) for value in found.scalars.values())
    assert decode_gate_report(encode_gate_report(found)) == found


def test_the_request_fits_and_one_of_another_network_does_not(learned: Checkpoint) -> None:
    plan = plan_for(SETTINGS)
    content = encode_gate_request(candidates(learned, learned), plan.agreed.digest)
    assert decode_gate_request(content, plan.agreed).round == 7
    wider: Settings = SETTINGS.with_values({"model.width": 8})
    with pytest.raises(RequestError, match="manifest"):
        decode_gate_request(content, plan_for(wider).agreed)


@pytest.mark.parametrize(
    ("positive", "negative", "area"),
    [
        ([3, 4], [1, 2], 1.0),
        ([1, 2], [3, 4], 0.0),
        ([1, 1], [1, 1], 0.5),
        ([1, 3], [2], 0.5),
        ([2], [1, 2, 3, 4], 0.375),
    ],
)
def test_the_area_is_the_part_of_pairs_in_order(positive: list[float], negative: list[float], area: float) -> None:
    assert area_under_curve(np.array(positive, float), np.array(negative, float)) == area


def test_an_area_of_what_is_no_number_is_no_number() -> None:
    assert np.isnan(area_under_curve(np.array([np.nan]), np.array([1.0])))


def test_a_report_is_plain_figures(sites: Mapping[str, SiteData], learned: Checkpoint) -> None:
    content = encode_gate_report(site_with(sites).gate(candidates(learned, learned)))
    assert not content.array_records and isinstance(decode_gate_report(content), GateReport)
