"""A site at work: what it draws, what it computes, what it reports, and what it keeps to."""

import copy
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from client.settings import SiteSettings
from client.site import Site
from common.errors import SettingsError, SiteDataError
from common.learning.episode import Episode, Examples, SiteData
from common.learning.learner import Learner
from common.learning.params import Params
from common.learning.reptile import Adapted, adapt
from common.learning.threads import threads
from common.messages import SCALARS, Request, Update
from common.plan import plan_for
from common.settings import InnerLoop, Settings, Value
from tests.client.small import NumberedData, first_request, own_settings, rows_in, settings_with, site_on

NETWORKS = '''
import math
import torch
from torch import nn

class Watching(nn.Module):
    """Records with how many threads it is computed."""

    def __init__(self, layers, seen):
        super().__init__()
        self.layers, self.seen = layers, seen

    def forward(self, inputs):
        self.seen.append(torch.get_num_threads())
        return self.layers(inputs)

SEEN = []

def double(shape):
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 6, dtype=torch.float64))

def watched(shape):
    return Watching(nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 6)), SEEN)
'''


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with threads(1):
        yield


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The name of an installed module with networks of a user's own."""
    folder = tmp_path_factory.mktemp("installed")
    (folder / "site_test_networks.py").write_text(NETWORKS, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield "site_test_networks"
    sys.modules.pop("site_test_networks", None)


def site_with(data: SiteData, settings: Settings, **own: Value) -> Site:
    site = Site(own_settings("line-3", "/nowhere", **own), settings)
    site.__dict__["data"] = data
    return site


def assert_same(found: Update, expected: Update) -> None:
    assert np.array_equal(found.delta, expected.delta) and np.array_equal(found.slots, expected.slots)
    for name in (found.scalars | expected.scalars).keys() - {"seconds"}:  # type: ignore[operator]
        assert found.scalars[name] == expected.scalars[name]


def drawn(episode: Episode) -> tuple[set[int], set[int]]:
    return rows_in(episode.support.inputs), rows_in(episode.query.inputs)


MANY = dict.fromkeys("abcdef", 20)


# -------------------------------------------------------------------------------------------- three steps


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("judge", [False, True])
def test_preparing_adapting_and_replying_is_what_train_does(digit_sites: Path, optimizer: str, judge: bool) -> None:
    settings = settings_with(inner__optimizer=optimizer, inner__learning_rate=0.01)
    request, site = first_request(settings, judge=judge), site_on(digit_sites, settings)
    work = site.prepare(request)
    assert_same(site.reply(work, site.adapt(work)), site.train(request))


def test_an_update_is_adapted_minus_initial(digit_sites: Path) -> None:
    settings = settings_with()
    site, request = site_on(digit_sites, settings), first_request(settings)
    work = site.prepare(request)
    adapted = site.adapt(work)
    found = site.plan.update.unpack(torch.from_numpy(site.reply(work, adapted).delta.copy()))
    initial = site.plan.params.unpack(torch.from_numpy(request.params.copy()))
    assert found.keys() == initial.keys() == adapted.params.keys()
    for name, change in found.items():
        assert torch.equal(change, adapted.params[name] - initial[name])
    assert max(float(change.abs().max()) for change in found.values()) > 0


def test_adapting_twice_from_the_same_work_and_stream_gives_the_same_bits(digit_sites: Path) -> None:
    settings = settings_with()
    site = site_on(digit_sites, settings)
    work = site.prepare(first_request(settings))
    state = work.generator.get_state()
    first = site.reply(work, site.adapt(work))
    work.generator.set_state(state)
    assert_same(site.reply(work, site.adapt(work)), first)


def test_a_request_is_not_changed_by_the_work_on_it(digit_sites: Path) -> None:
    settings = settings_with(inner__optimizer="adam", inner__learning_rate=0.01)
    request = first_request(settings, judge=True)
    before = request.params.copy(), request.slots.copy()
    site = site_on(digit_sites, settings, class_tables=True)
    for step in (site.train, site.evaluate, site.class_table):
        step(request)
    assert np.array_equal(request.params, before[0]) and np.array_equal(request.slots, before[1])


# ---------------------------------------------------------------------------------------------- randomness


def test_the_same_seed_site_and_round_give_the_same_bits(digit_sites: Path) -> None:
    settings = settings_with(inner__augment="affine")
    request = first_request(settings, judge=True)
    first = site_on(digit_sites, settings).train(request)
    torch.manual_seed(99)
    torch.rand(5)
    assert_same(site_on(digit_sites, settings).train(request), first)


def test_the_bits_do_not_depend_on_what_the_site_did_before(digit_sites: Path) -> None:
    settings = settings_with()
    fresh, used = site_on(digit_sites, settings), site_on(digit_sites, settings)
    for number in (1, 2):
        used.train(first_request(settings, number))
    used.evaluate(first_request(settings, 3))
    assert_same(used.train(first_request(settings, 3)), fresh.train(first_request(settings, 3)))


def test_another_round_site_or_seed_draws_another_episode() -> None:
    settings = settings_with()

    def episode(name: str, seed: int, number: int) -> tuple[tuple[str, ...], set[int]]:
        seeded = settings.with_values({"run.seed": seed})
        site = site_with(NumberedData(MANY), seeded)
        site.site = SiteSettings(name, "/nowhere")
        found = site.prepare(first_request(seeded, number)).episode
        return found.classes, drawn(found)[0]

    first = episode("line-3", 0, 1)
    assert episode("line-3", 0, 1) == first
    others = [episode("line-3", 0, 2), episode("line-4", 0, 1), episode("line-3", 1, 1)]
    assert all(other[1] != first[1] for other in others)


def test_over_many_rounds_every_class_is_drawn() -> None:
    settings = settings_with()
    site = site_with(NumberedData(MANY), settings)
    seen = [name for number in range(40) for name in site.prepare(first_request(settings, number)).episode.classes]
    # Each class is missing from 40 draws of 3 of 6 with probability 2 ** -40.
    assert set(seen) == MANY.keys()


def test_judging_does_not_change_the_update(digit_sites: Path) -> None:
    settings = settings_with(inner__augment="affine")
    site = site_on(digit_sites, settings)
    silent, judged = site.train(first_request(settings)), site.train(first_request(settings, judge=True))
    assert np.array_equal(silent.delta, judged.delta)
    assert judged.scalars.keys() - silent.scalars.keys() == SCALARS - {"num-examples", "inner-steps", "seconds"}


def test_rounds_learn_by_the_inner_settings_and_judging_adapts_by_the_adapt_settings(digit_sites: Path) -> None:
    plain, other = settings_with(), settings_with(adapt__steps=0)
    assert np.array_equal(
        site_on(digit_sites, other).train(first_request(other, judge=True)).delta,
        site_on(digit_sites, plain).train(first_request(plain, judge=True)).delta,
    )
    for step in (Site.train, Site.evaluate):
        found = step(site_on(digit_sites, other), first_request(other, judge=True)).scalars
        assert found["nll-after"] == found["nll-before"], "without a step nothing can change"
        found = step(site_on(digit_sites, plain), first_request(plain, judge=True)).scalars
        assert found["nll-after"] != found["nll-before"]


@pytest.mark.parametrize("limit", [1, 2])
def test_a_limit_on_steps_holds_for_judging_too(digit_sites: Path, limit: int) -> None:
    three, limited = settings_with(adapt__steps=3), settings_with(adapt__steps=limit)
    found = site_on(digit_sites, three, max_steps=limit).evaluate(first_request(three))
    assert found == site_on(digit_sites, limited).evaluate(first_request(limited))


# ------------------------------------------------------------------------------------------------ episodes


def test_support_and_query_of_a_round_are_disjoint() -> None:
    settings = settings_with()
    site = site_with(NumberedData(MANY), settings)
    for number in range(1, 20):
        support, query = drawn(site.prepare(first_request(settings, number, judge=True)).episode)
        assert len(support) == 3 * 4 and len(query) == 3 * 5 and not support & query


def test_without_judging_no_query_is_read() -> None:
    settings = settings_with()
    data = NumberedData(MANY)
    episode = site_with(data, settings).prepare(first_request(settings)).episode
    assert len(episode.query) == 0 and len(data.asked) == 3 * 4


def test_no_input_is_support_and_query_when_a_site_is_judged() -> None:
    settings = settings_with(judge__episodes=1, episode__way=6, judge__shot=15)
    data = NumberedData(MANY)
    judged = site_with(data, settings).evaluate(first_request(settings))
    assert judged.scalars["num-query"] == 6 * 5
    assert len(data.asked) == len(set(data.asked)) == 6 * (15 + 5), "an input was read twice in one episode"


def test_a_site_with_fewer_classes_than_the_run_asks_for_uses_all_it_has(digit_sites: Path) -> None:
    settings = settings_with(episode__way=30)
    work = site_on(digit_sites, settings).prepare(first_request(settings))
    assert sorted(work.episode.classes) == [str(digit) for digit in range(10)] and work.episode.support.way == 10


def test_a_site_with_one_class_says_what_to_do() -> None:
    with pytest.raises(SiteDataError, match="add inputs of another class"):
        site_with(NumberedData({"a": 9}), settings_with()).train(first_request(settings_with()))


def test_a_site_whose_classes_have_one_input_each_trains_and_cannot_be_judged() -> None:
    settings = settings_with()
    site = site_with(NumberedData({"a": 1, "b": 1, "c": 1}), settings)
    update = site.train(first_request(settings, judge=True))
    assert update.scalars["num-examples"] == 3 and "accuracy-after" not in update.scalars
    with pytest.raises(SiteDataError, match="add a second input"):
        site.evaluate(first_request(settings))


@pytest.mark.parametrize(("judge", "times"), [(False, 1), (True, 2)])
def test_the_adaptation_that_users_get_is_computed_only_when_it_is_judged(
    digit_sites: Path, monkeypatch: pytest.MonkeyPatch, judge: bool, times: int
) -> None:
    loops: list[InnerLoop] = []
    real = adapt

    def counted(learner: Learner, params: Params, support: Examples, inner: InnerLoop, *rest: Any) -> Adapted:
        loops.append(inner)
        return real(learner, params, support, inner, *rest)

    monkeypatch.setattr("client.site.adapt", counted)
    settings = settings_with()
    site_on(digit_sites, settings).train(first_request(settings, judge=judge))
    assert len(loops) == times


# ------------------------------------------------------------------------------------------ a site's limits


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, (3, 4, 2)),
        ({"max_way": 2}, (2, 4, 2)),
        ({"max_shot": 1}, (3, 1, 2)),
        ({"max_steps": 1}, (3, 4, 1)),
        ({"max_way": 2, "max_shot": 3, "max_steps": 1}, (2, 3, 1)),
        ({"max_way": 9, "max_shot": 9, "max_steps": 9}, (3, 4, 2)),
        ({"max_way": 0, "max_shot": 0, "max_steps": 0}, (3, 4, 2)),
    ],
)
def test_the_sites_limits_bound_way_shot_and_steps_of_training(
    limits: dict[str, int], expected: tuple[int, int, int]
) -> None:
    settings = settings_with()
    site = site_with(NumberedData(MANY), settings, **limits)
    work = site.prepare(first_request(settings))
    scalars = site.reply(work, site.adapt(work)).scalars
    way, shot, steps = expected
    assert (work.episode.support.way, len(work.episode.support)) == (way, way * shot)
    assert (scalars["num-examples"], scalars["inner-steps"]) == (way * shot, steps)


