"""Episodes from a site whose every input is a different number, so that it is known which were drawn."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from common.errors import SiteDataError
from common.learning.episode import Episode, Examples, all_of, examples_of, sample_episode


class Numbered:
    """Class number c has the inputs 100 c, 100 c + 1, ..."""

    def __init__(self, counts: Mapping[str, int]) -> None:
        self.counts = dict(sorted(counts.items()))

    def classes(self) -> Sequence[str]:
        return list(self.counts)

    def count(self, name: str) -> int:
        return self.counts[name]

    def inputs(self, name: str, rows: Sequence[int]) -> Tensor:
        assert all(0 <= row < self.counts[name] for row in rows)
        first = 100.0 * self.classes().index(name)
        return torch.tensor([first + row for row in rows]).view(len(rows), 1, 1, 1).expand(len(rows), 1, 2, 2)


EQUAL = Numbered(dict.fromkeys("abcde", 20))


def draw(data: Numbered, way: int, shot: int, query: int, seed: int = 0) -> Episode:
    return sample_episode(data, way, shot, query, torch.Generator().manual_seed(seed))


def values(examples: Examples) -> list[int]:
    return [int(value) for value in examples.inputs[:, 0, 0, 0].tolist()]


def by_class(episode: Episode, examples: Examples) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {name: [] for name in episode.classes}
    for value, label in zip(values(examples), examples.labels.tolist(), strict=True):
        found[episode.classes[label]].append(value)
    return found


sites = st.dictionaries(st.sampled_from("abcdefg"), st.integers(1, 9), min_size=2)


@given(sites, st.integers(2, 8), st.integers(1, 6), st.integers(0, 4), st.integers(0, 99))
def test_an_episode_has_disjoint_support_and_query_of_the_agreed_sizes(
    counts: dict[str, int], way: int, shot: int, query: int, seed: int
) -> None:
    data = Numbered(counts)
    episode = draw(data, way, shot, query, seed)
    classes = min(way, len(counts))
    assert len(set(episode.classes)) == len(episode.classes) == episode.support.way == episode.query.way == classes
    drawn = values(episode.support) + values(episode.query)
    assert len(set(drawn)) == len(drawn)  # without replacement
    support, queries = by_class(episode, episode.support), by_class(episode, episode.query)
    for name in episode.classes:
        own = range(100 * data.classes().index(name), 100 * data.classes().index(name) + counts[name])
        assert set(support[name] + queries[name]) <= set(own)
        given_support = min(shot, max(1, counts[name] - query))
        assert len(support[name]) == given_support
        assert len(queries[name]) == min(query, counts[name] - given_support)


def test_labels_are_numbered_from_0_and_inputs_keep_their_shape() -> None:
    episode = draw(EQUAL, 3, 4, 2)
    assert episode.support.inputs.shape == (12, 1, 2, 2)
    assert episode.support.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert episode.query.labels.tolist() == [0] * 2 + [1] * 2 + [2] * 2
    assert episode.support.labels.dtype == torch.int64
    assert (len(episode.support), len(episode.query)) == (12, 6)


def test_each_class_gets_each_label_equally_often_over_many_episodes() -> None:
    draws = 1000
    seen = Counter(
        (name, label) for seed in range(draws) for label, name in enumerate(draw(EQUAL, 5, 1, 0, seed).classes)
    )
    expected = draws / 5
    assert len(seen) == 25
    assert all(abs(count - expected) < 5 * math.sqrt(draws * 0.2 * 0.8) for count in seen.values())


def test_each_class_takes_part_equally_often_and_each_input_too() -> None:
    draws = 600
    episodes = [draw(EQUAL, 2, 1, 0, seed) for seed in range(draws)]
    part = Counter(name for episode in episodes for name in episode.classes)
    assert all(abs(part[name] - draws * 0.4) < 5 * math.sqrt(draws * 0.4 * 0.6) for name in "abcde")
    inputs = Counter(value % 100 for episode in episodes for value in values(episode.support))
    assert all(abs(inputs[row] - 2 * draws / 20) < 5 * math.sqrt(2 * draws / 20) for row in range(20))


@pytest.mark.parametrize("query", [0, 1, 5, 15])
def test_the_support_set_is_the_same_whatever_the_query_is(query: int) -> None:
    for seed in range(20):
        with_query, without = draw(EQUAL, 3, 5, query, seed), draw(EQUAL, 3, 5, 0, seed)
        assert with_query.classes == without.classes
        assert torch.equal(with_query.support.inputs, without.support.inputs)


def test_a_larger_support_set_begins_with_the_smaller_one() -> None:
    small, large = draw(EQUAL, 3, 2, 0), draw(EQUAL, 3, 5, 0)
    for name in small.classes:
        assert by_class(large, large.support)[name][:2] == by_class(small, small.support)[name]


@pytest.mark.parametrize(
    ("count", "shot", "query", "support", "queries"),
    [
        (10, 5, 5, 5, 5),
        (9, 5, 5, 4, 5),
        (6, 5, 5, 1, 5),
        (5, 5, 5, 1, 4),
        (2, 5, 5, 1, 1),
        (1, 5, 5, 1, 0),
        (3, 5, 0, 3, 0),
    ],
)
def test_a_class_with_few_inputs_keeps_its_query_and_gives_the_rest(
    count: int, shot: int, query: int, support: int, queries: int
) -> None:
    episode = draw(Numbered({"few": count, "many": 50}), 2, shot, query)
    assert len(by_class(episode, episode.support)["few"]) == support
    assert len(by_class(episode, episode.query)["few"]) == queries
    assert len(by_class(episode, episode.support)["many"]) == shot


def test_a_site_with_fewer_classes_than_way_uses_all() -> None:
    assert sorted(draw(Numbered({"a": 3, "b": 3}), 5, 1, 1).classes) == ["a", "b"]


@pytest.mark.parametrize("counts", [{}, {"only": 50}], ids=["no class", "one class"])
def test_a_site_with_fewer_than_two_classes_is_refused(counts: dict[str, int]) -> None:
    with pytest.raises(SiteDataError, match=f"{len(counts)} class"):
        draw(Numbered(counts), 2, 1, 1)


def test_the_same_generator_draws_the_same_episode_and_goes_on_to_another() -> None:
    generator = torch.Generator().manual_seed(3)
    first, second = (sample_episode(EQUAL, 3, 5, 5, generator) for _ in range(2))
    again = draw(EQUAL, 3, 5, 5, seed=3)
    assert (again.classes, values(again.support)) == (first.classes, values(first.support))
    assert values(second.support) != values(first.support)


def test_the_global_random_state_plays_no_part() -> None:
    state = torch.random.get_rng_state()
    first = draw(EQUAL, 3, 5, 5)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(99)
    assert values(draw(EQUAL, 3, 5, 5).support) == values(first.support)


def test_inputs_of_classes_are_stacked_in_label_order() -> None:
    found = examples_of([torch.full((n, 1, 2, 2), float(n)) for n in (2, 0, 3)])
    assert found.labels.tolist() == [0, 0, 2, 2, 2]
    assert values(found) == [2, 2, 3, 3, 3]
    assert found.way == 3


def test_all_of_a_site_is_a_support_set_with_an_empty_query_set() -> None:
    episode = all_of(Numbered({"b": 2, "a": 3}))
    assert episode.classes == ("a", "b")
    assert values(episode.support) == [0, 1, 2, 100, 101]
    assert episode.support.labels.tolist() == [0, 0, 0, 1, 1]
    assert (len(episode.query), episode.query.way, episode.query.inputs.shape) == (0, 2, (0, 1, 2, 2))


def test_examples_move_to_a_device_with_their_labels() -> None:
    moved = draw(EQUAL, 2, 1, 0).support.to("meta")
    assert (moved.inputs.device.type, moved.labels.device.type, moved.way) == ("meta", "meta", 2)


def test_examples_become_numbers_of_another_type_with_their_labels_as_they_are() -> None:
    support = draw(EQUAL, 2, 1, 0).support
    found = support.to(dtype=torch.float64)
    assert (found.inputs.dtype, found.labels.dtype, found.way) == (torch.float64, torch.int64, 2)
    assert values(found) == values(support)


class Shifted(Numbered):
    """The same classes with other inputs: 50 more each."""

    def inputs(self, name: str, rows: Sequence[int]) -> Tensor:
        return super().inputs(name, rows) + 50


def test_what_a_site_held_back_is_judged_with_a_support_from_what_it_trained_on() -> None:
    held_back, trained = Shifted({"a": 4, "b": 3, "new": 9}), Numbered({"a": 10, "b": 2, "gone": 5})
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        episode = sample_episode(held_back, 5, 3, 4, generator, trained)
        assert sorted(episode.classes) == ["a", "b", "new"]
        support, query = by_class(episode, episode.support), by_class(episode, episode.query)
        assert {name: (len(support[name]), len(query[name])) for name in support} == {
            "a": (3, 4),
            "b": (2, 3),
            "new": (3, 4),
        }
        assert all(value % 100 < 50 for name in ("a", "b") for value in support[name])
        assert all(value % 100 >= 50 for name in ("a", "b") for value in query[name])
        assert not set(support["new"]) & set(query["new"])


def test_a_class_can_be_in_every_episode_and_the_others_are_drawn_as_ever() -> None:
    data = Numbered(dict.fromkeys("abcdefgh", 9))
    firsts = set()
    for seed in range(40):
        plain, always = (
            sample_episode(data, 3, 2, 1, torch.Generator().manual_seed(seed), always=name) for name in ("", "h")
        )
        assert "h" in always.classes and len(set(always.classes)) == 3
        assert always.classes == (plain.classes if "h" in plain.classes else (*plain.classes[:2], "h"))
        firsts |= set(always.classes)
    assert firsts == set("abcdefgh")


def test_a_class_that_the_site_does_not_have_changes_nothing() -> None:
    data = Numbered(dict.fromkeys("abcd", 9))
    for seed in range(5):
        plain, always = (
            sample_episode(data, 3, 2, 1, torch.Generator().manual_seed(seed), always=name) for name in ("", "z")
        )
        assert always.classes == plain.classes and torch.equal(always.support.inputs, plain.support.inputs)
