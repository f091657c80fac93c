"""The manifest, both ways, and what makes two manifests differ."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from common.errors import SettingsError
from common.learning.params import Manifest, difference, on_device, select

shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
layouts = st.dictionaries(st.text(max_size=8), shapes, max_size=6)
dtypes = st.sampled_from([torch.float32, torch.float64])


def filled(layout: dict[str, tuple[int, ...]], dtype: torch.dtype) -> dict[str, Tensor]:
    """Params of these shapes whose elements are numbered through."""
    params, start = {}, 0
    for name, shape in layout.items():
        stop = start + math.prod(shape)
        params[name] = torch.arange(start, stop, dtype=dtype).view(shape)
        start = stop
    return params


@given(layouts, dtypes)
def test_unpacking_what_was_packed_gives_the_params_back(
    layout: dict[str, tuple[int, ...]], dtype: torch.dtype
) -> None:
    params = filled(layout, dtype)
    manifest = Manifest.of(params)
    back = manifest.unpack(manifest.pack(params))
    assert list(back) == list(params)
    assert all(torch.equal(back[name], value) and back[name].shape == value.shape for name, value in params.items())
    assert not params or {value.dtype for value in back.values()} == {dtype}


@given(layouts, dtypes)
def test_packing_lays_the_elements_out_in_the_order_of_the_names(
    layout: dict[str, tuple[int, ...]], dtype: torch.dtype
) -> None:
    params = filled(layout, dtype)
    manifest = Manifest.of(params)
    flat = manifest.pack(params)
    assert manifest.size == sum(math.prod(shape) for shape in layout.values())
    assert flat.tolist() == list(range(manifest.size))
    assert manifest.entries == tuple(layout.items())
    assert manifest.dtype == (str(dtype).removeprefix("torch.") if layout else "float32")
    assert torch.equal(manifest.pack(dict(reversed(params.items()))), flat)


def test_packing_copies_and_unpacking_does_not() -> None:
    params = {"w": torch.zeros(2, 2), "b": torch.zeros(())}
    manifest = Manifest.of(params)
    flat = manifest.pack(params)
    flat += 1
    assert not params["w"].any()
    manifest.unpack(flat)["b"].fill_(9)
    assert flat[-1] == 9


def test_one_param_is_copied_too() -> None:
    params = {"w": torch.zeros(3)}
    flat = Manifest.of(params).pack(params)
    flat += 1
    assert not params["w"].any()


def test_packing_takes_params_that_are_not_contiguous_or_want_gradients() -> None:
    whole = torch.arange(6.0).view(2, 3)
    params = {"turned": whole.T, "learned": torch.ones(2, requires_grad=True)}
    flat = Manifest.of(params).pack(params)
    assert flat.tolist() == [0, 3, 1, 4, 2, 5, 1, 1]
    assert not flat.requires_grad


def test_packing_needs_every_name_and_ignores_others() -> None:
    manifest = Manifest.of({"w": torch.zeros(1)})
    assert manifest.pack({"w": torch.ones(1), "other": torch.zeros(5)}).tolist() == [1]
    with pytest.raises(KeyError):
        manifest.pack({"other": torch.zeros(5)})


UNUSABLE = {
    "half": [torch.float16],
    "bfloat16": [torch.bfloat16],
    "whole numbers": [torch.int64],
    "truth values": [torch.bool],
    "complex numbers": [torch.complex64],
    "float32 and float64": [torch.float32, torch.float64],
    "float32 and int64": [torch.float32, torch.int64],
}


@pytest.mark.parametrize("kinds", UNUSABLE.values(), ids=UNUSABLE.keys())
def test_params_of_mixed_or_other_types_are_refused_and_the_types_named(kinds: list[torch.dtype]) -> None:
    params = {str(place): torch.zeros(1, dtype=kind) for place, kind in enumerate(kinds)}
    with pytest.raises(SettingsError) as caught:
        Manifest.of(params)
    assert all(str(kind) in str(caught.value) for kind in kinds)


def test_no_params_are_a_manifest_of_size_0() -> None:
    manifest = Manifest.of({})
    assert (manifest.entries, manifest.size, manifest.dtype) == ((), 0, "float32")
    assert manifest.pack({}).shape == (0,)
    assert manifest.unpack(torch.empty(0)) == {}
    assert Manifest((), "float64").pack({}).dtype == torch.float64


BASE = Manifest((("w", (2, 3)), ("b", (3,))), "float32")

OTHERS = {
    "a name": Manifest((("v", (2, 3)), ("b", (3,))), "float32"),
    "a shape": Manifest((("w", (3, 2)), ("b", (3,))), "float32"),
    "the rank": Manifest((("w", (6,)), ("b", (3,))), "float32"),
    "the order": Manifest((("b", (3,)), ("w", (2, 3))), "float32"),
    "the dtype": Manifest((("w", (2, 3)), ("b", (3,))), "float64"),
    "one entry more": Manifest((("w", (2, 3)), ("b", (3,)), ("c", ())), "float32"),
    "one entry less": Manifest((("w", (2, 3)),), "float32"),
    "what is swapped between names": Manifest((("w", (3,)), ("b", (2, 3))), "float32"),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS.keys())
def test_the_digest_tells_apart_manifests_that_differ_in(other: Manifest) -> None:
    assert other.digest != BASE.digest


def test_equal_manifests_have_equal_digests_that_do_not_depend_on_values() -> None:
    ones, twos = ({"w": torch.full((2, 3), value), "b": torch.full((3,), value)} for value in (1.0, 2.0))
    assert Manifest.of(ones).digest == Manifest.of(twos).digest == BASE.digest
    assert len(bytes.fromhex(BASE.digest)) == 256 // 8


def test_selecting_keeps_the_order_of_the_names_asked_for() -> None:
    params = {"a": torch.zeros(1), "b": torch.ones(1), "c": torch.ones(1)}
    found = select(params, ["c", "a"])
    assert list(found) == ["c", "a"]
    assert found["c"] is params["c"]


def test_a_difference_is_adapted_minus_initial_for_what_was_adapted() -> None:
    initial = {"frozen": torch.tensor([9.0]), "w": torch.tensor([1.0, 5.0])}
    adapted = {"w": torch.tensor([4.0, 3.0])}
    found = difference(adapted, initial)
    assert list(found) == ["w"]
    assert found["w"].tolist() == [4.0 - 1.0, 3.0 - 5.0]
    assert adapted["w"].tolist() == [4.0, 3.0]


def test_params_that_are_on_a_device_already_are_shared() -> None:
    params = {"w": torch.zeros(2)}
    assert on_device(params, "cpu")["w"] is params["w"]
    moved = on_device(params, "meta")["w"]
    assert (moved.device.type, moved.shape) == ("meta", (2,))