def test_a_limit_on_steps_is_what_fewer_steps_compute(digit_sites: Path) -> None:
    two, one = settings_with(inner__steps=2), settings_with(inner__steps=1)
    limited = site_on(digit_sites, two, max_steps=1).train(first_request(two))
    assert np.array_equal(limited.delta, site_on(digit_sites, one).train(first_request(one)).delta)


def test_the_sites_limits_bound_judging_too() -> None:
    settings = settings_with(judge__episodes=1)
    data = NumberedData(MANY)
    judged = site_with(data, settings, max_way=2, max_shot=1).evaluate(first_request(settings))
    assert judged.scalars["num-query"] == 2 * 5
    assert len(data.asked) == 2 * (1 + 5)


# -------------------------------------------------------------------------------------------- class tables

UNEVEN = {"a": 4, "b": 5, "c": 1, "d": 9}


@pytest.mark.parametrize(("least", "names"), [(1, "abcd"), (4, "abd"), (5, "bd"), (6, "d"), (10, "")], ids=str)
def test_a_class_table_has_the_classes_with_enough_inputs(least: int, names: str) -> None:
    settings = settings_with()
    table = site_with(NumberedData(UNEVEN), settings, min_count=least).class_table(first_request(settings))
    assert table.names == tuple(names) and table.counts == tuple(UNEVEN[name] for name in names)
    assert table.sums.shape == (len(names), plan_for(settings).agreed.embedding)


