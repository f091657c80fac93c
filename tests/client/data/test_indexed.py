"""Arrays with the rows of each class, and the site's own statistics."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from client.data.indexed import IndexedData, Standardisation, as_input

ROWS = {"scratch": np.array([2, 0]), "dent": np.array([1])}
numbers = st.floats(-1e6, 1e6, width=32) | st.just(float("nan"))


def test_classes_come_sorted_with_their_own_rows() -> None:
    pixels = np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1) * 100
    data = IndexedData(pixels, ROWS)
    assert data.classes() == ["dent", "scratch"]
    assert (data.count("scratch"), data.count("dent")) == (2, 1)
    assert data.inputs("scratch", [0, 1]).flatten().tolist() == pytest.approx([200 / 255, 0])


@pytest.mark.parametrize("rows", [[-1], [2], [0, 5]])
def test_a_row_that_a_class_does_not_have_is_refused(rows: list[int]) -> None:
    with pytest.raises(IndexError, match="class with 2 inputs"):
        IndexedData(np.zeros((3, 1, 1, 1), np.uint8), ROWS).inputs("scratch", rows)


@pytest.mark.parametrize(("dtype", "white"), [(np.uint8, 255), (np.uint16, 65535)])
def test_grey_levels_of_both_depths_come_out_between_0_and_1(dtype: type, white: int) -> None:
    found = as_input(np.array([[[[0, white]]]], dtype=dtype), None)
    assert found.dtype == torch.float32
    assert found.flatten().tolist() == [0.0, 1.0]


def test_numbers_without_statistics_are_not_taken_for_inputs() -> None:
    with pytest.raises(ValueError, match="standardisation"):
        as_input(np.ones((1, 2), np.float32), None)


@given(arrays(np.float32, (7, 3), elements=numbers))
def test_standardised_numbers_have_mean_0_and_deviation_1_and_missing_ones_are_the_mean(values: np.ndarray) -> None:
    found = Standardisation.of(values, np.ones(3, bool)).apply(values).numpy()
    assert np.isfinite(found).all()
    known = np.isfinite(values)
    assert (found[~known] == 0).all()
    for column, there in zip(found.T, known.T, strict=True):
        if there.any():
            assert abs(column[there].mean()) < 1e-2
            assert column[there].std() == pytest.approx(1, abs=1e-2) or np.ptp(column[there]) < 1e-2 + 1e-5 * 1e6


def test_places_that_are_not_numbers_stay_as_they_are() -> None:
    values = np.array([[10, 0], [20, 1], [30, 1]], dtype=np.float32)
    measured = Standardisation.of(values, np.array([True, False]))
    assert measured.apply(values)[:, 1].tolist() == [0, 1, 1]
    assert measured.apply(values)[:, 0].tolist() == pytest.approx([-1.2247, 0, 1.2247], abs=1e-4)


def test_a_number_that_never_varies_becomes_0_and_not_infinite() -> None:
    measured = Standardisation.of(np.full((4, 1), 7, np.float32), np.ones(1, bool))
    assert measured.apply(np.array([[7], [9]], np.float32)).flatten().tolist() == [0, 2]


def test_a_number_that_the_site_never_has_is_0_at_all_its_rows() -> None:
    measured = Standardisation.of(np.full((4, 1), np.nan, np.float32), np.ones(1, bool))
    assert measured.apply(np.full((2, 1), np.nan, np.float32)).flatten().tolist() == [0, 0]


def test_a_number_that_the_site_never_had_says_nothing_when_it_comes() -> None:
    measured = Standardisation.of(np.full((4, 1), np.nan, np.float32), np.ones(1, bool))
    assert measured.apply(np.array([[60.0]])).flatten().tolist() == [0]


def test_standardised_numbers_can_be_shown_as_they_were_read() -> None:
    values = np.array([[150, 1.5], [170, 2.5], [190, 9]], dtype=np.float32)
    measured = Standardisation.of(values, np.ones(2, bool))
    np.testing.assert_allclose(measured.undo(measured.apply(values)), values, rtol=1e-5)
