"""The difference of two releases leads to the very bytes of the whole one, or is refused."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from common.errors import CheckpointError
from common.releases.artefact import Artefact, decode, encode
from common.releases.delta import Difference, apply_delta, cost_of, difference_of, encode_delta, rounding_error
from tests.common.releases.small import artefact

KINDS = ("int8", "bf16")


def released(kind: str, **more: Any) -> tuple[bytes, Artefact, bytes, Difference]:
    """Return the file of a release, its rounded successor, the difference's file and the difference."""
    before, after = artefact(1, **more), artefact(2, **more)
    data = encode(before)
    difference = difference_of(before.params, after.params, kind)
    rounded = replace(after, params=difference.applied_to(before.params))
    return data, rounded, encode_delta(difference, data, rounded), difference


@pytest.mark.parametrize("kind", KINDS)
def test_the_difference_gives_the_whole_release_to_the_byte(kind: str) -> None:
    before, rounded, delta, _ = released(kind)
    assert apply_delta(before, delta, "x") == encode(rounded)
    assert encode(decode(apply_delta(before, delta, "x"), "y")) == encode(rounded)


def test_the_inner_optimizers_state_goes_along_whole() -> None:
    before, rounded, delta, _ = released("int8", inner__optimizer="adam")
    assert apply_delta(before, delta, "x") == encode(rounded)


def test_the_difference_is_small() -> None:
    before, after = (artefact(seed, model__width=200, model__depth=3) for seed in (1, 2))
    sizes = {}
    for kind in KINDS:
        difference = difference_of(before.params, after.params, kind)
        rounded = replace(after, params=difference.applied_to(before.params))
        sizes[kind] = len(encode_delta(difference, encode(before), rounded)) / len(encode(rounded))
    assert sizes["int8"] < 0.29
    assert sizes["bf16"] < 0.54


def test_rounding_loses_little_and_says_how_much() -> None:
    before, after = artefact(1).params, artefact(2).params
    for kind, most in (("int8", 0.01), ("bf16", 0.003)):
        rounded = difference_of(before, after, kind).applied_to(before)
        assert 0 < rounding_error(before, after, rounded) < most
    assert rounding_error(before, before, before) == 0


def test_the_cost_is_what_a_judge_says_of_both() -> None:
    before, after = artefact(1).params, artefact(2).params
    rounded = difference_of(before, after).applied_to(before)
    cost = cost_of(lambda params: 0.9 if params is after else 0.88, after, rounded)
    assert (cost.exact, cost.rounded, round(cost.lost, 6)) == (0.9, 0.88, 0.02)


def test_a_param_that_did_not_move_stays_as_it_was() -> None:
    before = artefact(1).params
    for kind in KINDS:
        same = difference_of(before, before, kind).applied_to(before)
        assert all(torch.equal(same[name], value) for name, value in before.items())


def test_rounding_again_from_the_same_params_is_the_same() -> None:
    assert released("int8")[2] == released("int8")[2]


def test_a_difference_from_another_release_is_refused() -> None:
    _, _, delta, _ = released("int8")
    with pytest.raises(CheckpointError, match="starts from another release"):
        apply_delta(encode(artefact(3)), delta, "x")


def test_params_other_than_the_rounded_ones_are_not_published_with_a_difference() -> None:
    before, _, _, difference = released("int8")
    with pytest.raises(CheckpointError, match="does not lead to the release"):
        encode_delta(difference, before, artefact(2))


def test_a_changed_difference_is_refused() -> None:
    before, _, delta, _ = released("int8")
    for place in (200, len(delta) // 2, len(delta) - 1):
        wrong = bytearray(delta)
        wrong[place] ^= 1
        with pytest.raises(CheckpointError):
            apply_delta(before, bytes(wrong), "x")
    with pytest.raises(CheckpointError):
        apply_delta(before, delta[:-1], "x")


def test_different_networks_have_no_difference() -> None:
    before, after = artefact(1).params, artefact(2, model__width=6).params
    with pytest.raises(CheckpointError, match="another shape"):
        difference_of(before, after)
    with pytest.raises(CheckpointError, match="different networks"):
        difference_of(before, {})
    with pytest.raises(CheckpointError, match="cannot be of kind"):
        difference_of(before, before, "int4")


def test_a_difference_that_is_not_finite_is_refused() -> None:
    before = artefact(1).params
    with pytest.raises(CheckpointError, match="not finite"):
        difference_of(before, {name: value * float("inf") for name, value in before.items()})