def test_a_class_table_holds_the_sums_of_embeddings_under_the_params_of_the_request(digit_sites: Path) -> None:
    settings = settings_with()
    site, first = site_on(digit_sites, settings), first_request(settings)
    moved = Request(1, (first.params * 1.5 + 0.1).astype(np.float32), first.slots, False)
    table = site.class_table(moved)
    plan = site.plan
    params = plan.params.unpack(torch.from_numpy(moved.params.copy()))
    everything = torch.cat([site.data.inputs(name, range(20)) for name in site.data.classes()])
    network = copy.deepcopy(plan.learner.network)
    network.load_state_dict({**network.state_dict(), **params})
    network.train()  # statistics of all inputs of the site together
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
    with torch.no_grad():
        network(everything)
        network.eval()
        expected = [network(site.data.inputs(name, range(20))).sum(0) for name in site.data.classes()]
    assert table.counts == (20,) * 10
    assert np.allclose(table.sums, torch.stack(expected).numpy(), rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------------------- what it reports


def test_all_figures_of_a_judgement_are_finite_and_agreed(digit_sites: Path) -> None:
    settings = settings_with()
    judged = site_on(digit_sites, settings).evaluate(first_request(settings))
    assert judged.scalars.keys() == SCALARS - {"num-examples", "inner-steps", "seconds"}
    assert all(type(value) is float and math.isfinite(value) for value in judged.scalars.values())
    assert judged.per_class.keys() <= {str(digit) for digit in range(10)}


def test_a_judgement_of_several_episodes_counts_each(digit_sites: Path) -> None:
    one, four = (settings_with(judge__episodes=number) for number in (1, 4))
    counts = [site_on(digit_sites, s).evaluate(first_request(s)).scalars["num-query"] for s in (one, four)]
    assert counts == [15, 60]


def test_a_private_site_reports_no_class_by_name(digit_sites: Path) -> None:
    settings = settings_with()
    site = site_on(digit_sites, settings, class_names=False)
    assert site.evaluate(first_request(settings)).per_class == {} and site.introduce().classes == {}


def test_figures_of_training_are_finite_and_agreed(digit_sites: Path) -> None:
    settings = settings_with()
    update = site_on(digit_sites, settings).train(first_request(settings, judge=True))
    assert update.scalars.keys() == SCALARS
    assert all(type(value) is float and math.isfinite(value) for value in update.scalars.values())
    assert update.scalars["seconds"] >= 0


# ------------------------------------------------------------------------------ networks and optimizers


def test_frozen_params_are_not_in_the_update(digit_sites: Path) -> None:
    settings = settings_with(inner__frozen="conv1.* norm?.bias")
    site = site_on(digit_sites, settings)
    names = [name for name, _ in site.plan.update.entries]
    assert names and not [name for name in names if name.startswith("conv1.") or name.endswith("norm1.bias")]
    whole = {name for name, _ in site.plan.params.entries}
    assert whole - set(names) == {"conv1.weight", "conv1.bias", *(f"norm{block}.bias" for block in range(1, 5))}
    assert site.train(first_request(settings)).delta.shape == (site.plan.update.size,)


def test_frozen_params_still_take_part_in_what_is_computed(digit_sites: Path) -> None:
    settings = settings_with(inner__frozen="conv1.*")
    site, first = site_on(digit_sites, settings), first_request(settings)
    params = first.params.copy()
    start = 0
    for name, shape in site.plan.params.entries:
        if name == "conv1.weight":
            params[start : start + math.prod(shape)] *= -1
        start += math.prod(shape)
    changed = site.train(Request(1, params, first.slots, False))
    assert not np.array_equal(changed.delta, site.train(first).delta)


def test_the_state_of_adam_travels_as_its_change(digit_sites: Path) -> None:
    settings = settings_with(inner__optimizer="adam", inner__learning_rate=0.01, inner__steps=3)
    site, first = site_on(digit_sites, settings), first_request(settings)
    carried = site.plan.slots.unpack(torch.full((site.plan.slots.size,), 0.25))
    carried["adam-steps"].fill_(7)
    slots = site.plan.slots.pack(carried).numpy()
    work = site.prepare(Request(1, first.params, slots, False))
    adapted = site.adapt(work)
    change = site.plan.slots.unpack(torch.from_numpy(site.reply(work, adapted).slots.copy()))
    assert change["adam-steps"].tolist() == [3] and adapted.slots["adam-steps"].tolist() == [10]
    for name, value in change.items():
        assert torch.equal(value, adapted.slots[name] - carried[name])
        if name.startswith("second-moment/"):
            # Without gradient a second moment of 0.25 decays by 0.999 a step; squared gradients only add to it.
            assert float(value.min()) >= 0.25 * (0.999**3 - 1) - 1e-6


def test_sgd_carries_no_state(digit_sites: Path) -> None:
    settings = settings_with()
    assert site_on(digit_sites, settings).train(first_request(settings)).slots.size == 0


@pytest.mark.parametrize("step", ["train", "evaluate", "class_table"])
def test_a_float64_network_of_a_users_own_works(digit_sites: Path, networks: str, step: str) -> None:
    settings = settings_with(model__network=f"{networks}:double", inner__learning_rate=0.01)
    site, request = site_on(digit_sites, settings), first_request(settings, judge=True)
    assert request.params.dtype == np.float64
    if step == "train":
        update = site.train(request)
        assert update.delta.dtype == np.float64 and np.abs(update.delta).max() > 0
    elif step == "evaluate":
        assert math.isfinite(site.evaluate(request).scalars["nll-after"])
    else:
        table = site.class_table(request)
        assert table.sums.dtype == np.float64 and table.sums.shape == (10, 6)


def test_a_device_that_is_not_there_is_an_error_of_the_settings(digit_sites: Path) -> None:
    with pytest.raises(SettingsError, match="device 'nonsense' cannot be used"):
        site_on(digit_sites, settings_with(), device="nonsense")


# ------------------------------------------------------------------------------------------------- threads


@pytest.mark.parametrize("count", [1, 2])
def test_a_site_computes_with_its_own_number_of_threads_and_restores_the_number_of_the_process(
    digit_sites: Path, networks: str, count: int
) -> None:
    settings = settings_with(model__network=f"{networks}:watched", inner__learning_rate=0.01)
    site, request = site_on(digit_sites, settings, threads=count), first_request(settings, judge=True)
    seen: list[int] = sys.modules[networks].SEEN
    with threads(3):
        for step in (site.train, site.evaluate, site.class_table):
            seen.clear()
            step(request)
            assert set(seen) == {count}, step.__name__
            assert torch.get_num_threads() == 3, step.__name__


def test_the_number_of_threads_is_restored_when_adapting_fails(
    digit_sites: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Tensor) -> None:
        assert torch.get_num_threads() == 2
        raise RuntimeError("out of memory")

    monkeypatch.setattr("client.site.adapt", fail)
    settings = settings_with()
    with threads(3):
        with pytest.raises(RuntimeError, match="out of memory"):
            site_on(digit_sites, settings, threads=2).train(first_request(settings))
        assert torch.get_num_threads() == 3
